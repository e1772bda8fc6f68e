"""SWEET: one Tucker core for all matrices of all layers of all sizes (arXiv 2601.19694).

Every matrix of a ViT of width D is cut into slices of D x D: query, key, value and proj are one each, fc1 and fc2 as
many as the MLP is times as wide. Slice s of layer l is

    W(l, s) = U (sum over a of X[l, s, a] G[a]) V^T

with the core G that all sizes share, X for the depth, and U and V for the width. No code of the authors could be read;
what the paper leaves open is marked in the docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import ANY_WIDTH, Method, gene_name, refuse_arch, require_plain
from learngene.methods.cutting import front, refuse_other_heads
from learngene.methods.interpolation import interpolated, interpolation, share_text
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VECTORS = ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias",
           "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")  # fmt: skip


@dataclass(frozen=True)
class SWEET(Method):
    """A core, and factors that are cut for a narrower width.

    Attributes:
        ranks: Matrices of the core, and their rows and columns; one number leaves those at the auxiliary width, as
            smaller ones bound the rank of every weight.
        frozen_templates: The core stays as it is drawn, and factors alone are trained: how much of a result is the
            parametrisation, and not what the core has learnt.
    """

    ranks: tuple[int, ...] = (24,)
    frozen_templates: bool = False

    name: ClassVar[str] = "sweet"
    title: ClassVar[str] = "SWEET: one Tucker core"
    paper: ClassVar[str] = "arXiv 2601.19694, 2026"
    distillation: ClassVar[str] = "wave"
    any_depth: ClassVar[bool] = False
    kept_fields: ClassVar[tuple[str, ...]] = ANY_WIDTH

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ranks) not in (1, 3):
            raise ShapeError(f"sweet: ranks must be one number or three, not {list(self.ranks)}")

    def core(self, auxiliary: ViTShape) -> tuple[int, int, int]:
        """Matrices, rows and columns of the core."""
        first, *others = self.ranks
        rows, columns = others or (auxiliary.embed_dim, auxiliary.embed_dim)
        return first, rows, columns

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """The core has at least a head's rows and columns, and no more than the width."""
        refuse_arch(self.name, auxiliary)
        if auxiliary.mlp_ratio != int(auxiliary.mlp_ratio):
            raise ShapeError(
                f"sweet: slices are as wide as the model, so mlp_ratio {auxiliary.mlp_ratio} must be whole"
            )
        for rank in self.core(auxiliary)[1:]:
            if not auxiliary.head_dim <= rank <= auxiliary.embed_dim:
                wrong = "small" if rank < auxiliary.head_dim else "large"
                raise ShapeError(
                    f"sweet: a core of {rank} rows or columns is too {wrong} for heads of {auxiliary.head_dim} "
                    f"and embed_dim {auxiliary.embed_dim}; stay between the two"
                )

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Any depth, and any number of heads up to the auxiliary model's, can be made."""
        super().refuse(auxiliary, shape, **options)
        refuse_other_heads(self.name, auxiliary, shape := require_plain(shape))
        if shape.embed_dim > auxiliary.embed_dim:
            raise ShapeError(
                f"sweet: the factors of this gene have {auxiliary.embed_dim} rows, too few for embed_dim "
                f"{shape.embed_dim}; condense one with a wider auxiliary shape"
            )

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """All whole heads, the auxiliary model's own first."""
        return [(heads * auxiliary.head_dim, heads) for heads in range(auxiliary.num_heads, 0, -1)]

    # -- tensors -----------------------------------------------------------------------------------------------------

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Core and factors; biases and norms of every layer as they are."""
        (first, rows, columns), width, sizes = self.core(auxiliary), auxiliary.embed_dim, auxiliary.layer_params()
        out = {"core": (first, rows, columns), "U": (width, rows), "V": (width, columns)}
        out["X"] = (auxiliary.depth, 4 + 2 * int(auxiliary.mlp_ratio), first)
        return out | {f"layer{i}.{name}": sizes[name] for i in range(auxiliary.depth) for name in VECTORS}

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """Core and factors normal, so that weights have timm's deviation of 0.02."""
        import torch

        if name not in ("core", "U", "V", "X"):
            return super().initial(name, shapes, generator)
        std = 0.02 if name == "core" else shapes[name][-1] ** -0.5
        return torch.empty(shapes[name]).normal_(std=std, generator=generator)

    def fixed(self, name: str) -> bool:
        """A frozen core."""
        return self.frozen_templates and name == "core"

    # -- weights -----------------------------------------------------------------------------------------------------

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """The rows of X, and how many rows of U and V."""
        have, want = auxiliary.embed_dim, shape.embed_dim
        width = f", first {want} of {have} rows of U and V" if have != want else ""
        return [share_text(row, "X") + width for row in interpolation(auxiliary.depth, shape.depth)]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Slices from core and factors; of all else the first channels, between the layers; a head for its classes.

        What reads a narrower width is multiplied by the root of the growth, so that it gives as large values.
        """
        import torch

        shape, full = require_plain(shape).replace(img_size=auxiliary.img_size), auxiliary.embed_dim
        width, depth, times = shape.embed_dim, shape.depth, int(auxiliary.mlp_ratio)
        growth = (full / width) ** 0.5
        scalers = interpolated(tensors["X"], depth).flatten(0, 1)
        right = tensors["V"][:width] * growth if width < full else tensors["V"]
        slices = _product(scalers, tensors["core"], tensors["U"][:width], right)
        qkv, proj, fc1, fc2 = slices.view(depth, -1, width, width).split([3, 1, times, times], dim=1)
        stacked = {
            "attn.qkv.weight": qkv.reshape(depth, 3 * width, width),
            "attn.proj.weight": proj.squeeze(1),
            "mlp.fc1.weight": fc1.reshape(depth, times * width, width),
            "mlp.fc2.weight": fc2.transpose(1, 2).reshape(depth, width, times * width),
        }
        for name in VECTORS:
            values = interpolated(torch.stack([tensors[f"layer{i}.{name}"] for i in range(auxiliary.depth)]), depth)
            stacked[name] = values.view(depth, -1, full)[:, :, :width].flatten(1)
        out = {f"blocks.{i}.{name}": layer for name, value in stacked.items() for i, layer in enumerate(value.unbind())}
        for name, size in (shape.stem_params() | shape.norm_params()).items():
            out[name] = front(tensors[gene_name(name)], size, name)
        if shape.num_classes == auxiliary.num_classes:
            out |= {name: front(tensors[name], size, name) for name, size in shape.head_params().items()}
            if "head.weight" in out and width < full:
                out["head.weight"] = out["head.weight"] * growth
        return out


def _product(scalers: Tensor, core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[slices, width x width]: the core's matrices made wide first, or mixed first, whichever is less work."""
    (count, first), (_, rows, columns), width = scalers.shape, core.shape, len(left)
    wide_first = first * width * columns * (rows + width) + count * first * width**2
    mixed_first = count * (first * rows * columns + width * columns * (rows + width))
    if wide_first <= mixed_first:
        return scalers @ (left @ core @ right.T).flatten(1)
    return (left @ (scalers @ core.flatten(1)).view(count, rows, columns) @ right.T).flatten(1)
