"""The gene against a few lines of plain PyTorch: weights, gradients, and a ViT written by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from learngene.genes.gene import Learngene
from learngene.methods import METHODS, method
from learngene.methods.stitching import StitchedRows
from learngene.vits.shape import MODULE_PARAMS
from pico import batch, pico_gene, pico_shape

PARAMS = [name for names in MODULE_PARAMS.values() for name in names]
ORDINARY = ("cls_token", "pos_embed", "patch_embed", "norm", "head")


def plain_vit(w: dict[str, Tensor], images: Tensor, depth: int, head_dim: int, ending: str) -> Tensor:
    """A ViT without class token, from the textbook; a stitch layer before a block leads into another width."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4).flatten(2).transpose(1, 2)
    x = x + w["pos_embed"]
    count, tokens, width = x.shape
    for i in range(depth):
        p = {name: w[f"blocks.{i}.{name}"] for name in PARAMS}
        if f"blocks.{i}.stitch.weight" in w:
            x = F.linear(x, w[f"blocks.{i}.stitch.weight"], w[f"blocks.{i}.stitch.bias"])
            width = x.shape[-1]
        y = F.layer_norm(x, (width,), p["norm1.weight"], p["norm1.bias"], eps=1e-6)
        qkv = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"]).view(count, tokens, 3, width // head_dim, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / head_dim**0.5).softmax(-1)
        y = (attention @ v).transpose(1, 2).reshape(count, tokens, width)
        x = x + F.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (width,), p["norm2.weight"], p["norm2.bias"], eps=1e-6)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    if "norm.weight" not in w:
        x = x.mean(dim=1)
    elif ending == "official":
        x = F.layer_norm(x.mean(dim=1), (width,), w["norm.weight"], w["norm.bias"], eps=1e-6)
    else:
        x = F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], eps=1e-6).mean(dim=1)
    return F.linear(x, w["head.weight"], w["head.bias"])


def plain_weights(gene: Learngene, depth: int, sources: list[dict[str, float]]) -> dict[str, Tensor]:
    """Weights of every layer as a sum of the gene's layers with the given coefficients."""
    t = gene.tensors()
    out = {name: value for name, value in t.items() if name.split(".")[0] in ORDINARY}
    for i in range(depth):
        for name in PARAMS:
            out[f"blocks.{i}.{name}"] = sum(c * t[f"{s}.{name}"] for s, c in sources[i].items())  # type: ignore[assignment]
    return out


