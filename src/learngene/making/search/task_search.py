"""One super net per data set: what its search needs, how it is trained, and the path that it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.preprocessing import fill_preprocessing
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import Ancestry
from learngene.making.extract import vit_shape
from learngene.making.finetune import fresh_head
from learngene.making.search.paths import NAME as PATH_FILE
from learngene.making.search.paths import TaskPath, damaged, read_path
from learngene.making.search.super_net import SuperNet, routed
from learngene.recipe.search import SearchRecipe, TaskSearch
from learngene.system.errors import Faults, InterruptedRun, LearngeneError
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, task_loss
from learngene.training.optimizer import refuse_optimizer
from learngene.training.run import finished, run_stage, write_once
from learngene.training.stage import Stage
from learngene.training.teacher import Outputs
from learngene.vits.shape import ViTShape


@dataclass
class SearchInputs:
    """Everything a search needs, checked against each other.

    Attributes:
        recipe: What to do.
        ancestry: Whose blocks are searched.
        shape: Its shape.
        images: Training and validation images by data set.
        specs: How each data set is searched, with the ancestry's mean and std where its section leaves them open.
        data: Fingerprints of each data set's training and validation images, both of which decide its path.
    """

    recipe: SearchRecipe
    ancestry: Ancestry
    shape: ViTShape
    images: dict[str, Splits]
    specs: dict[str, TaskSearch] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


def prepare(
    recipe: SearchRecipe, ancestry: Ancestry | None = None, images: Mapping[str, Splits] | None = None
) -> SearchInputs:
    """Loads the ancestry, opens all data sets and checks that each can be searched; nothing is written.

    Raises:
        LearngeneError: One line per fault.
    """
    ancestry = ancestry or Ancestry.from_spec(recipe.ancestry)
    out = SearchInputs(recipe, ancestry, vit_shape(ancestry), dict(images or {}))
    faults = Faults()
    for name in recipe.tasks:
        with faults.at(f"task {name}"):
            spec = recipe.task(name)
            data, train = fill_preprocessing(spec.data, ancestry.preprocessing), spec.train
            out.specs[name] = spec.model_copy(update={"data": data})
            processes, chans = make_accelerator().num_processes, out.shape.in_chans
            opened = out.images.get(name)
            out.images[name] = open_splits(data, train, opened=opened, processes=processes, in_chans=chans)
            out.data[name] = "-".join(split.fingerprint() for split in out.images[name])
            refuse_optimizer(train)
            out.shape.replace(img_size=data.img_size or out.shape.img_size)
    faults.refuse()
    if recipe.select.rule == "top_k" and recipe.select.blocks > out.shape.depth:
        depth = out.shape.depth
        raise LearngeneError(
            f"select.k: {recipe.select.blocks} blocks of an ancestry with {depth} layers; use {depth} or less"
        )
    return out


def refuse_other_paths(inputs: SearchInputs) -> None:
    """Looks at all paths that are there, so that wrong ones show, a line each, before the others are searched."""
    faults = Faults()
    for name in inputs.recipe.tasks:
        with faults.at(f"task {name}"):
            found_path(inputs, name)
    faults.refuse()


def search_bytes(inputs: SearchInputs) -> int:
    """Disk space a search needs at once: one super net's weights and moments, in the last, the best and a new state."""
    return 3 * (2 + 2) * 4 * inputs.shape.params()


def found_path(inputs: SearchInputs, name: str) -> TaskPath | None:
    """A data set's path if it is searched already; that of another ancestry or of other images is refused."""
    folder = inputs.specs[name].out
    path = read_path(folder)
    if path is None:
        return None
    if path.task != name or len(path.share) != inputs.shape.depth:
        raise damaged(folder)
    other = {
        "another ancestry": path.ancestry != inputs.ancestry.identity["sha256"],
        "other images": path.data != inputs.data[name],
    }
    for what, differs in other.items():
        if differs:
            raise LearngeneError(f"{folder} was searched with {what}; delete it, or choose another out")
    return path


def search_task(inputs: SearchInputs, name: str, *, keep: bool, show: bool) -> TaskPath:
    """Trains the super net of one data set, or continues it, and reads its path.

    With ``keep``, the state of the training is kept in a run folder until the path is there.
    """
    images, spec = inputs.images[name], inputs.specs[name]
    stage = super_stage(inputs, name)
    net = stage.module
    assert isinstance(net, SuperNet)
    try:
        result = (finished(spec, net) if keep else None) or run_stage(stage, spec, images, keep=keep, show=show)
    except InterruptedRun as stop:
        raise InterruptedRun(stop.signal_number, f"{stop.where} of {name}") from None
    count = max(spec.train.batch_size, 64)
    loader = eval_loader(images.val, spec.data, img_size=stage.img_size, in_chans=stage.in_chans, batch_size=count)
    share, soft = net.to(make_accelerator().device).layer_usage(loader)
    path = TaskPath(
        task=name,
        ancestry=inputs.ancestry.identity["sha256"],
        data=inputs.data[name],
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


def super_stage(inputs: SearchInputs, name: str) -> Stage:
    """What is trained for one data set: its specific blocks and adapters, its final norm and its head."""
    images, spec = inputs.images[name].train, inputs.specs[name]
    size = spec.data.img_size or inputs.shape.img_size
    model = fresh_head(routed(inputs.ancestry.model, spec.routing, size), images, spec.train.seed)
    net, task = SuperNet(model), task_loss(images)

    def objective(wrapped: nn.Module, batch: Tensor, targets: Tensor, _theirs: Sequence[Outputs]) -> Parts:
        labels = task(wrapped(batch), targets)
        weight = spec.routing.prefer_base
        if not weight:
            return {"loss": labels}
        specific = net.specific_share()
        return {"loss": labels + weight * specific, "labels": labels, "specific": specific}

    # A step uses one block per layer; processes have to find out which.
    return Stage(f"search {name}", net, objective, size, inputs.shape.in_chans, uses_all=False)
