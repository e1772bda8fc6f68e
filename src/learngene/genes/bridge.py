"""The bridge that a gene may keep: from what its head reads to the output of the teacher whose features it learnt.

It is one linear map, so that a descendant of the gene's width can have it as its head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.layout import Sizes
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor

PREFIX, HEAD = "bridge.", ("weight", "bias")


def bridge_tensors(auxiliary: ViTShape, metadata: Mapping[str, Any]) -> Sizes:
    """Name and shape of the tensors of a gene's bridge; none if its metadata has no ``bridge``."""
    if "bridge" not in metadata:
        return {}
    width = metadata["bridge"]["width"]
    return {f"{PREFIX}weight": (width, auxiliary.embed_dim), f"{PREFIX}bias": (width,)}


def refuse_heads(auxiliary: ViTShape) -> None:
    """Raises ``ShapeError`` unless a ViT of this architecture has one linear head as wide as its tokens."""
    found = auxiliary.layout.head
    if found != {"head.weight": (1, auxiliary.embed_dim), "head.bias": (1,)}:
        raise ShapeError(
            f"features.keep_bridge: the head of {auxiliary.arch} is {', '.join(found) or 'none'}, not one linear map "
            "of its tokens' width; use another shape.arch"
        )


def bridge_classes(
    metadata: Mapping[str, Any],
    auxiliary: ViTShape,
    shape: Shape,
    num_classes: int | None,
    names: Sequence[str] | None,
) -> int:
    """The outputs of a descendant whose head is a gene's bridge.

    Args:
        metadata: The gene's.
        auxiliary: The gene's shape.
        shape: The descendant's.
        num_classes: Classes that were asked for.
        names: Their names, if those were given.

    Raises:
        LearngeneError: If the gene has kept none, the descendant is of another width, or classes are asked for.
    """
    if "bridge" not in metadata:
        raise LearngeneError("bridge: the gene has none; condense it with features.keep_bridge=true")
    if num_classes is not None or names is not None:
        raise LearngeneError("bridge: the head gives the teacher's output and has no classes; leave them out")
    if any(part.embed_dim != auxiliary.embed_dim for part in shape.parts):
        raise ShapeError(
            f"bridge: leads from width {auxiliary.embed_dim}, so it fits no descendant of width "
            f"{shape.parts[-1].embed_dim}; leave the width out"
        )
    return int(metadata["bridge"]["width"])


def bridge_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A bridge as a head, under timm's names; shares no memory with the gene."""
    return {f"head.{kind}": tensors[PREFIX + kind].clone() for kind in HEAD}
