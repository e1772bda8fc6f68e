"""The ways to make models that ``ship`` knows: what each needs, which shapes it can make, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from learngene.genes.plan_sizes import plan_sizes
from learngene.system.errors import LearngeneError
from learngene.vits.shape import ViTShape
from learngene.vits.shape_rule import NARROW_HEAD, WIDE_HEAD, usual_depth

MIN_DEPTH, MAX_DEPTH, LEAST_USE = 2, 24, 0.6
"""Of the models of one gene of one width; and the least share of a limit that they may use."""

TeacherKind = Literal["none", "classes", "features", "trained"]
"""What a teacher is: none, one that knows the classes of the data, one that knows others or none, so that its features
are learnt, or one that is trained on the task first."""


@dataclass(frozen=True)
class Way:
    """How models are made.

    Attributes:
        text: What people call it.
        widths: Whether models of one gene may differ in width.
        teacher: Whether it needs a teacher.
        one_by_one: Whether every model has a gene of its own, or none.
        gene_share: Share of the budget that goes into genes; the rest is shared by the models evenly.
        settings: Of the method.
        gene: Fields of the train section of the genes that differ.
        tune: Fields of the train section of the models that differ.
    """

    text: str
    widths: bool = True
    teacher: bool = False
    one_by_one: bool = False
    gene_share: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)
    gene: Mapping[str, Any] = field(default_factory=dict)
    tune: Mapping[str, Any] = field(default_factory=dict)


WAYS: dict[str, Way] = {
    "scratch": Way("every model by itself, from random weights", one_by_one=True, gene_share=0.0),
    "chebyshev": Way(
        "one gene of any depth, trained at all depths in turn, then each model tuned",
        widths=False,
        settings={"genes": 4},
        tune={"lr": 5e-4},
    ),
    "wave": Way(
        "one gene of any width and depth, trained at all sizes in turn, then each model tuned",
        settings={"templates": [48]},
        gene={"lr": 3e-3, "betas": [0.9, 0.98], "clip_grad": 1.0},
        tune={"lr": 5e-4},
    ),
    "any-size": Way(
        "one gene of any width and depth, one set of tiles for all matrices, trained at all sizes in turn, "
        "then each model tuned",
        gene={"lr": 3e-3, "betas": [0.9, 0.98], "clip_grad": 1.0},
        tune={"lr": 5e-4},
    ),
    "distilled": Way(
        "every model by itself, taught by the teacher, then tuned", teacher=True, one_by_one=True, gene_share=0.7
    ),
    "tleg": Way("one gene of two layers, taught by the teacher, then each model tuned", widths=False, teacher=True),
}


def shapes_for(way: Way, limits: Mapping[str, float], size: int, classes: int) -> dict[str, ViTShape]:
    """The largest shape within each limit on parameters that a way makes well: by the rule of ``vits.shape_rule``.

    Without a class token: all tokens are averaged. Where one gene has one width, it is the one at which all models
    together are nearest to the rule and to their limits.

    Args:
        way: How models are made.
        limits: Most parameters by name.
        size: Side of the images in pixels.
        classes: Of the task.

    Raises:
        LearngeneError: If a limit admits no model, or one width cannot serve all.
    """
    planned = plan_sizes(list(limits.values()), img_size=size, num_classes=classes, measure=False)
    if way.widths:
        return {name: one.shape.replace(class_token=False) for name, one in zip(limits, planned, strict=True)}
    found = [
        shapes
        for head in (WIDE_HEAD, NARROW_HEAD, NARROW_HEAD // 2)
        for width in range(head, max(one.shape.embed_dim for one in planned) + 1, head)
        if (shapes := _of_width(width, head, limits, planned[0].shape.replace(class_token=False)))
    ]
    if not found:
        raise LearngeneError(
            f"{min(limits, key=limits.__getitem__)} and {max(limits, key=limits.__getitem__)}: one width cannot serve "
            f"both in {MIN_DEPTH} to {MAX_DEPTH} layers; ask for sizes that are closer, or for another method"
        )
    return min(found, key=lambda shapes: _far(shapes, limits))


def _of_width(width: int, head: int, limits: Mapping[str, float], like: ViTShape) -> dict[str, ViTShape]:
    """The deepest shapes of a width within all limits, which use most of them; nothing if there are none."""
    out = {}
    for name, limit in limits.items():
        least = like.replace(embed_dim=width, num_heads=width // head, depth=MIN_DEPTH)
        depth = min(MIN_DEPTH + int((limit - least.params()) // least.layer_size()), MAX_DEPTH)
        out[name] = least.replace(depth=max(depth, MIN_DEPTH))
        if not LEAST_USE * limit < out[name].params() <= limit:
            return {}
    return out if len(set(out.values())) == len(out) else {}


def _far(shapes: Mapping[str, ViTShape], limits: Mapping[str, float]) -> float:
    """How far shapes are from the rule and from their limits, as in ``vits.shape_rule.largest_shape``."""
    return sum(
        abs(math.log(shape.depth / usual_depth(shape.embed_dim))) + 2 * math.log(limits[name] / shape.params())
        for name, shape in shapes.items()
    )


def listed(shapes: Sequence[ViTShape]) -> list[dict[str, int]]:
    """What a gene of these shapes is trained at, as a recipe lists sizes."""
    return [{"embed_dim": shape.embed_dim, "depth": shape.depth} for shape in dict.fromkeys(shapes)]
