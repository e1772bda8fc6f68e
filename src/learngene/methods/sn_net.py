"""SN-Net: Stitchable Neural Networks (Pan, Cai and Zhuang, CVPR 2023), the baseline of Learngene Pool.

The rows are pretrained models of one family, the anchors, of equal or unequal depth. Stitch layers start from a
least-squares fit of one anchor's features to another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learngene.methods.stitching import StitchedRows


@dataclass(frozen=True)
class SNNet(StitchedRows):
    """Rows that were trained independently; the paper's DeiT-Ti, S and B have 71 paths."""

    name: ClassVar[str] = "sn-net"
    title: ClassVar[str] = "Stitchable Neural Networks"
    paper: ClassVar[str] = "Pan et al., CVPR 2023"
    equal_depth: ClassVar[bool] = False
    stitch_init: ClassVar[str] = "ls"
