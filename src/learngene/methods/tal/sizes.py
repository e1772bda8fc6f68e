"""Sizes of hypernetworks: published ones by name, the tables that all of them have, and what one is configured with."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

Layout = Literal["official", "transposed"]
Decoder = Literal["low-rank", "dense"]

NODE_TYPES, DEGREES, PATHS, EDGES = 15, 101, 1001, 257
"""Rows of the tables for node types, degrees, distances from the input, and distances between nodes."""

SPATIAL = (1, 3, 5, 7, 9, 11, 13, 14, 15, 16)
"""Kernel sides and grid sides that have a row of their own."""

LARGEST = 8192
"""Largest number of channels, and so of classes, that the vocabulary of the shape encoder tells apart."""

KERNEL = 16
"""Side of the block of weights from which the dense decoder crops."""

SIZES: dict[str, dict[str, int]] = {
    "published": {"hid": 128, "encoder_layers": 5, "encoder_heads": 16, "rank": 90, "expansion": 32768},
    "tiny": {"hid": 64, "encoder_layers": 3, "encoder_heads": 8, "rank": 32, "expansion": 32768},
    "laptop": {"hid": 64, "encoder_layers": 3, "encoder_heads": 8, "rank": 32, "expansion": 4096},
    "pico": {"hid": 16, "encoder_layers": 1, "encoder_heads": 2, "rank": 4, "expansion": 256},
}
"""LoGAH-small, which TAL takes; LoGAH-tiny; a smaller expansion for narrow ViTs; and one to try things with."""


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes what a hypernetwork computes, see ``Hypernetwork`` for the meaning of each entry."""

    hid: int
    encoder_layers: int
    encoder_heads: int
    rank: int
    expansion: int
    max_shape: int
    decoder: Decoder
    layout: Layout
    attention_node: bool
    vocabulary: int

    @functools.cached_property
    def channels(self) -> tuple[int, ...]:
        """The channel counts that have a row of their own, ascending."""
        steps = (*range(8, 64, 8), *range(64, 4096, 16), *range(4096, LARGEST + 1, 32))
        return tuple(sorted({1, 3, self.vocabulary, *steps}))

    def rounded(self, size: int) -> int:
        """The size a weight is decoded at before it is cropped: larger, so that sizes share groups, as in the code."""
        size = min(size, self.max_shape)
        if size % 3 == 0:
            size = size * 4 // 3
        return self.max_shape if size >= self.max_shape / 2 else size
