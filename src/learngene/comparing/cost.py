"""What a descendant costs in all: its tuning, and its share of the gene and of the ancestry that was trained for it.

Costs are multiply-adds: a training step is three forward passes (forward, and twice as much backward), a teacher's
look at a batch is one. Gene and ancestry are paid once and shared by the descendants of a contender, so that the
cost of one falls with the number of sizes and tasks; the recipe's ``teacher_cost`` has other ways to count an ancestry.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from learngene.comparing.jobs import AncestryJob, Cell, Comparison, Coordinates, GeneJob
from learngene.methods.stitching import rows_of
from learngene.methods.tal import hypernetwork_of
from learngene.recipe.compare import SOURCE
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.features import FeatureTarget
from learngene.recipe.hyper import Hyper
from learngene.recipe.sections import AncestrySpec, DataSpec, Train
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import LearngeneError
from learngene.system.records import RecordError
from learngene.vits.descendant_folder import PROVENANCE
from learngene.vits.shape import ViTShape

TRAINING = 3
"""Forward passes that a training step costs."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds behind one descendant."""

    tune: int  # its own tuning
    gene: int  # making the gene, all of it
    ancestry: int  # training the ancestry, all of it that counts
    gene_shared_by: int  # descendants that use this gene
    ancestry_shared_by: int  # descendants of the contender, or 1 if each bears all of it

    @property
    def total(self) -> Fraction:
        """What one descendant costs, shares included."""
        return self.tune + self.shared

    @property
    def shared(self) -> Fraction:
        """The shares of gene and ancestry."""
        return Fraction(self.gene, self.gene_shared_by) + Fraction(self.ancestry, self.ancestry_shared_by)


