"""Running a comparison: whatever is missing, in any number of processes, none of it twice."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from learngene.comparing.cells import lay_out
from learngene.comparing.jobs import AncestryJob, Cell, Comparison, GeneJob, Job, RowJob, SearchJob, needs
from learngene.comparing.results import CellResult, Results, collect
from learngene.data.images import ImageSet
from learngene.data.splits import Splits, open_splits, refuse_unfit
from learngene.genes.ancestry import Ancestry, refuse_unknown_architecture, timm_model
from learngene.genes.gene import Learngene, kept_parameters
from learngene.making.condense import prepare as prepare_gene
from learngene.making.condense import run as run_condense
from learngene.making.extract import extract, plain_shape
from learngene.making.finetune import evaluate, fresh_head, scratch, train_model
from learngene.making.hyper.embedding import embedding_of
from learngene.making.hyper.make import run as run_tune
from learngene.making.hyper.task_graphs import task_graphs
from learngene.making.pool.make import distil_row
from learngene.making.search.make import Prepared as PreparedSearch
from learngene.making.search.make import keep_selected, search_task
from learngene.making.search.make import prepare as prepare_search
from learngene.methods import default_settings
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.compare import SOURCE, CompareRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.search import SearchRecipe
from learngene.recipe.sections import DataSpec
from learngene.recipe.tune import TuneRecipe
from learngene.system.environment import commit, environment
from learngene.system.errors import InterruptedRun, LearngeneError, TrainingDivergedError
from learngene.system.files import refuse_unwritable, take_lock
from learngene.system.processes import POLL_SECONDS, announce, spread, stopping, take_share
from learngene.training.scores import score_from
from learngene.vits.descendant_folder import TimmModel
from learngene.vits.linearity import layer_state, linearity
from learngene.vits.shape import ViTShape


@dataclass
class Opened:
    """The images of every task of a comparison, opened once per process."""

    recipe: CompareRecipe
    sets: dict[str, Splits] = field(default_factory=dict)

    def __getitem__(self, task: str) -> Splits:
        if task not in self.sets:
            source = task == SOURCE
            needed = "the home task, on which genes are condensed," if source else None
            self.sets[task] = open_splits(self.recipe.data if source else self.recipe.tasks[task], labels_for=needed)
        return self.sets[task]


def prepare(recipe: CompareRecipe) -> tuple[Comparison, dict[str, int], Opened]:
    """Opens all tasks, lays out all jobs and checks that every one of them can be run.

    Returns:
        The comparison, the number of training images of every task, and the images.

    Raises:
        LearngeneError: One line per cell, gene or task that cannot be run.
    """
    opened = Opened(recipe)
    faults: dict[str, None] = {}
    for task in recipe.needed():
        try:
            _refuse_other_size(task, opened[task].train, recipe)
        except LearngeneError as error:
            faults[f"task {task}: {error}"] = None
    if faults:
        raise LearngeneError("\n".join(faults))
    sizes = {task: len(images.train) for task, images in opened.sets.items()}
    classes = {task: len(images.train.class_names) for task, images in opened.sets.items()}
    masked = {task for task, images in opened.sets.items() if images.train.segmentation}
    comparison = lay_out(recipe, classes, sizes, _loaded_shapes(recipe), masked)
    home = opened[SOURCE].train
    for ancestry in comparison.ancestries.values():
        if ancestry.spec.architecture:
            where = f"ancestries.{ancestry.name}.architecture"
            _note(faults, where, refuse_unknown_architecture, ancestry.spec.architecture)
        if ancestry.spec.source is None:
            _note(faults, f"ancestry {ancestry.name}", refuse_unfit, home, ancestry.train)
    for gene in comparison.genes:
        if gene.recipe is None:
            _note(faults, f"gene {gene.name}", gene.method.refuse_auxiliary, gene.shape)
        elif isinstance(gene.recipe, TuneRecipe):
            for task in gene.recipe.tasks:
                where = f"gene {gene.name} on {task}"
                train = gene.recipe.task_train(task)
                _note(faults, where, refuse_unfit, opened[task].train, train, "tuning a hypernetwork")
        elif isinstance(gene.recipe, SearchRecipe):
            for part in gene.searches:
                _note(faults, f"search {part.name}", refuse_unfit, opened[part.task].train, part.recipe.train)
        else:
            _note(faults, f"gene {gene.name}", refuse_unfit, home, gene.recipe.train)
        taken = gene.recipe is None or gene.searches
        if taken and gene.ancestry and not gene.ancestry.spec.source and gene.ancestry.shape is None:
            faults[f"{gene.name}: layers can only be taken from a plain ViT, and {gene.ancestry.name} is trained as "
                   f"{gene.ancestry.spec.architecture}"] = None  # fmt: skip
    for cell in comparison.cells:
        _note(faults, f"{cell.contender} at {cell.shape_name}", _refuse_impossible, cell)
        if cell.train is not None:
            where = f"{cell.contender} on {cell.task}"
            _note(faults, where, refuse_unfit, opened[cell.task].train, cell.train)
    if faults:
        raise LearngeneError("\n".join(faults))
    return comparison, sizes, opened


def _note(faults: dict[str, None], where: str, check: Callable[..., object], *arguments: Any) -> None:
    """Adds what a check refuses to the faults, each once."""
    try:
        check(*arguments)
    except LearngeneError as error:
        faults[f"{where}: {error}"] = None


def _refuse_impossible(cell: Cell) -> None:
    kept_parameters(cell.shape, cell.spec.layers, cell.spec.modules)
    if cell.gene is not None:
        cell.gene.method.refuse(cell.gene.shape, cell.shape, **cell.spec.options)


def _loaded_shapes(recipe: CompareRecipe) -> dict[str, ViTShape]:
    """Shapes of the ancestries that are loaded as they are and that genes are extracted from."""
    contenders = [recipe.contenders[name] for name in recipe.chosen("contenders")]
    names = {spec.ancestry for spec in contenders if spec.ancestry and not spec.trained}
    specs = {name: recipe.ancestries[name] for name in names if recipe.ancestries[name].source}
    return {
        name: plain_shape(Ancestry(spec.source or "", architecture=spec.architecture, model_args=spec.model_args))
        for name, spec in specs.items()
    }


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


def compare(recipe: CompareRecipe, *, processes: int = 1, say: Callable[[str], None] = announce) -> Results:
    """Runs what is missing of a comparison and reads all its results.

    Args:
        recipe: The comparison. Any number of processes, on one or several machines with a common folder, may run it
            at the same time.
        processes: Started here. With several on a CPU, each gets one thread.
        say: Told of every finished job.

    Raises:
        LearngeneError: If a cell cannot be run: before the first one starts, and naming all of them.
    """
    comparison, sizes, opened = prepare(recipe)
    failed: dict[str, str] = {}
    for folder in (recipe.out / "cells", recipe.store / "locks"):
        refuse_unwritable(folder)
    with stopping(lambda: "the last finished cell"):
        if processes > 1 and not all(cell.done for cell in comparison.cells):
            spread(_worker, recipe.model_dump_json(), processes)
        # After several processes only what failed in all of them is left; trying it here says why.
        for _ in _jobs_done(comparison, opened, failed, say):
            pass
    out = collect(comparison, sizes)
    out.failed |= failed
    return out


def _worker(recipe: str, number: int, processes: int) -> None:
    """One process of several."""
    take_share(number, processes)
    comparison, _, opened = prepare(CompareRecipe.model_validate_json(recipe))
    try:
        for _ in _jobs_done(comparison, opened, {}, announce):
            pass
    except (InterruptedRun, KeyboardInterrupt):
        return  # the parent says that it stopped


def _jobs_done(
    comparison: Comparison, opened: Opened, failed: dict[str, str], say: Callable[[str], None]
) -> Iterator[Job]:
    """Does every job that nobody else has done or is doing, and waits for those; yields what it did."""
    pending = comparison.missing()
    lost: set[Path] = set()
    while pending:
        progress = False
        for job in list(pending):
            needed = needs(job)
            if any(other.path in lost for other in needed):
                lost.add(job.path)
                pending.remove(job)
                progress = True
            elif job.done:
                pending.remove(job)
                progress = True
            elif all(other.done for other in needed):
                lock = take_lock(comparison.recipe.store / "locks" / f"{job.path.name}-{job.path.parent.name}.lock")
                if lock is None:
                    continue
                with lock:
                    if not job.done:
                        start = time.perf_counter()
                        try:
                            outcome = _do(job, comparison.recipe, opened)
                            say(f"{_title(job)}: {outcome}, {time.perf_counter() - start:.1f} s")
                        except LearngeneError as error:
                            failed[_title(job)] = str(error)
                            lost.add(job.path)
                            say(f"{_title(job)}: failed: {error}")
                        yield job
                pending.remove(job)
                progress = True
        if not progress:
            time.sleep(POLL_SECONDS)


def _title(job: Job) -> str:
    kinds = {AncestryJob: "ancestry", RowJob: "row", SearchJob: "search", GeneJob: "gene", Cell: "cell"}
    return f"{kinds[type(job)]} {job.name if not isinstance(job, Cell) else job}"


def _do(job: Job, recipe: CompareRecipe, opened: Opened) -> str:
    if isinstance(job, AncestryJob):
        return _train_ancestry(job, opened[SOURCE])
    if isinstance(job, RowJob):
        return _distil_row(job, opened[SOURCE])
    if isinstance(job, SearchJob):
        return _search(job, opened)
    if isinstance(job, GeneJob):
        return _make_gene(job, recipe, opened)
    return _measure(job, recipe, opened[job.task])


def _train_ancestry(job: AncestryJob, images: Splits) -> str:
    spec = job.spec
    if job.shape is not None:
        model = scratch(job.shape, job.train.seed)
    else:
        arguments = {**spec.model_args, "num_classes": len(images[0].class_names)}
        with torch.random.fork_rng():
            torch.manual_seed(job.train.seed)
            model = timm_model(spec.architecture or "", False, arguments)
    tuning = FinetuneRecipe(model=job.name, data=job.data, train=job.train, out=job.folder)
    return f"top-1 {train_model(model, tuning, images, keep=True, show=False).final.main:.2f} %"


def _distil_row(job: RowJob, images: Splits) -> str:
    _refuse_failed(job.path)
    prepared = prepare_gene(job.pool, images=images)
    row = distil_row(prepared.recipe, job.index, prepared.ancestry, images, keep=True, show=False)
    assert row.result is not None
    return f"top-1 {row.result.final.main:.2f} %"


def _search(job: SearchJob, opened: Opened) -> str:
    _refuse_failed(job.path)
    path = search_task(_prepared_search(job.search, opened), job.task, keep=True, show=False)
    layers = ",".join(str(layer) for layer in path.base_layers) or "none"
    return f"{path.metric} {path.score:.2f} %, base blocks {layers}"


def _prepared_search(recipe: SearchRecipe, opened: Opened) -> PreparedSearch:
    return prepare_search(recipe, images={task: opened[task] for task in recipe.tasks})


def _make_gene(job: GeneJob, recipe: CompareRecipe, opened: Opened) -> str:
    if isinstance(job.recipe, SearchRecipe):
        found = keep_selected(_prepared_search(job.recipe, opened), job.path)
        return f"blocks {','.join(str(layer) for layer in found.record['layers'])}"
    if isinstance(job.recipe, TuneRecipe):
        _refuse_failed(job.recipe.out)
        tuned = run_tune(job.recipe, images={task: opened[task] for task in job.recipe.tasks}, show=False)
        return f"mean top-1 {tuned.result.final.main:.2f} %"
    if job.recipe is not None:
        _refuse_failed(job.recipe.out)
        done = run_condense(job.recipe, images=opened[SOURCE], keep=True, show=False)
        return f"top-1 {done.result.final.main:.2f} %"
    assert job.ancestry is not None
    data = recipe.data.model_dump(exclude_unset=True) if job.method.needs_data else None
    start = time.perf_counter()
    ancestry = Ancestry.from_spec(job.ancestry.source())
    gene = extract(ancestry, method=job.method.name, settings=default_settings(job.method), data=data)
    gene.metadata["training"] = {"seconds": round(time.perf_counter() - start, 3)}
    gene.save(job.path)
    return "extracted"


def _refuse_failed(folder: Path) -> None:
    """Raises ``LearngeneError`` if a gene's training failed before: it would fail again, in every process."""
    record = folder / "result.json"
    error = json.loads(record.read_text())["error"] if record.exists() else None
    if error:
        raise LearngeneError(f"{error} (delete {folder} to try again)")


