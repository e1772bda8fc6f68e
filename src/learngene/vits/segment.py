"""A run of neighbouring blocks of one row, of which stitched models are put together."""

from __future__ import annotations

from dataclasses import dataclass

from learngene.system.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive blocks of one row.

    Attributes:
        embed_dim: Width of the row.
        num_heads: Its attention heads.
        first: The first block, counted from 1 in its row. A model by itself computes the same wherever its blocks
            stood; their places say where they come from.
        last: The last block.
    """

    embed_dim: int
    num_heads: int
    first: int
    last: int

    def __post_init__(self) -> None:
        for value in (self.first, self.last):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ShapeError(f"shape: the blocks of a segment are integers, not {value!r}")
        if not 1 <= self.first <= self.last:
            raise ShapeError(f"shape: segment {self.first}-{self.last} is empty; blocks count from 1, first to last")

    @property
    def depth(self) -> int:
        """Number of its blocks."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.embed_dim}:{self.first}-{self.last}"
