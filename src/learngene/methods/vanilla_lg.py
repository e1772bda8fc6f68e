"""Vanilla-LG, which TLEG calls He-LG: the last layers of the ancestry (Wang et al., AAAI 2022), for ViTs.

The authors' code finds by gradients that the last convolutions of a VGG matter; TLEG and SWS carry that over to ViTs as
"the last layers", stacked on layers that start at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, Part
from learngene.methods.combination import LayerCopies
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class VanillaLG(LayerCopies):
    """The last layers of a trained ViT.

    Attributes:
        last: How many. TLEG takes 3; SWS says "a few".
        stem: Whether patch projection, position embedding and final norm are carried too. They are not in the papers,
            whose stored parameters (Table 2: 5.3 M for DeiT-S) are three layers and nothing else.
    """

    last: int = 3
    stem: bool = False

    name: ClassVar[str] = "vanilla-lg"
    title: ClassVar[str] = "Vanilla-LG (He-LG): last layers of the ancestry"
    paper: ClassVar[str] = "Wang et al., AAAI 2022"
    origins: ClassVar[tuple[Origin, ...]] = ("extract",)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Nothing but layers, unless asked for."""
        return ("stem", "norm") if self.stem else ()

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """The ancestry must have so many layers."""
        if auxiliary.depth < self.last:
            raise ShapeError(f"vanilla-lg: the ancestry has {auxiliary.depth} layers, fewer than last={self.last}")

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """A descendant may be deeper than the ancestry, its lower layers are random; it must hold the last ones."""
        super().refuse(auxiliary, shape, **options)
        if shape.depth < self.last:
            raise ShapeError(f"vanilla-lg: depth {shape.depth} has no room for the {self.last} layers of this gene")

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """The last layers, under their numbers in the ancestry."""
        return super().layer_names(auxiliary)[-self.last :]

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str | None]:
        """Random layers, then the ancestry's last."""
        return [*[None] * (shape.depth - self.last), *self.layer_names(auxiliary)]