def images_seen(train: Train, count: int) -> int:
    """Training images over all epochs, in whole batches."""
    return train.epochs * (count // train.batch_size) * train.batch_size


def cost_of(cell: Cell, comparison: Comparison, train_images: Mapping[str, int]) -> Cost:
    """The cost of a cell's descendant within a comparison, among whose cells gene and ancestry are shared."""
    gene, mine = cell.gene, [other for other in comparison.cells if other.contender == cell.contender]
    policy = comparison.recipe.teacher_cost
    origins = gene.origins if gene else []
    users = [other for other in mine if gene and other.gene and other.gene.path == gene.path]
    return Cost(
        tune=images_seen(cell.train, train_images[cell.task]) * TRAINING * cell.macs if cell.train else 0,
        gene=gene_macs(gene, train_images) if gene else 0,
        ancestry=0 if policy == "given" else sum(paid_macs(each, train_images[SOURCE]) or 0 for each in origins),
        gene_shared_by=_descendants(users) if gene else 1,
        ancestry_shared_by=1 if policy == "all" else _descendants(mine),
    )


def _descendants(cells: list[Cell]) -> int:
    """Budgets and seeds aside, how many models a user would make; at least 1."""
    return len({(cell.task, cell.shape_name) for cell in cells}) or 1


def gene_macs(gene: GeneJob, train_images: Mapping[str, int]) -> int:
    """Multiply-adds of making a gene, with everything that is trained before it."""
    return own_macs(gene, train_images) + sum(part_macs(gene, train_images).values())


def own_macs(gene: GeneJob, train_images: Mapping[str, int]) -> int:
    """Multiply-adds of a gene's own training; 0 for one that is extracted or selected.

    Of one that is condensed: the auxiliary model's training, on the average of its shapes, and the teacher's
    forward passes. Of a pool: paths of
    average size, with a guide if there is one. Of a hypernetwork: ViTs of average size; predicting them is left out, as
    it does not depend on the number of images.
    """
    recipe = gene.recipe
    if isinstance(recipe, TuneRecipe):
        batches = -(-sum(train_images[task] for task in recipe.tasks) // recipe.train.batch_size)
        seen = recipe.train.epochs * batches * recipe.train.batch_size
        return seen * TRAINING * _predicted_macs(gene, recipe.hyper)
    if not isinstance(recipe, CondenseRecipe):
        return 0
    teacher = _teacher_macs(gene, recipe)
    train, per_image = recipe.train, int(TRAINING * recipe.macs) + teacher
    if recipe.hyper is not None:
        per_image = TRAINING * _predicted_macs(gene, recipe.hyper) + teacher
    elif recipe.pool is not None:
        path_train, rows = recipe.path_train(), rows_of(gene.method)
        if path_train is None:
            return 0
        macs = [path.macs() for path in rows.paths(gene.shape)]
        guide = teacher if recipe.pool.guide != "none" or not recipe.needs_labels else 0
        train, per_image = path_train, TRAINING * sum(macs) // len(macs) + guide
    return images_seen(train, train_images[SOURCE]) * per_image


def part_macs(gene: GeneJob, train_images: Mapping[str, int]) -> dict[Path, int]:
    """Multiply-adds of what is trained before a gene and may be shared with others, by where it is kept.

    A pool's row: its training, and its teacher's forward passes unless it has no points. A super net: a step runs one
    block per layer; what its frozen blocks save on the way back is not counted. And a hypernetwork's stage 1.
    """
    out = {gene.stage1.path: gene_macs(gene.stage1, train_images)} if gene.stage1 else {}
    if gene.rows or gene.searches:
        if isinstance(gene.recipe, CondenseRecipe):
            teacher = _teacher_macs(gene, gene.recipe)
        else:
            teacher = ancestry_forward_macs(gene.ancestry) if gene.ancestry else 0
        for row in gene.rows:
            guided = teacher if row.pool is None or row.pool.points != [0] else 0
            out[row.out] = images_seen(row.train, train_images[SOURCE]) * (TRAINING * row.shape.macs() + guided)
        for task in gene.searches:
            out[task.out] = images_seen(task.train, train_images[task.task]) * TRAINING * teacher
    return out


def _predicted_macs(gene: GeneJob, hyper: Hyper) -> int:
    """Multiply-adds of one image through the ViTs that a step predicts, which are of average size."""
    shapes = list(hypernetwork_of(gene.method).shapes(gene.shape, gene.shape))
    return hyper.meta_batch * sum(shape.macs() for shape in shapes) // len(shapes)


def paid_macs(ancestry: AncestryJob, home_images: int) -> int | None:
    """Multiply-adds of training an ancestry, wherever that was; None for one whose cost nobody recorded.

    Of one that is loaded the recipe says it, or the record in the run folder that its descendant folder lies in, which
    knows of no training before that run.
    """
    if ancestry.spec.source is None:
        return ancestry_macs(ancestry, home_images)
    if ancestry.spec.trained_macs is not None:
        return ancestry.spec.trained_macs
    folder, run = Path(ancestry.spec.source), None
    if (folder / PROVENANCE).is_file():
        from learngene.training.record import read_result

        with contextlib.suppress(RecordError):  # somebody else's file of that name
            run = read_result(folder.parent)
    return run.images * TRAINING * ancestry_forward_macs(ancestry) if run else None


def ancestry_macs(ancestry: AncestryJob, home_images: int) -> int:
    """Multiply-adds of training an ancestry here; 0 for one that is loaded."""
    if ancestry.spec.source is not None:
        return 0
    return images_seen(ancestry.train, home_images) * TRAINING * ancestry_forward_macs(ancestry)


def ancestry_forward_macs(ancestry: AncestryJob) -> int:
    """Multiply-adds of one image through an ancestry."""
    if ancestry.shape is not None:
        return ancestry.shape.macs()
    source = ancestry.spec.architecture or ancestry.spec.source or ""
    return _counted_macs(source, tuple(sorted(ancestry.spec.model_args.items())), ancestry.data.img_size)


def _teacher_macs(gene: GeneJob, recipe: CondenseRecipe) -> int:
    """Multiply-adds of one image through a gene's teacher; one of features sees it at a size of its own."""
    if gene.ancestry is None:
        return 0
    if recipe.distill.target == "logits" or gene.ancestry.spec.source is None:
        return ancestry_forward_macs(gene.ancestry)
    spec = gene.ancestry.spec.loaded().model_dump_json()
    return _feature_macs(spec, recipe.feature_targets()[0].model_dump_json(), gene.shape)


@functools.cache
def _feature_macs(spec: str, target: str, shape: ViTShape) -> int:
    from learngene.genes.ancestry import Ancestry
    from learngene.making.feature_teacher import FeatureTeacher, for_student
    from learngene.vits.input_size import input_size
    from learngene.vits.multiply_adds import multiply_adds

    ancestry = Ancestry.from_spec(AncestrySpec.model_validate_json(spec))
    normal = {name: for_student(ancestry.preprocessing, shape.in_chans)[name] for name in ("mean", "std")}
    asked = FeatureTarget.model_validate_json(target)
    teacher = FeatureTeacher(ancestry, asked, shape, DataSpec(source="digits", **normal))
    return multiply_adds(teacher.model, input_size(teacher.model)[0], teacher.size)


@functools.cache
def _counted_macs(source: str, arguments: tuple[tuple[str, Any], ...], img_size: int | None) -> int:
    from learngene.genes.ancestry import Ancestry
    from learngene.vits.multiply_adds import multiply_adds

    ancestry = Ancestry(source, model_args=dict(arguments), pretrained=False)
    chans, size, _ = ancestry.preprocessing["input_size"]
    return multiply_adds(ancestry.model, chans, img_size or size)


def equal_epochs(comparison: Comparison, train_images: Mapping[str, int]) -> dict[Coordinates, int]:
    """Epochs of tuning that give every contender the total cost of one of them.

    Args:
        comparison: Cells whose budgets name a contender to be equal to; that contender's cells are right already.
        train_images: Training images by task.

    Raises:
        LearngeneError: If a contender's gene alone costs more than that; all of them are named.
    """
    reference = {cell.coordinates: cell for cell in comparison.cells}
    out: dict[Coordinates, int] = {}
    faults: dict[str, None] = {}
    for cell in comparison.cells:
        budget, contender = comparison.recipe.budgets[cell.budget], comparison.recipe.contenders[cell.contender]
        if budget.cost_of is None:
            continue
        other = reference.get((budget.cost_of, *cell.coordinates[1:]))
        if other is None:
            what = f"budgets.{cell.budget}.cost_of: contender '{budget.cost_of}' is not run"
            raise LearngeneError(f"{what}; add it to run.contenders")
        # A longer warm-up would not fit into a single epoch.
        one = comparison.recipe.train(
            "tune", budget.tune, contender.tune, {"epochs": 1, "schedule": {"warmup_epochs": 0}}
        )
        per_epoch = images_seen(one, train_images[cell.task]) * TRAINING * cell.macs
        left = cost_of(other, comparison, train_images).total - cost_of(cell, comparison, train_images).shared
        if left < 0:
            faults[f"{cell.contender} at {cell.shape_name} costs more than {budget.cost_of} before any tuning"] = None
        out[cell.coordinates] = int(other.train.epochs if cell is other and other.train else left // per_epoch)
    if faults:
        remedy = "give it more epochs, more shapes to share the cost, or leave teachers out with teacher_cost=given"
        raise LearngeneError(f"budgets: no equal cost is possible: {'; '.join(faults)}; {remedy}")
    return out
