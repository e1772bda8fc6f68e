"""One gene file and a small ONNX graph per size that computes its weights from it: a device downloads the gene once.

The gene file itself is the external data of every graph: its tensors lie in it as ONNX wants them. ONNX Runtime folds
what the graph computes of them when a session starts, and runs what an expanded descendant would.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from learngene.devices.check import agreement, check_images
from learngene.devices.grown_page import grown_page
from learngene.devices.one_graph import DEPTH
from learngene.devices.one_graph import one_graph as one_graph_of
from learngene.devices.onnxruntime import OnnxRuntime, load_session
from learngene.devices.target import Session
from learngene.genes.expansion import with_heads
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import GeneHeader, read_header
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_read_only, write_folder
from learngene.system.records import Record
from learngene.vits.onnx_export import write_onnx
from learngene.vits.shape import ViTShape

GENE, RECORD, PAGE, GRAPHS = "gene.safetensors", "grow.json", "index.html", "*depth*.onnx"

BOUND = 1e-5
"""Largest accepted difference of a logit from the expanded descendant's, relative to the largest logit."""


class Grown(Record):
    """What stands in the folder, as ``grow.json``.

    Attributes:
        gene: Bytes of the gene file.
        graphs: Bytes of every graph.
        differences: From the expanded descendant's logits, per graph.
        versions: Of what wrote it.
    """

    kind: ClassVar[str] = "learngene-grown-files"
    version: ClassVar[int] = 1
    noun: ClassVar[str] = "a record of a gene's graphs"

    gene: int
    graphs: dict[str, int]
    differences: dict[str, float]
    versions: dict[str, str]

    @property
    def ratio(self) -> float:
        """All bytes in those of the gene."""
        return (self.gene + sum(self.graphs.values())) / self.gene


class _At(nn.Module):
    """A gene that computes at one shape."""

    def __init__(self, gene: Learngene, shape: Any) -> None:
        super().__init__()
        self.gene, self.shape = gene, shape
        gene.skeleton(shape)  # outside of the trace

    def forward(self, images: Tensor) -> Any:
        return self.gene(images, self.shape)


def grow(
    gene: str | Path, out: str | Path, sizes: Sequence[int | tuple[int, int]], *, one_graph: bool = False
) -> Grown:
    """Writes a folder with the gene file and a small graph for every size, each run and compared.

    ``index.html`` there is a page with a slider over the sizes, for ONNX Runtime Web; models that take other images
    than square ones in grey or colour get none.

    Args:
        gene: The gene file; in float16 or bfloat16 all is half as large.
        out: The folder.
        sizes: Depths, or widths and depths.
        one_graph: Write one graph, ``depths.onnx``, with the depth as an input, and no page.

    Raises:
        LearngeneError: If the gene cannot be made so, or holds no whole model, or a graph's logits are not those of the
            expanded descendant.
    """
    gene, out = Path(gene), Path(out)
    target = OnnxRuntime()
    target.refuse("fp32")
    refuse_read_only(out.parent)
    refuse_foreign(out, RECORD)
    if out.exists() and any(out.iterdir()):
        Grown.read(out / RECORD)  # refuses a file of that name that is another's
    if not sizes:
        raise LearngeneError("export: --grow names the sizes, such as 3,6,9,12, or 32x4,64x8")
    loaded = Learngene.load(gene).eval()
    shapes = _shapes(loaded, sizes)
    wide = len({shape.embed_dim for shape in shapes}) > 1
    if wide and one_graph:
        raise LearngeneError("export: --one-graph has the depth as its input; give --grow depths of one width")
    models = {shape: loaded.expand(shape) for shape in shapes}
    header, unlike = read_header(gene), copy.deepcopy(loaded)
    for tensor in unlike.parameters():  # the exporter merges tensors that are alike, such as zeros
        torch.nn.init.uniform_(tensor)
    graphs: dict[str, int] = {}
    differences: dict[str, float] = {}

    def write(folder: Path) -> None:
        shutil.copyfile(gene, folder / GENE)
        width = "width-{}-" if wide else ""
        files = {shape: folder / f"{width.format(shape.embed_dim)}depth-{shape.depth}.onnx" for shape in shapes}
        for shape, file in files.items():
            images = torch.randn(2, shape.in_chans, shape.img_size, shape.img_size)
            write_onnx(_At(unlike, shape), images, file, fold=False)
            _share(file, header)
        if one_graph:
            files = dict.fromkeys(files, _joined({shape.depth: file for shape, file in files.items()}))
        for shape, file in files.items():
            session = _session(file, {DEPTH: np.array(shape.depth)} if one_graph else {})
            found = agreement(models[shape], session, check_images(models[shape], None, 8), 8)
            if not found.relative_difference <= BOUND:
                raise LearngeneError(
                    f"export: the graph of {shape.size} gives logits that differ by {found.largest_difference:.2g} "
                    "from the descendant's; nothing was written"
                )
            graphs[file.name] = file.stat().st_size
            differences[file.name] = max(found.largest_difference, differences.get(file.name, 0.0))
        record = Grown(gene=gene.stat().st_size, graphs=graphs, differences=differences, versions=target.versions())
        record.write(folder / RECORD)
        named = {f"{shape.embed_dim} x {shape.depth}" if wide else shape.depth: file for shape, file in files.items()}
        page = None if one_graph else grown_page(next(iter(models.values())), record.gene, named)
        if page is not None:
            (folder / PAGE).write_text(page, encoding="utf-8")

    write_folder(out, (RECORD, GENE, PAGE, GRAPHS), write)
    return Grown.read(out / RECORD)


