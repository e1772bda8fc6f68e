"""Share-Init: one layer for the whole model, as ALBERT (Lan et al., ICLR 2020); TLEG's Table 2 compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from learngene.methods.combination import LayerCopies
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape


@dataclass(frozen=True)
class ShareInit(LayerCopies):
    """A model with one layer, applied again and again, is trained on labels; a descendant's layers are copies of it."""

    name: ClassVar[str] = "share-init"
    title: ClassVar[str] = "Share-Init (ALBERT-style sharing)"
    paper: ClassVar[str] = "Lan et al., ICLR 2020"

    def layer_names(self, auxiliary: ViTShape) -> list[str]:
        """The one layer."""
        return ["shared"]

    def sources(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The same layer everywhere."""
        return ["shared"] * shape.depth
