"""Searching (LSAMD): trains one super net per data set, reads their paths and keeps the base blocks that most use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from learngene.data.splits import Splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making.arguments import Data, ancestry_fields, data_fields, loaded, recipe_of, require_mapping
from learngene.making.extract import extract
from learngene.making.search.paths import TaskPath, read_path, selected, soft_usage, usage
from learngene.making.search.task_search import (
    SearchInputs,
    found_path,
    prepare,
    refuse_other_paths,
    search_bytes,
    search_task,
)
from learngene.making.search.usage_map import usage_picture
from learngene.making.steps import Say, Step, gene_path
from learngene.making.workers import run_shared
from learngene.methods.lsamd import LSAMD
from learngene.recipe.search import SearchRecipe
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_full_disk, refuse_unwritable, write_file
from learngene.system.speech import announce
from learngene.training.loop import make_accelerator
from learngene.training.record import diverged
from learngene.training.run import owned, write_once
from learngene.training.run_folder import MARKER, refuse_other_kind

RECORD = "search.json"


def search(
    ancestry: Ancestry | str | Path,
    *,
    tasks: Mapping[str, Data],
    routing: Mapping[str, Any] | None = None,
    select: Mapping[str, Any] | None = None,
    rates: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    show: bool = True,
    **train_fields: Any,
) -> Learngene:
    """Searches the blocks of an ancestry that many data sets share, and makes a gene of them.

    Args:
        ancestry: A plain timm ViT, or a timm name, folder or checkpoint file for it.
        tasks: Data sets by name: where each one's images are, or its whole data section.
        routing: How super nets decide and how their adapters learn, see ``sections.Routing``.
        select: Which blocks are kept, see ``sections.Selection``: the five that they use most by default.
        rates: Learning rates of data sets that need one of their own (the paper's Table 5).
        out: A run folder, to be able to stop and go on; None keeps everything in memory.
        processes: Started to search several data sets at a time; needs ``out``.
        show: Whether to print progress.
        **train_fields: Fields of the train section: ``epochs``, ``batch_size``, ``preset`` and so on.

    Returns:
        A gene of method ``lsamd`` with the record of the search in ``metadata["search"]``.

    Raises:
        LearngeneError: If anything does not fit, before training; if a data set could not be searched or no block is
            used by enough of them, after it.
    """
    if processes > 1 and out is None:
        raise LearngeneError("search: several processes share a run folder; give out")
    if processes > 1 and isinstance(ancestry, Ancestry):
        raise LearngeneError("search: every process loads the ancestry itself; give its timm name, folder or file")
    rates = {} if rates is None else rates
    require_mapping("search", tasks=tasks, rates=rates)
    for name in rates:
        if name not in tasks:
            raise LearngeneError(f"rates: no data set '{name}' among {', '.join(tasks)}")
    recipe = recipe_of(
        SearchRecipe,
        ancestry=ancestry_fields(ancestry),
        tasks={
            name: {"data": data_fields(data), "train": {"lr": rates[name]} if name in rates else {}}
            for name, data in tasks.items()
        },
        train=train_fields,
        routing=routing,
        select=select,
        out=out,
    )
    say = announce if show else None
    return run(recipe, ancestry=loaded(ancestry), processes=processes, keep=out is not None, show=show, say=say)


def run(
    recipe: SearchRecipe,
    *,
    ancestry: Ancestry | None = None,
    images: Mapping[str, Splits] | None = None,
    processes: int = 1,
    executor: str = "local",
    keep: bool = True,
    show: bool = True,
    say: Say | None = announce,
) -> Learngene:
    """Runs a search, or continues it: data sets that have their path are not searched again.

    Any number of processes, on one or several machines with a common folder, may run the same recipe at the same time;
    ``processes`` of the ``executor`` work for it. Ancestry and images are given if they are loaded already. Without
    ``keep`` nothing is written. ``say`` is told of every finished data set.

    Raises:
        LearngeneError: If anything does not fit, if data sets could not be searched (the others' paths are kept), or if
            no block is selected.
    """
    gene_file = gene_path(recipe.out) if keep else None
    if gene_file:
        refuse_taken(recipe)
    inputs = prepare(recipe, ancestry, images)
    if gene_file:
        refuse_other_paths(inputs)
        refuse_full_disk(gene_file, search_bytes(inputs))
        refuse_unwritable(recipe.kept or recipe.out)
    steps = _steps(inputs, keep=keep, show=show)
    # Under torchrun all processes train one super net together, and none may keep it from the others.
    alone = make_accelerator().num_processes == 1
    with owned(recipe, keep=gene_file is not None):
        outcomes, failed = run_shared(
            recipe,
            _steps_elsewhere,
            steps,
            processes=processes,
            executor=executor,
            locks=(recipe.kept or recipe.out) / "locks" if keep and alone else None,
            say=say,
            reached=lambda: _reached(inputs),
        )
        if failed:
            lines = [f"task {name}: {reason}" for name, reason in failed.items()]
            there = f"{len(outcomes)} of {len(recipe.tasks)} data sets are searched"
            advice = "correct what failed and run the same command again"
            raise LearngeneError("\n".join([*lines, f"search: {there}; {advice}"]))
        return keep_selected(inputs, gene_file, [outcomes[step.path] for step in steps])


def _steps_elsewhere(recipe: SearchRecipe) -> list[Step[TaskPath]]:
    """What a further process has to do."""
    return _steps(prepare(recipe), keep=True, show=False)


def _steps(inputs: SearchInputs, *, keep: bool, show: bool) -> list[Step[TaskPath]]:
    """The search of every data set."""
    return [
        Step(
            name,
            spec.out,
            make=partial(search_task, inputs, name, keep=keep, show=show),
            found=partial(found_path, inputs, name) if keep else lambda: None,
            describe=described,
        )
        for name, spec in inputs.specs.items()
    ]


def described(path: TaskPath) -> str:
    """What a search found, in words."""
    layers = ",".join(str(layer) for layer in path.base_layers) or "none"
    return f"base blocks in layers {layers}, {path.metric} {path.score:.2f} %"


def _reached(inputs: SearchInputs) -> str:
    """Where a search that was stopped goes on: with the data sets that were begun, if any were."""
    begun = [
        name
        for name, spec in inputs.specs.items()
        if (spec.out / MARKER).exists() and read_path(spec.out) is None and not diverged(spec.out)
    ]
    return f"the last step of {', '.join(begun)}" if begun else "the last finished data set"


def refuse_taken(recipe: SearchRecipe) -> None:
    """Raises ``LearngeneError`` if something else stands where the search would write."""
    refuse_foreign_gene(gene_path(recipe.out), LSAMD.name)
    refuse_foreign(recipe.out, MARKER)
    refuse_other_kind(recipe.out, recipe)


def keep_selected(inputs: SearchInputs, gene_file: Path | None, paths: list[TaskPath] | None = None) -> Learngene:
    """Counts usage (equation 3), draws it, and makes a gene of the blocks that enough data sets use.

    Paths that are not given are read from their run folders. If one is missing, or no block is used by enough data
    sets, ``LearngeneError`` says so; the map is drawn all the same.
    """
    recipe = inputs.recipe
    paths = paths or [path for name in recipe.tasks if (path := found_path(inputs, name))]
    if len(paths) < len(recipe.tasks):
        raise LearngeneError(
            f"search: {len(paths)} of {len(recipe.tasks)} data sets are searched; run the search again"
        )
    record = _record(recipe, paths)
    try:
        record["layers"] = list(selected(paths, recipe.select, recipe.tau))
    except LearngeneError as error:
        old = f"; {gene_file} is of an earlier selection" if gene_file and gene_file.exists() else ""
        raise LearngeneError(f"{error}{old}") from None
    finally:
        if gene_file:
            text = json.dumps(record, indent=1) + "\n"
            write_once(lambda: write_file(recipe.out / RECORD, lambda temporary: temporary.write_text(text)))
            write_once(lambda: usage_picture(record, recipe.out / "usage.png"))
    gene = extract(inputs.ancestry, method="lsamd", settings={"layers": record["layers"], "stem": recipe.stem})
    gene.metadata["training"] = {
        "epochs": recipe.train.epochs,
        "seconds": sum(path.seconds for path in paths),
        "seed": recipe.train.seed,
        "recipe": {"train": recipe.train.model_dump(mode="json")},
    }
    gene.metadata["search"] = record
    if gene_file:
        write_once(lambda: gene.save(gene_file, dtype=recipe.dtype))
    return gene


def _record(recipe: SearchRecipe, paths: list[TaskPath]) -> dict[str, Any]:
    """What a gene file says about the search behind it, as documented in ``docs/format.md``."""
    tasks = [
        {
            "task": path.task,
            "source": recipe.tasks[path.task].data.names,
            "data": path.data,
            "layers": list(path.base_layers),
            "share": list(path.share),
            "soft": list(path.soft),
            "metric": path.metric,
            "score": path.score,
            "lr": recipe.task(path.task).train.lr,
            "epochs": path.epochs,
            "seconds": path.seconds,
        }
        for path in paths
    ]
    how_many = {"tau": recipe.tau} if recipe.select.rule == "threshold" else {"k": recipe.select.blocks}
    return {
        "tasks": tasks,
        "usage": usage(paths),
        "soft_usage": [round(value, 4) for value in soft_usage(paths)],
        "select": recipe.select.model_dump(mode="json", exclude_none=True) | how_many,
        "routing": recipe.routing.model_dump(mode="json"),
    }