def _shapes(gene: Learngene, sizes: Sequence[int | tuple[int, int]]) -> list[ViTShape]:
    """The shapes of some sizes, the smallest first, each once; a depth alone has the gene's own width."""
    pairs = sorted({size if isinstance(size, tuple) else (gene.shape.embed_dim, size) for size in sizes})
    own = gene.shape.embed_dim
    widths = {width: {} if width == own else with_heads(gene, {"embed_dim": width}) for width, _ in pairs}
    return [gene.shape.replace(depth=depth, **widths[width]) for width, depth in pairs]


def _joined(files: Mapping[int, Path]) -> Path:
    """The file with the one graph that is made of those of all depths, which go."""
    import onnx

    models = {depth: onnx.load(str(file), load_external_data=False) for depth, file in files.items()}
    path = next(iter(files.values())).with_name("depths.onnx")
    onnx.save(one_graph_of(models), str(path))
    for file in files.values():
        file.unlink()
    return path


def _session(file: Path, feeds: Mapping[str, Any]) -> Session:
    session = load_session(file)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy(), **feeds})[0])

    return Session(run, "fp32", {})


def _share(file: Path, header: GeneHeader) -> None:
    """Makes a graph read the gene's tensors from the gene file, and drops what no runtime needs."""
    import onnx
    from onnx import TensorProto, helper

    types = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
    model = onnx.load(str(file))
    graph = model.graph
    weights: list[TensorProto] = []
    nodes = []
    for weight in graph.initializer:
        entry = header.tensors.get(weight.name.removeprefix("gene."))
        if entry is None:
            weights.append(weight)
            continue
        name = weight.name if entry.dtype == "F32" else f"{weight.name}:stored"
        outside = TensorProto(name=name, data_type=types[entry.dtype], dims=entry.shape)
        outside.data_location = TensorProto.EXTERNAL
        place = {"location": GENE, "offset": header.data_start + entry.begin, "length": entry.end - entry.begin}
        for key, value in place.items():
            outside.external_data.add(key=key, value=str(value))
        weights.append(outside)
        if name != weight.name:
            nodes.append(helper.make_node("Cast", [name], [weight.name], to=TensorProto.FLOAT))
    nodes += graph.node
    for node in nodes:
        for field in ("metadata_props", "doc_string", "name"):
            node.ClearField(field)
    for part, values in ((graph.initializer, weights), (graph.node, nodes), (graph.value_info, [])):
        del part[:]
        part.extend(values)
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    onnx.save(model, str(file))
