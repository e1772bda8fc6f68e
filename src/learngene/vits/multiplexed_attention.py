"""The attention of MiniViT's weight multiplexing (Zhang et al., CVPR 2022), as a part of timm's Vision Transformer.

To timm's attention it adds what Mini-DeiT keeps per layer: a relative position table on the keys (iRPE, Wu et al.,
ICCV 2021: contextual, "product" buckets, shared by the heads) and two mixings of the heads, before and after the
softmax.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers import Attention
from torch import Tensor, nn

RATIO = 1.9
ALPHA, BETA, GAMMA = RATIO, 2 * RATIO, 8 * RATIO
"""iRPE's piecewise function at this ratio: exact up to ALPHA patches, logarithmic to GAMMA, never beyond BETA."""

PER_SIDE = int(BETA)
"""Buckets left and right of 0 on one axis."""
BUCKETS = (2 * PER_SIDE + 1) ** 2
"""Buckets of both axes together."""


class MultiplexedAttention(Attention):
    """Timm's attention with relative positions and mixed heads; takes timm's arguments.

    Attributes:
        position: Table of the head width by buckets: what a query adds to its product with a key in that bucket.
        mix_logits: Heads by heads; how heads mix before the softmax.
        mix_weights: The same after it.
    """

    def __init__(self, dim: int, num_heads: int = 8, **arguments: Any) -> None:
        super().__init__(dim, num_heads, **arguments)
        made_like = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
        self.position = nn.Parameter(torch.zeros(self.head_dim, BUCKETS, **made_like))
        self.mix_logits = nn.Parameter(torch.empty(num_heads, num_heads, **made_like))
        self.mix_weights = nn.Parameter(torch.empty(num_heads, num_heads, **made_like))
        for mixing in (self.mix_logits, self.mix_weights):
            nn.init.trunc_normal_(mixing, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens width"]:
        """Attention over all tokens of a square grid."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q = q * self.scale
        logits = q @ k.transpose(-2, -1) + self.relative(q)
        attention = self.mixed(self.mixed(logits, self.mix_logits).softmax(dim=-1), self.mix_weights)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, self.attn_dim))

    def relative(self, q: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """The product of every query with the table's entry for its distance to every key."""
        index = _buckets_on(math.isqrt(q.shape[-2]), q.device)
        return (q @ self.position).gather(-1, index.expand(*q.shape[:2], *index.shape))

    def mixed(
        self, attention: Float[Tensor, "batch heads tokens tokens"], mixing: Float[Tensor, "heads heads"]
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """A 1 x 1 convolution over heads: every head becomes a combination of all."""
        return (mixing @ attention.flatten(2)).unflatten(-1, attention.shape[-2:])


@torch.compiler.disable
@functools.cache
def _buckets_on(side: int, device: torch.device) -> Int[Tensor, "tokens tokens"]:
    """``buckets`` on a device, made once; an ordinary tensor even if it is first needed while evaluating."""
    with torch.inference_mode(False):
        return buckets(side).to(device)


def buckets(side: int) -> Int[Tensor, "tokens tokens"]:
    """The bucket of every pair of tokens in a grid: its row bucket times 7 plus its column bucket ("product").

    Args:
        side: Patches along one side of the grid.
    """
    axis = torch.tensor([[_piecewise(a - b) + PER_SIDE for b in range(side)] for a in range(side)])
    rows = axis.repeat_interleave(side, 0).repeat_interleave(side, 1)
    columns = axis.repeat(side, side)
    return rows * (2 * PER_SIDE + 1) + columns


def _piecewise(distance: int) -> int:
    """IRPE's index of a signed distance in patches: near ones are told apart, far ones are not."""
    size = abs(distance)
    if size <= ALPHA:
        return distance
    far = round(ALPHA + math.log(size / ALPHA) / math.log(GAMMA / ALPHA) * (BETA - ALPHA))
    return int(math.copysign(min(PER_SIDE, far), distance))
