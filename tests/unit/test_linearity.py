"""Layers on a line: the projection against numpy, and what is known of exact lines and of random weights."""

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from learngene import scratch
from learngene.cli.pictures.layers import layer_picture
from learngene.system.errors import LearngeneError
from learngene.vits import linearity as analysis
from learngene.vits.shape import MODULE_PARAMS
from pico import pico_gene, pico_shape

PLAIN = {name for names in MODULE_PARAMS.values() for name in names}


def random_state(depth: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"blocks.{i}.mlp.fc1.weight": torch.randn(5, 7, generator=generator) for i in range(depth)}


def test_the_projection_is_that_of_a_singular_value_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "CHUNK", 100)  # several pieces even of small tensors
    model = pico_gene("sws", {"stages": [1, 2, 2]}).expand(pico_shape(depth=7))
    state, depth = analysis.layer_state(model)
    lines = analysis.layer_lines(state, depth)
    assert set(lines) == PLAIN
    for name, line in lines.items():
        values = np.stack([state[f"blocks.{i}.{name}"].double().numpy().ravel() for i in range(depth)])
        values -= values.mean(0)
        left, sizes, _ = np.linalg.svd(values, full_matrices=False)
        expected = left[:, 0] * sizes[0]
        correlation = np.corrcoef(expected, np.arange(depth))[0, 1]
        assert line.values == pytest.approx(expected * np.sign(correlation), abs=1e-6)
        assert line.explained == pytest.approx(sizes[0] ** 2 / (sizes**2).sum())
        assert line.r_squared == pytest.approx(correlation**2)


@pytest.mark.parametrize("depth", [3, 4, 9])
def test_the_layers_of_an_expanded_tleg_gene_lie_on_lines(depth: int) -> None:
    state, layers = analysis.layer_state(pico_gene("tleg").expand(pico_shape(depth=depth)))
    assert layers == depth
    for line in analysis.layer_lines(state, depth).values():
        assert line.r_squared == pytest.approx(1, abs=1e-9)
        assert line.explained == pytest.approx(1, abs=1e-9)
        assert list(line.values) == sorted(line.values)
    assert analysis.linearity(state, depth) == pytest.approx(1, abs=1e-9)


def test_values_rise_even_if_the_weights_fall() -> None:
    state = {f"blocks.{i}.mlp.fc1.weight": torch.full((2, 2), -float(i)) for i in range(4)}
    (line,) = analysis.layer_lines(state, 4).values()
    assert line.values == pytest.approx([-3, -1, 1, 3])


def test_layers_that_are_equal_have_no_line() -> None:
    model = scratch(pico_shape(depth=5), 0)
    lines = analysis.layer_lines(*analysis.layer_state(model))
    assert math.isnan(lines["norm1.weight"].r_squared)
    assert lines["norm1.weight"].values == (0.0,) * 5
    tied = {f"blocks.{i}.mlp.fc1.weight": torch.full((2, 2), 0.1) for i in range(3)}
    assert analysis.linearity(tied, 3) == 0
    assert analysis.linearity({"blocks.0.mlp.fc1.weight": torch.ones(2, 2)}, 1) == 0


@pytest.mark.parametrize("depth", [2, 4, 12])
def test_random_weights_fit_a_line_as_often_as_is_said(depth: int) -> None:
    found = np.array([analysis.linearity(random_state(depth, seed), depth) for seed in range(300)])
    assert found.mean() == pytest.approx(analysis.random_linearity(depth), abs=0.05)
    assert (found <= analysis.random_limit(depth) + 1e-9).mean() == pytest.approx(1 if depth == 2 else 0.95, abs=0.04)


@pytest.mark.parametrize(
    ("layers", "mean", "line", "cubic", "cosine"),
    [
        # The mean layer (1, 1) has 3 x 2 of 1 + 2 + 5, and the rest is a line; (1, 1) and (1, 2) are closest.
        ([[1, 0], [1, 1], [1, 2]], 6 / 8, 1, 1, 3 / math.sqrt(2 * 5)),
        ([[0], [1], [0]], 1 / 3, 0, 1, 0),  # a parabola
        ([[1], [-4], [6], [-4], [1]], 0, 0, 0, 1),  # what polynomials of degree 3 leave of five layers
        # Of the differences -1, 0, 1 and 1, -2, 1 the line has the first 2 of 2 + 6.
        ([[-1, 1], [0, -2], [1, 1]], 0, 1 / 4, 1, 2 / math.sqrt(2 * 4)),
        ([[2], [2]], 1, math.nan, math.nan, 1),
    ],
    ids=str,
)
def test_what_layers_share_by_hand(
    layers: list[list[float]], mean: float, line: float, cubic: float, cosine: float
) -> None:
    state = {f"blocks.{i}.mlp.fc1.weight": torch.tensor(values, dtype=torch.float) for i, values in enumerate(layers)}
    (found,) = analysis.layer_shares(state, len(layers)).values()
    assert astuple(found) == pytest.approx((mean, line, cubic, cosine), abs=1e-9, nan_ok=True)


def test_independent_layers_share_what_is_said() -> None:
    shares = [next(iter(analysis.layer_shares(random_state(12, seed), 12).values())) for seed in range(300)]
    found = [np.mean([getattr(each, name) for each in shares]) for name in ("mean", "line", "cubic")]
    assert found == pytest.approx([1 / 12, 1 / 11, 3 / 11], abs=0.005)
    assert astuple(analysis.random_shares(12))[:3] == pytest.approx([1 / 12, 1 / 11, 3 / 11])


def test_the_picture_is_a_whole_file(tmp_path: Path) -> None:
    layer_picture(scratch(pico_shape(depth=5), 0), tmp_path / "lines.png")
    with Image.open(tmp_path / "lines.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_models_without_layers_that_are_alike_are_refused() -> None:
    with pytest.raises(LearngeneError, match=r"^ResNet has no 'blocks'; give a Vision Transformer of timm$"):
        analysis.layer_state(timm.create_model("resnet10t", num_classes=3))
    model = scratch(pico_shape(depth=3), 0)
    model.blocks[1] = scratch(pico_shape(depth=1, mlp_ratio=3.0), 0).blocks[0]
    with pytest.raises(LearngeneError, match=r"^the layers are not alike: 'mlp.fc1.weight' of layer 2 is not as in"):
        analysis.layer_state(model)
    with pytest.raises(LearngeneError, match=r"^no tensors with names such as"):
        analysis.layer_lines({"stem.weight": torch.ones(2)}, 2)
    with pytest.raises(LearngeneError, match=r"^the layers have none of attn.qkv.weight"):
        analysis.linearity({f"blocks.{i}.conv.weight": torch.ones(2) * i for i in range(3)}, 3)
