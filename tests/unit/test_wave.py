"""WAVE: Kronecker products against torch.kron and by hand, the rule for other sizes, files and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learngene as lg
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.interpolation import interpolation
from learngene.methods.tiles import MATRICES, Grid, mixed_tiles, resized
from learngene.system.errors import LearngeneError
from pico import CLI, batch, pico_gene, pico_shape

SMALL: dict[str, Any] = {"tile": 4, "templates": [2, 3, 1, 5], "vectors": 2}


def test_the_two_layouts_by_hand() -> None:
    scalers = torch.tensor([[[[1.0, 10.0], [2.0, 0.0]]]])  # one layer, one row of two tiles, two templates
    templates = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 0.0]]])
    grid = Grid(1, 2, (2, 2), 1)
    assert mixed_tiles(scalers, templates, grid, "tile").tolist() == [[[1, 12, 2, 4], [3, 4, 6, 8]]]
    assert mixed_tiles(scalers, templates, grid, "outer").tolist() == [[[1, 2, 12, 4], [3, 6, 4, 8]]]


@pytest.mark.parametrize("layout", ["tile", "outer"])
def test_every_weight_is_a_sum_of_kronecker_products(layout: str) -> None:
    gene = pico_gene("wave", {**SMALL, "layout": layout}, class_token=True)
    t, w = gene.tensors(), gene.weights()

    def kron(name: str, layer: int, template: Tensor, groups: int = 1) -> Tensor:
        scalers = t[f"S.{name}"][layer]
        parts = [
            sum(torch.kron(*((s, m) if layout == "tile" else (m, s)))
                for s, m in zip(part.unbind(-1), template, strict=True))
            for part in scalers.chunk(groups)
        ]  # fmt: skip
        return torch.cat(parts)  # type: ignore[arg-type]

    for i in range(4):
        for name in gene.shape.layer_params():
            template = t[f"T.{name}"]
            assert name in MATRICES or template.shape == (2, 4)
            value = kron(name, i, template if name in MATRICES else template[:, :, None], 3 if "qkv" in name else 1)
            assert torch.allclose(w[f"blocks.{i}.{name}"], value.view(w[f"blocks.{i}.{name}"].shape) + (
                "norm" in name and "weight" in name), atol=1e-6), name  # fmt: skip
    assert t["T.pos_embed"].shape == (2, 1, 5, 4)
    assert torch.allclose(w["pos_embed"], kron("pos_embed", 0, t["T.pos_embed"][:, 0])[None], atol=1e-6)
    assert torch.allclose(w["head.weight"], kron("head.weight", 0, t["T.head.weight"]), atol=1e-6)
    patch = kron("patch_embed.proj.weight", 0, t["T.patch_embed.proj.weight"].flatten(2))
    assert torch.allclose(w["patch_embed.proj.weight"].flatten(1), patch, atol=1e-6)
    assert torch.equal(w["head.bias"], t["head.bias"])


def test_stored_numbers_and_start_values() -> None:
    """Closed form for 64 x 6, tile 16: 4 x 12 x 256 templates of matrices and so on, 192 places of 12 per layer."""
    shape = lg.ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10)
    gene = Learngene(method("wave"), shape)
    count = {kind: sum(v.numel() for n, v in gene.tensors().items() if n.startswith("S.") == kind) for kind in (0, 1)}
    assert count == {0: 26_954, 1: 15_168}
    weights = {name: value.detach() for name, value in gene.weights().items()}
    for name in MATRICES:
        assert 0.018 < float(weights[f"blocks.2.{name}"].std()) < 0.023
    assert weights["blocks.0.norm1.weight"].tolist() == weights["norm.weight"].tolist() == [1.0] * 64
    assert not any(weights[f"blocks.5.{name}"].any() for name in shape.layer_params() if name.endswith("bias"))


# -- other sizes -------------------------------------------------------------------------------------------


def test_depth_is_linear_between_the_layers() -> None:
    text = [[str(share) for share in row] for row in interpolation(3, 5)]
    assert text == [["1", "0", "0"], ["1/2", "1/2", "0"], ["0", "1", "0"], ["0", "1/2", "1/2"], ["0", "0", "1"]]
    assert interpolation(4, 1) == [[0, 0.5, 0.5, 0]]
    gene = pico_gene("wave")
    own, deeper = gene.weights(), gene.weights(pico_shape(depth=7))
    for name in ("attn.qkv.weight", "mlp.fc2.bias", "norm2.weight"):
        assert torch.allclose(deeper[f"blocks.3.{name}"], (own[f"blocks.1.{name}"] + own[f"blocks.2.{name}"]) / 2)
        assert torch.allclose(deeper[f"blocks.6.{name}"], own[f"blocks.3.{name}"])


def test_a_grid_of_another_width_by_hand() -> None:
    scalers = torch.arange(12.0).view(1, 6, 2, 1)  # q, k and v of two tiles each
    wider = resized(scalers, Grid(6, 2, (1, 1), 3), Grid(9, 3, (1, 1), 3), reads=True)[0, :, :, 0]
    want = [[r * 2, r * 2 + 1, r * 2] for r in (0, 1, 0, 2, 3, 2, 4, 5, 4)]
    assert torch.allclose(wider, torch.tensor(want) * 2 / 3)
    narrower = resized(scalers, Grid(6, 2, (1, 1), 3), Grid(3, 1, (1, 1), 3), reads=False)[0, :, :, 0]
    assert narrower.tolist() == [[0], [4], [8]]


def test_another_width_repeats_or_cuts_tiles() -> None:
    gene = pico_gene("wave", {"tile": 8})
    own, wide = gene.weights(), gene.weights(pico_shape(embed_dim=24, num_heads=3))
    first, second = slice(0, 8), slice(8, 16)
    qkv, wider = own["blocks.2.attn.qkv.weight"], wide["blocks.2.attn.qkv.weight"]
    assert wider.shape == (72, 24)
    assert torch.allclose(wider[48:56, 16:], qkv[32:40, first] * 2 / 3)  # first head of v, third tile: the first again
    assert torch.allclose(wider[32:40, second], qkv[24:32, second] * 2 / 3)  # second head of k
    assert torch.allclose(
        wide["blocks.0.mlp.fc2.weight"][16:, 40:], own["blocks.0.mlp.fc2.weight"][first, second] * 2 / 3
    )
    assert torch.equal(wide["pos_embed"][..., 16:], own["pos_embed"][..., first])
    assert torch.allclose(wide["head.weight"][:, 16:], own["head.weight"][:, first] * 2 / 3)
    narrow = gene.weights(pico_shape(embed_dim=8, num_heads=1))
    assert torch.allclose(narrow["blocks.1.attn.qkv.weight"], qkv_first(own["blocks.1.attn.qkv.weight"]) * 2)


def qkv_first(value: Tensor) -> Tensor:
    """The first of two tiles of query, key and value, and of the width."""
    return torch.cat([value[first : first + 8, :8] for first in (0, 16, 32)])


@pytest.mark.parametrize("settings", [{}, {"tile": 4}, {"tile": 16}])
@pytest.mark.parametrize("times", [2, 3])
def test_a_multiple_of_the_width_computes_the_same(times: int, settings: dict[str, Any]) -> None:
    gene = pico_gene("wave", settings)
    with torch.no_grad():
        for value in gene.tensors().values():
            value.mul_(0.5)
    images = batch(gene.shape)
    wide = gene.expand(pico_shape(embed_dim=16 * times, num_heads=2 * times))
    assert torch.allclose(wide(images), gene(images), atol=2e-6)
    outer = pico_gene("wave", {**settings, "layout": "outer"})
    assert not torch.allclose(outer.expand(wide_shape := pico_shape(embed_dim=16 * times, num_heads=2 * times))(images),
                              outer(images), atol=1e-3), wide_shape  # fmt: skip


# -- files, frozen templates -------------------------------------------------------------------------------


def test_a_gene_is_kept_planned_and_expanded(tmp_path: Path, cli: CLI) -> None:
    gene = pico_gene("wave", {"tile": 4})
    assert gene.tensors()["S.attn.qkv.weight"].shape == (4, 12, 4, 12)
    shape = pico_shape(embed_dim=24, num_heads=3, depth=3)
    assert gene.expand(shape).learngene["layers"][1] == "1/2 S[1] + 1/2 S[2], 6 tiles wide from 4"
    gene.save(tmp_path / "gene.safetensors")
    loaded = lg.load(tmp_path / "gene.safetensors")
    assert loaded.method == gene.method
    assert all(torch.equal(loaded.weights(shape)[name], value) for name, value in gene.weights(shape).items())
    out = tmp_path / "wide"
    done = cli("expand", tmp_path / "gene.safetensors", "--embed-dim", 32, "--depth", 2, "--out", out)
    assert done.code == 0, done
    images = batch(shape)
    assert torch.equal(
        lg.load_descendant(out)(images), gene.expand(pico_shape(embed_dim=32, num_heads=4, depth=2))(images)
    )
    planned = {(one.shape.embed_dim, one.shape.depth) for one in lg.plan(tmp_path / "gene.safetensors")}
    assert {(8, 1), (16, 4), (32, 48)} <= planned
    assert all(width % 8 == 0 and width <= 32 for width, _ in planned)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_templates_get_no_gradient(frozen: bool) -> None:
    gene = pico_gene("wave", {"frozen_templates": frozen})
    for shape in (None, pico_shape(depth=3, embed_dim=24, num_heads=3)):
        gene(batch(gene.shape), shape).square().sum().backward()
    trained = {name for name, value in gene.tensors().items() if value.grad is not None and value.grad.any()}
    assert trained == {name for name in gene.tensors() if not (frozen and name.startswith("T."))}


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "changes", "line"),
    [
        ({"layout": "tiles"}, {}, "wave: unknown layout 'tiles'; did you mean 'tile'?"),
        ({"templates": [1, 2]}, {}, "wave: templates must be a list of one number or of four, for qkv, proj, fc1"),
        ({"tile": 6}, {}, "wave: tiles of 6 and heads of 8 do not fit into each other; set settings.tile to"),
        ({"tile": 32}, {}, "wave: embed_dim 16 is no multiple of 32, the width of this gene's tiles; use 32"),
        ({}, {"embed_dim": 20}, "wave: embed_dim 20 is no multiple of 8, the width of this gene's tiles; use 16"),
        ({"tile": 4}, {"embed_dim": 4, "num_heads": 1}, "wave: embed_dim 4 is no multiple of 8, the width of this gene'"
                                                        "s heads; use 8"),
        ({}, {"mlp_ratio": 1.75}, "wave: MLP 28 is no multiple of 8, the width of this gene's tiles; use 24 or 32"),
        ({}, {"num_heads": 4}, "wave: heads are kept whole, so embed_dim / num_heads must be 8, not 4"),
        ({}, {"patch_size": 2}, "shape: this gene has patch_size 4, not 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(settings: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(LearngeneError) as caught:
        pico_gene("wave", settings).expand(pico_shape(**changes))
    assert str(caught.value).startswith(line)


def test_no_gene_is_read_off_a_model(ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match=r"wave.*learngene condense"):
        lg.extract(ancestry_folder, method="wave")
