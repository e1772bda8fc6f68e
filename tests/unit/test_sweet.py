"""SWEET: slices of one core against einsum and by hand, narrower and other depths, both orders, files and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learngene as lg
from learngene.methods.sweet import VECTORS
from learngene.system.errors import LearngeneError
from pico import CLI, batch, pico_gene, pico_shape

WIDE_FIRST, MIXED_FIRST = {"ranks": [3, 8, 12]}, {"ranks": [90]}


def slices(weights: dict[str, Tensor], layer: int, width: int) -> list[Tensor]:
    """What the docs list: q, k, v, proj, rows of fc1, columns of fc2."""
    w = {name: weights[f"blocks.{layer}.{name}.weight"] for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    out = [*w["attn.qkv"].split(width), w["attn.proj"], *w["mlp.fc1"].split(width), *w["mlp.fc2"].split(width, dim=1)]
    assert len(out) == 8  # an MLP of twice the width
    return out


def test_a_slice_by_hand() -> None:
    """U = (1, 2), G = 3 and 5, X = 7 and 1, V = (1, 0), (0, 1): 7 x 3 + 1 x 5 = 26 per unit."""
    gene = pico_gene("sweet", {"ranks": [2, 1, 1]}, embed_dim=2, num_heads=2, mlp_ratio=1.0, depth=1)
    with torch.no_grad():
        for name, value in (("U", [[1], [2]]), ("V", [[1], [10]]), ("core", [[[3]], [[5]]])):
            gene.tensors()[name].copy_(torch.tensor(value))
        gene.tensors()["X"][0, 3] = torch.tensor([7.0, 1.0])
    assert gene.weights()["blocks.0.attn.proj.weight"].tolist() == [[26, 260], [52, 520]]
    one = gene.weights(gene.shape.replace(embed_dim=1, num_heads=1))["blocks.0.attn.proj.weight"]
    assert float(one.detach()) == pytest.approx(26 * 2**0.5)


@pytest.mark.parametrize("settings", [WIDE_FIRST, MIXED_FIRST], ids=["wide first", "mixed first"])
@pytest.mark.parametrize("width", [16, 8])
def test_every_matrix_is_a_slice_of_the_tucker_product(width: int, settings: dict[str, Any]) -> None:
    gene = pico_gene("sweet", settings)
    t, shape = gene.tensors(), pico_shape(embed_dim=width, num_heads=width // 8)
    want = torch.einsum("lsa,aij,oi,nj->lson", t["X"], t["core"], t["U"][:width], t["V"][:width]) * (16 / width) ** 0.5
    weights = gene.weights(shape)
    for layer in range(4):
        for s, value in enumerate(slices(weights, layer, width)):
            torch.testing.assert_close(value, want[layer, s], rtol=1e-4, atol=1e-4)


def test_other_parts_are_the_first_channels_between_the_layers() -> None:
    gene = pico_gene("sweet", WIDE_FIRST)
    t, weights = gene.tensors(), gene.weights(pico_shape(embed_dim=8, num_heads=1, depth=7))
    for name in VECTORS:
        middle = (t[f"layer1.{name}"] + t[f"layer2.{name}"]) / 2
        parts = [part[:8] for part in middle.split(16)]
        torch.testing.assert_close(weights[f"blocks.3.{name}"], torch.cat(parts))
    assert torch.equal(weights["pos_embed"], t["pos_embed"][..., :8])
    assert torch.equal(weights["norm.bias"], t["norm.bias"][:8])
    torch.testing.assert_close(weights["head.weight"], t["head.weight"][:, :8] * 2**0.5)
    deeper = gene.weights(pico_shape(depth=7))
    torch.testing.assert_close(deeper["blocks.2.mlp.fc2.weight"], gene.weights()["blocks.1.mlp.fc2.weight"])


def test_start_values_and_stored_numbers() -> None:
    shape = lg.ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10)
    gene = lg.Learngene(lg.method("sweet", {"ranks": [24, 32, 32]}), shape)
    t = gene.tensors()
    core = {name: value.numel() for name, value in t.items() if name in ("core", "U", "V", "X")}
    assert core == {"core": 24 * 32 * 32, "U": 2048, "V": 2048, "X": 6 * 12 * 24}
    deviation = float(gene.weights()["blocks.1.mlp.fc1.weight"].detach().std())
    assert 0.015 < deviation < 0.026
    assert t["layer3.norm1.weight"].tolist() == [1.0] * 64


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_core_gets_no_gradient(frozen: bool) -> None:
    gene = pico_gene("sweet", {**WIDE_FIRST, "frozen_templates": frozen})
    for shape in (None, pico_shape(depth=3, embed_dim=8, num_heads=1)):
        gene(batch(gene.shape), shape).square().sum().backward()
    trained = {name for name, value in gene.tensors().items() if value.grad is not None and value.grad.any()}
    assert trained == gene.tensors().keys() - ({"core"} if frozen else set())


def test_a_gene_is_saved_planned_and_expanded(tmp_path: Path, cli: CLI) -> None:
    gene, file, out = pico_gene("sweet", WIDE_FIRST), tmp_path / "gene.safetensors", tmp_path / "narrow"
    gene.save(file)
    assert {(one.shape.embed_dim, one.shape.depth) for one in lg.plan(file)} >= {(8, 1), (16, 48)}
    done = cli("expand", file, "--embed-dim", 8, "--depth", 2, "--out", out)
    assert done.code == 0, done
    model = gene.expand(pico_shape(embed_dim=8, num_heads=1, depth=2))
    assert torch.equal(lg.load_descendant(out)(batch(gene.shape)), model(batch(gene.shape)))
    assert model.learngene["layers"][1] == "X[3], first 8 of 16 rows of U and V"


@pytest.mark.parametrize(
    ("settings", "auxiliary", "changes", "line"),
    [
        ({"ranks": [2, 8]}, {}, {}, "sweet: ranks must be one number or three, not [2, 8]"),
        ({"ranks": [2, 4, 8]}, {}, {},
         "sweet: a core of 4 rows or columns is too small for heads of 8 and embed_dim 16"),
        ({"ranks": [2, 8, 17]}, {}, {},
         "sweet: a core of 17 rows or columns is too large for heads of 8 and embed_dim"),
        ({}, {"mlp_ratio": 1.5}, {}, "sweet: slices are as wide as the model, so mlp_ratio 1.5 must be whole"),
        ({}, {}, {"embed_dim": 24, "num_heads": 3}, "sweet: the factors of this gene have 16 rows, too few for"),
        ({}, {}, {"num_heads": 4}, "sweet: heads are kept whole, so embed_dim / num_heads must be 8, not 4"),
        ({}, {}, {"mlp_ratio": 1.0}, "shape: this gene has mlp_ratio 2.0, not 1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(
    settings: dict[str, Any], auxiliary: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(LearngeneError) as caught:
        pico_gene("sweet", settings, **auxiliary).expand(pico_shape(**{**auxiliary, **changes}))
    assert str(caught.value).startswith(line)
