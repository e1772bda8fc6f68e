"""One gene file and a small graph per depth that computes its weights from it."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from learngene import load, scratch
from learngene.devices.check import check_images
from learngene.devices.grow import Grown, grow
from learngene.devices.grown_page import grown_page
from learngene.system.errors import LearngeneError
from pico import CLI, batch, pico_gene, pico_shape


def logits(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize(("name", "dtype"), [("tleg", "float32"), ("tleg", "float16"), ("sws", "bfloat16")])
def test_graphs_compute_what_descendants_do_from_the_one_gene_file(name: str, dtype: str, tmp_path: Path) -> None:
    pico_gene(name).save(tmp_path / "gene.safetensors", dtype=dtype)
    depths = [2, 4] if name == "tleg" else [load(tmp_path / "gene.safetensors").shape.depth]
    said = grow(tmp_path / "gene.safetensors", tmp_path / "out", depths)
    names = [f"depth-{depth}.onnx" for depth in depths]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *names,
        "gene.safetensors",
        "grow.json",
        "index.html",
    ]
    assert Grown.read(tmp_path / "out" / "grow.json") == said
    assert (tmp_path / "out" / "gene.safetensors").read_bytes() == (tmp_path / "gene.safetensors").read_bytes()
    inputs = batch(pico_shape(), 3)
    for depth, file in zip(depths, names, strict=True):
        model = load(tmp_path / "gene.safetensors").expand(depth)
        np.testing.assert_allclose(logits(tmp_path / "out" / file, inputs), model(inputs).detach().numpy(), atol=1e-5)
        inside = [
            tensor
            for tensor in onnx.load(str(tmp_path / "out" / file), load_external_data=False).graph.initializer
            if tensor.data_location != onnx.TensorProto.EXTERNAL
        ]
        assert sum(int(np.prod(tensor.dims)) for tensor in inside) < 64  # shapes and factors, no weights


@pytest.mark.parametrize(("name", "dtype"), [("tleg", "float32"), ("tleg", "float16")])
def test_one_graph_takes_the_depth_as_an_input(name: str, dtype: str, cli: CLI, tmp_path: Path) -> None:
    pico_gene(name).save(tmp_path / "gene.safetensors", dtype=dtype)
    done = cli("export", tmp_path / "gene.safetensors", "--grow", "5,1,3", "--one-graph", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gene.safetensors", "grow.json", "depths.onnx"}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "depths.onnx"), providers=["CPUExecutionProvider"])
    inputs, gene = batch(pico_shape(), 3), load(tmp_path / "gene.safetensors")
    for asked, depth in {1: 1, 2: 3, 3: 3, 5: 5, 9: 5}.items():
        (found,) = session.run(["logits"], {"images": inputs.numpy(), "depth": np.array(asked)})
        np.testing.assert_allclose(found, gene.expand(depth)(inputs).detach().numpy(), atol=1e-5)


def test_widths_grow_from_a_gene_of_any_size(tmp_path: Path) -> None:
    pico_gene("any-size", {"tile": 4}).save(tmp_path / "gene.safetensors")
    sizes = [(8, 3), (16, 2)]
    said = grow(tmp_path / "gene.safetensors", tmp_path / "out", sizes)
    assert list(said.graphs) == ["width-8-depth-3.onnx", "width-16-depth-2.onnx"]
    inputs, gene = batch(pico_shape(), 3), load(tmp_path / "gene.safetensors")
    for (width, depth), file in zip(sizes, said.graphs, strict=True):
        model = gene.expand({"embed_dim": width, "depth": depth})
        np.testing.assert_allclose(logits(tmp_path / "out" / file, inputs), model(inputs).detach().numpy(), atol=1e-5)
    page = (tmp_path / "out" / "index.html").read_text()
    assert '"size": "8 x 3"' in page
    assert '"sizes": "width x layers"' in page
    with pytest.raises(LearngeneError, match="--one-graph has the depth as its input"):
        grow(tmp_path / "gene.safetensors", tmp_path / "out", sizes, one_graph=True)


def test_another_gene_in_the_folder_changes_the_models(tmp_path: Path) -> None:
    for seed in (0, 1):
        pico_gene(seed=seed).save(tmp_path / f"{seed}.safetensors")
    grow(tmp_path / "0.safetensors", tmp_path / "out", [3])
    (tmp_path / "1.safetensors").replace(tmp_path / "out" / "gene.safetensors")
    inputs = batch(pico_shape())
    found = logits(tmp_path / "out" / "depth-3.onnx", inputs)
    np.testing.assert_allclose(found, pico_gene(seed=1).expand(3)(inputs).detach().numpy(), atol=1e-5)


def test_the_page_has_all_that_a_browser_needs_but_the_runtime(tmp_path: Path) -> None:
    pico_gene(num_classes=10).save(tmp_path / "gene.safetensors")
    said = grow(tmp_path / "gene.safetensors", tmp_path / "out", [4, 2])
    page = (tmp_path / "out" / "index.html").read_text()
    data = json.loads(re.findall(r'<script type="application/json" id=data>(.*?)</script>', page)[0])
    assert ([each["size"] for each in data["graphs"]], data["sizes"]) == (
        [2, 4],
        "layers",
    )  # what the slider goes through
    assert {each["file"]: each["bytes"] for each in data["graphs"]} == said.graphs
    assert (data["gene"], data["classes"], data["names"]) == (said.gene, 10, [str(number) for number in range(10)])
    model = load(tmp_path / "gene.safetensors").expand(2)
    digits, _ = next(iter(check_images(model, None, 8).batches))
    assert len(data["images"]) == 8
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["images"][0].partition(",")[2]))))
    assert list(first.shape) == [*data["input_size"][1:], data["input_size"][0]]
    inputs = (first / 255 - data["mean"]) / data["std"]  # as the page does
    np.testing.assert_allclose(inputs.transpose(2, 0, 1), digits[0].numpy(), atol=0.5 / 255 / min(data["std"]) + 1e-6)
    addresses = set(re.findall(r"https?://[^\s\"'<>`]+", page))
    assert addresses == {data["cdn"], "http://localhost:8000"}
    for id in re.findall(r'at\("(\w+)"\)', page):
        assert re.search(rf"id={id}\b", page), id


def test_class_names_cannot_end_the_script_and_other_images_have_no_page(tmp_path: Path) -> None:
    model = scratch(pico_shape(depth=1), class_names=["</script>", "b", "c"])
    (tmp_path / "depth-1.onnx").write_bytes(b"12")
    graphs = {1: tmp_path / "depth-1.onnx"}
    page = grown_page(model, 1, graphs)
    assert page is not None
    assert page.count("</script>") == 2
    assert grown_page(scratch(pico_shape(depth=1, in_chans=4)), 1, graphs) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--grow 0", "depth"),
        ("--grow 8x2x2", "--grow '8x2x2' is no list of widths and depths such as 32x4,64x8"),
        ("--grow 8x2,16x2", "this gene has embed_dim 16, not 8; only its own embed_dim can be made"),
        ("--one-graph", "--one-graph: is of a gene that grows; say with --grow to which depths"),
        ("--grow three", "--grow 'three' is not a list such as 1-3 or 1,4"),
        ("--grow 2 --precision int8", "leave out all flags but --out"),
    ],
)
def test_a_wrong_size_is_one_line_and_writes_nothing(flags: str, message: str, cli: CLI, tmp_path: Path) -> None:
    pico_gene().save(tmp_path / "gene.safetensors")
    result = cli("export", tmp_path / "gene.safetensors", *flags.split(), "--out", tmp_path / "out")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["gene.safetensors"]


def test_what_holds_no_whole_model_and_other_folders_are_refused(tmp_path: Path) -> None:
    pico_gene().save(tmp_path / "gene.safetensors")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(LearngeneError, match=r"was not written by learngene"):
        grow(tmp_path / "gene.safetensors", tmp_path / "other", [2])
    (tmp_path / "other" / "grow.json").write_text('{"mine": 1}')
    with pytest.raises(LearngeneError, match=r"grow.json: "):
        grow(tmp_path / "gene.safetensors", tmp_path / "other", [2])
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["grow.json", "notes"]
