"""The teacher that is asked for: what it can teach, and what asking it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learngene.data.images import ImageSet
from learngene.recipe.ship import ShipRecipe, TaskTeacher
from learngene.shipping.ways import TeacherKind
from learngene.system.errors import LearngeneError
from learngene.vits.class_names import class_names
from learngene.vits.timm_models import TimmModel

SHARE = 0.25
"""Of the budget, for a teacher that is trained on the task first."""


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher.

    Attributes:
        kind: What it can teach.
        section: How the recipe names it; None without one.
        model: It.
        remark: What is to be said about it, if anything.
    """

    kind: TeacherKind = "none"
    section: TaskTeacher | None = None
    model: TimmModel | None = None
    remark: str = ""

    @property
    def distill(self) -> dict[str, Any]:
        """How genes learn from it: from its classes, or from its features, and from labels as much."""
        if self.kind == "none":
            return {"distill": {"preset": "none"}}
        target = {"target": "features"} if self.kind == "features" else {"reduction": "batch"}
        return {"distill": {"alpha": 0.5, **target}}

    def price(self, size: int, unit: str, clock: Callable[[], float] = time.perf_counter) -> float:
        """What it costs to ask it about an image: seconds, or multiply-adds."""
        import torch

        from learngene.vits.input_size import input_size
        from learngene.vits.multiply_adds import multiply_adds

        if self.model is None:
            return 0.0
        chans, own, _ = input_size(self.model)
        side = own if self.kind == "features" else size
        if unit == "macs":
            return float(multiply_adds(self.model, chans, side))
        images, times = torch.zeros(16, chans, side, side), []
        with torch.inference_mode():
            for _ in range(3):
                start = clock()
                self.model.eval()(images)
                times.append((clock() - start) / len(images))
        return min(times)


def find_teacher(recipe: ShipRecipe, images: ImageSet) -> FoundTeacher:
    """The teacher that a recipe asks for.

    Raises:
        LearngeneError: If there is no such model.
    """
    from learngene.genes.ancestry import Ancestry

    source = recipe.teacher
    if source == "none":
        return FoundTeacher()
    if Path(source).exists():
        model = Ancestry(source).model
        names = class_names(model)
        if names is not None and sorted(names) == sorted(images.class_names):
            return FoundTeacher("classes", TaskTeacher(source=source), model)
        remark = f"teacher {source}: knows other classes, or does not say which, so its features are learnt"
        return FoundTeacher("features", TaskTeacher(source=source), model, remark)
    try:
        return FoundTeacher("trained", TaskTeacher(source=source), Ancestry(source).model)
    except LearngeneError:
        model = Ancestry(source, pretrained=False).model  # which is refused if timm has no such model
        remark = f"teacher {source}: its pretrained weights cannot be had here, so it starts from random ones"
        return FoundTeacher("trained", TaskTeacher(source=source, pretrained=False), model, remark)
