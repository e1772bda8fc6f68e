"""Weight selection, "Initializing Models with Larger Ones" (Xu et al., ICLR 2024); SWS calls it IMwLM.

A smaller ViT takes the first layers of a larger one, and of every dimension of every tensor evenly spaced entries.
The gene is the larger model itself, so that every size up to its own can be made without training.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from learngene.methods.base import Part, require_choice, require_plain
from learngene.methods.cutting import Cutting, spaced
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from torch import Tensor

RULES = ("official", "aligned")


@dataclass(frozen=True)
class WeightSelection(Cutting):
    """First layers, evenly spaced entries.

    Attributes:
        head: Whether the classifier is selected too. The authors' code leaves every tensor with "head" in its name
            out; SWS's Table 1, which scores such models untuned, must have carried it.
    """

    head: bool = True

    name: ClassVar[str] = "weight-selection"
    title: ClassVar[str] = "Weight selection (IMwLM)"
    paper: ClassVar[str] = "Xu et al., ICLR 2024"
    narrowed: ClassVar[str] = "{} of {} wide"
    options: ClassVar[Mapping[str, str]] = {
        "rule": "official (default): every dimension evenly, even where it cuts across q, k, v and heads; "
        "aligned: evenly spaced heads of q, k and v alike, evenly spaced entries within a head"
    }

    @property
    def parts(self) -> tuple[Part, ...]:
        """The whole model, with or without its head."""
        return ("stem", "norm", "head") if self.head else ("stem", "norm")

    def refuse(self, auxiliary: ViTShape, shape: Shape, **options: Any) -> None:
        """The aligned rule needs at most as many heads, of at most the same width."""
        super().refuse(auxiliary, shape, **options)
        rule, shape = options.get("rule", "official"), require_plain(shape)
        require_choice(self.name, "rule", rule, RULES)
        if rule == "aligned" and (shape.num_heads > auxiliary.num_heads or shape.head_dim > auxiliary.head_dim):
            raise ShapeError(
                f"{self.name}: {shape.num_heads} heads of {shape.head_dim} do not fit into the ancestry's "
                f"{auxiliary.num_heads} heads of {auxiliary.head_dim}; use fewer or narrower heads, or rule=official"
            )

    def cut(
        self, value: Tensor, size: tuple[int, ...], name: str, auxiliary: ViTShape, shape: ViTShape, **options: Any
    ) -> Tensor:
        """Evenly spaced entries, dimension by dimension."""
        if options.get("rule") == "aligned":
            chosen = _aligned(auxiliary, shape).get(name, {})
        else:
            chosen = _by_parts(name, auxiliary, shape) if auxiliary.arch else {}
        return _select(value, size, chosen)


@functools.lru_cache(maxsize=16)
def _aligned(auxiliary: ViTShape, shape: ViTShape) -> dict[str, dict[int, list[int]]]:
    """The aligned rule's entries of the dimensions that consist of heads, by tensor and dimension."""
    within = spaced(auxiliary.head_dim, shape.head_dim)
    inside = [h * auxiliary.head_dim + k for h in spaced(auxiliary.num_heads, shape.num_heads) for k in within]
    qkv = [part * auxiliary.embed_dim + k for part in range(3) for k in inside]
    single = {f"attn.{which}": {0: inside} for which in ("q_bias", "v_bias")}
    single |= {f"attn.{which}_proj.{kind}": {0: inside} for which in "qkv" for kind in ("weight", "bias")}
    packed = {"attn.qkv.weight": {0: qkv}, "attn.qkv.bias": {0: qkv}, "attn.proj.weight": {1: inside}}
    other = {name: _by_parts(name, auxiliary, shape) for name in auxiliary.layer_params()} if auxiliary.arch else {}
    return other | (single if auxiliary.arch else {}) | packed


def _by_parts(name: str, auxiliary: ViTShape, shape: ViTShape) -> dict[int, list[int]]:
    """Evenly spaced entries of every tensor that is packed into one; nothing for one alone."""
    larger, smaller = auxiliary.layout.packed(name), shape.layout.packed(name)
    if len(larger) == 1 or larger == smaller:
        return {}
    starts = itertools.accumulate([0, *larger[:-1]])
    parts = zip(starts, larger, smaller, strict=True)
    return {0: [start + k for start, many, few in parts for k in spaced(many, few)]}


def _select(value: Tensor, size: Sequence[int], chosen: Mapping[int, list[int]]) -> Tensor:
    """Cuts a tensor to a size; even steps are views, so that every entry is copied once at most."""
    import torch

    steps = [slice(None)] * value.ndim
    for dim, (larger, smaller) in enumerate(zip(value.shape, size, strict=True)):
        if dim not in chosen and larger != smaller and larger % smaller == 0:
            steps[dim] = slice(None, None, larger // smaller)
    value = value[tuple(steps)]
    for dim, (larger, smaller) in enumerate(zip(value.shape, size, strict=True)):
        index = chosen.get(dim) or (spaced(larger, smaller) if larger != smaller else None)
        if index is not None:
            value = value.index_select(dim, torch.tensor(index, device=value.device))
    return value.contiguous()
