"""Weights as grids of tiles: all layers and all sizes share the templates, and scalers mix them at every place.

Every parameter with an axis as long as the width, or a multiple of it, is a grid of tiles of one side along it. A tile
is a sum of the templates of its kind of parameter, each times its scaler. So a width is a number of tiles, and a depth
is a number of grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
"""Parameters of tiles in both directions; ``templates`` says how many templates each has, in this order."""
LAST = ("cls_token", "pos_embed", "head.weight")
"""Parameters whose last axis is the width; of all others but the matrices it is the first."""


class Grid(NamedTuple):
    """How a parameter, as a matrix, is cut into tiles.

    Attributes:
        rows: Tiles from top to bottom.
        columns: Tiles from left to right.
        tile: Rows and columns of one tile.
        groups: Grids that stand below each other: query, key and value.
    """

    rows: int
    columns: int
    tile: tuple[int, int]
    groups: int


def grid_of(name: str, size: Sequence[int], side: int) -> Grid:
    """The tiles of a parameter, of timm's name and size."""
    if name in LAST:
        return Grid(1, size[-1] // side, (math.prod(size[:-1]), side), 1)
    groups = 3 if name.startswith("attn.qkv") else 1
    if name in MATRICES:
        return Grid(size[0] // side, size[1] // side, (side, side), groups)
    return Grid(size[0] // side, 1, (side, math.prod(size[1:])), groups)


def mixed_tiles(scalers: Tensor, templates: Tensor, grid: Grid, layout: str) -> Tensor:
    """The matrices of all layers, with one product of matrices.

    Args:
        scalers: [layers, rows, columns, N].
        templates: [N, tile rows, tile columns].
        grid: Of the parameter.
        layout: ``tile`` sets mixed tiles side by side, kron(S, T); ``outer`` is kron(T, S) in each of the groups.

    Returns:
        [layers, rows x tile rows, columns x tile columns].
    """
    (rows, columns, (high, wide), groups), layers, count = grid, scalers.shape[0], scalers.shape[-1]
    if layout == "tile":
        tiles = scalers.reshape(-1, count) @ templates.reshape(count, -1)
        tiles = tiles.view(layers, rows, columns, high, wide).transpose(2, 3)
    else:
        tiles = templates.reshape(count, -1).T @ scalers.reshape(-1, count).T
        tiles = tiles.view(high, wide, layers, groups, rows // groups, columns).permute(2, 3, 0, 4, 1, 5)
    return tiles.reshape(layers, rows * high, columns * wide)


def resized(scalers: Tensor, have: Grid, want: Grid, *, reads: bool) -> Tensor:
    """Scalers [layers, rows, columns, N] of another width: the grid begins again where it ends, or is cut.

    A parameter that ``reads`` the width is divided by the growth of what it sums over. So a width that is a multiple
    computes the same: every channel has copies, and every sum over them has as many times the terms.
    """
    import torch

    for axis, (old, new) in enumerate(((have.rows, want.rows), (have.columns, want.columns)), start=1):
        if old != new:
            groups = want.groups if axis == 1 else 1
            places = [g * (old // groups) + p % (old // groups) for g in range(groups) for p in range(new // groups)]
            scalers = scalers.index_select(axis, torch.tensor(places, device=scalers.device))
    return scalers * (have.columns / want.columns) if reads and have.columns != want.columns else scalers
