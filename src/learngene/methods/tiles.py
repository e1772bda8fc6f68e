"""Weights as grids of tiles: all layers and all sizes share the templates, and scalers mix them at every place.

Every parameter with an axis as long as the width, or a multiple of it, is a grid of tiles of one side along it. A tile
is a sum of the templates of its kind of parameter, each times its scaler. So a width is a number of tiles, and a depth
is a number of grids.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from learngene.methods.base import Method, gene_name, refuse_arch, require_choice, require_plain
from learngene.methods.cutting import refuse_other_heads
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
"""Parameters of tiles in both directions; ``templates`` says how many templates each has, in this order."""
LAST = ("cls_token", "pos_embed", "head.weight")
"""Parameters whose last axis is the width; of all others but the matrices it is the first."""
READERS = (*MATRICES, "head.weight")
"""Parameters that sum over the width or the hidden width: a wider sum of repeated terms is divided by its growth."""

TEMPLATE_STD = 0.1
"""Of the templates' start; close to the scalers', so that both learn at one rate."""
STD = {"cls_token": 1e-6} | dict.fromkeys(("pos_embed", *READERS), 0.02)
"""Of timm's start, by parameter; of biases and what is added to a norm's weight of 1 it is 0."""

Mixing = list[list[Fraction]]
"""For every layer the share of every row of scalers."""


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


@functools.lru_cache(maxsize=256)
def interpolation(source: int, depth: int) -> Mixing:
    """Every layer of a depth as a mixture of two neighbours among ``source`` layers at its relative place.

    The first and the last layer are those of the source; a single layer is its middle.

    Example:
        >>> [[str(share) for share in row] for row in interpolation(3, 2)]
        [['1', '0', '0'], ['0', '0', '1']]
    """
    rows = []
    for i in range(depth):
        place = Fraction(i * (source - 1), depth - 1) if depth > 1 else Fraction(source - 1, 2)
        rows.append([max(Fraction(0), 1 - abs(place - k)) for k in range(source)])
    return rows


@dataclass(frozen=True)
class Tiled(Method):
    """A method whose weights are tiles.

    Attributes:
        tile: Side of a tile: a part or a multiple of a head's width; 0, the default, stands for a head's width, so that
            a head is a row of tiles.
        templates: Of every matrix, or of qkv, proj, fc1 and fc2 each.
        vectors: Templates of every other parameter.
        layout: ``tile`` sets tiles side by side; ``outer`` is the product as printed, in which the templates are the
            coarse picture. A multiple of the width computes the same with ``tile`` only.
        frozen_templates: Templates stay as they are drawn, and scalers alone are trained: how much of a result is the
            parametrisation, and not what templates have learnt.
    """

    tile: int = field(default=0, metadata={"minimum": 0})
    templates: tuple[int, ...] = (12,)
    vectors: int = 4
    layout: str = "tile"
    frozen_templates: bool = False

    kept_fields: ClassVar[tuple[str, ...]] = ("patch_size", "in_chans", "class_token", "arch", "arch_args")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self.name, "layout", self.layout, ("tile", "outer"))
        if len(self.templates) not in (1, len(MATRICES)):
            raise ShapeError(f"{self.name}: templates must be one number, or four for qkv, proj, fc1 and fc2")

    @abstractmethod
    def source(self, auxiliary: ViTShape, shape: ViTShape) -> tuple[str, ViTShape]:
        """Which scalers make a shape: the beginning of their names, and the shape that they are for."""

    @abstractmethod
    def scaler_shapes(self, auxiliary: ViTShape) -> dict[str, ViTShape]:
        """The shapes that the gene has scalers for, by the beginning of their names."""

    @abstractmethod
    def mixing(self, source: ViTShape, shape: ViTShape, *, layers: bool) -> Mixing:
        """The share of every row of scalers in every layer of a shape, or in a parameter outside the layers."""

    # -- shapes ------------------------------------------------------------------------------------------------------

    def side(self, auxiliary: ViTShape) -> int:
        """Of a tile."""
        return self.tile or auxiliary.head_dim

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Tiles and heads must fit into each other, and both into the width."""
        refuse_arch(self.name, auxiliary)
        side, head = self.side(auxiliary), auxiliary.head_dim
        if side % head and head % side:
            raise ShapeError(
                f"{self.name}: tiles of {side} and heads of {head} do not fit into each other; set settings.tile to a "
                "part or a multiple of a head's width"
            )
        for shape in self.scaler_shapes(auxiliary).values():
            self.refuse(auxiliary, shape)

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any depth, and any width of whole tiles and whole heads, can be made."""
        super().refuse(auxiliary, shape, **options)
        shape, side, head = require_plain(shape), self.side(auxiliary), auxiliary.head_dim
        for what, width, step in (("embed_dim", shape.embed_dim, max(side, head)), ("MLP", shape.hidden_dim, side)):
            if width % step:
                below = width // step * step
                raise ShapeError(
                    f"{self.name}: {what} {width} is no multiple of {step}, the width of this gene's "
                    f"{'tiles' if step == side else 'heads'}; use {f'{below} or ' if below else ''}{below + step}"
                )
        refuse_other_heads(self.name, auxiliary, shape)

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """Every width up to twice the auxiliary model's."""
        step = max(self.side(auxiliary), auxiliary.head_dim)
        return [(width, width // auxiliary.head_dim) for width in range(step, 2 * auxiliary.embed_dim + 1, step)]

    # -- tensors -----------------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """Templates of a parameter."""
        return self.templates[MATRICES.index(name) % len(self.templates)] if name in MATRICES else self.vectors

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Templates ``T.*``, scalers ``S.*`` of every shape that the gene has some for, and the head's bias."""
        side, out = self.side(auxiliary), {}
        for name, size in _tiled_params(auxiliary).items():
            wide = {0: side, len(size) - 1: side} if name in MATRICES else {len(size) - 1 if name in LAST else 0: side}
            out[f"T.{name}"] = (self.count(name), *(wide.get(axis, n) for axis, n in enumerate(size)))
        for begin, shape in self.scaler_shapes(auxiliary).items():
            inside = shape.layer_params()
            for name, size in _tiled_params(shape).items():
                grid = grid_of(name, size, side)
                rows = len(self.mixing(shape, shape, layers=name in inside)[0])
                out[f"{begin}.{name}"] = (rows, grid.rows, grid.columns, self.count(name))
        return out | {name: size for name, size in auxiliary.head_params().items() if name == "head.bias"}

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """Templates and scalers normal, so that a weight has the deviation that timm gives it; every norm is 1."""
        import torch

        value = torch.zeros(shapes[name])
        if name.startswith("T."):
            return value.normal_(std=TEMPLATE_STD, generator=generator)
        patch = shapes["T.patch_embed.proj.weight"][2:]
        stds = STD | dict.fromkeys(("patch_embed.proj.weight", "patch_embed.proj.bias"), (3 * math.prod(patch)) ** -0.5)
        std = next((std for param, std in stds.items() if name.endswith(f".{param}")), 0.0)
        return value.normal_(std=std / (TEMPLATE_STD * shapes[name][-1] ** 0.5), generator=generator)

    def fixed(self, name: str) -> bool:
        """Frozen templates."""
        return self.frozen_templates and name.startswith("T.")

    # -- weights -----------------------------------------------------------------------------------------------------

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The scalers of every layer, and what becomes of their grid."""
        shape = require_plain(shape)
        begin, source = self.source(auxiliary, shape)
        have, want = (each.embed_dim // self.side(auxiliary) for each in (source, shape))
        width = f", {want} tiles wide from {have}" if have != want else ""
        shares = self.mixing(source, shape, layers=True)
        return [
            " + ".join(f"{'' if share == 1 else f'{share} '}{begin}[{k}]" for k, share in enumerate(row) if share)
            + width
            for row in shares
        ]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Scalers of the shape, and the tiles that they mix; the head if the number of classes is the same."""
        shape, side = require_plain(shape).replace(img_size=auxiliary.img_size), self.side(auxiliary)
        out: dict[str, Tensor] = {}
        begin, source = self.source(auxiliary, shape)
        inside, sizes = shape.layer_params(), _tiled_params(source)
        shares = {layers: as_numbers(self.mixing(source, shape, layers=layers)) for layers in (True, False)}
        for name, size in _tiled_params(shape).items():
            scalers, templates = tensors[f"{begin}.{name}"], tensors[f"T.{name}"]
            if name == "head.weight" and shape.num_classes != auxiliary.num_classes:
                continue
            if (rows := shares[name in inside]) is not None:
                scalers = (scalers.new_tensor(rows) @ scalers.flatten(1)).view(len(rows), *scalers.shape[1:])
            grid = grid_of(name, size, side)
            scalers = resized(scalers, grid_of(name, sizes[name], side), grid, reads=name in READERS)
            value = mixed_tiles(scalers, templates, grid, self.layout)
            if "norm" in name and name.endswith("weight"):
                value = value + 1
            if name in inside:
                layers = value.view(shape.depth, *size).unbind()
                out |= {f"blocks.{i}.{name}": layer for i, layer in enumerate(layers)}
            else:
                out[name] = value.view(size)
        for name in shape.norm_params():
            out[name] = out.pop(gene_name(name))
        if shape.num_classes == auxiliary.num_classes and "head.bias" in tensors:
            out["head.bias"] = tensors["head.bias"]
        return out


def _tiled_params(shape: ViTShape) -> dict[str, tuple[int, ...]]:
    """Every parameter with a width: those outside the layers, and those of one layer."""
    norm = {gene_name(name): size for name, size in shape.norm_params().items()}
    named = shape.stem_params() | shape.layer_params() | norm | shape.head_params()
    return {name: size for name, size in named.items() if name != "head.bias"}


def as_numbers(mixing: Mixing) -> list[list[float]] | None:
    """The shares as numbers; None if every row of scalers is a layer as it is."""
    same = all(
        len(row) == len(mixing) and share == (i == k) for i, row in enumerate(mixing) for k, share in enumerate(row)
    )
    return None if same else [[float(share) for share in row] for row in mixing]


def share_text(row: list[Fraction], begin: str) -> str:
    """A layer's shares as text, such as ``1/2 X[1] + 1/2 X[2]``."""
    return " + ".join(f"{'' if share == 1 else f'{share} '}{begin}[{k}]" for k, share in enumerate(row) if share)
