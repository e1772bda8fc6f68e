"""Linear combinations of a gene's tensors, or of numpy arrays with the same bits.

Tensors are for training; arrays for expanding a gene into a folder, which then needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 1 << 15
"""Entries that are summed at once, so that what is kept in double precision stays in the processor's cache."""


def blend(coefficients: Sequence[Sequence[float]], sources: Sequence[Any]) -> tuple[Any, ...]:
    """Combines two or more tensors, or float32 arrays, of one shape: ``out[i] = sum over k of c[i][k] * sources[k]``.

    Args:
        coefficients: One row for each new tensor.
        sources: All of torch's, or all of numpy's.
    """
    if isinstance(sources[0], np.ndarray):
        return tuple(_sum(row, sources) for row in coefficients)
    from learngene.methods.blend_tensors import blend_tensors  # which needs torch, and so only what is torch's does

    return blend_tensors(coefficients, sources)


def _sum(coefficients: Sequence[float], sources: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The same steps as for tensors: the first source scaled, the others added one by one."""
    first = coefficients[0]
    total = sources[0].copy() if first == 1.0 else sources[0] * np.float32(first)
    flat = total.reshape(-1)
    for coefficient, source in zip(coefficients[1:], sources[1:], strict=True):
        added = source.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = slice(start, start + PIECE)
            flat[piece] = fused_multiply_add(flat[piece], coefficient, added[piece])
    return total


def fused_multiply_add(
    value: NDArray[np.float32], coefficient: float, added: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``value + coefficient * added``, rounded once, as processors do in ``torch.add`` and numpy cannot.

    The product of two float32 numbers is exact in float64. The sum is rounded there to the neighbour with an odd last
    bit (Boldo and Melquiond, 2008), which keeps it on its side of every float32 number and of every half way.
    """
    product = added.astype(np.float64) * np.float64(np.float32(coefficient))
    total = product + value
    back = total - product
    rest = (product - (total - back)) + (value - back)  # what the sum lost, exactly (Knuth's two-sum)
    bits, inexact = total.view(np.int64), rest != 0
    bits -= inexact & ((rest < 0) != (total < 0))  # cut towards zero, where it was rounded away from it
    bits |= inexact
    return total.astype(np.float32)
