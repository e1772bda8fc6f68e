"""FINE: all layers in one pair of bases (CVPR 2026, arXiv 2409.19289).

Of each of the four kinds of matrices (qkv, proj, fc1, fc2) the layers share two bases, and differ in r scales:

    W_l = U diag(s_l) V^T,    U: out x r,    V: in x r,    l = 0 .. L - 1

A model of another depth takes the scales that lie between those of the auxiliary model's layers, first to first and
last to last ("linear s"): that needs no data and comes close to trained scales in the paper. Biases and norms, of which
our source says nothing, are held per layer and interpolated alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import refuse_arch
from learngene.methods.combination import LayerCombination, LayerTerms, whole_layer
from learngene.methods.interpolation import interpolation
from learngene.system.errors import ShapeError
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class FINE(LayerCombination):
    """Shared bases and scales per layer.

    Attributes:
        rank: Columns r of the bases, at most the width; 0 takes the width, of which most is stored, and most can be
            said.
    """

    rank: int = dataclasses.field(default=0, metadata={"minimum": 0})

    name: ClassVar[str] = "fine"
    title: ClassVar[str] = "FINE: factors that all layers share"
    paper: ClassVar[str] = "CVPR 2026, arXiv 2409.19289"
    distillation: ClassVar[str] = "tleg-official"
    takes_arrays: ClassVar[bool] = False

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Bases of more columns than rows would say nothing more."""
        refuse_arch(self.name, auxiliary)
        if self.rank > min(auxiliary.embed_dim, auxiliary.hidden_dim):
            raise ShapeError(
                f"fine: rank {self.rank} is beyond what matrices of width {auxiliary.embed_dim} can have; "
                f"use {min(auxiliary.embed_dim, auxiliary.hidden_dim)} or less, or 0 for all"
            )

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """The bases, and of every layer scales, biases and norms."""
        rank = self.rank or min(auxiliary.embed_dim, auxiliary.hidden_dim)
        sizes = auxiliary.layer_params()
        out: dict[str, tuple[int, ...]] = {}
        for matrix in MATRICES:
            rows, columns = sizes.pop(f"{matrix}.weight")
            out |= {f"U.{matrix}": (rows, rank), f"V.{matrix}": (columns, rank)}
        own = {f"{matrix}.scale": (rank,) for matrix in MATRICES} | sizes
        return out | {f"layer{i}.{name}": size for i in range(auxiliary.depth) for name, size in own.items()}

    def initial(self, name: str, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensor:
        """Scales of 1 and bases that give matrices of timm's std, 0.02; the paper's start is not known to us."""
        import torch

        if name.endswith(".scale"):
            return torch.ones(shapes[name])
        if name.startswith(("U.", "V.")):
            std = (0.02 / shapes[name][1] ** 0.5) ** 0.5
            return torch.empty(shapes[name]).normal_(std=std, generator=generator)
        return super().initial(name, shapes, generator)

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Between which layers of the auxiliary model each layer's scales lie; the only layer of one is the middle."""
        return [
            whole_layer(*((f"layer{k}", share) for k, share in enumerate(row) if share))
            for row in interpolation(auxiliary.depth, shape.depth)
        ]

    def denominator(self, shape: Shape) -> int:
        """The steps from the first layer to the last."""
        return shape.depth - 1 or 2

    def combined(self, auxiliary: ViTShape) -> Mapping[str, Sequence[str]]:
        """What is interpolated: scales instead of matrices."""
        scales = {f"{matrix}.weight": f"{matrix}.scale" for matrix in MATRICES}
        return {module: [scales.get(name, name) for name in names] for module, names in MODULE_PARAMS.items()}

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """Scales, biases and norms interpolated; the matrices from them."""
        out = super().weights(tensors, auxiliary, shape, **options)
        for i in range(shape.depth):
            for matrix in MATRICES:
                scale = out.pop(f"blocks.{i}.{matrix}.scale")
                out[f"blocks.{i}.{matrix}.weight"] = (tensors[f"U.{matrix}"] * scale) @ tensors[f"V.{matrix}"].T
        return out
