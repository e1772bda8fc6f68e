"""StitchedViT: a timm Vision Transformer whose layers have different widths, joined by linear stitch layers.

Everything but the widths is timm's own. The first block of every later segment begins with its stitch layer, so that
the blocks are one sequence as in any timm ViT and whatever works on ``model.blocks`` works here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from learngene.vits.segment import Segment
from learngene.vits.shape import NORM_EPS

__all__ = ["StitchedViT"]

BLOCK_ARGUMENTS = {
    name: name.removesuffix("_rate")
    for name in ("qkv_bias", "qk_norm", "init_values", "proj_drop_rate", "attn_drop_rate")
}
"""Arguments of timm's ``VisionTransformer`` that it hands to its blocks, by what the blocks call them."""


class StitchedBlock(Block):
    """A block that is entered from another width: a linear layer on every token, then timm's block."""

    def __init__(self, entered_from: int, dim: int, **block: Any) -> None:
        """Makes the stitch layer, from width ``entered_from`` to ``dim``, and timm's ``Block`` with its arguments."""
        super().__init__(dim=dim, **block)
        self.stitch = nn.Linear(entered_from, dim, device=block.get("device"))

    def forward(
        self, x: Float[Tensor, "batch tokens before"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens of the row before in, tokens of this row out."""
        out: Tensor = super().forward(self.stitch(x), *args, **kwargs)
        return out


class StitchedViT(VisionTransformer):
    """A Vision Transformer of several widths; see ``learngene.vits.stitched_shape.StitchedShape``."""

    blocks: nn.Sequential
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        segments: Sequence[Segment | Sequence[int]] = ((192, 3, 1, 4), (768, 12, 5, 6)),
        *,
        mlp_ratio: float = 4.0,
        final_norm: bool = True,
        norm_eps: float = NORM_EPS,
        weight_init: str = "",
        device: Any = None,
        **vit: Any,
    ) -> None:
        """Builds timm's model at the first segment's width and continues it at the others'.

        Args:
            segments: ``[embed_dim, num_heads, first, last]`` of every segment; by default a path of the paper's pool.
            mlp_ratio: Of every block.
            final_norm: Whether the last segment's final norm is applied.
            norm_eps: Epsilon of every norm.
            weight_init: As timm's; ``skip`` leaves the weights as their layers made them.
            device: Where the parameters lie.
            **vit: Other arguments of timm's ``VisionTransformer`` that do not concern width, depth and heads. Of those
                that concern blocks, ``BLOCK_ARGUMENTS`` and ``drop_path_rate`` reach all segments.
        """
        parts = [Segment.of(each) for each in segments]
        first, last = parts[0], parts[-1]
        size = {"embed_dim": first.embed_dim, "depth": first.depth, "num_heads": first.num_heads}
        inside = {theirs: vit[ours] for ours, theirs in BLOCK_ARGUMENTS.items() if ours in vit}
        depth = sum(part.depth for part in parts)
        rates = [vit.get("drop_path_rate", 0.0) * i / max(depth - 1, 1) for i in range(depth)]
        vit.pop("drop_path_rate", None)
        norm = functools.partial(LayerNorm, eps=norm_eps)
        vit |= {"mlp_ratio": mlp_ratio, "final_norm": final_norm, "device": device, "norm_layer": norm}
        super().__init__(**size, weight_init="skip", **vit)
        blocks = list(self.blocks)
        for before, part in itertools.pairwise(parts):
            block: dict[str, Any] = {"num_heads": part.num_heads, "mlp_ratio": mlp_ratio, "qkv_bias": True} | inside
            block |= {"norm_layer": norm, "device": device}
            blocks.append(StitchedBlock(before.embed_dim, part.embed_dim, **block))
            blocks += [Block(part.embed_dim, **block) for _ in range(part.depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        for each, rate in zip(blocks, rates, strict=True):
            if rate:
                each.drop_path1, each.drop_path2 = DropPath(rate), DropPath(rate)
        widths = [part.embed_dim for part in parts for _ in range(part.depth)]
        self.feature_info = [
            {**self.feature_info[0], "module": f"blocks.{i}", "num_chs": width} for i, width in enumerate(widths)
        ]
        self.num_features = self.head_hidden_size = self.embed_dim = last.embed_dim
        for name in ("norm", "fc_norm"):
            if not isinstance(getattr(self, name), nn.Identity):
                setattr(self, name, norm(last.embed_dim, device=device))
        head = nn.Linear(last.embed_dim, self.num_classes, device=device) if self.num_classes else nn.Identity()
        self.head = head
        if weight_init != "skip":
            self.weight_init_mode = weight_init  # which timm took from the "skip" above
            self.init_weights(weight_init)


default_cfgs = generate_default_cfgs(
    {
        "learngene_stitched_vit": {
            "input_size": (3, 224, 224),
            "num_classes": 1000,
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def learngene_stitched_vit(pretrained: bool = False, **kwargs: Any) -> StitchedViT:
    """A path of a pool; ``segments`` says which."""
    model: StitchedViT = build_model_with_cfg(
        StitchedViT,
        "learngene_stitched_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model
