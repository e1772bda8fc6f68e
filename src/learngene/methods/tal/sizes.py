"""Sizes of hypernetworks: published ones by name, and the tables that all of them have."""

from __future__ import annotations

from typing import Literal

Layout = Literal["official", "transposed"]


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