CASES: dict[str, tuple[str, dict[str, Any], int, list[dict[str, float]]]] = {
    **{f"tleg {d}": ("tleg", {}, d, [{"B": 1.0, "A": i / d} for i in range(d)]) for d in (1, 3, 4, 7, 12)},
    "tleg from layer 3": ("tleg", {"first_layer": 3}, 6,
                          [{"layer0": 1.0}, {"layer1": 1.0}, *({"B": 1.0, "A": i / 4} for i in range(4))]),
    "sws as trained": ("sws", {"stages": (1, 3)}, 4, [{"stage0": 1.0}, *[{"stage1": 1.0}] * 3]),
    "sws deeper": ("sws", {"stages": (1, 3)}, 5, [*[{"stage0": 1.0}] * 3, *[{"stage1": 1.0}] * 2]),
    "simple-lg": ("simple-lg", {}, 6, [{f"layer{i}": 1.0} for i in (0, 0, 1, 1, 2, 3)]),
    "share-init": ("share-init", {}, 5, [{"shared": 1.0}] * 5),
    "pre-fin": ("pre-fin", {}, 4, [{f"layer{i}": 1.0} for i in range(4)]),
    "distilled": ("distilled", {}, 4, [{f"layer{i}": 1.0} for i in range(4)]),
    "chebyshev": (
        "chebyshev",
        {},
        4,
        [
            {"A0": 1.0, "A2": -1.0},
            {"A0": 1.0, "A1": 0.25, "A2": -0.875, "A3": -0.6875},
            {"A0": 1.0, "A1": 0.5, "A2": -0.5, "A3": -1.0},
            {"A0": 1.0, "A1": 0.75, "A2": 0.125, "A3": -0.5625},
        ],
    ),
    "weight-selection": ("weight-selection", {}, 3, [{f"layer{i}": 1.0} for i in range(3)]),
    "nested-slices": ("nested-slices", {}, 3, [{f"layer{i}": 1.0} for i in range(3)]),
    "nested-slices spaced": ("nested-slices", {"kept_layers": "spaced"}, 3, [{f"layer{i}": 1.0} for i in (0, 2, 3)]),
    "weight-subcloning": ("weight-subcloning", {}, 3, [{f"layer{i}": 1.0} for i in (0, 1, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["aligned", "official"])
@pytest.mark.parametrize(("name", "settings", "depth", "sources"), CASES.values(), ids=CASES)
def test_layers_are_the_papers_formula(
    name: str, settings: dict[str, Any], depth: int, sources: list[dict[str, float]], ending: str
) -> None:
    """Weights, logits and gradients."""
    gene = pico_gene(name, settings)
    shape = pico_shape(depth=depth, ending=ending)
    expected = plain_weights(gene, depth, sources)
    found = {key.replace("fc_norm.", "norm."): value for key, value in gene.weights(shape).items()}
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7)
    images = batch(shape, 4)
    logits = plain_vit(expected, images, depth, 8, ending)
    torch.testing.assert_close(gene(images, shape), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gene.expand(shape)(images), logits, rtol=1e-4, atol=1e-5)
    assert_gradients(gene, gene(images, shape), logits)


def assert_gradients(gene: Learngene, ours: Tensor, theirs: Tensor) -> None:
    """Those of two logits are alike; what the one does not depend on, the other does not depend on."""
    mine, others = (torch.autograd.grad(logits.square().sum(), gene.tensors().values(), allow_unused=True)
                    for logits in (ours, theirs))  # fmt: skip
    for key, found, expected in zip(gene.tensors(), mine, others, strict=True):
        # A coefficient of 0 leaves no trace in ours, and zeros in the plain sum.
        if expected is None or found is None:
            assert found is None, key
            assert expected is None or not expected.any(), key
        else:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda t, key=key: f"{key}: {t}")


# -- the paths of a pool -----------------------------------------------------------------------------------

PATHS: dict[str, tuple[dict[str, Any], str, list[tuple[str, int, int]]]] = {
    "4+0": ({}, "4+0", [("row0", 1, 4)]),
    "0+4": ({}, "0+4", [("row1", 1, 4)]),
    "1+4": ({}, "1+4", [("row0", 1, 1), ("stitch.0.1.0, row1", 1, 4)]),
    "1+3": ({}, "1+3", [("row0", 1, 1), ("stitch.0.1.0, row1", 2, 4)]),
    "2+2": ({}, "2+2", [("row0", 1, 2), ("stitch.0.1.1, row1", 3, 4)]),
    "3+3": ({}, "3+3", [("row0", 1, 3), ("stitch.0.1.1, row1", 2, 4)]),
    "4+2": ({}, "4+2", [("row0", 1, 4), ("stitch.0.1.2, row1", 3, 4)]),
    "no final norm": ({"final_norm": False}, "3+1", [("row0", 1, 3), ("stitch.0.1.2, row1", 4, 4)]),
    "whole row of a pool without final norm": ({"final_norm": False}, "0+4", [("row1", 1, 4)]),
    "down": ({"direction": "down"}, "16:1-3+8:2-4", [("row1", 1, 3), ("stitch.1.0.1, row0", 2, 4)]),
    "through three rows": ({"rows": (8, 16, 24), "nearest": False, "max_stitches": 2}, "8:1-1+16:2-3+24:4-4",
                           [("row0", 1, 1), ("stitch.0.1.0, row1", 2, 3), ("stitch.1.2.2, row2", 4, 4)]),
    "past a row": ({"rows": (8, 16, 24), "nearest": False}, "8:1-2+24:2-4",
                   [("row0", 1, 2), ("stitch.0.2.0, row2", 2, 4)]),
    "rows of unequal depth": ({"rows": ((8, 2, 1), 16)}, "8:1-1+16:3-4",
                              [("row0", 1, 1), ("stitch.0.1.0, row1", 3, 4)]),
}  # fmt: skip
"""Settings, a path's name, and its segments: what leads into a row, and the row's blocks counted from 1."""


def pool_of(settings: dict[str, Any]) -> Learngene:
    """A gene whose rows have 4 blocks, the last of which is the auxiliary model."""
    rows = settings.get("rows", (8, 16))
    name = "sn-net" if isinstance(rows[0], tuple) else "pool"
    return pico_gene(name, {"rows": rows, **settings}, embed_dim=rows[-1], num_heads=rows[-1] // 8)


def plain_path(gene: Learngene, segments: list[tuple[str, int, int]], norm: bool) -> dict[str, Tensor]:
    """Weights of a path: the first row's stem, blocks and stitch layers one after the other, the last row's end."""
    t, first, last = gene.tensors(), segments[0][0], segments[-1][0].split()[-1]
    stem = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    out = {name: t[f"{first}.{name}"] for name in stem}
    i = 0
    for source, begin, end in segments:
        *stitch, row = source.split(", ")
        out |= {f"blocks.{i}.stitch.{kind}": t[f"{stitch[0]}.{kind}"] for kind in ("weight", "bias") if stitch}
        for block in range(begin - 1, end):
            out |= {f"blocks.{i}.{name}": t[f"{row}.blocks.{block}.{name}"] for name in PARAMS}
            i += 1
    ending = ("norm.weight", "norm.bias") if norm else ()
    return out | {name: t[f"{last}.{name}"] for name in (*ending, "head.weight", "head.bias")}


@pytest.mark.parametrize("ending", ["aligned", "official"])
@pytest.mark.parametrize(("settings", "path", "segments"), PATHS.values(), ids=PATHS)
def test_a_path_is_its_blocks_and_stitches_one_after_the_other(
    settings: dict[str, Any], path: str, segments: list[tuple[str, int, int]], ending: str
) -> None:
    """Weights, logits and gradients; what the path does not pass gets no gradient at all."""
    gene = pool_of(settings)
    shape = gene.method.named_shape(gene.shape, path).replace(ending=ending)
    expected = plain_path(gene, segments, norm=settings.get("final_norm", True) or len(segments) == 1)
    found = {key.replace("fc_norm.", "norm."): value for key, value in gene.weights(shape).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    images = batch(gene.shape, 4)
    logits = plain_vit(expected, images, shape.depth, 8, ending)
    torch.testing.assert_close(gene(images, shape), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gene.expand(shape)(images), logits, rtol=1e-4, atol=1e-5)
    assert_gradients(gene, gene(images, shape), logits)


@pytest.mark.parametrize("ending", ["aligned", "official"])
@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, [1, 3, 3, 5, 6, 6]),
        ({"priority": "first"}, [1, 1, 3, 5, 6, 6]),
        ({"expansion": "cyclic"}, [1, 3, 3, 5, 6, 5]),
        ({"expansion": "spread", "priority": "3,1,2"}, [1, 1, 3, 5, 6, 6]),
    ],
    ids=str,
)
def test_lsamd_stacks_the_ancestrys_blocks(options: dict[str, Any], blocks: list[int], ending: str) -> None:
    """Of which only the head is not carried."""
    ancestry = pico_gene("pre-fin", depth=6).expand()
    kind = method("lsamd", {"layers": (1, 3, 5, 6)})
    gene = Learngene(kind, pico_shape(depth=6), kind.extract(ancestry.state_dict(), pico_shape(depth=6)))
    model = gene.expand(pico_shape(depth=6, ending=ending), **options, seed=5)
    w = {name: value for name, value in ancestry.state_dict().items() if not name.startswith(("blocks.", "head."))}
    w |= {f"head.{part}": model.state_dict()[f"head.{part}"] for part in ("weight", "bias")}
    for layer, block in enumerate(blocks):
        w |= {f"blocks.{layer}.{name}": ancestry.state_dict()[f"blocks.{block - 1}.{name}"] for name in PARAMS}
    images = batch(gene.shape, 4)
    torch.testing.assert_close(model(images), plain_vit(w, images, 6, 8, ending), rtol=1e-4, atol=1e-5)
    stock = VisionTransformer(**pico_shape(depth=6, ending=ending).timm_kwargs()).eval()
    stock.load_state_dict({name.replace("norm.", "fc_norm.") if ending == "official" and name.startswith("norm.")
                           else name: value for name, value in w.items()})  # fmt: skip
    assert torch.equal(model(images), stock(images))


