"""Scratch: random weights, what every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, Part
from learngene.methods.combination import LayerCombination, LayerTerms, copies
from learngene.system.errors import refuse_unknown
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class Scratch(LayerCombination):
    """A gene that holds nothing, so that every tensor of every shape starts fresh."""

    name: ClassVar[str] = "scratch"
    title: ClassVar[str] = "Random initialisation"
    paper: ClassVar[str] = "baseline of TLEG and SWS"
    origins: ClassVar[tuple[Origin, ...]] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Nothing is carried."""
        return ()

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any shape can start at random."""
        refuse_unknown(options, self.options, f"{self.name}: expansion options")

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Every layer is fresh."""
        return copies([None] * shape.depth)
