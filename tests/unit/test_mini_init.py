"""Mini-Init: the auxiliary model against Mini-DeiT written out in plain PyTorch, and what a descendant takes of it."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from learngene import Budget, ViTShape, plan
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.mini_init import BUCKETS
from learngene.system.errors import LearngeneError
from learngene.vits.multiplexed_attention import buckets
from learngene.vits.shape import MODULE_PARAMS
from pico import batch, pico_gene, pico_shape

SHARED = (*MODULE_PARAMS["msa"], *MODULE_PARAMS["mlp"])


# -- relative positions, written down once more ------------------------------------------------------------


def irpe_index(distance: int, ratio: float = 1.9) -> int:
    """iRPE's piecewise function: alpha, beta, gamma are 1, 2 and 8 times the ratio; clipped, then cut to integers."""
    alpha, beta, gamma = ratio, 2 * ratio, 8 * ratio
    far = float(abs(distance))
    if far <= alpha:
        return distance
    index = min(beta, round(alpha + math.log(far / alpha) / math.log(gamma / alpha) * (beta - alpha)))
    return int(index) if distance > 0 else -int(index)


def irpe_product(side: int) -> Tensor:
    """The "product" buckets of all pairs of patches: one number for the row, one for the column."""
    index = torch.empty(side * side, side * side, dtype=torch.long)
    for query in range(side * side):
        for key in range(side * side):
            row, column = query // side - key // side, query % side - key % side
            index[query, key] = (irpe_index(row) + 3) * 7 + irpe_index(column) + 3
    return index


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8, 14])
def test_buckets_are_those_of_irpe(side: int) -> None:
    assert torch.equal(buckets(side), irpe_product(side))


def test_a_grid_of_nine_uses_all_buckets_and_the_middle_one_for_itself() -> None:
    index = buckets(9)
    assert BUCKETS == 49
    assert index.unique().tolist() == list(range(49))
    assert (index.diagonal() == 24).all()
    assert torch.equal(index + index.T, torch.full_like(index, 48))  # the opposite way is the mirrored bucket


# -- sizes -------------------------------------------------------------------------------------------------


def stored(shape: ViTShape, *parts: str) -> int:
    """Parameters of a gene of 6 blocks whose names start or end with one of the parts; of all without any."""
    sizes = method("mini-init").gene_tensors(shape)
    return sum(math.prod(size) for name, size in sizes.items()
               if not parts or name.startswith(parts) or name.endswith(parts))  # fmt: skip


def test_the_whole_auxiliary_model_has_the_size_of_mini_deit_b() -> None:
    """SWS Table 5 prints 44.1 M."""
    shape = ViTShape.named("deit_base_patch16_224", depth=12)
    assert round(stored(shape) / 1e6, 2) == 44.10
    second_norms, mixings, positions = 6 * 4 * 768, 12 * 2 * 12**2, 12 * 49 * 64
    assert stored(shape) == shape.replace(depth=6).params() + second_norms + mixings + positions


@pytest.mark.parametrize(("width", "printed"), [("deit_tiny_patch16_224", 2.822), ("deit_small_patch16_224", 10.952)])
def test_stored_parameters_are_the_blocks_with_all_about_them(width: str, printed: float) -> None:
    """TLEG Table 2, 2.8 and 11.0 M: blocks, patch projection, the norms of both uses, the head mixings."""
    shape = ViTShape.named(width, depth=12)
    parts = ("block", "patch_embed.", ".mix_logits", ".mix_weights", "norm1.weight", "norm1.bias", "norm2.weight")
    assert round(stored(shape, *parts, "norm2.bias") / 1e6, 3) == printed


# -- the auxiliary model -----------------------------------------------------------------------------------


def plain_mini_deit(t: dict[str, Tensor], shape: ViTShape, uses: int, images: Tensor) -> Tensor:
    """Mini-DeiT without class token: MiniViT's shared blocks with iRPE on the keys and two convolutions over heads."""
    heads, width = shape.num_heads, shape.embed_dim
    index = irpe_product(shape.grid_size)
    x = F.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=shape.patch_size)
    x = x.flatten(2).transpose(1, 2) + t["pos_embed"]
    count, tokens, _ = x.shape
    for i in range(shape.depth):
        block, layer = f"block{i // uses}", f"layer{i}"
        y = F.layer_norm(x, (width,), t[f"{layer}.norm1.weight"], t[f"{layer}.norm1.bias"], eps=1e-6)
        y = F.linear(y, t[f"{block}.attn.qkv.weight"], t[f"{block}.attn.qkv.bias"])
        q, k, v = y.view(count, tokens, 3, heads, shape.head_dim).permute(2, 0, 3, 1, 4)
        q = q / math.sqrt(shape.head_dim)
        table = t[f"{layer}.attn.position"][:, index]  # head width, query, key
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) + torch.einsum("bhqd,dqk->bhqk", q, table)
        logits = F.conv2d(logits, t[f"{layer}.attn.mix_logits"][:, :, None, None])
        weights = F.conv2d(logits.softmax(-1), t[f"{layer}.attn.mix_weights"][:, :, None, None])
        y = torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(count, tokens, width)
        x = x + F.linear(y, t[f"{block}.attn.proj.weight"], t[f"{block}.attn.proj.bias"])
        y = F.layer_norm(x, (width,), t[f"{layer}.norm2.weight"], t[f"{layer}.norm2.bias"], eps=1e-6)
        y = F.gelu(F.linear(y, t[f"{block}.mlp.fc1.weight"], t[f"{block}.mlp.fc1.bias"]))
        x = x + F.linear(y, t[f"{block}.mlp.fc2.weight"], t[f"{block}.mlp.fc2.bias"])
    x = F.layer_norm(x, (width,), t["norm.weight"], t["norm.bias"], eps=1e-6).mean(dim=1)
    return F.linear(x, t["head.weight"], t["head.bias"])


