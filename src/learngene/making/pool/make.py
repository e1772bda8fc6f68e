"""Making a pool (Learngene Pool, Algorithm 1) or an SN-Net: rows, then stitch layers, then sampled paths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.evaluation_batches import EvaluationBatches
from learngene.data.images import ImageSet
from learngene.genes.ancestry import Ancestry, made_of
from learngene.genes.elastic import ElasticViT
from learngene.genes.gene import Learngene
from learngene.making.block_features import feature_widths
from learngene.making.extract import plain_shape
from learngene.making.features import stage as features
from learngene.making.features.student import FeatureStudent, Match
from learngene.making.finetune import scratch
from learngene.making.inputs import CondenseInputs, Taught
from learngene.making.pool.distil import RowDistillation, row_objective, row_teacher
from learngene.making.pool.path_features import PathStudent, path_neighbours
from learngene.making.pool.rows import (
    DENSE,
    END,
    LABELS,
    distilled_blocks,
    path_recipe,
    pool_of,
    row_recipe,
    row_recipes,
    row_shapes,
)
from learngene.making.pool.stitches import least_squares_stitches, transformation_stitches
from learngene.methods import method as find_method
from learngene.methods.base import gene_name
from learngene.methods.stitching import rows_of
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.pool import PoolSpec
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_unwritable
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, classification_loss, guided_loss
from learngene.training.probes import MOST_COMPARED
from learngene.training.run import finished, owned, run_stage, run_stages
from learngene.training.run_folder import MARKER, refuse_other_recipe
from learngene.training.scores import Score, accuracies
from learngene.training.stage import Stage, TrainResult, set_drop_path
from learngene.training.teacher import Outputs, Teacher, teacher_of_logits
from learngene.vits.stitched_shape import StitchedShape

LS_BATCH = 10
"""Images whose features are in memory at once while stitch layers are fitted."""


@dataclass
class Row:
    """A finished row: its weights, what it scored, the matrix TM needs (None is the identity), its bridges."""

    state: dict[str, Tensor]
    matrix: Tensor | None
    result: TrainResult | None
    matches: Sequence[Match] = ()


def train(inputs: CondenseInputs, *, keep: bool, show: bool) -> tuple[TrainResult, dict[str, Any]]:
    """Fills a pool's gene, or continues where a stopped run left it; see ``making.condense.Maker``.

    Returns:
        How the training went, all stages together, and for every path its name, ``counts`` of blocks and ``top1``, or
        without labels ``neighbours``.
    """
    recipe = inputs.recipe
    if keep:
        if kept := pool_of(recipe).kept:
            refuse_unwritable(kept)
        refuse_foreign(recipe.out, MARKER)
        refuse_other_recipe(recipe.out, recipe)
    with owned(recipe, keep=keep):
        return _train(inputs, keep=keep, show=show)


def _train(inputs: CondenseInputs, *, keep: bool, show: bool) -> tuple[TrainResult, dict[str, Any]]:
    recipe, gene, images = inputs.recipe, inputs.gene, inputs.images
    rows = [_anchor(anchor) for anchor in inputs.anchors] or distil_rows(
        inputs, range(len(row_recipes(recipe))), keep=keep, show=show
    )
    _fill_rows(gene, rows)
    paths = path_recipe(recipe)
    if not (keep and paths and (paths.out / "last.pt").exists()):
        _start_stitches(recipe, gene, rows, images.train, show)
    elastic = ElasticViT(gene)
    results = [row.result for row in rows if row.result is not None]
    if paths is not None:
        _set_drop_paths(elastic, paths.train.drop_path)
        if recipe.needs_labels:
            stage = path_stage(elastic, inputs.ancestry, pool_of(recipe))
        else:
            stage = feature_path_stage(elastic, inputs, paths, [row.matches for row in rows])
        results.append(run_stage(stage, paths, images, keep=keep, show=show))
        _set_drop_paths(elastic, 0.0)
    device, size = make_accelerator().device, {"img_size": gene.shape.img_size, "in_chans": gene.shape.in_chans}
    loader = eval_loader(images.val, recipe.data, **size, device=device)
    method, precision, final = rows_of(gene.method), recipe.train.precision, None
    if recipe.needs_labels:
        elastic.to(device)
        scores = accuracies(elastic.views(), loader, precision=precision)
        elastic.to("cpu")
        name, measured, final = "top1", {path: score.top1 for path, score in scores.items()}, scores[gene.shape]
    else:
        judges = features.evaluated(_judged(inputs), inputs)
        for judge in judges:
            judge.prepare()
        name, measured = "neighbours", path_neighbours(elastic, judges, loader, precision)
    listed = [
        {"path": path.path, "blocks": method.counts(path), name: round(measured[path], 4)}
        for path in method.paths(gene.shape)
    ]
    more = {"teachers": [each.identity for each in inputs.teachers]} if inputs.teachers else {}
    return _together(results, final or results[-1].final), {"paths": listed, **more}


def taught(inputs: CondenseInputs) -> list[Taught]:
    """The rows and the paths that are trained, and their teachers; see ``making.condense.Maker``."""
    recipe, ancestry = inputs.recipe, inputs.ancestry
    rows, paths, scored = row_recipes(recipe), path_recipe(recipe), not recipe.needs_labels
    if recipe.distill.target == "features":
        teachers = features.taught(inputs)
        out = [Taught(row, teachers, features.evaluations(inputs, row, scored=scored)) for row in rows]
    else:
        out = [Taught(row, _row_teachers(row, ancestry)) for row in rows]
    if not scored:
        return [*out, Taught(paths, _guides(ancestry, pool_of(recipe)))] if paths else out
    out += [Taught(paths, teachers, features.evaluations(inputs, paths, scored=True))] if paths else []
    judged: Sequence[Any] = features.evaluated(_judged(inputs), inputs)
    return [*out, Taught(recipe, (), judged)]


def _judged(inputs: CondenseInputs) -> EvaluationBatches:
    """The images among which neighbours of every path are sought."""
    images = inputs.images.val
    return features.evaluation_batches(
        images.picked(range(min(len(images), MOST_COMPARED))), inputs.recipe, batch_size=256
    )


def _row_teachers(recipe: CondenseRecipe, ancestry: Ancestry | None) -> tuple[Teacher, ...]:
    numbers = _distilled_at(recipe, ancestry)[1]
    return (row_teacher(ancestry, numbers, pool_of(recipe)),) if ancestry and numbers else ()


def _guides(ancestry: Ancestry | None, pool: PoolSpec) -> tuple[Teacher, ...]:
    return (teacher_of_logits(ancestry),) if ancestry and pool.guide != "none" else ()


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` if a teacher is of another task, or ancestry or anchors are not what rows need."""
    recipe = inputs.recipe
    if recipe.distill.target == "features":
        features.refuse(inputs)
        return
    teachers = [*([inputs.ancestry] if inputs.ancestry else []), *inputs.anchors]
    inputs.match(teachers)
    if not teachers:
        inputs.refuse_other_size()
    rows, kept = row_shapes(recipe), pool_of(recipe).kept
    if kept and (files := [each for each in (kept, *kept.parents) if each.exists() and not each.is_dir()]):
        raise LearngeneError(f"pool.kept: {files[0]} is a file, not a folder; choose another")
    for number, (anchor, row) in enumerate(zip(inputs.anchors, rows, strict=False), start=1):
        found = plain_shape(anchor)
        if found != row:
            field = next(name for name in row.to_dict() if getattr(found, name) != getattr(row, name))
            raise LearngeneError(
                f"anchors: number {number}, {anchor.identity['source']}, has {field} {getattr(found, field)}, but its "
                f"row has {getattr(row, field)}; set settings.rows and shape to what the anchors are"
            )
    if inputs.anchors:
        return
    pool, tm = pool_of(recipe), _stitch_init(recipe) == "tm"
    if tm and ("blk" not in pool.terms or LABELS in (pool.points or ())):
        raise LearngeneError(
            "pool.stitches: tm needs the block matrices of every row, which points of 0 or terms without blk do not "
            "learn; use pool.stitches=ls"
        )
    for index in range(len(rows)):
        widths = _distilled_at(row_recipe(recipe, index), inputs.ancestry)[2]
        if tm and len(set(widths)) > 1:
            raise LearngeneError(
                f"pool.stitches: the ancestry's blocks have widths {widths}, so their matrices have no mean; use "
                "pool.stitches=ls"
            )


