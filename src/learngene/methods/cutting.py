"""What methods that cut a smaller ViT out of a larger one have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Method, Origin, gene_name, require_plain
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


class Cutting(Method):
    """A method whose gene is the larger model, and whose descendants are cut out of it, tensor by tensor."""

    origins: ClassVar[tuple[Origin, ...]] = ("extract",)
    kept_fields: ClassVar[tuple[str, ...]] = ("patch_size", "in_chans", "class_token", "arch", "arch_args")
    narrowed: ClassVar[str]
    """How ``describe`` puts it, with the kept width and the larger one."""
    larger: ClassVar[str] = "ancestry"
    """What messages call the model that is cut."""

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Nothing can be cut that the larger model does not have."""
        super().refuse(auxiliary, shape, **options)
        for field in ("depth", "embed_dim", "hidden_dim"):
            have, want = getattr(auxiliary, field), getattr(shape, field)
            if want > have:
                raise ShapeError(
                    f"{self.name}: {field} {want} is beyond the {self.larger}'s {have}; it can only be cut, not grown"
                )

        _ = require_plain(shape).layout  # which timm may not be able to make at this width

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """Width and heads of every narrower ViT with heads of the same size, the auxiliary model's own first."""
        return [(heads * auxiliary.head_dim, heads) for heads in range(auxiliary.num_heads, 0, -1)]

    def source_layers(self, auxiliary: ViTShape, shape: Shape) -> list[int]:
        """The layer of the larger model that every layer is cut out of: the first ones by default."""
        return list(range(shape.depth))

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The layers, and how many entries of the width are kept."""
        whole = shape.embed_dim == auxiliary.embed_dim
        width = "" if whole else ", " + self.narrowed.format(shape.embed_dim, auxiliary.embed_dim)
        return [f"layer{i}{width}" for i in self.source_layers(auxiliary, shape)]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Every tensor of the smaller model, cut out of its counterpart; the head only for as many classes."""
        shape, layers, out = require_plain(shape), self.source_layers(auxiliary, shape), {}
        for name, size in shape.replace(img_size=auxiliary.img_size).all_params().items():
            if name.startswith("blocks."):
                layer, _, part = name.removeprefix("blocks.").partition(".")
                source = f"layer{layers[int(layer)]}.{part}"
            elif name.startswith("head.") and ("head" not in self.parts or shape.num_classes != auxiliary.num_classes):
                continue
            else:
                source, part = gene_name(name), name
            out[name] = self.cut(tensors[source], size, part, auxiliary, shape, **options)
        return out

    @abstractmethod
    def cut(
        self, value: Tensor, size: tuple[int, ...], name: str, auxiliary: ViTShape, shape: ViTShape, **options: Any
    ) -> Tensor:
        """One tensor of the larger model, cut to a size; its name is that within its layer, if it is in one."""


def front(value: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    """The first entries of every dimension; q, k and v, which one tensor holds, each have first entries of their own.

    Args:
        value: A tensor of the larger model; a numpy array, too.
        size: What is kept of it.
        name: Its name within its layer, if it is in one.
    """
    if tuple(value.shape) == size:
        return value
    if not name.startswith("attn.qkv."):
        return value[tuple(map(slice, size))]
    parts = value.reshape(3, len(value) // 3, *value.shape[1:])
    return parts[(slice(None), slice(size[0] // 3), *map(slice, size[1:]))].reshape(-1, *size[1:])


def spaced(larger: int, smaller: int) -> list[int]:
    """Which of ``larger`` entries ``smaller`` evenly spaced ones are, as the code of weight selection chooses them.

    Every n-th from 0 if it divides evenly, else evenly spaced from the first to the last, rounded half to even. The
    authors compute in float32, whose error can turn an exact half the other way; that needs an odd ``smaller``.

    Example:
        >>> spaced(12, 4), spaced(11, 4), spaced(6, 4)
        ([0, 3, 6, 9], [0, 3, 7, 10], [0, 2, 3, 5])
    """
    if larger % smaller == 0:
        return [k * (larger // smaller) for k in range(smaller)]
    return [round(Fraction(k * (larger - 1), smaller - 1)) for k in range(smaller)]


def refuse_other_heads(where: str, auxiliary: ViTShape, shape: ViTShape) -> None:
    """Raises ``ShapeError`` unless heads are as wide as the larger model's, where these are kept whole."""
    head, width = auxiliary.head_dim, shape.embed_dim
    if shape.head_dim != head:
        way = f"use {width // head} heads" if width % head == 0 else f"use a width that is a multiple of {head}"
        raise ShapeError(
            f"{where}: heads are kept whole, so embed_dim / num_heads must be {head}, not {shape.head_dim}; {way}"
        )
