"""One gene file and a small ONNX graph per depth that computes its weights from it: a device downloads the gene once.

The gene file itself is the external data of every graph: its tensors lie in it as ONNX wants them. ONNX Runtime folds
what the graph computes of them when a session starts, and runs what an expanded descendant would.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from learngene.devices.check import agreement, check_images
from learngene.devices.grown_page import grown_page
from learngene.devices.onnxruntime import OnnxRuntime
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import GeneHeader, read_header
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_read_only, write_folder
from learngene.system.records import Record
from learngene.vits.onnx_export import write_onnx

GENE, RECORD, PAGE, GRAPHS = "gene.safetensors", "grow.json", "index.html", "depth-*.onnx"

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


def grow(gene: str | Path, out: str | Path, depths: Sequence[int]) -> Grown:
    """Writes a folder with the gene file and a graph ``depth-D.onnx`` for every depth, each run and compared.

    ``index.html`` there is a page with a slider over the depths, for ONNX Runtime Web; models that take other images
    than square ones in grey or colour get none.

    Args:
        gene: The gene file; in float16 or bfloat16 all is half as large.
        out: The folder.
        depths: Layers of each graph.

    Raises:
        LearngeneError: If the gene cannot be made so deep, or holds no whole model, or a graph's logits are not those
            of the expanded descendant.
    """
    gene, out = Path(gene), Path(out)
    target = OnnxRuntime()
    target.refuse("fp32")
    refuse_read_only(out.parent)
    refuse_foreign(out, RECORD)
    if out.exists() and any(out.iterdir()):
        Grown.read(out / RECORD)  # refuses a file of that name that is another's
    if not depths:
        raise LearngeneError("export: --grow names the depths, such as 3,6,9,12")
    loaded = Learngene.load(gene).eval()
    models = {depth: loaded.expand(depth) for depth in sorted(set(depths))}
    header, unlike = read_header(gene), copy.deepcopy(loaded)
    for tensor in unlike.parameters():  # the exporter merges tensors that are alike, such as zeros
        torch.nn.init.uniform_(tensor)
    graphs: dict[str, int] = {}
    differences: dict[str, float] = {}

    def write(folder: Path) -> None:
        shutil.copyfile(gene, folder / GENE)
        for depth, model in models.items():
            file = folder / f"depth-{depth}.onnx"
            shape = loaded.shape.replace(depth=depth)
            images = torch.randn(2, shape.in_chans, shape.img_size, shape.img_size)
            write_onnx(_At(unlike, shape), images, file, fold=False)
            _share(file, header)
            found = agreement(model, target.open(file, "fp32"), check_images(model, None, 8), 8)
            if not found.relative_difference <= BOUND:
                raise LearngeneError(
                    f"export: the graph of depth {depth} gives logits that differ by {found.largest_difference:.2g} "
                    "from the descendant's; nothing was written"
                )
            graphs[file.name], differences[file.name] = file.stat().st_size, found.largest_difference
        record = Grown(gene=gene.stat().st_size, graphs=graphs, differences=differences, versions=target.versions())
        record.write(folder / RECORD)
        files = zip(models, graphs.items(), strict=True)
        page = grown_page(next(iter(models.values())), record.gene, dict(files))
        if page is not None:
            (folder / PAGE).write_text(page, encoding="utf-8")

    write_folder(out, (RECORD, GENE, PAGE, GRAPHS), write)
    return Grown.read(out / RECORD)


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