@pytest.mark.parametrize(
    ("blocks", "changes"),
    [
        (2, {}),
        (1, {"img_size": 20}),
        (4, {"num_heads": 4, "img_size": 16}),
        (3, {"depth": 6, "img_size": 36, "num_heads": 1}),
    ],
    ids=str,
)
def test_the_auxiliary_model_is_mini_deit(blocks: int, changes: dict[str, Any]) -> None:
    gene = pico_gene("mini-init", {"blocks": blocks}, **changes)
    images = batch(gene.shape, 3)
    expected = plain_mini_deit(gene.tensors(), gene.shape, gene.shape.depth // blocks, images)
    torch.testing.assert_close(gene(images), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_auxiliary_model_are_those_of_mini_deit_and_reach_every_tensor() -> None:
    gene = pico_gene("mini-init", {"blocks": 2}, img_size=16)
    images, tensors = batch(gene.shape, 4), gene.tensors()
    ours = torch.autograd.grad(gene(images).square().sum(), tensors.values())
    plain = plain_mini_deit(tensors, gene.shape, 2, images).square().sum()
    theirs = torch.autograd.grad(plain, tensors.values())
    for name, mine, other in zip(tensors, ours, theirs, strict=True):
        assert mine.any(), name
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_fresh_gene_has_gradients_everywhere_though_its_positions_start_at_zero() -> None:
    gene = Learngene(method("mini-init", {"blocks": 2}), pico_shape(), seed=3)
    gene(batch(gene.shape, 4)).square().sum().backward()
    assert [name for name, value in gene.tensors().items() if value.grad is None or not value.grad.any()] == []


def test_fresh_values_are_those_of_mini_deit() -> None:
    gene = Learngene(method("mini-init", {"blocks": 1}), pico_shape(embed_dim=256, num_heads=64, depth=2))
    tensors = gene.tensors()
    assert not tensors["layer0.attn.position"].any()
    assert tensors["layer1.attn.mix_logits"].std().item() == pytest.approx(0.02, rel=0.1)
    assert tensors["layer1.attn.mix_weights"].abs().max() < 0.1
    assert tensors["layer0.norm1.weight"].eq(1).all()
    assert not torch.equal(tensors["layer0.attn.mix_logits"], tensors["layer0.attn.mix_weights"])


def test_a_gene_can_be_trained_after_it_was_used_for_inference() -> None:
    gene = pico_gene("mini-init", {"blocks": 2}, img_size=28)  # a grid that no other test has
    images = batch(gene.shape)
    with torch.inference_mode():
        before = gene(images).clone()
    logits = gene(images)
    logits.sum().backward()
    assert torch.equal(logits.detach(), before)
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in gene.parameters())


# -- descendants -------------------------------------------------------------------------------------------


def test_a_descendant_of_one_layer_per_block_takes_the_norms_of_the_first_use() -> None:
    """TLEG: the 6 blocks of 12 layers fill a 6-layer model."""
    gene = pico_gene("mini-init", depth=12)
    model = gene.expand(6)
    state, tensors = model.state_dict(), gene.tensors()
    for i in range(6):
        for name in SHARED:
            assert torch.equal(state[f"blocks.{i}.{name}"], tensors[f"block{i}.{name}"])
        for name in MODULE_PARAMS["ln"]:
            assert torch.equal(state[f"blocks.{i}.{name}"], tensors[f"layer{2 * i}.{name}"])
    assert model.learngene["layers"] == [f"msa and mlp: block{i}, ln: layer{2 * i}" for i in range(6)]
    assert model.learngene["fresh"] == []
    assert gene.expand().learngene["layers"] == [f"msa and mlp: block{i // 2}, ln: layer{i}" for i in range(12)]
    assert [candidate.shape.depth for candidate in plan(gene, Budget())] == [12, 6]
    assert torch.equal(state["pos_embed"], tensors["pos_embed"])


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"blocks": 3}, {}, "depth 4 is not a multiple of the 3 shared blocks; use depth 3 or another"),
        ({"blocks": 6}, {}, "depth 4 is not a multiple of the 6 shared blocks; use depth 6 or another"),
        ({"blocks": 2}, {"class_token": True}, "no class token; set class_token false"),
        ({"blocks": 0}, {}, "blocks must be a positive integer, not 0"),
        ({"blocks": True}, {}, "blocks must be a positive integer, not True"),
        ({"blocks": "6"}, {}, "blocks must be a positive integer, not '6'"),
        ({"block": 6}, {}, "unknown key 'block'; did you mean 'blocks'"),
    ],
    ids=str,
)
def test_wrong_settings_and_shapes_are_refused(settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        Learngene(method("mini-init", settings), pico_shape(**changes))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"embed_dim": 8}, {}, "embed_dim 16, not 8"),
        ({"depth": 3}, {}, "depth 3 is neither the 2 shared blocks of this gene nor its 4 "),
        ({"depth": 8}, {}, "depth 8 is neither the 2 shared blocks of this gene nor its 4 "),
        ({}, {"norms": 1}, "mini-init: expansion options: unknown key"),
    ],
)
def test_another_shape_or_an_option_is_refused(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    gene = pico_gene("mini-init", {"blocks": 2})
    with pytest.raises(LearngeneError, match=message):
        gene.expand(gene.shape.replace(**changes), **options)
