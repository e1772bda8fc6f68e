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

from learngene.methods.base import refuse_arch, require_plain
from learngene.methods.cutting import Cutting, front, refuse_other_heads
from learngene.system.errors import ShapeError
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightSubcloning(Cutting):
    """The larger model, most active neurons first."""

    name: ClassVar[str] = "weight-subcloning"
    title: ClassVar[str] = "Weight subcloning"
    paper: ClassVar[str] = "Samragh et al., 2023"
    needs_data: ClassVar[bool] = True
    narrowed: ClassVar[str] = "the {} most active of {}"
    options: ClassVar[Mapping[str, str]] = {
        "rescale": "true (default): scale linear layers by sqrt(width before / after), so that their outputs keep "
        "their spread; false: leave them"
    }

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """Whole heads only."""
        super().refuse(auxiliary, shape, **options)
        if not isinstance(options.get("rescale", True), bool):
            raise ShapeError(f"{self.name}: rescale must be true or false, not {options['rescale']!r}")
        refuse_other_heads(self.name, auxiliary, require_plain(shape))

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Neurons are ranked in plain ViTs."""
        refuse_arch(self.name, auxiliary)

    def source_layers(self, auxiliary: ViTShape, shape: Shape) -> list[int]:
        """The first half of the layers from the front, the rest from the back: the middle ones go."""
        front = math.ceil(shape.depth / 2)
        back = shape.depth - front
        return [*range(front), *range(auxiliary.depth - back, auxiliary.depth)]

    def cut(
        self, value: Tensor, size: tuple[int, ...], name: str, auxiliary: ViTShape, shape: ViTShape, **options: Any
    ) -> Tensor:
        """The front of every dimension; q, k and v each have a front of their own."""
        # Inferred: a sum over fewer inputs of like spread is smaller by the root of their ratio.
        scaled = options.get("rescale", True) and len(size) == 2
        scale = math.sqrt(value.shape[1] / size[1]) if scaled else 1.0
        value = front(value, size, name)
        return value if scale == 1 else value * scale

    def extract(
        self, state: Mapping[str, Tensor], ancestry: ViTShape, activity: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The larger model with its neurons in order of activity; it computes what it did before.

        The activity are mean magnitudes from ``making.extract.mean_activity``: ``residual`` for the width,
        ``blocks.i.heads`` and ``blocks.i.hidden`` for the heads and the MLP of every layer.
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
            for name in MODULE_PARAMS["ln"]:
                out[f"layer{i}.{name}"] = out[f"layer{i}.{name}"][width]
        return out
