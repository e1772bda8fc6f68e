"""Small pools that several test files share."""

from __future__ import annotations

from typing import Any

from learngene.gene import Learngene
from learngene.methods.rows import Rows
from learngene.stitched import Shape
from pico import pico_gene

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


def rows_of(gene: Learngene) -> Rows:
    """The gene's method, for what only methods with rows can say."""
    assert isinstance(gene.method, Rows)
    return gene.method


def shapes(gene: Learngene) -> list[Shape]:
    """The shape of every path."""
    return list(rows_of(gene).shapes(gene.shape, gene.shape))


def full_names(gene: Learngene) -> list[str]:
    """The name of every path, such as ``16:1-2+32:3-3``."""
    kind = rows_of(gene)
    return [kind.name_of(gene.shape, path) for path in kind.paths(gene.shape)]
