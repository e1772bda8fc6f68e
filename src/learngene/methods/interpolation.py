"""What a gene holds for every layer of its auxiliary model, between these layers: for a model of another depth."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@functools.lru_cache(maxsize=256)
def interpolation(source: int, depth: int) -> list[list[Fraction]]:
    """For every layer of a depth the share of each of ``source`` layers: of two neighbours, by its relative place.

    The first and the last layer are those of the source; a single layer is its middle.

    Example:
        >>> [[str(share) for share in row] for row in interpolation(3, 2)]
        [['1', '0', '0'], ['0', '0', '1']]
    """
    rows = []
    for i in range(depth):
        place = Fraction(i * (source - 1), depth - 1) if depth > 1 else Fraction(source - 1, 2)
        rows.append([max(Fraction(0), 1 - abs(place - k)) for k in range(source)])
    return rows


def interpolated(values: Tensor, depth: int) -> Tensor:
    """Values [layers, ...] for a model of another depth, [depth, ...]."""
    if depth == len(values):
        return values
    shares = values.new_tensor([[float(share) for share in row] for row in interpolation(len(values), depth)])
    return (shares @ values.flatten(1)).view(depth, *values.shape[1:])


def share_text(row: list[Fraction], begin: str) -> str:
    """A layer's shares as text, such as ``1/2 X[1] + 1/2 X[2]``."""
    return " + ".join(f"{'' if share == 1 else f'{share} '}{begin}[{k}]" for k, share in enumerate(row) if share)
