"""Weight subcloning (Samragh et al., 2023): the most active neurons of a larger ViT, its middle layers left out.

Neurons are ranked by their mean magnitude on data: the residual width in one order for the whole model, so that skip
connections stay aligned, the heads and the hidden neurons of every layer in an order of their own. The gene is the
larger model with its neurons in that order, so a smaller one is the front of every tensor. There is no official code;
what the abstract and the summaries leave open is marked as inferred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Method, Origin, plain
from learngene.methods.combination import every_layer
from learngene.methods.cutting import narrower_widths, refuse_larger, wanted
from learngene.system.errors import ShapeError, refuse_unknown
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightSubcloning(Method):
    """The larger model, most active neurons first."""

    name: ClassVar[str] = "weight-subcloning"
    title: ClassVar[str] = "Weight subcloning"
    paper: ClassVar[str] = "Samragh et al., 2023"
    origins: ClassVar[tuple[Origin, ...]] = ("extract",)
    needs_data: ClassVar[bool] = True

    @property
    def options(self) -> Mapping[str, str]:
        """Whether narrowed layers are scaled."""
        return {
            "rescale": "true (default): scale linear layers by sqrt(width before / after), so that their outputs keep "
            "their spread; false: leave them"
        }

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Whole heads, and nothing that the larger model does not have."""
        refuse_unknown(options, self.options, f"{self.name}: expansion options")
        if not isinstance(options.get("rescale", True), bool):
            raise ShapeError(f"{self.name}: rescale must be true or false, not {options['rescale']!r}")
        shape = plain(shape)
        refuse_larger(self.name, auxiliary, shape)
        if shape.head_dim != auxiliary.head_dim:
            raise ShapeError(
                f"{self.name}: heads are kept whole, so embed_dim / num_heads must be {auxiliary.head_dim}, "
                f"not {shape.head_dim}"
            )

    def widths(self, auxiliary: ViTShape) -> list[tuple[int, int]]:
        """Whole heads fewer."""
        return narrower_widths(auxiliary)

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """All layers of the larger model."""
        return every_layer(auxiliary)

    def source_layers(self, auxiliary: ViTShape, shape: Shape) -> list[int]:
        """The first half of the layers from the front, the rest from the back: the middle ones go."""
        front = math.ceil(shape.depth / 2)
        back = shape.depth - front
        return [*range(front), *range(auxiliary.depth - back, auxiliary.depth)]

    def describe(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[str]:
        """For example ``layer0, the 384 most active of 768``."""
        whole = shape.embed_dim == auxiliary.embed_dim
        width = "" if whole else f", the {shape.embed_dim} most active of {auxiliary.embed_dim}"
        return [f"layer{i}{width}" for i in self.source_layers(auxiliary, shape)]

    def weights(
        self, tensors: Mapping[str, Tensor], auxiliary: ViTShape, shape: Shape, **options: Any
    ) -> dict[str, Tensor]:
        """The front of every dimension; q, k and v each have a front of their own."""
        shape = plain(shape)
        layers = self.source_layers(auxiliary, shape)
        before, after = auxiliary.layer_params(), shape.layer_params()
        out = {}
        for name, size, layer, rest in wanted(self.parts, auxiliary, shape):
            value = tensors[rest if layer is None else f"layer{layers[layer]}.{rest}"]
            if rest.startswith("attn.qkv."):
                value = value.unflatten(0, (3, -1))[:, : shape.embed_dim]
                out[name] = value.flatten(0, 1) if value.ndim == 2 else value[..., : size[1]].flatten(0, 1)
            else:
                out[name] = value[tuple(slice(n) for n in size)]
            if layer is None:
                narrowed = (auxiliary.embed_dim, shape.embed_dim) if name == "head.weight" else (1, 1)
            else:
                narrowed = (before[rest][1], after[rest][1]) if len(before[rest]) == 2 else (1, 1)
            # Inferred: a sum over fewer inputs of like spread is smaller by the root of their ratio.
            if narrowed[0] != narrowed[1] and options.get("rescale", True):
                out[name] = out[name] * math.sqrt(narrowed[0] / narrowed[1])
        return out

    def extract(
        self, state: Mapping[str, Tensor], ancestry: ViTShape, activity: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The larger model with its neurons in order of activity; it computes what it did before.

        Args:
            state: The ancestry's parameters.
            ancestry: Its shape.
            activity: Mean magnitudes from ``extracting.mean_activity``: ``residual`` for the width, ``blocks.i.heads``
                and ``blocks.i.hidden`` for the heads and the MLP of every layer.
        """
        import torch

        assert activity is not None
        out = super().extract(state, ancestry)
        width = activity["residual"].argsort(descending=True, stable=True)
        for name in ("cls_token", "pos_embed"):
            if name in out:
                out[name] = out[name][..., width]
        for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"):
            out[name] = out[name][width]
        if ancestry.num_classes:
            out["head.weight"] = out["head.weight"][:, width]
        within = torch.arange(ancestry.head_dim)
        for i in range(ancestry.depth):
            heads = activity[f"blocks.{i}.heads"].argsort(descending=True, stable=True)
            inside = (heads[:, None] * ancestry.head_dim + within).flatten()
            qkv = torch.cat([part * ancestry.embed_dim + inside for part in range(3)])
            hidden = activity[f"blocks.{i}.hidden"].argsort(descending=True, stable=True)
            rows = {"attn.qkv": qkv, "attn.proj": width, "mlp.fc1": hidden, "mlp.fc2": width}
            columns = {"attn.qkv": width, "attn.proj": inside, "mlp.fc1": width, "mlp.fc2": hidden}
            for module, order in rows.items():
                out[f"layer{i}.{module}.weight"] = out[f"layer{i}.{module}.weight"][order][:, columns[module]]
                out[f"layer{i}.{module}.bias"] = out[f"layer{i}.{module}.bias"][order]
            for norm in ("norm1", "norm2"):
                for kind in ("weight", "bias"):
                    out[f"layer{i}.{norm}.{kind}"] = out[f"layer{i}.{norm}.{kind}"][width]
        return out
