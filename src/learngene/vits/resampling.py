"""Weights of a model for images of another size: what depends on the grid of patches is resampled."""

from __future__ import annotations

import math

from torch import Tensor

from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


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
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(value, [grid, grid], num_prefix_tokens=prefix)


def _relative(value: Tensor, grid: int, size: tuple[int, ...]) -> Tensor:
    from timm.layers import resize_rel_pos_bias_table_simple

    return resize_rel_pos_bias_table_simple(value, new_window_size=(grid, grid), new_bias_shape=size)
