"""Any-size genes: every matrix of every layer and size from one set of tiles (ours).

What WAVE stores per kind of matrix and per size, this stores once. All matrices of a ViT, of every layer and every
width, are grids of tiles, and all tiles are sums of the same templates:

    W(l)[p, q] = sum over t of S_t(l)[p, q] T_t

The scalers S are held for a few layers and for the auxiliary width. A model of any depth takes them linearly between
these layers, and one of any width takes the first tiles of every grid, or begins again, while the gene is condensed as
well as later: so it is trained at many shapes (``shapes`` in the recipe), and serves there without any tuning.
``docs/any-size-experiments.md`` is the log of what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.interpolation import interpolated
from learngene.methods.tiles import MATRICES
from learngene.methods.wave import WAVE
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AnySize(WAVE):
    """One set of templates for all kinds of matrices, and scalers of a few layers.

    Attributes:
        templates: Of all matrices together.
        layers: Whose scalers are held, and between which those of every depth lie.
        ends: The first and the last layer have scalers ``E`` of matrices besides, which no other layer has a part of.
    """

    templates: tuple[int, ...] = (48,)
    layers: int = 4
    ends: bool = False

    name: ClassVar[str] = "any-size"
    title: ClassVar[str] = "any-size: one set of tiles"
    paper: ClassVar[str] = "this library"

    def __post_init__(self) -> None:
        if len(self.templates) != 1:
            raise ShapeError(f"{self.name}: templates are of all matrices together, so give a list of one number")
        super().__post_init__()

    def held(self, auxiliary: ViTShape) -> ViTShape:
        """The auxiliary shape, as deep as scalers are held."""
        return auxiliary.replace(depth=self.layers)

    def gene_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """WAVE's, with ``T.matrix`` for the templates of all matrices."""
        out = super().gene_tensors(self.held(auxiliary))
        shared, *_ = [out.pop(f"T.{name}") for name in MATRICES]
        ends = {f"E.{name}": (2, *out[f"S.{name}"][1:]) for name in MATRICES if self.ends}
        return {"T.matrix": shared} | out | ends

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """WAVE's; scalers of the ends begin at 0, without an effect."""
        import torch

        return torch.zeros(shapes[name]) if name.startswith("E.") else super().initial(name, shapes, generator)

    def at_shape(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: ViTShape) -> dict[str, Tensor]:
        """Scalers of as many layers, with their tiles repeated or cut."""
        ends = {name: tensors[f"E.{name}"] for name in MATRICES if self.ends}
        out = super().at_shape(tensors, self.held(auxiliary), self.held(shape))
        return out | {f"E.{name}": value for name, value in self.at_width(ends, auxiliary, shape).items()}

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The scalers of every layer, and what becomes of their grid."""
        out = super().describe(self.held(auxiliary), shape, **options)
        if self.ends and len(out) == 1:
            return [f"1/2 E[0] + 1/2 E[1] + {out[0]}"]
        if self.ends:
            out[0], out[-1] = f"E[0] + {out[0]}", f"E[1] + {out[-1]}"
        return out

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """WAVE's, every kind of matrix with the same templates."""
        given = {**tensors, **dict.fromkeys((f"T.{name}" for name in MATRICES), tensors["T.matrix"])}
        for name in MATRICES if self.ends else ():
            given[f"S.{name}"] = with_ends(interpolated(tensors[f"S.{name}"], shape.depth), tensors[f"E.{name}"])
        return super().weights(given, self.held(auxiliary), shape, **options)


def with_ends(scalers: Tensor, ends: Tensor) -> Tensor:
    """Scalers [layers, ...] with those of the ends [2, ...] added to first and last; to a single layer, their mean."""
    import torch

    if len(scalers) == 1:
        return scalers + ends.mean(0, keepdim=True)
    return torch.cat([scalers[:1] + ends[:1], scalers[1:-1], scalers[-1:] + ends[1:]])