# -- what is trained ---------------------------------------------------------------------------------------

CONDENSED: dict[str, dict[str, Any]] = {
    "tleg": {}, "sws": {"stages": (2, 2)}, "simple-lg": {}, "share-init": {}, "pre-fin": {}, "distilled": {},
    "nested-slices": {}, "mini-init": {"blocks": 2}, "pool": {"rows": (8, 16)}, "sn-net": {"rows": ((8, 2, 1), 16)},
    "wave": {}, "any-size": {}, "chebyshev": {}, "fine": {}, "sweet": {"ranks": (3,)},
    "lets": {"width": 8, "sources": 4},
}  # fmt: skip


def test_every_method_that_is_trained_is_tested_here() -> None:
    """But hypernetworks, whose weights are predicted: those are in ``test_hypernetworks.py``."""
    trained = {name for name, kind in METHODS.items() if "condense" in kind.origins}
    assert CONDENSED.keys() == trained - {"tal", "logah", "ghn3"}


def test_the_auxiliary_model_of_mini_init_is_more_than_a_descendant_can_be() -> None:
    """By design: it trains with relative positions and mixed heads, for which a plain ViT has no place.

    At its own shape it computes what the descendant computes only if asked for a shape, as a plain ViT; what it trains
    is compared with Mini-DeiT in ``tests/unit/test_mini_init.py``.
    """
    gene = pico_gene("mini-init", CONDENSED["mini-init"])
    images = batch(gene.shape, 4)
    assert (gene(images) - gene.expand()(images)).abs().max() > 0.01
    assert torch.equal(gene(images, gene.shape), gene.expand()(images))


