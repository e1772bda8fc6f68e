"""The ways to make models that ``ship`` knows: what each needs, which shapes it can make, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from learngene.system.errors import LearngeneError
from learngene.vits.shape import ViTShape

MIN_DEPTH, MAX_DEPTH = 2, 24
WIDTH_PER_LAYER = 16
"""As in DeiT-Ti (Touvron et al., 2021): 192 wide and 12 deep."""

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
    """The largest shape within each limit on parameters that a way makes well.

    Patches are an eighth of the image, heads 32 wide, or 16 where a model is narrow, and there is no class token: all
    tokens are averaged. A model is about ``WIDTH_PER_LAYER`` times as wide as it is deep; where one gene has one width,
    that is true of the model in the middle.

    Args:
        way: How models are made.
        limits: Most parameters by name.
        size: Side of the images in pixels.
        classes: Of the task.

    Raises:
        LearngeneError: If a limit admits no model, or one width cannot serve all.
    """
    for head in (32, 16):
        if way.widths:
            found = {name: _widest(limit, head, size, classes) for name, limit in limits.items()}
        else:
            found = dict(_of_one_width(limits, head, size, classes))
        if all(found.values()) and len(found) == len(limits):
            return {name: shape for name, shape in found.items() if shape is not None}
    least = _shape(16, MIN_DEPTH, 16, size, classes).params()
    name, limit = min(limits.items(), key=lambda item: item[1])
    if limit < least:
        raise LearngeneError(
            f"{name}: a ViT of {classes} classes at {size} px has {least:,} parameters at least; ask for more"
        )
    if way.widths:
        raise LearngeneError(f"{name}: no ViT of {classes} classes at {size} px is close to it; ask for another size")
    raise LearngeneError(
        f"{min(limits, key=limits.__getitem__)} and {max(limits, key=limits.__getitem__)}: one width cannot serve both "
        f"in {MIN_DEPTH} to {MAX_DEPTH} layers; ask for sizes that are closer, or for another method"
    )


def _shape(width: int, depth: int, head: int, size: int, classes: int) -> ViTShape:
    return ViTShape(
        embed_dim=width, depth=depth, num_heads=width // head, patch_size=patch_of(size), img_size=size,
        num_classes=classes, class_token=False,
    )  # fmt: skip


def patch_of(size: int) -> int:
    """A patch that gives 7 to 14 patches a side."""
    return next(patch for patch in (4, 8, 16, 32) if size % patch == 0 and size // patch <= 14)


def _deepest(limit: float, width: int, head: int, size: int, classes: int) -> ViTShape | None:
    two = _shape(width, MIN_DEPTH, head, size, classes)
    depth = int(MIN_DEPTH + (limit - two.params()) // two.layer_size())
    return two.replace(depth=min(depth, MAX_DEPTH)) if depth >= MIN_DEPTH else None


def _off(shape: ViTShape) -> float:
    """How far a shape is from the usual ratio of width to depth, 1 at that."""
    ratio = shape.embed_dim / shape.depth / WIDTH_PER_LAYER
    return max(ratio, 1 / ratio)


def _widest(limit: float, head: int, size: int, classes: int) -> ViTShape | None:
    found = [_deepest(limit, width, head, size, classes) for width in range(head, 1025, head)]
    shapes = [shape for shape in found if shape is not None]
    near = [shape for shape in shapes if _off(shape) <= 2] or (shapes if head == 16 else [])
    return max(near, key=lambda shape: shape.params() / _off(shape) ** 0.2, default=None)


def _of_one_width(limits: Mapping[str, float], head: int, size: int, classes: int) -> dict[str, ViTShape | None]:
    best: tuple[float, dict[str, ViTShape | None]] = (float("inf"), {})
    for width in range(head, 1025, head):
        found = {name: _deepest(limit, width, head, size, classes) for name, limit in limits.items()}
        shapes = [shape for shape in found.values() if shape is not None]
        if len(shapes) < len(limits):
            break
        used = min(shape.params() / limits[name] for name, shape in found.items() if shape is not None)
        off = max(map(_off, shapes)) / used**2
        if used > 0.6 and len(set(shapes)) == len(shapes) and off < best[0]:
            best = off, found
    return best[1]


def listed(shapes: Sequence[ViTShape]) -> list[dict[str, int]]:
    """What a gene of these shapes is trained at, as a recipe lists sizes."""
    return [{"embed_dim": shape.embed_dim, "depth": shape.depth} for shape in dict.fromkeys(shapes)]
