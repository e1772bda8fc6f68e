"""Pre-Fin: pretrain a whole model and fine-tune it, the upper bound of TLEG and SWS; and its distilled twin.

A model made for one depth can be cut or placed into another (TLEG, Figure 4), which is what a user without a
learngene would try first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin, require_choice
from learngene.methods.combination import LayerCopies
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

PLACES = ("first", "last", "middle")


@dataclass(frozen=True)
class PreFin(LayerCopies):
    """An ordinary model, kept whole."""

    name: ClassVar[str] = "pre-fin"
    title: ClassVar[str] = "Pretrain and fine-tune"
    paper: ClassVar[str] = "upper bound of TLEG and SWS; placements: TLEG, Figure 4"
    origins: ClassVar[tuple[Origin, ...]] = ("condense", "extract")
    options: ClassVar[Mapping[str, str]] = {
        "place": "first, last or middle: which layers to keep, or to fill (the others start fresh)"
    }

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Another depth is refused unless ``place`` says how to make it."""
        super().refuse(auxiliary, shape, **options)
        place = options.get("place")
        if place is not None:
            require_choice(self.name, "place", place, PLACES)
        elif shape.depth != auxiliary.depth:
            raise ShapeError(
                f"{self.name}: this model has {auxiliary.depth} layers, not {shape.depth}; "
                "the option place (first, last or middle) says which of them to keep or to fill"
            )

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str | None]:
        """The first, last or middle layers, cut from the model or placed into a deeper one."""
        have, want = auxiliary.depth, shape.depth
        spare = abs(want - have)
        start = {"first": 0, "last": spare, "middle": spare // 2}[options.get("place", "first")]
        if want <= have:
            return [f"layer{i}" for i in range(start, start + want)]
        return [f"layer{i - start}" if start <= i < start + have else None for i in range(want)]


@dataclass(frozen=True)
class Distilled(PreFin):
    """What most users would do instead of any learngene: distil one student of the size they need."""

    name: ClassVar[str] = "distilled"
    title: ClassVar[str] = "Plain distillation of one fixed-size student"
    paper: ClassVar[str] = "Hinton et al., 2015"
    origins: ClassVar[tuple[Origin, ...]] = ("condense",)
    distillation: ClassVar[str] = "tleg-official"