@pytest.mark.parametrize("name", CONDENSED)
def test_gradients_reach_every_tensor_of_what_is_trained(name: str) -> None:
    """At the auxiliary shape; what has rows is trained along all its paths, one at a step, and together they do."""
    gene = pico_gene(name, CONDENSED[name])
    images, kind = batch(gene.shape, 4), gene.method
    for shape in kind.shapes(gene.shape, gene.shape) if isinstance(kind, StitchedRows) else [None]:
        gene(images, shape).square().sum().backward()
    untouched = [key for key, value in gene.tensors().items() if value.grad is None or not value.grad.any()]
    assert untouched == []


def test_a_and_b_get_the_weighted_sums_of_the_layers_gradients() -> None:
    """Against an ordinary timm model, whose layers share nothing, at the same weights."""
    gene = pico_gene()
    images = batch(gene.shape, 4)
    gene(images).square().sum().backward()
    model = VisionTransformer(**gene.shape.timm_kwargs()).eval()
    model.load_state_dict(gene.expand().state_dict())
    model(images).square().sum().backward()
    untied = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in PARAMS:
        layers = [untied[f"blocks.{i}.{name}"] for i in range(4)]
        slope = sum(i / 4 * gradient for i, gradient in enumerate(layers))
        torch.testing.assert_close(gene.tensors()[f"A.{name}"].grad, slope, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gene.tensors()[f"B.{name}"].grad, sum(layers), rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    gene = pico_gene()
    loss = gene(batch(gene.shape)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [gene.tensors()["A.mlp.fc1.weight"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
