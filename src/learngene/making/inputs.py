"""What a gene is condensed from, loaded and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from learngene.data.class_match import BY_PLACE, fits, numbered
from learngene.data.splits import Splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.feature_teacher import FeatureTeacher
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError
from learngene.training.evaluation_targets import EvaluationTargets
from learngene.training.stage import Stage
from learngene.training.teacher import Teacher
from learngene.vits.class_names import class_names, some


class Taught(NamedTuple):
    """One thing that is trained or judged: its recipe, its teachers, and what is stored of images in evaluation."""

    recipe: CondenseRecipe
    teachers: tuple[Teacher, ...]
    evaluated: Sequence[EvaluationTargets] = ()


Planned = tuple[Stage, Callable[[], dict[str, Any]]]
"""What a gene is trained in, and what more its file shall say once it is trained."""


@dataclass
class CondenseInputs:
    """Everything that condensing needs.

    Attributes:
        recipe: What to do; ``condense.prepare`` resolves its mean and std once everything else fits.
        ancestry: The teacher or guide; None for labels alone.
        gene: Fresh; it is trained in place.
        images: The training and validation images.
        anchors: The pretrained rows of an SN-Net.
        teachers: Of features, beside the ancestry.
        feature_teachers: The ancestry and ``teachers`` as they are asked for features, once they are prepared.
        knn: Labelled images on which features are judged while they are learnt, once they are opened.
    """

    recipe: CondenseRecipe
    ancestry: Ancestry | None
    gene: Learngene
    images: Splits
    anchors: Sequence[Ancestry] = ()
    teachers: Sequence[Ancestry] = ()
    feature_teachers: Sequence[FeatureTeacher] = ()
    knn: Splits | None = None

    def refuse_other_size(self) -> None:
        """Raises ``LearngeneError`` unless the auxiliary shape has the classes and the size of the images."""
        shape, images = self.recipe.shape, self.images.train
        if shape.num_classes != len(images.class_names):
            raise LearngeneError(
                f"the auxiliary shape has {shape.num_classes} classes but {images.where} has "
                f"{len(images.class_names)}; set shape.num_classes"
            )
        self.refuse_other_img_size()

    def refuse_other_img_size(self) -> None:
        """Raises ``LearngeneError`` unless the images have the size of the auxiliary shape."""
        shape, size = self.recipe.shape, self.recipe.data.img_size
        if size not in (None, shape.img_size):
            raise LearngeneError(
                f"data.img_size {size} differs from the auxiliary shape's {shape.img_size}; leave it out"
            )

    def match(self, teachers: Sequence[Ancestry]) -> None:
        """Numbers the classes of the images as the teachers do.

        Raises:
            LearngeneError: Unless each knows the classes in the same order, and takes the auxiliary shape's images.
        """
        for teacher in teachers:
            self._match(teacher)
        orders = {tuple(names): teacher for teacher in teachers if (names := class_names(teacher.model))}
        if len(orders) > 1 and self.recipe.data.match_classes == "name":
            one, other, *_ = (teacher.identity["source"] for teacher in orders.values())
            raise LearngeneError(
                f"ancestries {one} and {other} have the same classes in different orders; use one of them"
            )

    def _match(self, teacher: Ancestry) -> None:
        names, data = self.images.train.class_names, self.recipe.data
        teacher.refuse_mismatch(self.recipe.shape, len(names), data)
        if not fits(self.images.train, teacher.model, data):
            raise LearngeneError(
                f"ancestry {teacher.identity['source']} was trained on other classes than the data has "
                f"({some(teacher.class_names or [])} against {some(names)}); {BY_PLACE}"
            )
        self.images = Splits(*(numbered(split, teacher.model, data) for split in self.images))
