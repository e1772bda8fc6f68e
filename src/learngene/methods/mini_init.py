"""Mini-Init: pretrain MiniViT's weight multiplexing, then start from its shared blocks (Zhang et al., CVPR 2022).

Every shared block is applied several times in a row. What tells its uses apart, the weight transformations, is not
shared: the layer norms, a relative position table and two mixings of the attention heads, see
``vits/multiplexed_attention.py``. A plain descendant has no place for position table and mixings, so it gets the shared
blocks with the norms of their first use (TLEG Table 2 stores 2.8 M for Des-Ti and 11.0 M for Des-S: the shared
blocks with everything about them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import refuse_arch
from learngene.methods.combination import LayerCombination, LayerTerms
from learngene.system.errors import ShapeError
from learngene.vits.shape import MODULE_PARAMS, ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor

BUCKETS = 49
"""Of the relative position table: 7 per axis ("product" of iRPE at ratio 1.9, as Mini-DeiT configures it)."""


@dataclass(frozen=True)
class MiniInit(LayerCombination):
    """Shared blocks with per-layer transformations.

    Attributes:
        blocks: Shared blocks; each is used ``depth / blocks`` times in a row. TLEG and Mini-DeiT take 6 of 12 layers.
    """

    blocks: int = 6

    name: ClassVar[str] = "mini-init"
    title: ClassVar[str] = "Mini-Init (MiniViT weight multiplexing)"
    paper: ClassVar[str] = "Zhang et al., CVPR 2022"

    def refuse_auxiliary(self, auxiliary: ViTShape) -> None:
        """Every block is used equally often, and positions are relative in a square grid without class token."""
        refuse_arch(self.name, auxiliary)
        if auxiliary.depth % self.blocks:
            raise ShapeError(
                f"mini-init: depth {auxiliary.depth} is not a multiple of the {self.blocks} shared blocks; "
                f"use depth {max(1, auxiliary.depth // self.blocks) * self.blocks} or another number of blocks"
            )
        if auxiliary.class_token:
            raise ShapeError("mini-init: Mini-DeiT has no class token; set class_token false")

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """One descendant layer per shared block as in TLEG, or as many layers as were trained."""
        super().refuse(auxiliary, shape, **options)
        if shape.depth not in (self.blocks, auxiliary.depth):
            raise ShapeError(
                f"mini-init: depth {shape.depth} is neither the {self.blocks} shared blocks of this gene nor its "
                f"{auxiliary.depth} trained layers; only these are defined"
            )

    def layer_tensors(self, auxiliary: ViTShape) -> dict[str, tuple[int, ...]]:
        """Attention and MLP per block; norms and transformations per layer."""
        sizes, heads = auxiliary.layer_params(), auxiliary.num_heads
        shared = MODULE_PARAMS["msa"] + MODULE_PARAMS["mlp"]
        out = {f"block{m}.{name}": sizes[name] for m in range(self.blocks) for name in shared}
        for i in range(auxiliary.depth):
            out |= {f"layer{i}.{name}": sizes[name] for name in MODULE_PARAMS["ln"]}
            out[f"layer{i}.attn.position"] = (auxiliary.head_dim, BUCKETS)
            out[f"layer{i}.attn.mix_logits"] = out[f"layer{i}.attn.mix_weights"] = (heads, heads)
        return out

    def started(self, name: str, value: Tensor) -> Tensor:
        """As Mini-DeiT: the position table starts at 0, the mixings like every linear layer."""
        return value.zero_() if name.endswith("attn.position") else value

    def terms(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> list[LayerTerms]:
        """Layer i of a descendant: the block's attention and MLP, the norms of one of its uses."""
        terms: list[LayerTerms] = []
        step = auxiliary.depth // shape.depth
        for i in range(0, auxiliary.depth, step):
            block = ((f"block{i // (auxiliary.depth // self.blocks)}", Fraction(1)),)
            terms.append({"msa": block, "mlp": block, "ln": ((f"layer{i}", Fraction(1)),)})
        return terms

    def auxiliary_skeleton(self, auxiliary: ViTShape) -> VisionTransformer:
        """A timm ViT with multiplexed attention."""
        from learngene.vits.multiplexed_attention import MultiplexedAttention

        return auxiliary.skeleton(attn_layer=MultiplexedAttention)

    def auxiliary_weights(self, tensors: Mapping[str, Tensor], auxiliary: ViTShape) -> dict[str, Tensor]:
        """The layers as trained, with their transformations."""
        out = self.weights(tensors, auxiliary, auxiliary)
        for i in range(auxiliary.depth):
            for kind in ("position", "mix_logits", "mix_weights"):
                out[f"blocks.{i}.attn.{kind}"] = tensors[f"layer{i}.attn.{kind}"]
        return out
