"""Writing ahead what teachers say, in any number of processes: what ``condense`` would store on its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from learngene.data.batches import TrainBatches
from learngene.making.condense import MAKERS, prepare, remember_teacher
from learngene.making.inputs import CondenseInputs
from learngene.making.steps import Step
from learngene.making.together import prepare_together
from learngene.making.workers import run_shared
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.genes import GenesRecipe
from learngene.recipe.sections import Replay
from learngene.system.errors import RecipeError
from learngene.system.files import refuse_full_disk
from learngene.system.quantities import size_in_words
from learngene.system.speech import announce
from learngene.training.loop import make_accelerator
from learngene.training.stored_targets import StoredTargets, Views
from learngene.training.teacher import fewest


@dataclass(frozen=True)
class Written:
    """What is stored of one teacher's outputs.

    Attributes:
        folder: Of the key.
        forms: What is stored of every view, and in which type.
        views: How many.
        size: Bytes of all files.
        added: Bytes of those that were missing.
    """

    folder: Path
    forms: tuple[str, ...]
    views: int
    size: int
    added: int


def write_targets(
    recipe: CondenseRecipe | GenesRecipe, *, processes: int = 1, executor: str = "local", again: bool = False
) -> list[Written]:
    """Stores all outputs of all teachers that a recipe trains with.

    Args:
        recipe: Of one gene or of several, with ``distill.replay``.
        processes: Workers at a time; more may run elsewhere, on the same folder.
        executor: Whose they are, see ``system.executors``.
        again: Look at every byte that is stored, and make again what is damaged.

    Raises:
        LearngeneError: If the recipe names no folder, the disk is too full, or anything does not fit.
    """
    replay, inputs = _replay(recipe), _prepared(recipe)
    stores = stored_targets(*inputs)
    for store in stores:
        store.clear_unfinished()
    if again:
        for path in (path for store in stores for path in store.clear_damaged()):
            announce(f"{path}: damaged, and made again")
    missing = missing_targets(stores)
    announce(f"{replay.folder}: {missing.told}")
    own, locks = list(_steps(stores)), replay.folder / "locks"
    reached = lambda: f"files that are whole stay in {replay.folder}"  # noqa: E731
    _, failed = run_shared(
        recipe,
        steps,
        own if missing.of else [],
        processes=processes,
        executor=executor,
        locks=locks,
        say=announce,
        reached=reached,
    )
    if failed:
        raise RecipeError("\n".join(f"{name}: {reason}" for name, reason in failed.items()))
    for each in inputs:
        remember_teacher(each)
    return [_written(store, {path for path, other in missing.of.items() if other is store}) for store in stores]


@dataclass(frozen=True)
class Missing:
    """What is not stored yet: whose each file is, and all of it in words."""

    of: Mapping[Path, StoredTargets]
    told: str


def missing_targets(stores: Sequence[StoredTargets]) -> Missing:
    """What is not stored yet; raises ``LearngeneError`` if the disk has no room for it."""
    count = len({path for store in stores for _, _, paths in store.units() for path in paths})
    missing = {path: (store, of) for store in stores for path, of in store.missing().items()}
    if not missing:
        return Missing({}, f"all {count} files are stored")
    needed = sum(store.bytes_of([of]) for store, of in missing.values())
    refuse_full_disk(stores[0].folder, needed)
    of = {path: store for path, (store, _) in missing.items()}
    return Missing(of, f"{len(missing)} of {count} files are missing, {size_in_words(needed)}")


def stored_targets(*genes: CondenseInputs) -> list[StoredTargets]:
    """The stored outputs of every teacher of everything that is trained for genes, none of them twice."""
    accelerator, out = make_accelerator(), []
    for inputs in genes:
        images, data, replay = inputs.images.train, inputs.recipe.data, _replay(inputs.recipe)
        for part, teachers, evaluated in MAKERS[inputs.gene.method.making].taught(inputs):
            place = {"img_size": part.shape.img_size, "in_chans": part.shape.in_chans}
            batches = TrainBatches(images, data, part.train, **place, device=accelerator.device)
            epochs = min(part.train.epochs, replay.epochs or part.train.epochs)
            views = Views(batches, data, images.fingerprint(), epochs)
            out += [StoredTargets(teacher, replay, views, accelerator) for teacher in teachers]
            out += [each.stored for each in evaluated]
    return fewest(out)


def steps(recipe: CondenseRecipe | GenesRecipe) -> list[Step[int]]:
    """The files to write, as steps of a further process."""
    return list(_steps(stored_targets(*_prepared(recipe))))


def _prepared(recipe: CondenseRecipe | GenesRecipe) -> list[CondenseInputs]:
    return [prepare(recipe)] if isinstance(recipe, CondenseRecipe) else [*prepare_together(recipe).values()]


def _steps(stores: list[StoredTargets]) -> Iterator[Step[int]]:
    for store in stores:
        for epoch, ranged, paths in store.units():
            name = f"targets of epoch {epoch + 1}, steps {ranged.start + 1} to {ranged.stop}"
            found = partial(_size, paths)
            yield Step(name, paths[-1], partial(_make, store, epoch, ranged, paths), found, describe=size_in_words)


def _make(store: StoredTargets, epoch: int, ranged: range, paths: list[Path]) -> int:
    store.make(epoch, ranged)
    return _size(paths) or 0


def _size(paths: list[Path]) -> int | None:
    """Bytes of files; None if one of them is missing."""
    return sum(path.stat().st_size for path in paths) if all(path.exists() for path in paths) else None


def _written(store: StoredTargets, added: set[Path]) -> Written:
    paths = [path for _, _, paths in store.units() for path in paths]
    sizes = {path: path.stat().st_size for path in paths}
    views = store.views.epochs * store.rows(range(store.views.batches.steps_per_epoch))
    forms = tuple(place.form.folder for place in store.places)
    return Written(store.folder, forms, views, sum(sizes.values()), sum(sizes[path] for path in added))


def _replay(recipe: CondenseRecipe | GenesRecipe) -> Replay:
    one = recipe if isinstance(recipe, CondenseRecipe) else next(iter(recipe.genes.values()))
    if one.distill.replay is None:
        raise RecipeError("distill.replay is missing: say where targets are stored, with distill.replay=FOLDER")
    return one.distill.replay