def _measure(cell: Cell, recipe: CompareRecipe, images: Splits) -> str:
    """Makes the descendant, scores it, tunes it and writes the result."""
    start = time.perf_counter()
    if cell.gene is None:
        gene, model = None, scratch(cell.shape, cell.seed, images[0].class_names)
    else:
        gene = Learngene.load(cell.gene.path)
        filled: dict[str, Any] = {"layers": cell.spec.layers, "modules": cell.spec.modules}
        names = images[0].class_names
        if (task := _task_of(cell, gene, images[0])) is not None:
            filled["task"] = task
        with warnings.catch_warnings(action="ignore"):  # shapes outside the trained range are what is asked about
            model = gene.expand(cell.shape, seed=cell.seed, class_names=names, **filled, **cell.spec.options)
    content: dict[str, Any] = {
        "contender": cell.contender,
        "method": cell.spec.method,
        "shape": cell.shape.to_dict(),
        "task": cell.task,
        "seed": cell.seed,
        "params": cell.params,
        "macs": cell.macs,
        "gene": _gene_record(gene) if gene else None,
        "spec": cell.spec.model_dump(mode="json"),
        "layers": model.learngene["layers"],
        "linearity": _linearity(model) if isinstance(cell.shape, ViTShape) else None,
        "fresh": len(model.learngene["fresh"]),
        "train": cell.train.model_dump(mode="json") if cell.train else None,
        "data": _data_record(cell.data, images),
    }
    if cell.masked:
        model = fresh_head(model, images[0], cell.seed)
    model_data = cell.data
    untuned = evaluate(model, model_data, images=images[1])
    content |= {"untuned": asdict(untuned), "epochs": [], "last": asdict(untuned), "steps": 0, "error": None}
    if cell.train is not None:
        tuning = FinetuneRecipe(
            model=cell.contender, data=model_data, train=cell.train, out=recipe.store / "cells" / cell.key
        )
        try:
            result = train_model(model, tuning, images, keep=recipe.keep_runs, show=False)
            content |= {"epochs": result.history, "last": asdict(result.final), "steps": result.updates}
        except TrainingDivergedError as error:
            content["error"] = str(error)
    content["seconds"] = round(time.perf_counter() - start, 3)
    content["environment"] = environment() | _accelerator()
    content["commit"] = commit()
    CellResult(key=cell.key, **content).write_new(cell.path)
    if content["error"]:
        raise LearngeneError(content["error"])
    tuned = score_from(content["last"]).main
    return f"{untuned.label} {untuned.main:.2f} % untuned, {tuned:.2f} % after {len(content['epochs'])} epochs"


