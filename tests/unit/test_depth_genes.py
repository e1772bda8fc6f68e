"""Chebyshev genes and FINE: layers from functions of depth and from factors that all layers share."""

from math import sqrt
from typing import Any

import pytest
import torch

from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.system.errors import LearngeneError
from pico import batch, pico_gene, pico_shape


@pytest.mark.parametrize(
    ("basis", "values"),
    [
        ("chebyshev", [1.0, 0.75, 0.125, -0.5625, -0.96875]),
        ("taylor", [1.0, 0.75, 0.5625, 0.421875, 0.31640625]),
        ("legendre", [1.0, 0.75, 0.34375, -0.0703125, -0.35009765625]),
        ("fourier", [1.0, 0.0, -1.0, -1.0, 0.0]),
    ],
)
def test_the_functions_at_three_quarters(basis: str, values: list[float]) -> None:
    """By hand: T3 = 4x^3 - 3x and T4 = 8x^4 - 8x^2 + 1, P3 = (5x^3 - 3x) / 2 and P4 = (35x^4 - 30x^2 + 3) / 8."""
    kind = method("chebyshev", {"genes": 5, "basis": basis})
    layer = kind.terms(pico_shape(), pico_shape(depth=4))[3]  # type: ignore[attr-defined]
    assert [float(c) for _, c in layer["mlp"]] == pytest.approx(values, abs=1e-15)


@pytest.mark.parametrize("depth", [1, 4, 7])
def test_tleg_is_the_taylor_case_of_two_genes(depth: int) -> None:
    """Bit for bit, with its gradients."""
    ours, tleg = pico_gene("chebyshev", {"genes": 2, "basis": "taylor"}), pico_gene("tleg")
    with torch.no_grad():
        for name, value in ours.tensors().items():
            value.copy_(tleg.tensors()[name.replace("A0.", "B.").replace("A1.", "A.")])
    shape = pico_shape(depth=depth)
    images = batch(shape)
    logits = [gene(images, shape) for gene in (ours, tleg)]
    assert torch.equal(*logits)
    for each in logits:
        each.square().sum().backward()
    for name, value in ours.tensors().items():
        other = tleg.tensors()[name.replace("A0.", "B.").replace("A1.", "A.")].grad
        assert (value.grad is None) == (other is None)
        assert value.grad is None or torch.equal(value.grad, other), name


def test_what_a_layer_is_made_of_is_told() -> None:
    layers = pico_gene("chebyshev", {"genes": 3}).expand(4).learngene["layers"]
    assert layers == ["A0 - A2", "A0 + 0.25 A1 - 0.875 A2", "A0 + 0.5 A1 - 0.5 A2", "A0 + 0.75 A1 + 0.125 A2"]
    fine = pico_gene("fine")
    assert fine.expand(4).learngene["layers"] == ["layer0", "layer1", "layer2", "layer3"]
    assert fine.expand(3).learngene["layers"] == ["layer0", "1/2 layer1 + 1/2 layer2", "layer3"]
    assert fine.expand(1).learngene["layers"] == ["1/2 layer1 + 1/2 layer2"]


def test_every_norm_of_a_fresh_chebyshev_gene_starts_at_1() -> None:
    gene = Learngene(method("chebyshev"), pico_shape())
    for i in range(4):
        assert torch.equal(gene.weights()[f"blocks.{i}.norm1.weight"], torch.ones(16))
    assert gene.tensors()["A3.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("rank", [0, 3])
def test_fine_scales_columns_of_shared_bases(rank: int) -> None:
    """Seven layers from four: the fourth lies half way between layers 1 and 2."""
    gene = pico_gene("fine", {"rank": rank})
    t = gene.tensors()
    assert t["U.mlp.fc1"].shape == (32, rank or 16)
    assert t["V.mlp.fc2"].shape == (32, rank or 16)
    weights = gene.weights(pico_shape(depth=7))
    for matrix in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        scales = [t[f"layer{layer}.{matrix}.scale"] for layer in range(4)]
        for i, s in ((0, scales[0]), (3, (scales[1] + scales[2]) / 2), (6, scales[3])):
            wanted = t[f"U.{matrix}"] @ torch.diag(s) @ t[f"V.{matrix}"].T
            torch.testing.assert_close(weights[f"blocks.{i}.{matrix}.weight"], wanted)
    middle = (t["layer1.norm1.bias"] + t["layer2.norm1.bias"]) / 2
    torch.testing.assert_close(weights["blocks.3.norm1.bias"], middle)


def test_a_fresh_fine_gene_starts_with_matrices_of_timms_size() -> None:
    gene = Learngene(method("fine", {"rank": 48}), pico_shape(embed_dim=96, num_heads=6))
    weights = gene.weights()
    for matrix in ("attn.qkv", "mlp.fc2"):
        assert weights[f"blocks.2.{matrix}.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert gene.tensors()["U.attn.qkv"].std().item() == pytest.approx(sqrt(0.02 / sqrt(48)), rel=0.05)
    assert gene.tensors()["layer0.norm1.weight"].mean() == 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chebyshev", {"basis": "taylr"}, "chebyshev: unknown basis 'taylr'; did you mean 'taylor'"),
        ("chebyshev", {"genes": 5}, "5 genes are more than the 4 layers of the auxiliary model; use 4 genes or fewer"),
        ("chebyshev", {"genes": 0}, "chebyshev: genes must be a positive integer, not 0"),
        ("fine", {"rank": 17}, "fine: rank 17 is beyond what matrices of width 16 can have; use 16 or less, or 0"),
        ("fine", {"rank": -1}, "fine: rank must be an integer of at least 0, not -1"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        pico_gene(name, settings)
