"""The life cycle of everything that is made: a recipe becomes steps, and one runner makes what is missing of them.

A step knows where its outcome stands, what it needs, and how it is made. The runner makes it, here or by handing it to
a crew, goes on where a step was stopped, and lets one fail without taking others down. Whoever makes a
step holds its lock: so that runs that know nothing of each other may share a folder, on one machine or several, and a
worker that was given up but lives makes nothing twice. The runner waits for what others are making.
"""

from __future__ import annotations

import contextlib
import glob
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.tune import TuneRecipe
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import clear_unfinished, refuse_full_disk, take_lock
from learngene.system.machine_faults import machine_fault
from learngene.system.processes import POLL_SECONDS
from learngene.system.speech import speech, tell
from learngene.training.kept_runs import gene_path
from learngene.training.run import write_once
from learngene.training.run_folder import run_bytes
from learngene.training.stage import TrainResult

Outcome = TypeVar("Outcome")
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Step(Generic[Outcome]):
    """One thing that is made once, by whichever process comes first.

    Attributes:
        name: What messages call it.
        path: The file or folder that its outcome stands in. Steps with the same path are the same step.
        make: Makes it, or goes on where it was stopped, writes it once and returns its outcome.
        found: Its outcome if it is there already, else None; by default it never is.
        needs: Steps whose outcomes it reads.
        describe: Its outcome in words, for whoever follows the run.
    """

    name: str
    path: Path
    make: Callable[[], Outcome]
    found: Callable[[], Outcome | None] = lambda: None
    needs: Sequence[Step[Any]] = ()
    describe: Callable[[Outcome], str] = str


class Crew(Protocol):
    """Whoever makes steps instead of the process that runs them.

    Attributes:
        running: What is being made, by path.
    """

    running: dict[Path, Any]

    def __call__(self, step: Step[Any], *, failed: dict[str, str] | None, say: Say | None) -> Any:
        """The outcome of a step; None if it failed, ``LATER`` as long as it is neither."""

    def wait(self, left: int) -> None:
        """Waits for any news, with so many steps left."""


def missing(steps: Iterable[Step[Any]], wanted: Callable[[Step[Any]], bool]) -> list[Step[Any]]:
    """What has to be made: the wanted steps that are not there, and whatever those need that is not there.

    Args:
        steps: All of them, each after what it needs.
        wanted: Which of them are the goal.
    """
    out: list[Step[Any]] = []
    needed: set[Path] = set()
    for step in reversed(list(steps)):
        if (wanted(step) or step.path in needed) and step.found() is None:
            out.append(step)
            needed |= {other.path for other in step.needs}
    return out[::-1]


def run_steps(
    steps: Iterable[Step[Any]],
    *,
    locks: Path | None = None,
    failed: dict[str, str] | None = None,
    say: Say | None = None,
    crew: Crew | None = None,
) -> Iterator[tuple[Step[Any], Any]]:
    """Makes every step that nobody else has made or is making, and waits for those.

    Args:
        steps: Each after what it needs; needs that are not among them are there.
        locks: The folder of the locks that all processes share; None takes none, for what one process makes alone.
        failed: Filled with the reasons of the steps that failed, by name. Steps that need one of them are left out.
            None lets the first failure end the run.
        say: Told of every step that was made or failed.
        crew: Makes the steps instead of this process.

    Yields:
        Every step with its outcome, whether it was found or made here.
    """
    pending = list(steps)
    of = len(pending)
    lost: set[Path] = set()
    make_it = crew or partial(make_here, locks=locks)
    while pending:
        waiting = True
        for step in list(pending):
            if any(other.path in lost for other in step.needs):
                outcome = None
            elif (crew and step.path in crew.running) or (outcome := step.found()) is None:
                if any(other in pending for other in step.needs):
                    continue
                outcome = make_it(step, failed=failed, say=say)
                if outcome is LATER:
                    continue
            pending.remove(step)
            waiting = False
            if say and speech.json and speech.progress:
                tell("progress", text=step.name, done=of - len(pending), of=of, failed=outcome is None)
            if outcome is None:
                lost.add(step.path)
            else:
                yield step, outcome
        if waiting:
            crew.wait(len(pending)) if crew else time.sleep(POLL_SECONDS)


LATER = object()
"""What stands for the outcome of a step that somebody else is making."""


def make_here(step: Step[Any], *, locks: Path | None, failed: dict[str, str] | None, say: Say | None) -> Any:
    """The outcome of a step, made under its lock; None if it failed, ``LATER`` if another process has the lock."""
    lock = take_lock(lock_path(locks, step.path)) if locks else contextlib.nullcontext()
    if lock is None:
        return LATER
    with lock:
        return outcome if (outcome := step.found()) is not None else _made(step, failed, say)


def lock_path(locks: Path, path: Path) -> Path:
    """The lock of the step whose outcome stands at ``path``."""
    return locks / f"{path.name}-{path.parent.name}.lock"


def _made(step: Step[Any], failed: dict[str, str] | None, say: Say | None) -> Any:
    """The outcome of a step that is made now; None if its data, the machine or its training failed it."""
    start = time.perf_counter()
    try:
        outcome = step.make()
        clear_unfinished(step.path.parent, glob.escape(step.path.name))
    except Exception as error:
        reason = str(error) if isinstance(error, LearngeneError) else machine_fault(error)
        if failed is None or reason is None:
            raise
        failed[step.name] = reason
        if say:
            say(f"{step.name}: failed: {reason}")
        return None
    if say:
        say(f"{step.name}: {step.describe(outcome)}, {time.perf_counter() - start:.1f} s")
    return outcome


def make(step: Step[Outcome]) -> Outcome:
    """The outcome of a single step; what goes wrong is raised."""
    ((_, outcome),) = run_steps([step])
    made: Outcome = outcome
    return made


# -- genes -------------------------------------------------------------------------------------------------


@dataclass
class MadeGene:
    """A gene that was trained, where it was written, and how the training went."""

    gene: Learngene
    path: Path | None
    result: TrainResult


def refuse_gene_path(path: Path, gene: Learngene) -> None:
    """Raises ``LearngeneError`` if a gene cannot be written: something else is there, or the disk is too full."""
    refuse_foreign_gene(path, gene.method.name)
    refuse_full_disk(path, run_bytes(gene))


def train_gene(
    gene: Learngene,
    recipe: CondenseRecipe | TuneRecipe,
    train: Callable[[], tuple[TrainResult, dict[str, Any]]],
    *,
    keep: bool,
) -> MadeGene:
    """Trains a gene in place, in one step, and writes its file if ``keep``; ``train`` also gives its metadata."""
    path = gene_path(recipe.out) if keep else None
    if path:
        refuse_gene_path(path, gene)

    def make_it() -> MadeGene:
        result, metadata = train()
        gene.metadata = {**metadata, "versions": environment()["versions"]}
        if path:
            write_once(lambda: gene.save(path, dtype=recipe.dtype))
        return MadeGene(gene, path, result)

    return make(Step(f"gene {gene.method.name}", path or Path(gene.method.name), make_it))


def training_record(
    recipe: CondenseRecipe | TuneRecipe, result: TrainResult, said: Mapping[str, Any]
) -> dict[str, Any]:
    """What a gene tells of its training: what it cost, and ``said``, the parts of the recipe that it comes from."""
    return {
        "epochs": recipe.train.epochs,
        "updates": result.updates,
        "images": result.images,
        "seconds": round(result.seconds, 1),
        "seed": recipe.train.seed,
        "recipe": said,
    }
