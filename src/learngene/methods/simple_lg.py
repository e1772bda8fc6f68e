"""Simple-LG: the layers of an ordinary small model, repeated without having learned to be (SWS, section 1, Table 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin
from learngene.methods.combination import LayerCopies, shares
from learngene.methods.sws import SWS, Order, stage_order
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class SimpleLG(LayerCopies):
    """An M-layer model (5 in the paper) trained on labels; each of its layers then serves as a stage of SWS."""

    name: ClassVar[str] = "simple-lg"
    title: ClassVar[str] = "Simple-LG"
    paper: ClassVar[str] = "Xia et al., IJCAI 2024 (baseline)"
    origins: ClassVar[tuple[Origin, ...]] = ("condense", "extract")

    @property
    def options(self) -> Mapping[str, str]:
        """The order in which layers repeat, as in SWS."""
        return {"order": SWS().options["order"]}

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """As SWS: no fewer layers than the model has."""
        super().refuse(auxiliary, shape, **options)
        if shape.depth < auxiliary.depth:
            raise ShapeError(f"simple-lg: depth {shape.depth} is below the {auxiliary.depth} layers of this gene")
        self._order(auxiliary, **options)

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The cyclic assignment of SWS with every layer a stage."""
        repeats = shares(shape.depth, self._order(auxiliary, **options))
        return [f"layer{layer}" for layer, times in repeats.items() for _ in range(times)]

    def _order(self, auxiliary: ViTShape, order: Order | None = None) -> list[int]:
        return stage_order(self.name, order, auxiliary.depth, "layers")