# -- rows ------------------------------------------------------------------------------------------------


def distil_rows(inputs: CondenseInputs, which: Iterable[int], *, keep: bool, show: bool) -> list[Row]:
    """Trains rows as auxiliary models (equations 3 to 8), or finds them trained: all that are missing in one pass.

    With ``keep`` their states are kept, so that other pools can share them.

    Args:
        inputs: Of the pool.
        which: Numbers of the rows, from narrow to wide.
        keep: Whether to keep them.
        show: Whether to print progress.

    Raises:
        LearngeneError: Why rows failed, if some did; the others are trained.
    """
    recipes = [row_recipe(inputs.recipe, index) for index in which]
    stages = [_row_stage(inputs, mine, keep=keep) for mine in recipes]
    outcomes: list[TrainResult | LearngeneError | None] = [
        finished(mine, stage.module) if keep else None for mine, stage in zip(recipes, stages, strict=True)
    ]
    missing = [number for number, found in enumerate(outcomes) if found is None]
    if missing:
        jobs = [(stages[number], recipes[number]) for number in missing]
        with owned(inputs.recipe, keep=keep):
            made = run_stages(jobs, inputs.images, keep=keep, show=show)
        for number, outcome in zip(missing, made, strict=True):
            outcomes[number] = outcome
    if failed := [each for each in outcomes if isinstance(each, LearngeneError)]:
        raise failed[0] if len(failed) == 1 else LearngeneError("\n".join(map(str, failed)))
    results = [each for each in outcomes if isinstance(each, TrainResult)]
    return [_row(stage.module, result) for stage, result in zip(stages, results, strict=True)]


