"""Sizes of a model that gives every pixel a class, in closed form; no torch. ``models/segmenter.py`` builds it."""

from __future__ import annotations

from dataclasses import dataclass

from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class SegmentationHead:
    """The head of SETR-naive: two 1 x 1 convolutions with batch normalisation and ReLU between them.

    Attributes:
        embed_dim: Width of the patch tokens, and between the convolutions.
        num_classes: Classes of a pixel.
    """

    embed_dim: int
    num_classes: int

    def params(self) -> int:
        """Number of parameters: a convolution without bias, scale and shift of the normalisation, a convolution."""
        return self.embed_dim * self.embed_dim + 2 * self.embed_dim + (self.embed_dim + 1) * self.num_classes

    def macs(self, grid: int) -> int:
        """Multiply-adds of one image with ``grid`` patches to a side: of the convolutions, upsampling left aside."""
        return grid * grid * self.embed_dim * (self.embed_dim + self.num_classes)


def segmenter_params(shape: Shape) -> int:
    """Parameters of a shape's model with a head for its classes per pixel instead of per image."""
    return shape.replace(num_classes=0).params() + SegmentationHead(shape.embed_dim, shape.num_classes).params()


def segmenter_macs(shape: Shape) -> int:
    """Multiply-adds of one image through that model."""
    head = SegmentationHead(shape.embed_dim, shape.num_classes)
    return shape.replace(num_classes=0).macs() + head.macs(shape.grid_size)
