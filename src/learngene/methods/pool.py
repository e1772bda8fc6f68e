"""Learngene Pool: Building Variable-Sized Models via Learngene Pool (Shi et al., AAAI 2024).

An ancestry model is distilled into auxiliary models of equal depth and different widths (equations 3 to 8). Their
blocks are the instances of the pool, a row for each auxiliary model, and stitch layers lead from every row to the next
wider one. The transformation matrices that distillation learns are what the stitch layers start from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learngene.methods.stitching import StitchedRows


@dataclass(frozen=True)
class Pool(StitchedRows):
    """Rows distilled from one ancestry model; 6 blocks at 192 and 768 make the paper's pool (12), 9 its pool (18)."""

    name: ClassVar[str] = "pool"
    title: ClassVar[str] = "Learngene Pool"
    paper: ClassVar[str] = "Shi et al., AAAI 2024"
    distillation: ClassVar[str] = "pool"
    equal_depth: ClassVar[bool] = True
    stitch_init: ClassVar[str] = "tm"
