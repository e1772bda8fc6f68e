"""Condensing in one stage: the gene at its auxiliary shape, taught by an ancestry, by labels or by both.

What an ancestry teaches is its predictions here, and its features in ``making.features``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from learngene.genes.ancestry import made_of
from learngene.making.drawn_shapes import DrawnShapes, refuse_lacking, shape_accuracies
from learngene.making.features import stage as features
from learngene.making.inputs import CondenseInputs, Planned, Taught
from learngene.making.start import started_from
from learngene.training.losses import Parts, distillation_loss, mean_parts
from learngene.training.stage import Stage
from learngene.training.teacher import Outputs, teacher_of_logits


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` unless the teacher, or the auxiliary shape alone, fits the images."""
    refuse_lacking(inputs.gene, inputs.recipe)
    if inputs.recipe.distill.target == "features":
        features.refuse(inputs)
    elif inputs.ancestry:
        inputs.match([inputs.ancestry])
    else:
        inputs.refuse_other_size()


def taught(inputs: CondenseInputs) -> list[Taught]:
    """What is trained, and its teachers; see ``making.condense.Maker``."""
    recipe, ancestry = inputs.recipe, inputs.ancestry
    if recipe.distill.target == "features":
        return [Taught(recipe, features.taught(inputs), features.evaluations(inputs, recipe, scored=True))]
    return [Taught(recipe, (teacher_of_logits(ancestry),) if ancestry and recipe.distill.alpha > 0 else ())]


def planned(inputs: CondenseInputs, *, keep: bool) -> Planned:
    """The stage in which the gene is trained in place; see ``making.condense.OneStage``."""
    if inputs.recipe.distill.target == "features":
        return features.planned(inputs, keep=keep)
    recipe, gene, ancestry, distill = inputs.recipe, inputs.gene, inputs.ancestry, inputs.recipe.distill
    drawn = DrawnShapes(gene, recipe, len(inputs.images.train))

    def objective(model: nn.Module, images: Tensor, targets: Tensor, theirs: Sequence[Outputs]) -> Parts:
        students = model(images, drawn.current)
        # The teacher sees the same mixed and erased batch, as in the authors' code.
        return mean_parts(
            distillation_loss(student, theirs[0]["logits"] if theirs else student.detach(), targets, distill)
            for student in (students if isinstance(students, tuple) else (students,))
        )

    (part,) = taught(inputs)
    stage = Stage(
        f"condense {gene.method.name}",
        gene,
        objective,
        gene.shape.img_size,
        gene.shape.in_chans,
        part.teachers,
        before_step=drawn.draw,
        uses_all=not drawn.several,
        made_of=made_of(ancestry, started_from(gene)),
    )
    return stage, lambda: shape_accuracies(gene, recipe, inputs.images)
