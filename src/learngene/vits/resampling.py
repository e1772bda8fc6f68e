"""Weights of a model for images of another size: what depends on the grid of patches is resampled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


def resampled(weights: dict[str, Tensor], source: ViTShape, shape: Shape) -> dict[str, Tensor]:
    """Position embeddings and tables of relative positions for the grid of another shape; changes ``weights``.

    Args:
        weights: Under timm's names.
        source: The shape whose grid they are for.
        shape: The shape whose grid they shall be for.

    Raises:
        ShapeError: If a tensor depends on the grid in a way that is not known here.
    """
    if source.grid_size == shape.grid_size:
        return weights
    expected, patches = shape.all_params(), shape.parts[0].layout.patches
    grid = math.isqrt(patches)
    for name, value in weights.items():
        if tuple(value.shape) == expected.get(name, value.shape):
            continue
        if name == "pos_embed":
            weights[name] = _positions(value, grid, expected[name][1] - patches)
        elif name.endswith("relative_position_bias_table"):
            weights[name] = _relative(value, grid, expected[name])
        else:
            raise ShapeError(
                f"shape: '{name}' is {tuple(value.shape)} at img_size {source.img_size}, where {shape.img_size} needs "
                f"{expected[name]}, and cannot be resampled; use img_size {source.img_size}"
            )
    return weights


def _positions(value: Tensor, grid: int, prefix: int) -> Tensor:
    """Bicubic with antialiasing, as timm's ``resample_abs_pos_embed``, whose import takes longer than torch's."""
    import torch
    from torch.nn.functional import interpolate

    side, width = math.isqrt(value.shape[1] - prefix), value.shape[2]
    positions = value[:, prefix:].float().reshape(1, side, side, width).permute(0, 3, 1, 2)
    positions = interpolate(positions, size=(grid, grid), mode="bicubic", antialias=True)
    positions = positions.permute(0, 2, 3, 1).reshape(1, grid**2, width).to(value.dtype)
    return torch.cat([value[:, :prefix], positions], dim=1) if prefix else positions


def _relative(value: Tensor, grid: int, size: tuple[int, ...]) -> Tensor:
    from timm.layers import resize_rel_pos_bias_table_simple

    return resize_rel_pos_bias_table_simple(value, new_window_size=(grid, grid), new_bias_shape=size)
