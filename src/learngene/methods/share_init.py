"""Share-Init: one layer for the whole model, as ALBERT (Lan et al., ICLR 2020); TLEG's Table 2 compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.combination import LayerCombination, LayerTerms, copies, layer_tensors
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class ShareInit(LayerCombination):
    """A model whose layers are one is trained on labels; every layer of a descendant is a copy of it."""

    name: ClassVar[str] = "share-init"
    title: ClassVar[str] = "Share-Init (ALBERT-style sharing)"
    paper: ClassVar[str] = "Lan et al., ICLR 2020"

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """The one layer."""
        return layer_tensors(["shared"], auxiliary)

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """The same layer everywhere."""
        return copies(["shared"] * shape.depth)
