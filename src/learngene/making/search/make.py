"""Searching (LSAMD): trains one super net per data set, reads their paths and keeps the base blocks that most use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.preprocessing import fill_preprocessing
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making.extract import extract, plain_shape
from learngene.making.finetune import fresh_head
from learngene.making.search.paths import NAME as PATH_FILE
from learngene.making.search.paths import TaskPath, damaged, layer_usage, read_path
from learngene.making.search.select import selected, soft_usage, usage
from learngene.making.search.super_net import SuperNet, routed
from learngene.making.search.usage_map import usage_picture
from learngene.methods.lsamd import LSAMD
from learngene.recipe.loading import build_recipe, dump_recipe
from learngene.recipe.search import SearchRecipe, TaskSearch
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.system.files import refuse_foreign, refuse_full_disk, refuse_unwritable, take_lock, write_file
from learngene.system.processes import POLL_SECONDS, announce, spread, stopping, take_share
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, task_loss
from learngene.training.optimizer import refuse_unknown_optimizer
from learngene.training.record import diverged
from learngene.training.run import finished, run_stage, write_once
from learngene.training.run_folder import MARKER, refuse_other_kind
from learngene.training.stage import Stage
from learngene.vits.shape import ViTShape

RECORD = "search.json"


@dataclass
class SearchResult:
    """What a search made.

    Attributes:
        gene: The base blocks that were selected, untouched.
        path: Where the gene was written.
        paths: Of all data sets.
        record: What the gene file says about the search.
    """

    gene: Learngene
    path: Path | None
    paths: list[TaskPath]
    record: dict[str, Any]


@dataclass
class Prepared:
    """Everything a search needs, checked against each other.

    Attributes:
        recipe: What to do.
        ancestry: Whose blocks are searched.
        shape: Its shape.
        images: Training and validation images by data set.
        specs: How each data set is searched.
        data: Fingerprints of each data set's training and validation images, both of which decide its path.
    """

    recipe: SearchRecipe
    ancestry: Ancestry
    shape: ViTShape
    images: dict[str, Splits] = field(default_factory=dict)
    specs: dict[str, TaskSearch] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def resolved(self, name: str) -> TaskSearch:
        """How a data set is searched, with the ancestry's mean and std where its section leaves them open."""
        spec = self.specs[name]
        return spec.model_copy(update={"data": fill_preprocessing(spec.data, self.ancestry.model.pretrained_cfg)})


