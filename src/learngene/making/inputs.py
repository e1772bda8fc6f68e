"""What a gene is condensed from, loaded and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learngene.data.splits import Splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError


@dataclass
class CondenseInputs:
    """Everything that condensing needs.

    Attributes:
        recipe: What to do; ``condense.prepare`` resolves its mean and std once everything else fits.
        ancestry: The teacher or guide; None for labels alone.
        gene: Fresh; it is trained in place.
        images: The training and validation images.
        anchors: The pretrained rows of an SN-Net.
    """

    recipe: CondenseRecipe
    ancestry: Ancestry | None
    gene: Learngene
    images: Splits
    anchors: Sequence[Ancestry] = ()

    @property
    def companions(self) -> tuple[Ancestry, ...]:
        """The models that look at every batch and are not trained."""
        return (self.ancestry,) if self.ancestry else ()

    def refuse_other_size(self) -> None:
        """Raises ``LearngeneError`` unless the auxiliary shape has the classes and the size of the images."""
        shape, images, size = self.recipe.shape, self.images.train, self.recipe.data.img_size
        if shape.num_classes != len(images.class_names):
            raise LearngeneError(
                f"the auxiliary shape has {shape.num_classes} classes but {images.where} has "
                f"{len(images.class_names)}; set shape.num_classes"
            )
        if size not in (None, shape.img_size):
            raise LearngeneError(
                f"data.img_size {size} differs from the auxiliary shape's {shape.img_size}; leave it out"
            )

    def refuse_other_task(self, teacher: Ancestry) -> None:
        """Raises ``LearngeneError`` unless a teacher knows the classes and takes the images of the auxiliary shape."""
        names = self.images.train.class_names
        teacher.refuse_mismatch(self.recipe.shape, len(names), self.recipe.data)
        if teacher.class_names and teacher.class_names != names:
            raise LearngeneError(
                f"ancestry {teacher.identity['source']} was trained on other classes than the data has "
                f"('{teacher.class_names[0]}', ... against '{names[0]}', ...)"
            )
