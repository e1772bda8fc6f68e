"""Scratch: random weights, what every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, Part
from learngene.methods.combination import LayerCopies
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class Scratch(LayerCopies):
    """A gene that holds nothing, so that every tensor of every shape starts fresh."""

    name: ClassVar[str] = "scratch"
    title: ClassVar[str] = "Random initialisation"
    paper: ClassVar[str] = "baseline of TLEG and SWS"
    origins: ClassVar[tuple[Origin, ...]] = ()
    kept_fields: ClassVar[tuple[str, ...]] = ()
    makes_paths: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """Nothing is carried."""
        return ()

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """None."""
        return []

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[None]:
        """Every layer is fresh."""
        return [None] * shape.depth
