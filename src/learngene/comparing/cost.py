"""What a descendant costs in all: its tuning, and its share of the gene and of the ancestry that was trained for it.

Costs are multiply-adds: a training step is three forward passes (forward, and twice as much backward), a teacher's
look at a batch is one. Gene and ancestry are paid once and shared by the descendants of a contender, so that the
cost of one falls with the number of sizes and tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from learngene.comparing.jobs import AncestryJob, Cell, Comparison, GeneJob, Place, RowJob, SearchJob
from learngene.methods.stitching import StitchedRows
from learngene.methods.tal import Hypernetwork
from learngene.recipe.compare import HOME
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.hyper import Hyper
from learngene.recipe.sections import Train
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import LearngeneError

TRAINING = 3
"""Forward passes that a training step costs."""

NO_WARM_UP = {"warmup_epochs": 0}
"""For the cost of a single epoch, which a longer warm-up would not fit into."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds behind one descendant.

    Attributes:
        tune: Its own tuning.
        gene: Making the gene, all of it.
        ancestry: Training the ancestry, all of it; 0 if it was there, or nothing came from it.
        gene_shared_by: Descendants that use this gene.
        ancestry_shared_by: Descendants of the contender.
    """

    tune: int
    gene: int
    ancestry: int
    gene_shared_by: int
    ancestry_shared_by: int

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
    """The cost of a cell's descendant within a comparison.

    Args:
        cell: The cell.
        comparison: All cells, among which gene and ancestry are shared.
        train_images: Training images by task.
    """
    tune = images_seen(cell.train, train_images[cell.task]) * TRAINING * cell.macs if cell.train else 0
    gene = cell.gene
    origins = [*([gene.ancestry] if gene.ancestry else []), *gene.anchors] if gene else []
    sharing, all_of_it = _sharing(comparison)
    return Cost(
        tune=tune,
        gene=gene_macs(gene, train_images) if gene else 0,
        ancestry=sum(ancestry_macs(each, train_images[HOME]) for each in origins),
        gene_shared_by=sharing.get((cell.contender, str(gene.path)), 1) if gene else 1,
        ancestry_shared_by=all_of_it[cell.contender],
    )


def gene_macs(gene: GeneJob, train_images: Mapping[str, int]) -> int:
    """Multiply-adds of making a gene.

    Of one that is condensed: the auxiliary model's training and the teacher's forward passes. Of a pool: its rows, then
    paths of average size, with a guide if there is one. Of a search: all its super nets. Of a hypernetwork: ViTs of
    average size; predicting them is left out, as it does not depend on the number of images.
    """
    cost = sum(part_macs(part, train_images) for part in gene.parts)
    if isinstance(gene.recipe, TuneRecipe):
        images = sum(train_images[task] for task in gene.recipe.tasks)
        spec = gene.recipe.train
        seen = spec.epochs * -(-images // spec.batch_size) * spec.batch_size
        return cost + seen * TRAINING * predicted_macs(gene, gene.recipe.hyper)
    if not isinstance(gene.recipe, CondenseRecipe):
        return cost
    home_images = train_images[HOME]
    teacher = ancestry_forward_macs(gene.ancestry) if gene.ancestry else 0
    if gene.recipe.hyper is not None:
        student = TRAINING * predicted_macs(gene, gene.recipe.hyper)
        return cost + images_seen(gene.recipe.train, home_images) * (student + teacher)
    if not isinstance(gene.method, StitchedRows):
        return images_seen(gene.recipe.train, home_images) * (TRAINING * gene.shape.macs() + teacher)
    train = gene.recipe.path_train()
    if train is not None:
        shapes = [gene.method.shape_of(gene.shape, path).macs() for path in gene.method.paths(gene.shape)]
        guide = teacher if gene.recipe.pool and gene.recipe.pool.guide != "none" else 0
        cost += images_seen(train, home_images) * (TRAINING * sum(shapes) // len(shapes) + guide)
    return cost


def predicted_macs(gene: GeneJob, hyper: Hyper) -> int:
    """Multiply-adds of one image through the ViTs that a step predicts, which are of average size."""
    assert isinstance(gene.method, Hypernetwork)
    shapes = list(gene.method.shapes(gene.shape, gene.shape))
    return hyper.meta_batch * sum(shape.macs() for shape in shapes) // len(shapes)


def part_macs(part: RowJob | SearchJob | GeneJob, train_images: Mapping[str, int]) -> int:
    """Multiply-adds of what several genes may share.

    A pool's row: its training, and its teacher's forward passes unless it has no points. A super net: a step runs one
    block per layer; what its frozen blocks save on the way back is not counted.
    """
    if isinstance(part, GeneJob):
        return gene_macs(part, train_images)
    if isinstance(part, SearchJob):
        return images_seen(part.recipe.train, train_images[part.task]) * TRAINING * ancestry_forward_macs(part.ancestry)
    labels = part.recipe.pool is not None and part.recipe.pool.points == [0]
    teacher = 0 if labels or part.ancestry is None else ancestry_forward_macs(part.ancestry)
    return images_seen(part.recipe.train, train_images[HOME]) * (TRAINING * part.recipe.shape.macs() + teacher)


def ancestry_macs(ancestry: AncestryJob, home_images: int) -> int:
    """Multiply-adds of training an ancestry here; 0 for one that was loaded, whose cost nobody recorded."""
    if ancestry.spec.source is not None:
        return 0
    return images_seen(ancestry.train, home_images) * TRAINING * ancestry_forward_macs(ancestry)


def ancestry_forward_macs(ancestry: AncestryJob) -> int:
    """Multiply-adds of one image through an ancestry."""
    if ancestry.shape is not None:
        return ancestry.shape.macs()
    source = ancestry.spec.architecture or ancestry.spec.source or ""
    return _counted_macs(source, tuple(sorted(ancestry.spec.model_args.items())), ancestry.data.img_size)


@functools.cache
def _counted_macs(source: str, arguments: tuple[tuple[str, Any], ...], img_size: int | None) -> int:
    from learngene.genes.ancestry import Ancestry
    from learngene.vits.speed import multiply_adds

    ancestry = Ancestry(source, model_args=dict(arguments), pretrained=False)
    chans, size, _ = ancestry.preprocessing["input_size"]
    return multiply_adds(ancestry.model, chans, img_size or size)


def equal_epochs(comparison: Comparison, train_images: Mapping[str, int]) -> dict[Place, int]:
    """Epochs of tuning that give every contender the total cost of one of them.

    Args:
        comparison: Cells whose budgets name a contender to be equal to; that contender's cells are right already.
        train_images: Training images by task.

    Raises:
        LearngeneError: If a contender's gene alone costs more than that; all of them are named.
    """
    reference = {c.place: c for c in comparison.cells}
    out: dict[Place, int] = {}
    faults: dict[str, None] = {}
    for cell in comparison.cells:
        model = comparison.recipe.budgets[cell.budget].cost_of
        if model is None:
            continue
        other = reference.get((model, cell.shape_name, cell.task, cell.budget, cell.seed))
        if other is None:
            raise LearngeneError(
                f"budgets.{cell.budget}.cost_of: contender '{model}' is not run; add it to run.contenders"
            )
        budget, contender = comparison.recipe.budgets[cell.budget], comparison.recipe.contenders[cell.contender]
        one = comparison.recipe.train("tune", budget.tune, contender.tune, {"epochs": 1, "schedule": NO_WARM_UP})
        per_epoch = images_seen(one, train_images[cell.task]) * TRAINING * cell.macs
        left = cost_of(other, comparison, train_images).total - cost_of(cell, comparison, train_images).shared
        if left < 0:
            faults[f"{cell.contender} at {cell.shape_name} costs more than {model} before any tuning"] = None
        out[cell.place] = int(other.train.epochs if cell is other and other.train else left // per_epoch)
    if faults:
        raise LearngeneError("budgets: no equal cost is possible: " + "; ".join(faults))
    return out


def _sharing(comparison: Comparison) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """How many descendants use each gene of a contender, and how many each contender makes in all."""
    users: dict[tuple[str, str], set[tuple[str, str]]] = {}
    made: dict[str, set[tuple[str, str]]] = {}
    for cell in comparison.cells:
        made.setdefault(cell.contender, set()).add((cell.task, cell.shape_name))
        if cell.gene:
            users.setdefault((cell.contender, str(cell.gene.path)), set()).add((cell.task, cell.shape_name))
    return {key: len(value) for key, value in users.items()}, {key: len(value) for key, value in made.items()}