def _row(trained: nn.Module, result: TrainResult) -> Row:
    if isinstance(trained, FeatureStudent):
        return Row(_weights(trained.model), None, result, trained.current)
    assert isinstance(trained, RowDistillation)
    return Row(_weights(trained.student), trained.matrix(), result)


def _weights(student: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in student.state_dict().items()}


def _row_stage(inputs: CondenseInputs, mine: CondenseRecipe, *, keep: bool) -> Stage:
    """The stage in which a row is trained."""
    row, pool, ancestry = mine.shape, pool_of(mine), inputs.ancestry
    name, student = f"row {row.embed_dim}", scratch(row, mine.train.seed)
    set_drop_path(student, mine.train.drop_path)
    if mine.distill.target == "features":
        return features.feature_stage(name, student, inputs, mine, keep=keep, scored=not mine.needs_labels)
    student_blocks, _, widths = _distilled_at(mine, ancestry)
    with torch.random.fork_rng():
        torch.manual_seed(mine.train.seed)
        module = RowDistillation(student, row.embed_dim, student_blocks, widths, pool)
    objective, teachers = row_objective(pool, mine.distill), _row_teachers(mine, ancestry)
    return Stage(name, module, objective, row.img_size, row.in_chans, teachers, made_of=made_of(ancestry))


def _distilled_at(recipe: CondenseRecipe, ancestry: Ancestry | None) -> tuple[list[int], list[int], list[int]]:
    """The blocks of a row that are distilled, those of the ancestry, and the ancestry's widths there."""
    row, pool = recipe.shape, pool_of(recipe)
    if ancestry is None or pool.points == [LABELS]:
        return [], [], []
    label, size = ancestry.identity["source"], (row.in_chans, row.img_size, row.img_size)
    if not {"blk", "att"} & set(pool.terms):
        return distilled_blocks(row.depth, END), [1], []  # predictions alone: no block is read
    model: Any = ancestry.model
    last = feature_widths(model, label, [len(getattr(model, "blocks", ())) or 1], size, row.num_tokens)[0]
    by_width = END if last == row.embed_dim or row.depth < DENSE else DENSE  # the paper's choice (Table 4)
    points = by_width if pool.points is None else pool.points[0]
    mine, theirs = distilled_blocks(row.depth, points), distilled_blocks(len(model.blocks), points)
    widths = feature_widths(model, label, theirs, size, row.num_tokens)
    return mine, theirs, widths


def _anchor(ancestry: Ancestry) -> Row:
    return Row({name: value.detach().cpu() for name, value in ancestry.model.state_dict().items()}, None, None)


@torch.no_grad()
def _fill_rows(gene: Learngene, rows: Sequence[Row]) -> None:
    """The blocks of the rows become the pool's instances (Algorithm 1, lines 8 and 9)."""
    tensors = gene.tensors()
    for index, row in enumerate(rows):
        for name, value in row.state.items():
            tensors[f"row{index}.{gene_name(name)}"].copy_(value)


