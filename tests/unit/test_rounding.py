"""Training with the rounding of an int8 file: by hand, and that the file then has the trained weights themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from learngene import condense, export, finetune, load_descendant, scratch
from learngene.devices.onnxruntime import OnnxRuntime
from learngene.system.errors import LearngeneError
from learngene.training.rounding import RoundedWeight, rounded
from pico import CLI, FAST, pico_shape

ROW, STEPS = [0.64, -0.32, 0.004, 0.016, -0.027], [0.64, -0.32, 0.0, 0.02, -0.03]
"""A row whose largest weight makes a step of 0.01."""


def test_a_row_of_weights_is_rounded_by_hand_and_gradients_pass() -> None:
    weight = torch.tensor([ROW, [0.0] * 5, [value * 10 for value in ROW]], requires_grad=True)
    found = RoundedWeight()(weight)
    torch.testing.assert_close(found, torch.tensor([STEPS, [0.0] * 5, [value * 10 for value in STEPS]]))
    found.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(3, 5))


def test_inputs_and_outputs_are_rounded_in_a_range_that_training_alone_moves() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    inputs = torch.tensor([[0.0], [2.55]])
    with rounded(layer):
        layer.train()(inputs)
        for _ in range(2):
            found = layer.eval()(torch.tensor([[1.234], [9.0], [-1.0]]))
            torch.testing.assert_close(found, torch.tensor([[1.23], [2.55], [0.0]]))
        layer.train()(inputs * 2)  # the largest input becomes 0.9 x 2.55 + 0.1 x 5.1 = 2.805, and the output follows
        largest = 0.9 * 2.55 + 0.1 * 2.805
        torch.testing.assert_close(layer.eval()(torch.tensor([[9.0]])), torch.tensor([[largest]]))
    assert list(layer.state_dict()) == ["weight"]
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer(torch.tensor([[1.234]])), torch.tensor([[1.234]]))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    out = tmp_path_factory.mktemp("rounded") / "run"
    model = scratch(pico_shape(depth=2), class_names=["blue", "green", "red"])
    train = {**FAST, "epochs": 10, "quantize": "int8"}
    finetune(model, data={"source": str(images), "workers": 0}, out=out, show=False, **train)
    loaded: nn.Module = load_descendant(out / "descendant")
    assert loaded.learngene["finetuned"]["train"]["quantize"] == "int8"  # type: ignore[index, union-attr]
    return loaded


def test_an_ordinary_model_is_left_whose_int8_file_has_its_very_weights(
    trained: nn.Module, images: Path, tmp_path: Path
) -> None:
    assert set(trained.state_dict()) == set(scratch(pico_shape(depth=2)).state_dict())
    weights = [each.weight.detach() for each in trained.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    for weight in weights:
        torch.testing.assert_close(RoundedWeight()(weight), weight, rtol=1e-6, atol=0)
    said = export(trained, tmp_path / "m.onnx", precision="int8", data={"source": str(images), "workers": 0})
    assert (said.notes, said.agreement["score"]) == (["static, per channel"], 100)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "m.onnx").graph.initializer}
    found = []  # as torch has them: output channels first
    for name, steps in tensors.items():
        if name.endswith("_quantized") and steps.ndim > 1:
            scale = tensors[name.removesuffix("quantized") + "scale"]
            found += [steps * scale.reshape(-1, *[1] * (steps.ndim - 1))] if len(scale) == len(steps) else []
            found += [(steps * scale).T] if len(scale) == steps.shape[-1] else []
    for weight in weights:
        same = [each for each in found if each.shape == weight.shape]
        assert any(np.allclose(each, weight, rtol=1e-6, atol=0) for each in same), weight.shape


def test_a_file_that_loses_too_much_names_the_way_out(
    trained: nn.Module, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, write = scratch(pico_shape(depth=2), seed=7), OnnxRuntime.write
    swap: Callable[..., Any] = lambda self, job, path: write(self, type(job)(**{**vars(job), "model": other}), path)  # noqa: E731
    monkeypatch.setattr(OnnxRuntime, "write", swap)
    with pytest.raises(LearngeneError, match=r"loses .* points: .*; fine-tune .* `learngene finetune --quantize int8`"):
        export(trained, tmp_path / "m.onnx", precision="int8", data={"source": str(images), "workers": 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--quantize int4", "train.quantize"),
        ("--quantize int8 train.recompute=true", "quantize: not together with recompute; leave out one of the two"),
        ("--quantize int8 train.ema_decay=0.9", "quantize: not together with ema_decay; leave out one of the two"),
        ("--quantize int8 train.quantize=int8", "--quantize and train.quantize= say the same"),
    ],
)
def test_what_it_does_not_go_with_is_refused(flags: str, message: str, cli: CLI, images: Path, tmp_path: Path) -> None:
    result = cli("finetune", "--model", "scratch", "--data", images, "--out", tmp_path / "run", *flags.split())
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err


def test_genes_have_no_layers_to_round(images: Path, ancestry_folder: Path) -> None:
    how: dict[str, Any] = {"method": "tleg", "shape": pico_shape(), "data": {"source": str(images)}}
    with pytest.raises(LearngeneError, match="quantize is for fine-tuning; a gene has no layers of its own"):
        condense(ancestry_folder, **how, **FAST, quantize="int8")
