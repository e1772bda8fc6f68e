"""Nested slices: one ViT trained at several sizes, each of which is the front of the next, after HydraViT.

The gene is the ViT at its largest size. A smaller one takes its first heads, the first channels of its residual
stream, the first hidden neurons of its MLPs and some of its layers, so expanding is slicing. HydraViT (Haberer et al.,
NeurIPS 2024) trains such slices in turn, at one depth. Other depths are ours: see ``NestedSlices.kept_layers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Origin, refuse_arch, require_choice, require_plain
from learngene.methods.cutting import Cutting, front, refuse_other_heads, spaced
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor

KEPT_LAYERS = ("first", "spaced")


@dataclass(frozen=True)
class NestedSlices(Cutting):
    """The front of every tensor of one ViT.

    Attributes:
        kept_layers: Which layers a shallower model takes: the ``first`` ones, so that depths nest as widths do and each
            layer keeps its input; or evenly ``spaced`` ones.
    """

    kept_layers: str = "first"

    name: ClassVar[str] = "nested-slices"
    title: ClassVar[str] = "Nested slices"
    paper: ClassVar[str] = "after HydraViT, Haberer et al., NeurIPS 2024"
    origins: ClassVar[tuple[Origin, ...]] = ("condense",)
    distillation: ClassVar[str] = "tleg-official"
    any_depth: ClassVar[bool] = False
    takes_arrays: ClassVar[bool] = True
    narrowed: ClassVar[str] = "first {} of {} channels"
    larger: ClassVar[str] = "gene"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self.name, "kept_layers", self.kept_layers, KEPT_LAYERS)

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Plain ViTs are sliced."""
        refuse_arch(self.name, auxiliary)

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Whole heads only."""
        super().refuse(auxiliary, shape, **options)
        refuse_other_heads(self.name, auxiliary, require_plain(shape))

    def source_layers(self, auxiliary: ViTShape, shape: Shape) -> list[int]:
        """The first layers, or evenly spaced ones."""
        if self.kept_layers == "spaced":
            return spaced(auxiliary.depth, shape.depth)
        return super().source_layers(auxiliary, shape)

    def cut(
        self, value: Tensor, size: tuple[int, ...], name: str, auxiliary: ViTShape, shape: ViTShape, **options: Any
    ) -> Tensor:
        """The front of every dimension."""
        return front(value, size, name)
