"""Running a comparison: whatever is missing, in any number of processes, none of it twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from learngene.comparing.cells import lay_out
from learngene.comparing.condense import condense
from learngene.comparing.jobs import AncestryJob, Cell, Comparison, GeneJob
from learngene.comparing.measure import measure
from learngene.comparing.results import Results, collect
from learngene.comparing.shared_targets import with_shared_targets
from learngene.data.images import ImageSet
from learngene.data.splits import Splits, open_splits, refuse_unfit
from learngene.genes.ancestry import Ancestry
from learngene.genes.expansion import kept_parameters
from learngene.making.condense import prepare as prepare_gene
from learngene.making.extract import extract, vit_shape
from learngene.making.finetune import scratch, train_model
from learngene.making.hyper.tune import run as run_tune
from learngene.making.pool.make import distil_rows
from learngene.making.search.make import described, keep_selected
from learngene.making.search.paths import NAME as PATH_FILE
from learngene.making.search.task_search import SearchInputs, search_task
from learngene.making.search.task_search import prepare as prepare_search
from learngene.making.steps import Step, missing
from learngene.making.workers import run_shared
from learngene.methods import default_settings
from learngene.recipe.compare import SOURCE, CompareRecipe
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.search import SearchRecipe, TaskSearch
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import Faults, LearngeneError
from learngene.system.files import refuse_unwritable
from learngene.system.speech import announce
from learngene.training.probes import refuse_few
from learngene.training.record import NAME as RESULT_FILE
from learngene.vits.shape import ViTShape
from learngene.vits.timm_models import refuse_unknown_architecture, timm_model


@dataclass
class OpenTasks:
    """The images of every task of a comparison, opened once per process."""

    recipe: CompareRecipe
    sets: dict[str, Splits] = field(default_factory=dict)

    def __getitem__(self, task: str) -> Splits:
        if task not in self.sets:
            section = self.recipe.data if task == SOURCE else self.recipe.tasks[task]
            needed = "the home task, on which genes are condensed," if task == SOURCE and section.labels else None
            self.sets[task] = open_splits(section, labels_for=needed, unlabelled=task == SOURCE)
        return self.sets[task]


def prepare(recipe: CompareRecipe) -> tuple[Comparison, dict[str, int], OpenTasks]:
    """Opens all tasks, lays out all jobs and checks that every one of them can be run.

    Returns:
        The comparison, the number of training images of every task, and the images.

    Raises:
        LearngeneError: One line per cell, gene or task that cannot be run.
    """
    opened, faults = OpenTasks(recipe), Faults()
    for task in recipe.needed():
        with faults.at(f"task {task}"):
            _refuse_other_size(task, opened[task].train, recipe)
    faults.refuse()
    sizes = {task: len(images.train) for task, images in opened.sets.items()}
    classes = {task: len(images.train.class_names) for task, images in opened.sets.items()}
    masked = {task for task, images in opened.sets.items() if images.train.segmentation}
    comparison = lay_out(recipe, classes, sizes, _loaded_shapes(recipe), masked)
    for job in comparison.ancestries.values():
        if job.spec.architecture:
            with faults.at(f"ancestries.{job.name}.architecture"):
                refuse_unknown_architecture(job.spec.architecture)
        if job.spec.source is None:
            with faults.at(f"ancestry {job.name}"):
                refuse_unfit(opened[SOURCE].train, job.train)
    for gene in comparison.genes:
        _check_gene(gene, opened, faults)
    for cell in comparison.cells:
        with faults.at(f"{cell.contender} at {cell.shape_name}"):
            kept_parameters(cell.shape, cell.spec.layers, cell.spec.modules)
            if cell.gene is not None:
                cell.gene.method.refuse(cell.gene.shape, cell.shape, **cell.spec.options)
        if cell.judge != "head":
            with faults.at(f"{cell.contender} on {cell.task}"):
                refuse_few(opened[cell.task].train)
        if cell.train is not None:
            with faults.at(f"{cell.contender} on {cell.task}"):
                refuse_unfit(opened[cell.task].train, cell.train)
    faults.refuse()
    return comparison, sizes, opened


def _check_gene(gene: GeneJob, opened: OpenTasks, faults: Faults) -> None:
    """Takes note of whatever speaks against making a gene."""
    recipe, name = gene.recipe, f"gene {gene.name}"
    if recipe is None:
        with faults.at(name):
            gene.method.refuse_auxiliary(gene.shape)
    elif isinstance(recipe, TuneRecipe):
        for task in recipe.tasks:
            with faults.at(f"{name} on {task}"):
                refuse_unfit(opened[task].train, recipe.task_train(task), "tuning a hypernetwork")
    elif isinstance(recipe, SearchRecipe):
        for part in gene.searches:
            with faults.at(f"search {part.task} seed {recipe.train.seed}"):
                refuse_unfit(opened[part.task].train, part.train)
    else:
        with faults.at(name):
            refuse_unfit(opened[SOURCE].train, recipe.train)
    origin = gene.ancestry
    if (recipe is None or gene.searches) and origin and not origin.spec.source and origin.shape is None:
        with faults.at(gene.name):
            trained = f"{origin.name} is trained as {origin.spec.architecture}"
            raise LearngeneError(f"layers can only be taken from a plain ViT, and {trained}")


def _loaded_shapes(recipe: CompareRecipe) -> dict[str, ViTShape]:
    """Shapes of the ancestries that are loaded as they are and that genes are extracted from."""
    contenders = [recipe.contenders[name] for name in recipe.chosen("contenders")]
    names = {spec.ancestry for spec in contenders if spec.ancestry and not spec.trained}
    specs = {name: recipe.ancestries[name] for name in names if recipe.ancestries[name].source}
    return {name: vit_shape(Ancestry.from_spec(spec.loaded())) for name, spec in specs.items()}


def _refuse_other_size(task: str, images: ImageSet, recipe: CompareRecipe) -> None:
    declared = (recipe.sizes or {}).get(task)
    if declared and (declared.images, declared.classes) != (len(images), len(images.class_names)):
        raise LearngeneError(
            f"{images.where} has {len(images)} training images in {len(images.class_names)} classes, but sizes.{task} "
            f"declares {declared.images} in {declared.classes}"
        )
    if declared and declared.masks != images.segmentation:
        has = "has" if images.segmentation else "has no"
        raise LearngeneError(
            f"{images.where} {has} masks, but sizes.{task} declares masks: {str(declared.masks).lower()}"
        )


def compare(
    recipe: CompareRecipe,
    *,
    processes: int = 1,
    executor: str = "local",
    say: Callable[[str], None] = announce,
) -> Results:
    """Runs what is missing of a comparison and reads all its results.

    Args:
        recipe: The comparison. Any number of processes, on one or several machines with a common folder, may run it
            at the same time.
        processes: Workers at a time, of this machine or as many as a scheduler is asked for.
        executor: Whose they are: ``local``, ``dask``, ``slurm`` or ``ray``, see ``system.executors``.
        say: Told of every finished step.

    Raises:
        LearngeneError: If a cell cannot be run: before the first one starts, and naming all of them.
    """
    comparison, sizes, opened = prepare(recipe)
    for folder in (recipe.out / "cells", recipe.store / "locks"):
        refuse_unwritable(folder)
    _, failed = run_shared(
        recipe,
        _missing_of,
        missing_steps(comparison, opened),
        processes=processes,
        executor=executor,
        locks=recipe.store / "locks",
        say=say,
        reached=lambda: "the last finished cell",
    )
    out = collect(comparison, sizes)
    out.failed |= failed
    return out


def read_results(recipe: CompareRecipe) -> Results:
    """What the results folder holds, running nothing."""
    comparison, sizes, _ = prepare(recipe)
    return collect(comparison, sizes)


# -- steps -------------------------------------------------------------------------------------------------


def missing_steps(comparison: Comparison, opened: OpenTasks) -> list[Step[str]]:
    """What has to be done: cells without a result, and whatever those need that is not there."""
    cells = {cell.path for cell in comparison.cells}
    return missing(steps(comparison, opened), lambda step: step.path in cells)


def _missing_of(recipe: CompareRecipe) -> list[Step[str]]:
    comparison, _, opened = prepare(recipe)
    return missing_steps(comparison, opened)


def steps(comparison: Comparison, opened: OpenTasks) -> list[Step[str]]:
    """Everything there is to do, each after what it needs: ancestries, parts of genes, genes, cells."""
    out: dict[Path, Step[str]] = {}

    def add(name: str, path: Path, make: Callable[[], str], done: Callable[[], bool], needs: Sequence[Path]) -> None:
        needed = [out[other] for other in needs]
        out.setdefault(path, Step(name, path, make, lambda: "done" if done() else None, needed))

    for job in comparison.ancestries.values():
        add(f"ancestry {job.name}", job.path, partial(_train_ancestry, job, opened), job.is_there, ())
    for gene in comparison.genes:
        origins = [origin.path for origin in gene.origins]
        for index, row in enumerate(gene.rows):
            name = f"row w{row.shape.embed_dim} d{row.shape.depth} seed {row.train.seed}"
            make = partial(_distil_row, gene, index, comparison, opened)
            add(name, row.out, make, (row.out / RESULT_FILE).exists, origins)
        for search in gene.searches:
            name, done = f"search {search.task} {gene.name.partition(' ')[2]}", (search.out / PATH_FILE).exists
            add(name, search.out, partial(_search, gene, search, opened), done, origins)
    for gene in [*(gene.stage1 for gene in comparison.genes if gene.stage1), *comparison.genes]:
        needs = [*(origin.path for origin in gene.origins), *(row.out for row in gene.rows)]
        needs += [*(task.out for task in gene.searches), *((gene.stage1.path,) if gene.stage1 else ())]
        make = partial(_make_gene, gene, comparison, opened)
        add(f"gene {gene.name}", gene.path, make, gene.path.exists, needs)
    for cell in comparison.cells:
        # The ancestry, too: it embeds tasks that the gene has not seen.
        needs = [cell.gene.path, *(each.path for each in (cell.gene.ancestry,) if each)] if cell.gene else []
        make = partial(_measure, cell, comparison.recipe, opened)
        add(f"cell {cell}", cell.path, make, cell.path.exists, needs)
    return list(out.values())


def _train_ancestry(job: AncestryJob, opened: OpenTasks) -> str:
    spec, images = job.spec, opened[SOURCE]
    if job.shape is not None:
        model = scratch(job.shape, job.train.seed)
    else:
        arguments = {**spec.model_args, "num_classes": len(images[0].class_names)}
        model = timm_model(spec.architecture or "", False, arguments, seed=job.train.seed)
    tuning = FinetuneRecipe(model=job.name, data=job.data, train=job.train, out=job.folder)
    return f"top-1 {train_model(model, tuning, images, keep=True, show=False).final.main:.2f} %"


def _distil_row(pool: GeneJob, index: int, comparison: Comparison, opened: OpenTasks) -> str:
    made = pool.rows[index].out / RESULT_FILE
    pool = with_shared_targets(pool, made, comparison, len(opened[SOURCE].train))
    assert isinstance(pool.recipe, CondenseRecipe)
    _refuse_failed(pool.rows[index].out)
    inputs = prepare_gene(pool.recipe, images=opened[SOURCE])
    (row,) = distil_rows(inputs, [index], keep=True, show=False)
    assert row.result is not None
    return f"{row.result.final.label} {row.result.final.main:.2f} %"


def _search(gene: GeneJob, task: TaskSearch, opened: OpenTasks) -> str:
    assert isinstance(gene.recipe, SearchRecipe)
    _refuse_failed(task.out)
    path = search_task(_search_inputs(gene.recipe, opened), task.task, keep=True, show=False)
    return described(path)


def _search_inputs(recipe: SearchRecipe, opened: OpenTasks) -> SearchInputs:
    return prepare_search(recipe, images={task: opened[task] for task in recipe.tasks})


def _make_gene(job: GeneJob, comparison: Comparison, opened: OpenTasks) -> str:
    if isinstance(job.recipe, SearchRecipe):
        found = keep_selected(_search_inputs(job.recipe, opened), job.path)
        return f"blocks {','.join(str(layer) for layer in found.metadata['search']['layers'])}"
    if isinstance(job.recipe, TuneRecipe):
        _refuse_failed(job.recipe.out)
        tuned = run_tune(job.recipe, images={task: opened[task] for task in job.recipe.tasks}, show=False)
        return f"mean top-1 {tuned.result.final.main:.2f} %"
    if job.recipe is not None:
        _refuse_failed(job.recipe.out)
        return condense(job, comparison, {step.path for step in missing_steps(comparison, opened)}, opened[SOURCE])
    assert job.ancestry is not None
    data = comparison.recipe.data.model_dump(exclude_unset=True) if job.method.needs_data else None
    start = time.perf_counter()
    ancestry = Ancestry.from_spec(job.ancestry.source())
    gene = extract(ancestry, method=job.method.name, settings=default_settings(job.method), data=data)
    gene.metadata["training"] = {"seconds": round(time.perf_counter() - start, 3)}
    gene.save(job.path)
    return "extracted"


def _measure(cell: Cell, recipe: CompareRecipe, opened: OpenTasks) -> str:
    return measure(cell, recipe, opened[cell.task])


def _refuse_failed(folder: Path) -> None:
    """Raises ``LearngeneError`` if a gene's training failed before: it would fail again, in every process."""
    record = folder / "result.json"
    error = json.loads(record.read_text())["error"] if record.exists() else None
    if error:
        raise LearngeneError(f"{error} (delete {folder} to try again)")
