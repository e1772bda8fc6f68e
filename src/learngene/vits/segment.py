"""Segments: runs of neighbouring blocks of one row, of which stitched models are put together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def of(cls, fields: Any) -> Segment:
        """A segment as it is, or from ``[embed_dim, num_heads, first, last]``."""
        if isinstance(fields, Segment):
            return fields
        if not isinstance(fields, Sequence) or isinstance(fields, str) or len(fields) != 4:
            raise ShapeError(f"shape: a segment is [embed_dim, num_heads, first, last], not {fields!r}")
        return cls(*fields)

    @property
    def depth(self) -> int:
        """Number of its blocks."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.embed_dim}:{self.first}-{self.last}"


def parse_path(text: Any, head_dim: int) -> tuple[Segment, ...]:
    """The segments of a path such as ``192:1-4+768:5-6``.

    Args:
        text: The path, see ``path_pieces``.
        head_dim: Width of a head, from which follow the heads of every segment.

    Raises:
        ShapeError: If it is no such text.
    """
    pieces = path_pieces(text)
    for width, _, _ in pieces:
        if not width or width % head_dim:
            raise ShapeError(f"shape: path '{text}': width {width} is no multiple of the head width {head_dim}")
    return tuple(Segment(width, width // head_dim, first, last) for width, first, last in pieces)


def path_pieces(text: Any) -> list[tuple[int, int, int]]:
    """Reads ``192:1-4+768:5-6``, segments joined by ``+``, each a width and its blocks counted from 1.

    Returns:
        Width, first and last block of every segment.

    Raises:
        ShapeError: If it is no such text.
    """
    pieces = []
    for piece in str(text).split("+"):
        match = re.fullmatch(r"\s*(\d+):(\d+)(?:-(\d+))?\s*", piece, re.ASCII)
        if match is None:
            raise ShapeError(f"shape: path '{text}' is not of the form WIDTH:FIRST-LAST+WIDTH:FIRST-LAST")
        pieces.append((int(match[1]), int(match[2]), int(match[3] or match[2])))
    return pieces
