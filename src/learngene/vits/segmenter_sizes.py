"""Sizes in closed form of a model that gives every pixel a class, which ``segmenter.py`` builds; no torch."""

from __future__ import annotations

from learngene.vits.stitched_shape import Shape


def head_params(embed_dim: int, num_classes: int) -> int:
    """Parameters of the head: a convolution without bias, scale and shift of its normalisation, a convolution."""
    return embed_dim * embed_dim + 2 * embed_dim + (embed_dim + 1) * num_classes


def segmenter_params(shape: Shape) -> int:
    """Parameters of a shape's model with a head for its classes per pixel instead of per image."""
    return shape.replace(num_classes=0).params() + head_params(shape.embed_dim, shape.num_classes)


def segmenter_macs(shape: Shape) -> int:
    """Multiply-adds of one image through that model, the upsampling of its logits left aside."""
    head = shape.grid_size**2 * shape.embed_dim * (shape.embed_dim + shape.num_classes)
    return shape.replace(num_classes=0).macs() + head