def _task_of(cell: Cell, gene: Learngene, images: ImageSet) -> TaskEmbedding | None:
    """The embedding of a cell's task, if the gene was tuned to take one: a task's own, or that of an unseen task."""
    known = gene.tasks()
    if not known or cell.gene is None or cell.gene.ancestry is None:
        return None
    return known.get(cell.task) or embedding_of(
        Ancestry.from_spec(cell.gene.ancestry.source()), images, cell.task, cell.data
    )


def _linearity(model: TimmModel) -> float | None:
    line = linearity(*layer_state(model))
    return None if math.isnan(line) else line


def _gene_record(gene: Learngene) -> dict[str, Any]:
    metadata = gene.metadata
    training = metadata.get("training", {})
    return {
        "digest": metadata["digest"],
        "stored_params": sum(parameter.numel() for parameter in gene.parameters()),
        "auxiliary": gene.shape.to_dict(),
        **({"paths": metadata["paths"]} if "paths" in metadata else {}),
        **({"search": metadata["search"]} if "search" in metadata else {}),
        **({"tasks": {task["task"]: task["top1"] for task in metadata["tasks"]}} if "tasks" in metadata else {}),
        **({"task_share": round(task_graphs(gene).task_share, 6)} if gene.tasks() else {}),
        "top1": metadata.get("accuracy", {}).get("top1"),
        "epochs": training.get("epochs"),
        "seconds": training.get("seconds", 0.0),
        "ancestry": metadata.get("ancestry"),
    }


def _data_record(data: DataSpec, images: Splits) -> dict[str, Any]:
    return {
        "source": [Path(source).name for source in data.sources],
        "train_images": len(images[0]),
        "val_images": len(images[1]),
        "fingerprint": images[0].fingerprint(),
    }


def _accelerator() -> dict[str, str]:
    return {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def read_results(recipe: CompareRecipe) -> Results:
    """What the results folder holds, running nothing."""
    comparison, sizes, _ = prepare(recipe)
    return collect(comparison, sizes)
