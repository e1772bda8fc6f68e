"""``learngene check``: everything about a recipe that can be known before the first step is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from learngene.data.splits import Splits, accumulation, open_splits
from learngene.making.pool.rows import stage_recipes
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.genes import GenesRecipe
from learngene.recipe.loading import Recipe, TrainingRecipe
from learngene.recipe.search import SearchRecipe
from learngene.recipe.sections import Train
from learngene.recipe.ship import ShipRecipe
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_full_disk, refuse_read_only
from learngene.training.optimizer import refuse_optimizer
from learngene.training.run_folder import MARKER, RunFolder, run_bytes
from learngene.training.stage import set_drop_path
from learngene.training.trackers import refuse_missing


def check_recipe(recipe: Recipe) -> Iterator[str]:
    """Checks data, classes, shapes, ancestry or model, disk and resume state; trains and writes nothing.

    Args:
        recipe: A recipe, whose keys and values are valid already.

    Yields:
        One line per thing that was found to be in order; at the end what was counted of the images, and left out.

    Raises:
        LearngeneError: One line for the first thing that is not.
    """
    yield from CHECKS[type(recipe)](recipe)


def _check_images(recipe: CondenseRecipe | FinetuneRecipe) -> Generator[str, None, Splits]:
    """The images of a recipe that has one data set, as every stage of it trains on them."""
    from learngene.making.condense import opened

    unlabelled = isinstance(recipe, CondenseRecipe) and not recipe.needs_labels
    data = recipe.images if isinstance(recipe, CondenseRecipe) else recipe.data
    splits = train, val = opened(recipe) if isinstance(recipe, CondenseRecipe) else open_splits(data)
    kind = " of pixels" if train.segmentation else ""
    classes = "classes not looked at" if unlabelled else f"{len(train.class_names)} classes{kind}"
    yield f"data: {len(train)} training and {len(val)} validation images, {classes}"
    for name, spec in _trained(recipe):
        open_splits(data, spec, opened=splits, unlabelled=unlabelled)
        refuse_optimizer(spec)
        refuse_missing(spec.track)
        updates = len(train) // spec.batch_size * spec.epochs
        yield f"{name}: {spec.epochs} epochs, {updates} steps of {spec.batch_size} images"
    return splits


def _stages(recipe: CondenseRecipe | FinetuneRecipe) -> Sequence[CondenseRecipe | FinetuneRecipe]:
    """What is trained in turn: the rows and the paths of a pool, otherwise one thing."""
    return stage_recipes(recipe) if isinstance(recipe, CondenseRecipe) and recipe.pool else [recipe]


def _trained(recipe: CondenseRecipe | FinetuneRecipe) -> list[tuple[str, Train]]:
    """What to call each stage, and how it is trained."""
    stages = _stages(recipe)
    if len(stages) == 1:
        return [("training", stages[0].train)]
    return [(stage.out.name.partition("-s")[0], stage.train) for stage in stages]


def _check_compare(recipe: CompareRecipe) -> Iterator[str]:
    from learngene.comparing.results import collect
    from learngene.comparing.run import prepare, steps

    comparison, images, opened = prepare(recipe)
    for task, (train, val) in opened.sets.items():
        yield f"task {task}: {images[task]} training and {len(val)} validation images, {len(train.class_names)} classes"
    for section in (recipe.train("condense"), recipe.train("tune")):
        accumulation(section, processes=1)
        refuse_optimizer(section)
    cells = {cell.path for cell in comparison.cells}
    trained = [step for step in steps(comparison, opened) if step.path not in cells]
    there = sum(step.found() is not None for step in trained)
    yield f"store: {there} of {len(trained)} ancestries and genes are there"
    found = collect(comparison, images)
    for line in found.foreign:
        raise LearngeneError(line)
    for folder in (recipe.out, recipe.store):
        refuse_read_only(folder)
    yield f"out: {recipe.out} has {len(found.rows) + len(found.failed)} of {len(comparison.cells)} cells"
    yield from (line for splits in opened.sets.values() for line in splits.cautions())
    yield from (splits.counted() for splits in opened.sets.values())


def _check_search(recipe: SearchRecipe) -> Iterator[str]:
    from learngene.making.search.make import refuse_taken
    from learngene.making.search.paths import read_path
    from learngene.making.search.task_search import prepare, refuse_other_paths, search_bytes

    prepared = prepare(recipe)
    refuse_other_paths(prepared)
    yield f"ancestry: {prepared.ancestry.label}, {prepared.shape}"
    for name, (train, val) in prepared.images.items():
        spec = prepared.specs[name]
        updates = len(train) // spec.train.batch_size * spec.train.epochs
        there = "searched" if read_path(spec.out) else _saved(spec)
        there = there or f"{updates} steps of {spec.train.batch_size} images"
        yield f"task {name}: {len(train)} training and {len(val)} validation images, {there}"
    refuse_taken(recipe)
    for folder in (recipe.out, recipe.kept or recipe.out):
        refuse_read_only(folder)
    refuse_full_disk(recipe.out, search_bytes(prepared))
    yield from (splits.counted() for splits in prepared.images.values())


def _check_tune(recipe: TuneRecipe) -> Iterator[str]:
    from learngene.making.hyper.tune import prepare
    from learngene.making.steps import gene_path, refuse_gene_path
    from learngene.training.task_batches import sampling_shares

    prepared = prepare(recipe)
    stored = sum(parameter.numel() for parameter in prepared.gene.parameters())
    yield f"gene: {prepared.gene.method.name} at {prepared.gene.shape}, {stored / 1e6:.3f} M parameters"
    if prepared.ancestry:
        yield f"ancestry: {prepared.ancestry.label}"
    sizes = {name: len(task.images[0]) for name, task in prepared.tasks.items()}
    for name, share in sampling_shares(sizes, recipe.temperature).items():
        train, val = prepared.tasks[name].images
        counts = f"{len(train)} training and {len(val)} validation images, {len(train.class_names)} classes"
        yield f"task {name}: {counts}, drawn for {share:.0%} of the steps"
    steps = -(-sum(sizes.values()) // recipe.train.batch_size) * recipe.train.epochs
    yield f"training: {recipe.train.epochs} epochs, {steps} steps of {recipe.train.batch_size} images"
    refuse_gene_path(gene_path(recipe.out), prepared.gene)
    yield _check_folder(recipe)
    yield from (task.images.counted() for task in prepared.tasks.values())


def _check_condense(recipe: CondenseRecipe) -> Iterator[str]:
    from learngene.making.condense import prepare
    from learngene.making.steps import gene_path, refuse_gene_path
    from learngene.making.targets import missing_targets, stored_targets

    splits = yield from _check_images(recipe)
    prepared = prepare(recipe, images=splits)
    if prepared.ancestry:
        yield f"ancestry: {prepared.ancestry.label}"
    yield from (f"teacher: {teacher.label}" for teacher in prepared.teachers)
    stored = sum(parameter.numel() for parameter in prepared.gene.parameters())
    yield f"gene: {recipe.method} at {recipe.shape}, {stored / 1e6:.3f} M parameters"
    if recipe.trained_shapes:
        yield recipe.trained_shapes.told(recipe.turns())
    refuse_gene_path(gene_path(recipe.out), prepared.gene)
    if recipe.distill.replay is not None:
        yield f"targets: {missing_targets(stored_targets(prepared)).told}"
    for stage in _stages(prepared.recipe):
        yield _check_folder(stage)
    yield from [*splits.cautions(), splits.counted()]


def _check_genes(recipe: GenesRecipe) -> Iterator[str]:
    for name, one in recipe.genes.items():
        yield from (f"{name}: {line}" for lines in _check_condense(one) for line in lines.splitlines())


def _check_finetune(recipe: FinetuneRecipe) -> Iterator[str]:
    from learngene.data.preprocessing import fill_preprocessing
    from learngene.making.finetune import starting_model
    from learngene.vits.descendant_folder import PROVENANCE
    from learngene.vits.input_size import image_config

    splits = yield from _check_images(recipe)
    model = starting_model(recipe, splits.train)
    size = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {getattr(model, 'learngene', {}).get('method', 'timm')}, {size / 1e6:.3f} M parameters"
    refuse_foreign(recipe.out / "descendant", PROVENANCE)
    refuse_full_disk(recipe.out, run_bytes(model))
    set_drop_path(model, recipe.train.drop_path)
    yield _check_folder(recipe.model_copy(update={"data": fill_preprocessing(recipe.data, image_config(model))}))
    yield from [*splits.cautions(), splits.counted()]


def _check_ship(recipe: ShipRecipe) -> Iterator[str]:
    from learngene.shipping.ship import RECIPE, planned, told

    refuse_foreign(recipe.out, RECIPE)
    refuse_read_only(recipe.out)
    splits = open_splits(recipe.data)
    yield from told(planned(recipe, splits, time.perf_counter()), splits)


CHECKS: dict[type[Recipe], Callable[[Any], Iterator[str]]] = {
    CondenseRecipe: _check_condense,
    GenesRecipe: _check_genes,
    SearchRecipe: _check_search,
    TuneRecipe: _check_tune,
    FinetuneRecipe: _check_finetune,
    CompareRecipe: _check_compare,
    ShipRecipe: _check_ship,
}


def _check_folder(recipe: CondenseRecipe | FinetuneRecipe | TuneRecipe) -> str:
    refuse_foreign(recipe.out, MARKER)
    refuse_read_only(recipe.out)
    if not (Path(recipe.out) / MARKER).exists():
        return f"out: {recipe.out} is new"
    return f"out: {recipe.out} {_saved(recipe) or 'has no saved state yet'}"


def _saved(recipe: TrainingRecipe) -> str | None:
    """Where a run goes on, or that it is through; None if nothing of it is saved."""
    saved = RunFolder(recipe.out, recipe).load()
    if saved and saved[1].epoch >= recipe.train.epochs:
        return "is finished"
    return saved and f"continues after epoch {saved[1].epoch}, step {saved[1].step}"