def search(
    ancestry: Ancestry | str | Path,
    *,
    tasks: Mapping[str, str | list[str] | Mapping[str, Any]],
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
    known = ancestry if isinstance(ancestry, Ancestry) else None
    if processes > 1 and out is None:
        raise LearngeneError("search: several processes share a run folder; give out")
    if processes > 1 and known is not None:
        raise LearngeneError("search: every process loads the ancestry itself; give its timm name, folder or file")
    for what, given in (("tasks", tasks), ("rates", rates or {})):
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise LearngeneError(f"search: {what} must be a mapping from names of data sets, not of type {kind}")
    for name in rates or {}:
        if name not in tasks:
            raise LearngeneError(f"rates: no data set '{name}' among {', '.join(tasks)}")
    fields: dict[str, Any] = {
        "kind": "search",
        "ancestry": {"source": str(known.identity["source"] if known else ancestry)},
        "tasks": {
            name: {
                "data": data if isinstance(data, Mapping) else {"source": data},
                "train": {"lr": rates[name]} if rates and name in rates else {},
            }
            for name, data in tasks.items()
        },
        "train": train_fields,
        "routing": routing or {},
        "select": select or {},
    }
    if out is not None:
        fields["out"] = str(out)
    recipe = build_recipe(fields)
    assert isinstance(recipe, SearchRecipe)
    say: Callable[[str], None] = announce if show else lambda _: None
    return run(recipe, ancestry=known, processes=processes, keep=out is not None, show=show, say=say).gene


def gene_path(recipe: SearchRecipe) -> Path:
    """Where the gene of a search is written: beside its run folder."""
    return recipe.out.with_name(f"{recipe.out.name}.safetensors")


def prepare(
    recipe: SearchRecipe, ancestry: Ancestry | None = None, images: Mapping[str, Splits] | None = None
) -> Prepared:
    """Loads the ancestry, opens all data sets and checks that each can be searched.

    Raises:
        LearngeneError: One line per fault; nothing has been written.
    """
    ancestry = ancestry or Ancestry.from_spec(recipe.ancestry)
    out = Prepared(recipe, ancestry, plain_shape(ancestry), dict(images or {}))
    faults = []
    for name in recipe.tasks:
        try:
            spec = out.specs[name] = recipe.task(name)
            out.images[name] = open_splits(
                out.resolved(name).data,
                spec.train,
                opened=out.images.get(name),
                processes=make_accelerator().num_processes,
                in_chans=out.shape.in_chans,
            )
            out.data[name] = "-".join(split.fingerprint() for split in out.images[name])
            refuse_unknown_optimizer(spec.train)
            out.shape.replace(img_size=spec.data.img_size or out.shape.img_size)
        except LearngeneError as error:
            faults.append(f"task {name}: {error}")
    if faults:
        raise LearngeneError("\n".join(faults))
    if recipe.select.rule == "top_k" and recipe.select.blocks > out.shape.depth:
        depth = out.shape.depth
        raise LearngeneError(
            f"select.k: {recipe.select.blocks} blocks of an ancestry with {depth} layers; use {depth} or less"
        )
    return out


def run(
    recipe: SearchRecipe,
    *,
    ancestry: Ancestry | None = None,
    images: Mapping[str, Splits] | None = None,
    processes: int = 1,
    keep: bool = True,
    show: bool = True,
    say: Callable[[str], None] = announce,
) -> SearchResult:
    """Runs a search, or continues it: data sets that have their path are not searched again.

    Any number of processes, on one or several machines with a common folder, may run the same recipe at the same time.

    Args:
        recipe: What to do.
        ancestry: The ancestry, if it is loaded already.
        images: Training and validation images by data set, if they are open already.
        processes: Started here. With several on a CPU, each gets its share of the threads.
        keep: Write run folders and the gene file.
        show: Whether to print progress; with several processes only one line per data set.
        say: Told of every finished data set.

    Raises:
        LearngeneError: If anything does not fit, if data sets could not be searched (the others' paths are kept), or if
            no block is selected.
    """
    gene_file = gene_path(recipe) if keep else None
    if gene_file:
        refuse_taken(recipe)
    prepared = prepare(recipe, ancestry, images)
    if keep:
        refuse_other_paths(prepared)
    if gene_file:
        refuse_full_disk(gene_file, search_bytes(prepared))
        refuse_unwritable(recipe.kept or recipe.out)
        write_once(lambda: write_file(recipe.out / MARKER, lambda temporary: temporary.write_text(dump_recipe(recipe))))
    failed: dict[str, str] = {}
    with stopping(lambda: _reached(prepared)):
        if processes > 1 and any(_found(prepared, name) is None for name in recipe.tasks):
            spread(_worker, recipe.model_dump_json(), processes)
        # After several processes only what failed in all of them is left; trying it here says why.
        paths = {path.task: path for path in _searched(prepared, failed, keep=keep, show=show, say=say)}
    if failed:
        lines = [f"task {name}: {reason}" for name, reason in failed.items()]
        there = f"{len(paths)} of {len(recipe.tasks)} data sets are searched"
        raise LearngeneError("\n".join([*lines, f"search: {there}; mend the others and run the same command again"]))
    return keep_selected(prepared, gene_file, [paths[name] for name in recipe.tasks])


def _reached(prepared: Prepared) -> str:
    """Where a search that was stopped goes on: with the data sets that were begun, if any were."""
    begun = [
        name
        for name, spec in prepared.specs.items()
        if (spec.out / MARKER).exists() and read_path(spec.out) is None and not diverged(spec.out)
    ]
    return f"the last step of {', '.join(begun)}" if begun else "the last finished data set"


def refuse_taken(recipe: SearchRecipe) -> None:
    """Raises ``LearngeneError`` if something else stands where the search would write."""
    refuse_foreign_gene(gene_path(recipe), LSAMD.name)
    refuse_foreign(recipe.out, MARKER)
    refuse_other_kind(recipe.out, recipe)


def refuse_other_paths(prepared: Prepared) -> None:
    """Looks at all paths that are there, so that a wrong one shows before the others are searched.

    Raises:
        LearngeneError: One line per path that is damaged, or of another ancestry or other images.
    """
    faults = []
    for name in prepared.recipe.tasks:
        try:
            _found(prepared, name)
        except LearngeneError as error:
            faults.append(f"task {name}: {error}")
    if faults:
        raise LearngeneError("\n".join(faults))


def search_bytes(prepared: Prepared) -> int:
    """Disk space a search needs at once: one super net's weights and moments, in the last, the best and a new state."""
    return 3 * (2 + 2) * 4 * prepared.shape.params()


def _worker(recipe: str, number: int, processes: int) -> None:
    take_share(number, processes)
    prepared = prepare(SearchRecipe.model_validate_json(recipe))
    try:
        for _ in _searched(prepared, {}, keep=True, show=False, say=announce):
            pass
    except (InterruptedRun, KeyboardInterrupt):
        return  # the parent says that it stopped


def _searched(
    prepared: Prepared, failed: dict[str, str], *, keep: bool, show: bool, say: Callable[[str], None]
) -> Iterator[TaskPath]:
    """The paths of all data sets: those that are there, those trained here, and those another process is training."""
    pending = list(prepared.recipe.tasks)
    shared = make_accelerator().num_processes > 1  # under torchrun all processes train one super net together
    while pending:
        progress = False
        for name in list(pending):
            path = _found(prepared, name) if keep else None
            if path is None:
                lock = None
                if keep and not shared:
                    folder = prepared.specs[name].out
                    lock = take_lock(folder.parent / "locks" / f"{folder.name}.lock")
                    if lock is None:
                        continue
                try:
                    path = (_found(prepared, name) if keep else None) or search_task(
                        prepared, name, keep=keep, show=show
                    )
                    say(f"{name}: base blocks in layers {_listed(path.base_layers)}, {path.metric} {path.score:.2f} %")
                except (LearngeneError, RuntimeError, MemoryError) as error:
                    if not isinstance(error, (LearngeneError, MemoryError)) and not _out_of_memory(error):
                        raise
                    failed[name] = (str(error).splitlines() or [type(error).__name__])[0]
                    say(f"{name}: failed: {failed[name]}")
                finally:
                    if lock is not None:
                        lock.close()
            pending.remove(name)
            progress = True
            if path is not None:
                yield path
        if not progress:
            time.sleep(POLL_SECONDS)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _listed(layers: tuple[int, ...]) -> str:
    return ",".join(str(layer) for layer in layers) or "none"


def _found(prepared: Prepared, name: str) -> TaskPath | None:
    """A data set's path if it is searched already.

    Raises:
        LearngeneError: If it is the path of another ancestry or of other images.
    """
    folder = prepared.specs[name].out
    path = read_path(folder)
    if path is None:
        return None
    if path.task != name or len(path.share) != prepared.shape.depth:
        raise damaged(folder)
    other = {
        "another ancestry": path.ancestry != prepared.ancestry.identity["sha256"],
        "other images": path.data != prepared.data[name],
    }
    for what, differs in other.items():
        if differs:
            raise LearngeneError(f"{folder} was searched with {what}; delete it, or choose another out")
    return path


# -- one data set ------------------------------------------------------------------------------------------


def search_task(prepared: Prepared, name: str, *, keep: bool, show: bool) -> TaskPath:
    """Trains the super net of one data set, or continues it, and reads its path.

    Args:
        prepared: The search.
        name: Which data set.
        keep: Keep the state of the training in a run folder until the path is there.
        show: Whether to print progress.
    """
    images, spec = prepared.images[name], prepared.resolved(name)
    stage = super_stage(prepared, spec, images)
    net = stage.module
    assert isinstance(net, SuperNet)
    try:
        result = (finished(spec, net) if keep else None) or run_stage(stage, spec, images, keep=keep, show=show)
    except InterruptedRun as stop:
        raise InterruptedRun(stop.signal_number, f"{stop.where} of {name}") from None
    size = {"img_size": stage.img_size, "in_chans": stage.in_chans, "batch_size": max(spec.train.batch_size, 64)}
    loader = eval_loader(images[1], spec.data, **size)
    share, soft = layer_usage(net.to(make_accelerator().device), loader)
    path = TaskPath(
        task=name,
        ancestry=prepared.ancestry.identity["sha256"],
        data=prepared.data[name],
        share=tuple(round(value, 6) for value in share),
        soft=tuple(round(value, 6) for value in soft),
        score=round(result.final.main, 4),
        metric=result.final.label,
        epochs=spec.train.epochs,
        seconds=round(result.seconds, 1),
    )
    if keep:
        write_once(lambda: _finish(path, spec.out))
    return path


def _finish(path: TaskPath, folder: Path) -> None:
    """Writes the path, then drops the super net, which is twice the ancestry and has told what it knows."""
    path.write(folder / PATH_FILE)
    for name in ("last.pt", "best.pt"):
        (folder / name).unlink(missing_ok=True)


def super_stage(prepared: Prepared, spec: TaskSearch, images: Splits) -> Stage:
    """What is trained for one data set: its specific blocks and adapters, its final norm and its head."""
    size = spec.data.img_size or prepared.shape.img_size
    model = fresh_head(routed(prepared.ancestry.model, spec.routing, size), images[0], spec.train.seed)
    net, task = SuperNet(model), task_loss(images[0])

    def objective(wrapped: nn.Module, batch: Tensor, targets: Tensor) -> Parts:
        labels = task(wrapped(batch), targets)
        weight = spec.routing.prefer_base
        if not weight:
            return {"loss": labels}
        specific = net.specific_share()
        return {"loss": labels + weight * specific, "labels": labels, "specific": specific}

    # A step uses one block per layer; processes have to find out which.
    return Stage(f"search {spec.task}", net, objective, size, prepared.shape.in_chans, uses_all=False)


# -- all data sets -----------------------------------------------------------------------------------------


def keep_selected(prepared: Prepared, gene_file: Path | None, paths: list[TaskPath] | None = None) -> SearchResult:
    """Counts usage (equation 3), draws it, keeps the blocks that enough data sets use and writes the gene.

    Args:
        prepared: The search.
        gene_file: The gene file to write, None for none.
        paths: Of all data sets; read from their run folders by default.

    Raises:
        LearngeneError: If a path is missing, or no block is used by enough data sets; the map is drawn all the same.
    """
    recipe = prepared.recipe
    paths = paths or [path for name in recipe.tasks if (path := _found(prepared, name))]
    if len(paths) < len(recipe.tasks):
        raise LearngeneError(
            f"search: {len(paths)} of {len(recipe.tasks)} data sets are searched; run the search again"
        )
    record = search_record(recipe, paths)
    try:
        record["layers"] = list(selected(paths, recipe.select, recipe.tau))
    except LearngeneError as error:
        old = f"; {gene_file} is of an earlier selection" if gene_file and gene_file.exists() else ""
        raise LearngeneError(f"{error}{old}") from None
    finally:
        if gene_file:
            _keep_record(record, recipe.out)
    gene = extract(prepared.ancestry, method="lsamd", settings={"layers": record["layers"], "stem": recipe.stem})
    seconds = sum(path.seconds for path in paths)
    gene.metadata["training"] = {
        "epochs": recipe.train.epochs,
        "seconds": seconds,
        "seed": recipe.train.seed,
        "recipe": {"train": recipe.train.model_dump(mode="json")},
    }
    gene.metadata["search"] = record
    if gene_file:
        write_once(lambda: gene.save(gene_file, dtype=recipe.dtype))
    return SearchResult(gene, gene_file, paths, record)


def _keep_record(record: dict[str, Any], folder: Path) -> None:
    text = json.dumps(record, indent=1) + "\n"
    write_once(lambda: write_file(folder / RECORD, lambda temporary: temporary.write_text(text)))
    write_once(lambda: usage_picture(record, folder / "usage.png"))


def search_record(recipe: SearchRecipe, paths: list[TaskPath]) -> dict[str, Any]:
    """What a gene file says about the search behind it, as documented in ``docs/format.md``."""
    return {
        "tasks": [
            {
                "task": path.task,
                "source": [Path(source).name for source in recipe.tasks[path.task].data.sources],
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
        ],
        "usage": usage(paths),
        "soft_usage": [round(value, 4) for value in soft_usage(paths)],
        "select": recipe.select.model_dump(mode="json", exclude_none=True)
        | ({"tau": recipe.tau} if recipe.select.rule == "threshold" else {"k": recipe.select.blocks}),
        "routing": recipe.routing.model_dump(mode="json"),
    }
