"""Simple-LG: the layers of an ordinary small model, repeated without having learned to be (SWS, section 1, Table 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.base import Origin
from learngene.methods.combination import LayerCombination, LayerTerms, copies, every_layer
from learngene.methods.sws import SWS
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class SimpleLG(LayerCombination):
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
        try:
            self._as_stages(auxiliary).stage_of_layer(shape.depth, **options)
        except ShapeError as error:
            raise ShapeError(str(error).replace("sws:", "simple-lg:").replace("stages", "layers")) from None

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """All its layers."""
        return every_layer(auxiliary)

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """The cyclic assignment of SWS with every layer a stage."""
        return copies([f"layer{m}" for m in self._as_stages(auxiliary).stage_of_layer(shape.depth, **options)])

    def _as_stages(self, auxiliary: ViTShape) -> SWS:
        return SWS(stages=(1,) * auxiliary.depth)
