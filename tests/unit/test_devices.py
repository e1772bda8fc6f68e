"""Models as files of other runtimes: what is written, checked, said and refused."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from learngene import export, finetune, save_descendant, scratch, segment
from learngene.devices.check import CheckImages, agreement
from learngene.devices.export import DeviceFile
from learngene.devices.target import Session
from learngene.system.errors import LearngeneError
from pico import CLI, FAST, batch, pico_gene, pico_shape


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


OPENVINO, EXECUTORCH = needs("openvino"), needs("executorch")
SUFFIX = {"onnx": "onnx", "openvino": "xml", "executorch": "pte", "torch": "pt2"}


@pytest.fixture(scope="module")
def trained(images: Path) -> Any:
    model = scratch(pico_shape(depth=2), class_names=["blue", "green", "red"])
    finetune(model, data={"source": str(images), "workers": 0}, show=False, **{**FAST, "epochs": 10})
    return model


@pytest.mark.parametrize(
    ("to", "precision", "computed_in", "difference"),
    [
        ("onnx", "fp32", "fp32", 1e-5),
        ("onnx", "fp16", "fp32", 1e-2),  # its CPU kernels take float16 apart
        ("onnx", "int8", "int8", 0.3),
        ("torch", "fp32", "fp32", 1e-5),
        ("torch", "fp16", "fp16", 1e-2),
        pytest.param("openvino", "fp32", "fp32", 1e-5, marks=OPENVINO),
        pytest.param("openvino", "int8", "int8", 0.3, marks=OPENVINO),
        pytest.param("executorch", "fp32", "fp32", 1e-5, marks=[EXECUTORCH, pytest.mark.slow]),
        pytest.param("executorch", "int8", "int8", 0.3, marks=[EXECUTORCH, pytest.mark.slow]),
    ],
)
def test_a_file_is_judged_in_its_own_runtime(
    to: str, precision: str, computed_in: str, difference: float, trained: Any, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"m.{SUFFIX[to]}"
    said = export(trained, out, to=to, precision=precision, data={"source": str(images), "workers": 0}, batch=3)
    assert DeviceFile.read(tmp_path / f"{out.name}.json") == said
    assert (said.target, said.precision, said.computed_in, said.largest_batch) == (to, precision, computed_in, 3)
    assert said.class_names == ["blue", "green", "red"]
    assert said.files == {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert said.preprocessing["input_size"] == [3, 8, 8]
    found = said.agreement
    assert found["images"] == 12
    assert 0 <= found["largest_difference"] < difference
    assert (found["score"], found["model_score"]) == (100, 100)


@OPENVINO
def test_openvino_takes_a_folder_with_a_comma(trained: Any, tmp_path: Path) -> None:
    export(trained, tmp_path / "a, b" / "m.xml", to="openvino")
    assert {path.suffix for path in (tmp_path / "a, b").iterdir()} == {".xml", ".bin", ".json"}


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_eval_asks_an_exported_file(
    to: str, trained: Any, images: Path, tmp_path: Path, cli: CLI, refused: Callable[..., str]
) -> None:
    out = tmp_path / f"m.{SUFFIX[to]}"
    export(trained, out, to=to, batch=2)
    save_descendant(trained, tmp_path / "model")
    told = [cli("eval", path, "--data", images, "--json", "data.workers=0").out for path in (out, tmp_path / "model")]
    found, model = map(json.loads, told)
    assert (found["images"], found["top1"]) == (model["images"], model["top1"])
    assert found["loss"] == pytest.approx(model["loss"], abs=1e-4)
    assert "--knn: " in refused("eval", out, "--data", images, "--knn")
    assert "data.img_size: " in refused("eval", out, "--data", images, "data.img_size=16")
    out.write_bytes(out.read_bytes()[:-1])
    assert "a byte was changed" in refused("eval", out, "--data", images)
    out.with_name(f"{out.name}.json").unlink()
    assert f"has no {out.name}.json beside it" in refused("eval", out, "--data", images)


def test_an_int8_file_holds_its_weights_in_bytes_and_computes_what_it_is_said_to(
    trained: Any, images: Path, tmp_path: Path
) -> None:
    said = export(trained, tmp_path / "m.onnx", precision="int8", data={"source": str(images), "workers": 0})
    assert said.notes[0].startswith("static, per channel")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    products = sum(size for name, size in trained.named_parameters() if size.ndim > 1 for size in [size.numel()])
    quantised = [onnx.numpy_helper.to_array(tensor) for tensor in stored.values() if tensor.data_type == 3]
    weights = sum(array.size for array in quantised if array.ndim > 1)
    assert weights == products - trained.pos_embed.numel()
    # Seven bits: two products of a byte and these still fit 16 bits, which CPUs without such instructions add them in.
    assert all(np.abs(array.astype(int)).max() <= 64 for array in quantised if array.ndim > 1)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    inputs = batch(pico_shape(), 5)
    with torch.no_grad():
        expected = trained(inputs).numpy()
    np.testing.assert_allclose(session.run(None, {"images": inputs.numpy()})[0], expected, atol=0.5)


def test_no_shape_of_a_weight_is_listed_so_that_quantisers_can_transpose_it(trained: Any, tmp_path: Path) -> None:
    said = export(trained, tmp_path / "m.onnx")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    assert not {value.name for value in graph.value_info} & {tensor.name for tensor in graph.initializer}
    assert (said.agreement["score"], said.agreement["images"]) == (None, 75)  # every sixth of 445 digits


@pytest.mark.parametrize("to", ["onnx", "torch", pytest.param("openvino", marks=OPENVINO)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: pico_gene(num_classes=0).expand(2),
        lambda: segment(pico_gene().expand(2), 5),
        lambda: scratch(pico_shape(depth=1, in_chans=4)),
    ],
    ids=["headless", "segmenter", "four channels"],
)
def test_other_models_than_classifiers_are_exported(make: Callable[[], nn.Module], to: str, tmp_path: Path) -> None:
    said = export(make(), tmp_path / f"m.{SUFFIX[to]}", to=to, batch=2)
    assert said.agreement["top1_agreement"] == pytest.approx(100, abs=0.1)


def test_agreement_is_counted_by_hand() -> None:
    class Same(nn.Module):
        num_classes = 2

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    model = Same()
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
    asked: list[int] = []

    def run(part: torch.Tensor) -> torch.Tensor:
        asked.append(len(part))
        return part + torch.tensor([0.0, 1.5])  # the first image is now guessed otherwise

    on = CheckImages("numbers", [(inputs, torch.tensor([0, 1, 1, 1]))], judged=True)
    found = agreement(model, Session(run, "fp32", {}), on, 2)
    assert asked == [1, 2, 1]  # alone, then as many as it takes
    assert (found.images, found.largest_difference, found.relative_difference) == (4, 1.5, 1.5 / 4)
    assert (found.top1_agreement, found.score, found.model_score) == (75, 50, 75)


def test_a_file_that_loses_more_is_refused_or_written_with_a_warning(
    trained: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = scratch(pico_shape(depth=2), seed=7, class_names=["blue", "green", "red"])
    from learngene.devices import torch_program

    kept = torch_program.TorchProgram.write
    monkeypatch.setattr(
        torch_program.TorchProgram,
        "write",
        lambda self, job, path: kept(self, type(job)(**{**vars(job), "model": other}), path),
    )
    how: dict[str, Any] = {"to": "torch", "precision": "fp16", "data": {"source": str(images), "workers": 0}}
    with pytest.raises(LearngeneError, match=r"the file loses \d+\.\d\d points: .* more than 0\.5; give another"):
        export(trained, tmp_path / "m.pt2", **how)
    assert not list(tmp_path.iterdir())
    assert (
        export(trained, tmp_path / "m.pt2", **how, keep_worse=True).notes[0].startswith("worse than the bound of 0.5")
    )
    with pytest.raises(LearngeneError, match="logits differ by"):
        export(trained, tmp_path / "n.pt2", **{**how, "precision": "fp32"}, keep_worse=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--to onx", "unknown target 'onx'; did you mean 'onnx'?"),
        ("--to litert", "litert-torch needs an older torch"),
        ("--precision int4", "unknown precision 'int4'"),
        ("--precision bf16", "onnx has no files in bf16 here; give --precision fp32, fp16, int8"),
        ("--precision int8", "int8 needs images to calibrate on; give --data"),
        ("--batch 0", "--batch must be 1 or more, not 0"),
        ("--precision int8 --data IMAGES --calibrate 25", "24 training images, fewer than --calibrate 25"),
        ("--to torch", "torch files have the suffix .pt2"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    flags: str, message: str, cli: CLI, images: Path, tmp_path: Path
) -> None:
    from learngene import save_descendant

    save_descendant(pico_gene().expand(1), tmp_path / "des")
    result = cli(
        "export", tmp_path / "des", "--out", tmp_path / "m.onnx", *flags.replace("IMAGES", str(images)).split()
    )
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["des"]


def test_what_no_export_has_written_is_not_replaced(trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.pt2"
    export(trained, out, to="torch")
    export(trained, out, to="torch")
    (tmp_path / "m.pt2.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(LearngeneError, match=r"exists and no m\.pt2\.json of an export is beside it"):
        export(trained, out, to="torch")


def test_a_record_of_ones_own_is_not_replaced(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "m.pt2.json").write_text("{}")
    with pytest.raises(LearngeneError, match=r"m\.pt2\.json exists and no m\.pt2\.json of an export"):
        export(trained, tmp_path / "m.pt2", to="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2.json"]


def test_outputs_that_are_no_numbers_never_agree() -> None:
    model = pico_gene().expand(2).eval()
    images = CheckImages("three", [(batch(pico_shape()), torch.zeros(len(batch(pico_shape()))))], judged=False)
    broken = Session(lambda part: model(part) * float("nan"), "fp32", {})
    with pytest.raises(LearngeneError, match="gives what is no number"):
        agreement(model, broken, images, 2)


def test_a_fresh_gene_is_exported() -> None:
    inputs = batch(pico_shape())
    program = torch.export.export(pico_gene("wave"), (inputs,))
    torch.testing.assert_close(program.module()(inputs), pico_gene("wave")(inputs))


@pytest.mark.slow
def test_a_fresh_gene_is_compiled() -> None:  # elsewhere: here annotations are checked, which no compiler can read
    lines = [
        "import torch; from pico import batch, pico_gene, pico_shape",
        "compiled = torch.compile(pico_gene(), fullgraph=True, backend='eager')",
        "torch.testing.assert_close(compiled(batch(pico_shape())), pico_gene()(batch(pico_shape())))",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env=environment)
