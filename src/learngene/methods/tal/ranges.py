"""The shapes that a hypernetwork is trained on: ranges of depth and width, or a list. Nothing here imports torch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learngene.system.errors import ShapeError, nearest

Size = tuple[int, int, int]
"""Depth, embed_dim and num_heads of a plain ViT."""


@dataclass(frozen=True)
class Band:
    """Widths of some depths: the smallest and the largest of both, and the step between widths."""

    depths: tuple[int, int]
    widths: tuple[int, int]
    step: int = 32

    def sizes(self) -> Iterator[Size]:
        """Every size, shallow before deep and narrow before wide."""
        for depth in range(self.depths[0], self.depths[1] + 1):
            for width in range(self.widths[0], self.widths[1] + 1, self.step):
                for heads in heads_of(width):
                    yield depth, width, heads


RANGES: dict[str, tuple[Band, ...]] = {
    "vits-1k": (Band((3, 3), (384, 512)), Band((4, 5), (256, 384)), Band((6, 9), (128, 256))),
    "vits-1k-tal": (Band((3, 3), (192, 512)), Band((4, 5), (256, 512)), Band((6, 9), (256, 768))),
    "vits+-1k": (Band((3, 12), (192, 768), 64),),
    "laptop": (Band((3, 12), (64, 192)),),
}
"""LoGAH's generator, its variant in TAL's code, TAL's active one, and one for small images."""


def heads_of(width: int) -> tuple[int, ...]:
    """The numbers of heads that the generators draw from: all of them divide the width."""
    if width % 12 == 0:
        return 3, 6, 12
    if width % 6 == 0:
        return 3, 6
    return (3,) if width % 3 == 0 else (4, 8)


def sizes_of(shapes: str | tuple[Size, ...]) -> tuple[Size, ...]:
    """Every size that a setting ``architectures`` may draw."""
    return shapes if not isinstance(shapes, str) else tuple(size for band in RANGES[shapes] for size in band.sizes())


def sample_size(shapes: str | tuple[Size, ...], source: random.Random) -> Size:
    """Draws one size: of a list evenly, of a range first the depth, then the width, then the heads, as the authors."""
    if not isinstance(shapes, str):
        return source.choice(shapes)
    bands = RANGES[shapes]
    depth = source.randint(bands[0].depths[0], bands[-1].depths[1])
    band = next(band for band in bands if band.depths[0] <= depth <= band.depths[1])
    width = source.choice(range(band.widths[0], band.widths[1] + 1, band.step))
    return depth, width, source.choice(heads_of(width))


def checked_shapes(shapes: Any) -> str | tuple[Size, ...]:
    """The setting ``architectures``; ``ShapeError`` if it is neither the name of a range nor a list of sizes."""
    if isinstance(shapes, str):
        if shapes not in RANGES:
            raise ShapeError(f"architectures: unknown range '{shapes}'{nearest(shapes, RANGES)}")
        return shapes
    fields = ("depth", "embed_dim", "num_heads")
    listed = isinstance(shapes, Sequence) and len(shapes) > 0
    out: list[Size] = []
    for entry in shapes if listed else ():
        values: Any = [entry.get(field) for field in fields] if isinstance(entry, Mapping) else entry
        right = isinstance(values, Sequence) and len(values) == len(fields)
        if not right or not all(type(value) is int and value >= 1 for value in values):
            raise ShapeError(f"architectures: {entry!r} is no size; give depth, embed_dim and num_heads")
        depth, width, heads = values
        if width % heads:
            raise ShapeError(f"architectures: embed_dim {width} is not divisible by num_heads {heads}")
        out.append((depth, width, heads))
    if not out:
        names = ", ".join(RANGES)
        raise ShapeError(
            f"architectures: must be one of {names}, or a list of depth, embed_dim and num_heads; got {shapes!r}"
        )
    return tuple(out)


def limits(shapes: str | tuple[Size, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest depth and width of what is trained."""
    sizes = sizes_of(shapes)
    depths, widths = [size[0] for size in sizes], [size[1] for size in sizes]
    return (min(depths), max(depths)), (min(widths), max(widths))
