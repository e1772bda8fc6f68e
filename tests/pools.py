"""Small pools that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learngene import Ancestry, condense, scratch
from learngene.genes.gene import Learngene
from learngene.methods.stitching import StitchedRows
from learngene.vits.stitched_shape import Shape
from pico import FAST, pico_gene, pico_shape, random_tensors
from runs import condensed, state

POOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "two rows": ("pool", {"rows": (16, 32)}),
    "down": ("pool", {"rows": (16, 32), "direction": "down"}),
    "no final norm": ("pool", {"rows": (16, 32), "final_norm": False}),
    "three rows": ("pool", {"rows": (16, 24, 32), "nearest": False, "max_stitches": 2}),
    "three rows down, no final norm": (
        "pool",
        {"rows": (16, 24, 32), "direction": "down", "max_stitches": 2, "final_norm": False},
    ),
    "unequal depth": ("sn-net", {"rows": ((16, 2, 2), (32, 3, 4))}),
}
"""Method and settings; every one has an auxiliary shape of width 32 and depth 3."""


def pool(name: str = "pool", settings: Any = None, **shape: Any) -> Learngene:
    """A gene with random tensors, of two rows of depth 3 unless told otherwise."""
    fields = {"embed_dim": 32, "num_heads": 4, "depth": 3, **shape}
    return pico_gene(name, settings or {"rows": (16, 32)}, **fields)


def rows_of(gene: Learngene) -> StitchedRows:
    """The gene's method, for what only methods with rows can say."""
    assert isinstance(gene.method, StitchedRows)
    return gene.method


def shapes(gene: Learngene) -> list[Shape]:
    """The shape of every path."""
    return list(rows_of(gene).shapes(gene.shape, gene.shape))


def full_names(gene: Learngene) -> list[str]:
    """The name of every path, such as ``16:1-2+32:3-3``."""
    return [path.path for path in rows_of(gene).paths(gene.shape)]


def vit(seed: int, **changes: Any) -> Any:
    """A plain ViT of random weights, not the small ones that training starts with."""
    model = scratch(pico_shape(**changes))
    with torch.no_grad():
        for name, value in random_tensors({k: tuple(v.shape) for k, v in state(model).items()}, seed).items():
            model.state_dict()[name].copy_(value)
    return model.eval()


def by_hand(model: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Block outputs, attention outputs and logits of a timm ViT, its forward pass written out."""
    tokens = model.patch_embed(images)
    if model.cls_token is not None:
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    tokens = tokens + model.pos_embed
    blocks, attentions = [], []
    for block in model.blocks:
        tokens = block.stitch(tokens) if hasattr(block, "stitch") else tokens
        attentions.append(block.attn(block.norm1(tokens)))
        tokens = tokens + attentions[-1]
        tokens = tokens + block.mlp(block.norm2(tokens))
        blocks.append(tokens)
    normed = model.norm(tokens)
    return blocks, attentions, model.head(normed[:, 0] if model.cls_token is not None else normed.mean(1))


WIDE: dict[str, Any] = {"embed_dim": 32, "num_heads": 4, "depth": 3}
POOL: dict[str, Any] = {"method": "pool", "settings": {"rows": [16, 32]}, "shape": pico_shape(**WIDE).to_dict()}
QUICK = {**FAST, "epochs": 1}


def teacher(**changes: Any) -> Ancestry:
    """An ancestry as wide as the wide row and twice as deep."""
    return Ancestry(vit(1, **{**WIDE, "depth": 6, **changes}))


def made(out: Path | None, images: Path, ancestry: Any = None, **changes: Any) -> Learngene:
    """A pool that was condensed in about a second."""
    return condensed(out, images, ancestry or teacher(), **{**POOL, "train": QUICK, **changes})


def anchors(*sizes: tuple[int, int], **changes: Any) -> list[Ancestry]:
    """Random ViTs of (width, depth)."""
    return [Ancestry(vit(width, embed_dim=width, num_heads=width // 8, depth=depth, **changes))
            for width, depth in sizes]  # fmt: skip


def snnet(images: Path, models: list[Ancestry], shape: Any = None, **changes: Any) -> Learngene:
    """An SN-Net of anchors, by default of widths 16 and 32 and depth 3."""
    fields: dict[str, Any] = {"settings": {"rows": [16, 32]}, "shape": shape or pico_shape(**WIDE), **changes}
    data = {"source": str(images), "workers": 0}
    return condense(method="sn-net", anchors=models, data=data, show=False, **{**QUICK, **fields})
