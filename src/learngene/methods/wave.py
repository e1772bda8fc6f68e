"""WAVE: weight templates for adaptive initialization of variable-sized models (Feng et al., CVPR 2025).

Every matrix of every layer l is a sum of Kronecker products of templates and scalers,

    W(l) = sum over t of T_t kron S_t(l)

with templates T that all layers and sizes share, one set for each of qkv, proj, fc1 and fc2, and small scalers S of
each layer and each size. No code of the authors could be read. The paper says nothing of start values nor of norms,
biases, patches, positions and head; here they are tiles like all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Method, gene_name, refuse_arch, require_choice, require_plain
from learngene.methods.cutting import refuse_other_heads
from learngene.methods.interpolation import interpolated, interpolation, share_text
from learngene.methods.tiles import LAST, MATRICES, grid_of, mixed_tiles, resized
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

READERS = (*MATRICES, "head.weight")
"""Parameters that sum over the width or the hidden width: a wider sum of repeated terms is divided by its growth."""

TEMPLATE_STD = 0.1
"""Of the templates' start; close to the scalers', so that both learn at one rate."""
STD = {"cls_token": 1e-6} | dict.fromkeys(("pos_embed", *READERS), 0.02)
"""Of timm's start, by parameter; of biases and what is added to a norm's weight of 1 it is 0."""


@dataclass(frozen=True)
class WAVE(Method):
    """Templates, and scalers of each size.

    The gene has the auxiliary model's scalers. Another size takes them linearly between its layers, and with its tiles
    repeated or cut.

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

    name: ClassVar[str] = "wave"
    title: ClassVar[str] = "WAVE: weight templates"
    paper: ClassVar[str] = "Feng et al., CVPR 2025"
    distillation: ClassVar[str] = "wave"
    any_depth: ClassVar[bool] = False
    kept_fields: ClassVar[tuple[str, ...]] = ("patch_size", "in_chans", "class_token", "arch", "arch_args")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self.name, "layout", self.layout, ("tile", "outer"))
        if len(self.templates) not in (1, len(MATRICES)):
            raise ShapeError(f"{self.name}: templates must be a list of one number or of four, for qkv, proj, fc1, fc2")

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
        self.refuse(auxiliary, auxiliary)

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
        """Templates ``T.*``, scalers ``S.*`` of the auxiliary model, and the head's bias."""
        side, out = self.side(auxiliary), {}
        for name, size in _tiled_params(auxiliary).items():
            wide = {0: side, len(size) - 1: side} if name in MATRICES else {len(size) - 1 if name in LAST else 0: side}
            out[f"T.{name}"] = (self.count(name), *(wide.get(axis, n) for axis, n in enumerate(size)))
        inside = auxiliary.layer_params()
        for name, size in _tiled_params(auxiliary).items():
            grid, layers = grid_of(name, size, side), auxiliary.depth if name in inside else 1
            out[f"S.{name}"] = (layers, grid.rows, grid.columns, self.count(name))
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

    def shared(self, name: str) -> bool:
        """Templates."""
        return name.startswith("T.")

    def fixed(self, name: str) -> bool:
        """Frozen templates."""
        return self.frozen_templates and self.shared(name)

    # -- weights -----------------------------------------------------------------------------------------------------

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The scalers of every layer, and what becomes of their grid."""
        shape = require_plain(shape)
        have, want = (each.embed_dim // self.side(auxiliary) for each in (auxiliary, shape))
        width = f", {want} tiles wide from {have}" if have != want else ""
        return [share_text(row, "S") + width for row in interpolation(auxiliary.depth, shape.depth)]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Scalers of the shape, and the tiles that they mix; the head if the number of classes is the same."""
        shape, side = require_plain(shape).replace(img_size=auxiliary.img_size), self.side(auxiliary)
        out: dict[str, Tensor] = {}
        inside = shape.layer_params()
        scalers = self._scalers(tensors, auxiliary, shape)
        for name, size in _tiled_params(shape).items():
            if name == "head.weight" and shape.num_classes != auxiliary.num_classes:
                continue
            value = mixed_tiles(scalers[name], tensors[f"T.{name}"], grid_of(name, size, side), self.layout)
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

    def at_shape(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape) -> dict[str, Tensor]:
        """Scalers between the layers, with their tiles repeated or cut."""
        scalers = {f"S.{name}": value for name, value in self._scalers(tensors, auxiliary, shape).items()}
        return scalers | {name: tensors[name] for name in auxiliary.head_params() if name == "head.bias"}

    def _scalers(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape) -> dict[str, Tensor]:
        """Those of every parameter, at another shape."""
        scalers, inside = {name: tensors[f"S.{name}"] for name in _tiled_params(shape)}, shape.layer_params()
        scalers |= {name: interpolated(scalers[name], shape.depth) for name in inside}
        return self.at_width(scalers, auxiliary, shape)

    def at_width(self, scalers: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape) -> dict[str, Tensor]:
        """Scalers of parameters, with their tiles repeated or cut as the width of a shape wants it."""
        side, have, want = self.side(auxiliary), _tiled_params(auxiliary), _tiled_params(shape)
        grids = {name: (grid_of(name, have[name], side), grid_of(name, want[name], side)) for name in scalers}
        return {name: resized(value, *grids[name], reads=name in READERS) for name, value in scalers.items()}


def _tiled_params(shape: ViTShape) -> dict[str, tuple[int, ...]]:
    """Every parameter with a width: those outside the layers, and those of one layer."""
    norm = {gene_name(name): size for name, size in shape.norm_params().items()}
    named = shape.stem_params() | shape.layer_params() | norm | shape.head_params()
    return {name: size for name, size in named.items() if name != "head.bias"}