def _start_stitches(recipe: CondenseRecipe, gene: Learngene, rows: Sequence[Row], images: ImageSet, show: bool) -> None:
    if _stitch_init(recipe) == "tm":
        transformation_stitches(gene, [row.matrix for row in rows])
        return
    pool = pool_of(recipe)
    chosen = images.picked(np.linspace(0, len(images) - 1, min(pool.images, len(images))).astype(int).tolist())
    size, chans = gene.shape.img_size, gene.shape.in_chans
    loader = eval_loader(chosen, recipe.data, img_size=size, in_chans=chans, batch_size=LS_BATCH)
    warn: Callable[[str], object] = warnings.warn if show else (lambda _text: None)
    least_squares_stitches(gene, (batch for batch, _ in loader), warn)


def _stitch_init(recipe: CondenseRecipe) -> str:
    if recipe.distill.target == "features":
        return "ls"  # no matrices between tokens of the same number were learnt
    return pool_of(recipe).stitches or rows_of(find_method(recipe.method, recipe.settings)).stitch_init


# -- paths -----------------------------------------------------------------------------------------------


def path_stage(elastic: ElasticViT, ancestry: Ancestry | None, pool: PoolSpec) -> Stage:
    """Tuning of sampled paths (Algorithm 1, lines 11 to 14): one path a step, all with equal probability.

    Every process draws its own from the generator that the loop has seeded for (seed, epoch, step, process). Tensors
    that a step does not use get no gradient and are left alone by the optimizer.
    """
    shapes, widest = list(elastic.views()), elastic.gene.shape

    def draw(_epoch: int, _step: int) -> None:
        elastic.set_path(shapes[int(torch.randint(len(shapes), ()))])

    def objective(model: nn.Module, images: Tensor, targets: Tensor, theirs: Sequence[Outputs]) -> Parts:
        logits = model(images)
        if not theirs:
            return {"loss": classification_loss(logits, targets)}
        return guided_loss(logits, theirs[0]["logits"], targets, pool)

    return Stage(
        "paths",
        elastic,
        objective,
        widest.img_size,
        widest.in_chans,
        teachers=_guides(ancestry, pool),
        before_step=draw,
        before_scoring=lambda: elastic.set_path(widest),
        uses_all=False,
        made_of=made_of(ancestry),
    )


def feature_path_stage(
    elastic: ElasticViT, inputs: CondenseInputs, recipe: CondenseRecipe, rows: Sequence[Sequence[Match]]
) -> Stage:
    """Tuning of sampled paths without labels: each learns the teachers' features with the bridges of its last row."""
    widths = [row.embed_dim for row in row_shapes(recipe)]
    student = PathStudent(elastic, rows, widths)
    stage = features.matching_stage("paths", student, inputs, recipe, uses_all=False)
    shapes, widest = list(elastic.views()), elastic.gene.shape

    def draw(_epoch: int, _step: int) -> None:
        elastic.set_path(shapes[int(torch.randint(len(shapes), ()))])

    return replace(stage, before_step=draw, before_scoring=lambda: elastic.set_path(widest))


def _set_drop_paths(elastic: ElasticViT, rate: float) -> None:
    """Stochastic depth of every path: a block is dropped as often as in its own row, where rates rise with depth."""
    rows = {row.embed_dim: row.depth for row in rows_of(elastic.gene.method).row_shapes(elastic.gene.shape)}
    for shape, view in elastic.views().items():
        rates = None
        if isinstance(shape, StitchedShape):
            rates = [
                rate * block / max(rows[segment.embed_dim] - 1, 1)
                for segment in shape.segments
                for block in range(segment.first - 1, segment.last)
            ]
        set_drop_path(view, rate, rates)


def _together(results: Sequence[TrainResult], final: Score) -> TrainResult:
    """One result for all stages: sums of what they cost, and the widest row's final accuracy."""
    if not results:
        return TrainResult([], final, final.main, 0, 0, 0.0)
    return replace(
        results[-1],
        history=[entry for result in results for entry in result.history],
        final=final,
        best=max(results[-1].best, final.main),
        updates=sum(result.updates for result in results),
        images=sum(result.images for result in results),
        seconds=sum(result.seconds for result in results),
        averaged=None,
    )
