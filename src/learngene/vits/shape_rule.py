"""Which shape a Vision Transformer of a given size should have: a rule, from the families that others have published.

Width and depth: the models from ViT-Ti and DeiT-Ti to ViT-G (Touvron et al., ICML 2021, Table 1; Dosovitskiy et al.,
ICLR 2021, Table 1; Zhai et al., CVPR 2022, Table 2), with depth interpolated over the width between them. Below DeiT-Ti
its ratio is kept, which is ours: 16 entries of width for each layer.

Heads are 64 wide as in those families, or 32 where a narrow model would have fewer than three of 64. An image has
about 8 patches along a side, as the 32-pixel images of ViT-Lite with patches of 4 (Hassani et al., 2021), until patches
are 16 pixels wide; from there on they stay so, as in DeiT.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape

FAMILY = ((0, 0), (192, 12), (384, 12), (768, 12), (1024, 24), (1280, 32), (1408, 40), (1664, 48))
"""Width and depth of the published models; the first point makes narrower ones keep the ratio of the second."""
WIDE_HEAD, NARROW_HEAD = 64, 32
LARGEST_PATCH, SIDE, LONGEST_SIDE = 16, 8, 32


def usual_depth(width: int) -> float:
    """How many layers the published families have at a width, interpolated; beyond the widest its number."""
    for (narrow, shallow), (wide, deep) in itertools.pairwise(FAMILY):
        if width <= wide:
            return shallow + (width - narrow) / (wide - narrow) * (deep - shallow)
    return FAMILY[-1][1]


def patch_for(img_size: int) -> int:
    """The patch side for an image side: of its divisors up to 16 the one that makes most nearly 8 patches of it.

    Raises:
        ShapeError: If no divisor leaves few enough patches; it names sides near by that have one.
    """
    if not isinstance(img_size, int) or img_size < 1:
        raise ShapeError(f"img_size must be a positive integer, not {img_size!r}")
    divisors = [patch for patch in range(1, LARGEST_PATCH + 1) if img_size % patch == 0]
    patch = min(divisors, key=lambda patch: abs(math.log(img_size / patch / SIDE)))
    if img_size // patch > max(LONGEST_SIDE, img_size // LARGEST_PATCH):
        below = img_size // LARGEST_PATCH * LARGEST_PATCH
        raise ShapeError(
            f"img_size {img_size} has no divisor that makes few enough patches; use {below} or {below + LARGEST_PATCH}"
        )
    return patch


def rule_shapes(base: ViTShape, head_dim: int) -> Iterator[ViTShape]:
    """The shapes on the rule, narrowest first: one for every number of heads, as deep as the families are there."""
    for heads in range(1, FAMILY[-1][0] // head_dim + 1):
        yield base.replace(
            embed_dim=heads * head_dim, num_heads=heads, depth=max(1, round(usual_depth(heads * head_dim)))
        )


def largest_shape(base: ViTShape, head_dim: int, room: Callable[[ViTShape], float]) -> ViTShape | None:
    """The shape for a budget: of the deepest that fits at every width, that nearest to the rule and to the budget.

    Nearest is the least sum of two ratios, as logarithms: of the depth to the usual one, of the budget to what is used.

    Args:
        base: Image, classes and patch.
        head_dim: Width of a head.
        room: Of a shape, how many times it would fit the tightest limit; less than 1 does not fit.

    Returns:
        None if none fits.
    """
    best: tuple[float, ViTShape] | None = None
    for shape in rule_shapes(base, head_dim):
        fitting = itertools.takewhile(
            lambda each: room(each) >= 1, (shape.replace(depth=depth) for depth in range(1, FAMILY[-1][1] + 1))
        )
        for deepest in list(fitting)[-1:]:
            far = abs(math.log(deepest.depth / usual_depth(shape.embed_dim))) + math.log(room(deepest))
            if best is None or far < best[0]:
                best = far, deepest
    return best[1] if best else None
