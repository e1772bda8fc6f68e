"""What stitch layers start from: transformation matrices (TM) or least squares on features (LS)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from learngene.making.pool.distil import RowDistillation
from learngene.making.pool.stitches import (
    least_squares,
    least_squares_stitches,
    transformation_start,
    transformation_stitches,
)
from learngene.recipe.pool import PoolSpec
from learngene.system.errors import LearngeneError
from pico import batch
from pools import by_hand, pool, rows_of, vit
from runs import state


def matrix(width: int, ancestry: int, seed: int) -> Tensor:
    return torch.randn(width, ancestry, generator=torch.Generator().manual_seed(seed))


def stitch(gene: Any, source: int, target: int, layer: int) -> tuple[Tensor, Tensor]:
    tensors = gene.tensors()
    name = f"stitch.{source}.{target}.{layer}"
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def test_tm_is_the_transposed_mean_of_the_block_matrices() -> None:
    gene = pool(depth=4)
    module = RowDistillation(vit(0), 16, [1, 3, 4], [32] * 3, PoolSpec())
    with torch.no_grad():
        for seed, linear in enumerate(module.W):
            linear.weight.copy_(matrix(16, 32, seed))  # type: ignore[operator]
    transformation_stitches(gene, [module.matrix(), None])
    mean = sum(matrix(16, 32, seed) for seed in range(3)) / 3
    before = state(pool(depth=4))
    for layer in range(3):
        weight, bias = stitch(gene, 0, 1, layer)
        torch.testing.assert_close(weight, mean.T)  # type: ignore[union-attr]
        assert not bias.any()
        assert weight.requires_grad
    changed = {key for key, value in state(gene).items() if not torch.equal(value, before[key])}
    assert all(key.startswith("stitch.") for key in changed)


def test_tm_downwards_is_the_matrix_itself() -> None:
    gene = pool(settings={"rows": (16, 32), "direction": "down"})
    transformation_stitches(gene, [matrix(16, 32, 0), None])
    for layer in range(2):
        assert torch.equal(stitch(gene, 1, 0, layer)[0], matrix(16, 32, 0))
        assert not stitch(gene, 1, 0, layer)[1].any()


@pytest.mark.parametrize("ancestry", [32, 40])
def test_tm_between_narrower_rows_leads_through_the_ancestrys_width(ancestry: int) -> None:
    gene = pool(settings={"rows": (16, 24, 32), "nearest": False})
    matrices = [matrix(width, ancestry, width) if width != ancestry else None for width in (16, 24, 32)]
    transformation_stitches(gene, matrices)
    wholes = [torch.eye(ancestry) if each is None else each for each in matrices]
    tokens = torch.randn(5, 32)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for layer in range(2):
            weight, bias = stitch(gene, a, b, layer)
            torch.testing.assert_close(weight, wholes[b] @ wholes[a].T)
            mapped = F.linear(tokens[:, : weight.shape[1]], weight, bias)
            expected = (tokens[:, : weight.shape[1]] @ wholes[a]) @ wholes[b].T
            torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-4)


def test_tm_without_any_matrix_is_refused() -> None:
    with pytest.raises(LearngeneError, match="tm needs a row that is not as wide as the ancestry; use ls"):
        transformation_stitches(pool(), [None, None])


def solutions(gene: Any, images: Tensor) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
    """Every stitch layer's weight and bias by LAPACK's least squares in double precision, averaged over its pairs."""
    kind, means = rows_of(gene), {}
    rows = [gene.expand(shape) for shape in kind.row_shapes(gene.shape)]
    features = [[row.patch_embed(images) + row.pos_embed, *by_hand(row, images)[0]] for row in rows]
    flat = [[each.detach().flatten(0, 1).double() for each in row] for row in features]
    for a, b in kind.row_pairs():
        pairs = kind.stitches(gene.shape, a, b)
        for layer in set(pairs.values()):
            found = []
            for i, j in (pair for pair in pairs if pairs[pair] == layer):
                source = torch.cat([flat[a][i + 1], torch.ones(len(flat[a][0]), 1).double()], dim=1)
                found.append(torch.linalg.lstsq(source, flat[b][j], rcond=1e-6, driver="gelsd").solution)
            mean = torch.stack(found).mean(0)
            means[a, b, layer] = mean[:-1].T.float(), mean[-1].float()
    return means


LS: dict[str, dict[str, Any]] = {
    "two rows": {},
    "down": {"settings": {"rows": (16, 32), "direction": "down"}},
    "three rows": {"settings": {"rows": (16, 24, 32), "nearest": False}},
    "unequal depth": {"name": "sn-net", "settings": {"rows": ((16, 2, 2), (32, 3, 4))}},
}


@pytest.mark.parametrize("case", LS.values(), ids=LS)
def test_ls_is_lapacks_least_squares_averaged_over_the_pairs_of_a_layer(case: dict[str, Any]) -> None:
    gene = pool(**case)
    images = batch(gene.shape, 24)
    warnings: list[object] = []
    least_squares_stitches(gene, [images], warnings.append)
    expected = solutions(gene, images)
    assert len(expected) == len(rows_of(gene).stitch_layers(gene.shape))
    for place, (weight, bias) in expected.items():
        torch.testing.assert_close(stitch(gene, *place)[0], weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stitch(gene, *place)[1], bias, rtol=1e-3, atol=1e-4)
    assert warnings == []
    assert all(value.requires_grad for value in gene.tensors().values())


def test_ls_does_not_depend_on_how_images_are_batched() -> None:
    whole, parts = pool(), pool()
    images = batch(whole.shape, 24)
    least_squares_stitches(whole, [images], print)
    least_squares_stitches(parts, iter(images.split([1, 7, 16])), print)
    for key, value in parts.tensors().items():
        torch.testing.assert_close(value, whole.tensors()[key], rtol=1e-4, atol=1e-5)


def test_ls_changes_nothing_but_the_stitch_layers() -> None:
    gene, before = pool(), state(pool())
    gene.train()
    least_squares_stitches(gene, [batch(gene.shape, 24)], print)
    changed = {key for key, value in state(gene).items() if not torch.equal(value, before[key])}
    assert changed == {f"stitch.0.1.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}


@pytest.mark.parametrize(("count", "repeats", "warned"), [(2, 1, True), (4, 1, True), (5, 1, False), (2, 5, False)])
def test_ls_takes_the_solution_of_minimum_norm(count: int, repeats: int, warned: bool) -> None:
    """With 4 tokens an image and 17 unknowns; the same two images again and again determine no more than two do."""
    gene = pool()
    warnings: list[object] = []
    images = batch(gene.shape, count).repeat(repeats, 1, 1, 1)
    least_squares_stitches(gene, [images], warnings.append)
    for place, expected in solutions(gene, images).items():
        for mine, theirs in zip(stitch(gene, *place), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-3)  # of squared condition numbers
    text = f"pool.stitches: {4 * count} tokens for the 17 unknowns of every output of a stitch layer; the least-squares"
    assert [str(each).startswith(text) for each in warnings] == [True] * warned


def test_no_other_stitch_fits_better() -> None:
    """One stitch and one layer: the narrow row's only block to the wide row's only one."""
    gene = pool(depth=1)
    images = batch(gene.shape, 24)
    least_squares_stitches(gene, [images], print)
    narrow, wide = gene.expand("1+0"), gene.expand("0+1")
    weight, bias = stitch(gene, 0, 1, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        source, target = by_hand(narrow, images)[0][0], wide.patch_embed(images) + wide.pos_embed
        best = F.mse_loss(F.linear(source, weight, bias), target)
        for _ in range(20):
            other = weight + 0.01 * torch.randn_like(weight), bias + 0.01 * torch.randn_like(bias)
            assert F.mse_loss(F.linear(source, *other), target) > best


def test_least_squares_of_one_layer_by_hand() -> None:
    """Through (0, 1), (1, 3), (2, 5) goes 2 x + 1; of (0, 0), (1, 0), (2, 3) the best line is 1.5 x - 0.5."""
    source = torch.tensor([[0.0], [1.0], [2.0]])
    weight, bias = least_squares(source, torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]]))
    torch.testing.assert_close(weight, torch.tensor([[2.0], [1.5]]))
    torch.testing.assert_close(bias, torch.tensor([1.0, -0.5]))


def test_a_transformation_start_leads_through_the_ancestry() -> None:
    """By hand: back from a row of width 1 by (1, 2) transposed, forth to a row of width 1 by (3, 4): 3 + 8."""
    back, forth = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert transformation_start(back, forth).tolist() == [[11.0]]
    assert transformation_start(back, None).tolist() == [[1.0], [2.0]]
    assert transformation_start(None, forth).tolist() == [[3.0, 4.0]]
