"""WAVE: weight templates for adaptive initialization of variable-sized models (Feng et al., CVPR 2025).

Every matrix of every layer l is a sum of Kronecker products of templates and scalers,

    W(l) = sum over t of T_t kron S_t(l)

with templates T that all layers and sizes share, one set for each of qkv, proj, fc1 and fc2, and small scalers S of
each layer and each size. No code of the authors could be read. The paper says nothing of start values nor of norms,
biases, patches, positions and head; here they are tiles like all the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from learngene.methods.tiles import Mixing, Tiled, interpolation
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape


@dataclass(frozen=True)
class WAVE(Tiled):
    """Templates, and scalers of each size.

    A size without scalers of its own gets those of the auxiliary model: linearly between its layers, and with its tiles
    repeated or cut.

    Attributes:
        sizes: Sizes besides the auxiliary one that the gene has scalers for, such as ``96x9``: width and depth.
    """

    sizes: tuple[str, ...] = ()

    name: ClassVar[str] = "wave"
    title: ClassVar[str] = "WAVE: weight templates"
    paper: ClassVar[str] = "Feng et al., CVPR 2025"
    distillation: ClassVar[str] = "wave"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.sizes if isinstance(self.sizes, Sequence) and not isinstance(self.sizes, str) else [self.sizes]
        for size in sizes:
            if not isinstance(size, str) or not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ShapeError(f"wave: sizes must be a list of width and depth such as [96x9], not {size!r}")
        object.__setattr__(self, "sizes", tuple(dict.fromkeys(sizes)))

    def scaler_shapes(self, auxiliary: ViTShape) -> dict[str, ViTShape]:
        """The auxiliary shape, and the sizes."""
        out = {_begin(auxiliary): auxiliary}
        for size in self.sizes:
            width, depth = map(int, size.split("x"))
            heads = max(1, width // auxiliary.head_dim)
            if width % heads:
                raise ShapeError(f"wave: size {size} has no whole heads of {auxiliary.head_dim}; use another width")
            shape = auxiliary.replace(embed_dim=width, depth=depth, num_heads=heads)
            out[_begin(shape)] = shape
        return out

    def source(self, auxiliary: ViTShape, shape: ViTShape) -> tuple[str, ViTShape]:
        """Scalers of that width and depth if there are some, else the auxiliary model's."""
        begin = _begin(shape) if _begin(shape).removeprefix("S.") in self.sizes else _begin(auxiliary)
        return begin, self.scaler_shapes(auxiliary)[begin]

    def mixing(self, source: ViTShape, shape: ViTShape, *, layers: bool) -> Mixing:
        """Every layer has a row of scalers."""
        return interpolation(source.depth, shape.depth) if layers else interpolation(1, 1)


def _begin(shape: ViTShape) -> str:
    """Of the names of a size's scalers."""
    return f"S.{shape.embed_dim}x{shape.depth}"
