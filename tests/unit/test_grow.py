"""One gene file and a small graph per depth that computes its weights from it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from learngene import load
from learngene.devices.grow import Grown, grow
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "gene.safetensors", "grow.json"]
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


def test_another_gene_in_the_folder_changes_the_models(tmp_path: Path) -> None:
    for seed in (0, 1):
        pico_gene(seed=seed).save(tmp_path / f"{seed}.safetensors")
    grow(tmp_path / "0.safetensors", tmp_path / "out", [3])
    (tmp_path / "1.safetensors").replace(tmp_path / "out" / "gene.safetensors")
    inputs = batch(pico_shape())
    found = logits(tmp_path / "out" / "depth-3.onnx", inputs)
    np.testing.assert_allclose(found, pico_gene(seed=1).expand(3)(inputs).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--grow 0", "depth"),
        ("--grow three", "--grow 'three' is not a list such as 1-3 or 1,4"),
        ("--grow 2 --precision int8", "leave all other flags but --out out"),
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
