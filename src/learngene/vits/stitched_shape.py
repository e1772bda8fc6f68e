"""Stitched shapes: Vision Transformers whose layers come from rows of different widths (Learngene Pool, SN-Net).

A stitched shape is a sequence of segments. Each holds consecutive blocks of one row; a linear stitch layer leads from
one segment into the next. Like ``shape.py``, this module imports no torch; only ``skeleton`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.system.errors import ShapeError, refuse_unknown
from learngene.vits.segment import Segment, parse_path
from learngene.vits.shape import NORM_EPS, Ending, ShapeBase, Sizes, ViTShape

if TYPE_CHECKING:
    from learngene.vits.stitched_vit import StitchedViT


@dataclass(frozen=True, slots=True)
class StitchedShape(ShapeBase):
    """The size of a Vision Transformer of several widths, in timm's terms.

    Attributes:
        segments: At least two, in the order in which tokens pass through them.
        mlp_ratio: This and the following as in ``ViTShape``; the MLPs of a segment go by its own width.
        final_norm: Whether the last segment's final norm is applied. SN-Net's code leaves it out on stitched paths.

    Raises:
        ShapeError: If the numbers do not describe such a model.
    """

    segments: tuple[Segment, ...]
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224
    in_chans: int = 3
    num_classes: int = 1000
    class_token: bool = False
    ending: Ending = "aligned"
    final_norm: bool = True
    norm_eps: float = NORM_EPS

    architecture: ClassVar[str] = "learngene_stitched_vit"
    """Timm's name of the model; ``import learngene`` makes it known to timm."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(Segment.of(each) for each in self.segments))
        if len(self.segments) < 2:
            raise ShapeError("shape: a stitched shape has two segments or more; one alone is a plain ViTShape")
        if not isinstance(self.final_norm, bool):
            raise ShapeError(f"shape: final_norm must be true or false, not {self.final_norm!r}")
        _ = self.parts  # whose making validates what a segment has in common with a plain shape

    # -- making shapes -------------------------------------------------------------------------------

    @classmethod
    def of(cls, base: ViTShape, segments: Sequence[Segment], *, final_norm: bool = True) -> StitchedShape:
        """A stitched shape with everything but width, depth and heads from a plain one."""
        if base.arch:
            raise ShapeError(f"shape: paths are of plain ViTs, not of {base.arch}; leave shape.arch out")
        return cls(tuple(segments), final_norm=final_norm, **_common(base))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> StitchedShape:
        """Builds a stitched shape from the fields that ``to_dict`` writes."""
        refuse_unknown(fields, cls.__slots__, "shape")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of the class."""
        return ShapeBase.to_dict(self) | {"segments": [list(dataclasses.astuple(segment)) for segment in self.segments]}

    # -- derived sizes -------------------------------------------------------------------------------

    @property
    def parts(self) -> list[ViTShape]:
        """Every segment as a plain ViT: its blocks, and the stem and head that its row has."""
        common = _common(self)
        return [ViTShape(each.embed_dim, each.depth, each.num_heads, **common) for each in self.segments]

    @property
    def path(self) -> str:
        """The segments as text, such as ``192:1-4+768:5-6``."""
        return "+".join(str(segment) for segment in self.segments)

    @property
    def depth(self) -> int:
        """Blocks of all segments."""
        return sum(segment.depth for segment in self.segments)

    @property
    def embed_dim(self) -> int:
        """Width of the last segment, at which the head reads."""
        return self.segments[-1].embed_dim

    @property
    def num_heads(self) -> int:
        """Heads of the last segment."""
        return self.segments[-1].num_heads

    # -- parameters ----------------------------------------------------------------------------------

    def norm_params(self) -> Sizes:
        """The final norm, at the last segment's width, if it is applied."""
        return self.parts[-1].norm_params() if self.final_norm else {}

    def params_snnet(self) -> int:
        """``params`` as SN-Net's code counts a stitched path: without class token and position embedding.

        It counts the final norm, even where a path does not apply it. Learngene Pool's Tables 1, 2 and 5 print this
        number, and for whole rows the count of everything.
        """
        return self.replace(final_norm=True).params_without_positions()

    # -- the model -----------------------------------------------------------------------------------

    def timm_kwargs(self) -> dict[str, Any]:
        """Arguments for ``StitchedViT``, JSON-serialisable so that timm can store them."""
        segments = self.to_dict()["segments"]
        eps = {} if self.norm_eps == NORM_EPS else {"norm_eps": self.norm_eps}
        return ShapeBase.timm_kwargs(self) | {"segments": segments, "final_norm": self.final_norm} | eps

    def skeleton(self) -> StitchedViT:
        """The model on the meta device: structure without memory or initialisation."""
        from learngene.vits.skeleton import SkipInit
        from learngene.vits.stitched_vit import StitchedViT

        with SkipInit():
            return StitchedViT(**self.timm_kwargs(), weight_init="skip", device="meta")

    def __str__(self) -> str:
        heads = "+".join(str(segment.num_heads) for segment in self.segments)
        norm = "" if self.final_norm else ", no final norm"
        return f"{self.depth} layers {self.path} ({heads} heads), {self._text()}{norm}"


def _common(shape: Shape) -> dict[str, Any]:
    """The fields that stitched and plain shapes share."""
    return {name: getattr(shape, name) for name in ViTShape.__slots__ if name in StitchedShape.__slots__}


Shape = ViTShape | StitchedShape
"""Whatever a gene can be expanded into."""

PATH_FIELDS = ("path", "final_norm")
"""Fields that make a stitched shape of a plain one; see ``shape_from``."""


def shape_from(fields: str | Mapping[str, Any] | Shape) -> Shape:
    """Builds a plain or a stitched shape.

    Args:
        fields: A name or the fields of ``ViTShape``, the fields of ``StitchedShape``, or those of ``ViTShape`` with a
            ``path`` such as ``192:1-4+768:5-6``, whose heads are as wide as those of the plain shape.

    Raises:
        ShapeError: If the fields describe no shape.
    """
    if isinstance(fields, StitchedShape):
        return fields
    if not isinstance(fields, Mapping):
        return ViTShape.from_dict(fields)
    if "segments" in fields:
        return StitchedShape.from_dict(fields)
    if "path" not in fields:
        if "final_norm" in fields:
            raise ShapeError("shape: final_norm belongs to a path; a plain ViT always has its final norm")
        return ViTShape.from_dict(fields)
    base = ViTShape.from_dict({name: value for name, value in fields.items() if name not in PATH_FIELDS})
    segments = parse_path(fields["path"], base.head_dim)
    return StitchedShape.of(base, segments, final_norm=fields.get("final_norm", True))
