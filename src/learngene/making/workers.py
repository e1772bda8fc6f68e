"""Steps made by an executor's workers: handed out when they can be made, taken back, handed out again if one died.

Nothing but words comes back from a worker: what it made stands in files, which every machine sees at the same paths.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table

from learngene.making.steps import LATER, Say, Step, lock_path, make_here, run_steps
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.system.executors import Executor, open_executor
from learngene.system.notes import noting, read_note
from learngene.system.processes import POLL_SECONDS, stopping, work_beside
from learngene.system.speech import speech
from learngene.training.kept_runs import held

Recipe = TypeVar("Recipe")
Layout = Callable[[Recipe], Sequence[Step[Any]]]


def run_shared(
    recipe: Recipe,
    steps: Layout[Recipe],
    own: Sequence[Step[Any]],
    *,
    processes: int,
    executor: str = "local",
    locks: Path | None,
    say: Say | None,
    reached: Callable[[], str],
) -> tuple[dict[Path, Any], dict[str, str]]:
    """Runs steps here, or through an executor, until all are made or have failed.

    Args:
        recipe: What a worker is told.
        steps: Lays out the steps in a worker; importable by name.
        own: The steps of this process.
        processes: Workers at a time; with 1 of this machine, this process is it.
        executor: Whose workers they are, see ``open_executor``.
        locks: As ``say``, see ``run_steps``.
        say: Whom to tell.
        reached: Says what is kept when the run is stopped, which raises ``InterruptedRun``.

    Returns:
        The outcomes by path, and the reasons of the steps that failed, by name.
    """
    failed: dict[str, str] = {}
    with stopping(reached), contextlib.ExitStack() as stack:
        crew = None
        elsewhere = executor != "local" or processes > 1
        if elsewhere and locks and any(step.found() is None for step in own):
            opened = open_executor(executor, processes, module=steps.__module__, logs=locks.parent)
            crew = stack.enter_context(Workers(opened, locks, (recipe, steps)))
        ran = run_steps(own, locks=locks, failed=failed, say=say, crew=crew)
        return {step.path: outcome for step, outcome in ran}, failed


class Workers:
    """The workers of an executor as a crew, with a table of what they do where there is a terminal."""

    def __init__(self, executor: Executor, locks: Path, told: tuple[Recipe, Layout[Recipe]]) -> None:
        """Hands out nothing yet.

        Args:
            executor: Whose workers they are; closed in the end.
            locks: The folder of the locks, and of notes.
            told: The recipe, and how its steps are laid out.
        """
        self.running: dict[Path, Future[Any]] = {}
        self._executor, self._locks = executor, locks
        self._run = uuid.uuid4().hex, pickle.dumps(told), Path.cwd(), locks
        self._names: dict[Path, tuple[str, float]] = {}
        self._deaths: dict[Path, int] = {}
        self._done, self._failed = 0, 0
        try:
            self._room = executor.workers()
        except BaseException:  # such as workers that cannot be used: what was opened is closed
            executor.close()
            raise
        self._live: Live | None = None

    def __enter__(self) -> Workers:
        if speech.progress and not speech.json and (console := Console(stderr=True)).is_terminal:
            self._live = Live(console=console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        if kind:
            self._executor.cancel()
        self._executor.close()
        for path in self.running:  # a worker that was stopped before it trained leaves its note
            _note_path(self._locks, path).unlink(missing_ok=True)

    def __call__(self, step: Step[Any], *, failed: dict[str, str] | None, say: Say | None) -> Any:
        """Hands a step out if a worker is free and nobody else makes it, or takes it back."""
        if (future := self.running.get(step.path)) is None:
            if len(self.running) < self._room and not held(lock_path(self._locks, step.path)):
                self._names[step.path] = step.name, time.monotonic()
                self.running[step.path] = self._executor.submit(_carry_out, *self._run, step.path, self._room)
            return LATER
        if not future.done():
            return LATER
        del self.running[step.path]
        said, reason = self._taken_back(step, future)
        for line in said:
            if say:
                say(line)
        if reason is None:
            outcome = step.found()  # which may take a moment to be seen from another machine
            self._done += outcome is not None
            return LATER if outcome is None else outcome
        if failed is None:
            raise LearngeneError(f"{step.name}: {reason}")
        failed[step.name] = reason
        self._failed += 1
        return None

    def wait(self, left: int) -> None:
        """Waits for a worker to be done, a worker to come, or others to have made what they are making."""
        if self._live:
            self._live.update(self._table(left), refresh=True)
        if self.running:
            wait(self.running.values(), POLL_SECONDS, FIRST_COMPLETED)
        else:
            time.sleep(POLL_SECONDS)
        try:
            self._room = self._executor.workers()
        except OSError:
            raise LearngeneError("the scheduler is gone; the same command continues") from None

    def _taken_back(self, step: Step[Any], future: Future[Any]) -> tuple[list[str], str | None]:
        """What a worker says of a step, and why it failed, if it did."""
        try:
            answer: tuple[list[str], str | None] = future.result()
            return answer
        except CancelledError:
            raise LearngeneError(f"{step.name}: the scheduler is gone; the same command continues") from None
        except self._executor.died:
            deaths = self._deaths[step.path] = self._deaths.get(step.path, 0) + 1
            if deaths < self._executor.tries:
                return [f"{step.name}: its worker died; handed to another"], None
            reason = "its worker died again and again, most often because memory ran out"
            return [f"{step.name}: failed: {reason}"], reason

    def _table(self, left: int) -> Table:
        failed = f", {self._failed} failed" if self._failed else ""
        table = Table("step", "worker", "for", "at", title=f"{self._done} done{failed}, {left} left", box=None)
        for path in self.running:
            name, since = self._names[path]
            worker, _, where = read_note(_note_path(self._locks, path)).partition(" ")
            table.add_row(name, worker, f"{time.monotonic() - since:.0f} s", where)
        return table


def _note_path(locks: Path, path: Path) -> Path:
    return lock_path(locks, path).with_suffix(".note")


def _carry_out(
    run: str, told: bytes, folder: Path, locks: Path, path: Path, workers: int
) -> tuple[list[str], str | None]:
    """What a worker does: makes a step, unless somebody else is at it; lines to say, and why it failed, if it did."""
    said: list[str] = []
    failed: dict[str, str] = {}
    work_beside(workers)
    try:
        if Path.cwd() != folder:
            os.chdir(folder)  # where paths of the recipe begin
        for step in _laid_out(run, told):
            if step.path == path:
                with noting(_note_path(locks, path)):
                    make_here(step, locks=locks, failed=failed, say=said.append)
    except (InterruptedRun, KeyboardInterrupt):  # of this worker alone; whoever asked for it asks no more
        return [], None
    except LearngeneError as error:
        return [], str(error)
    except FileNotFoundError:
        if folder.is_dir():
            raise
        return [], f"worker {os.uname().nodename} does not see {folder}; workers need the folders at the same paths"
    return said, next(iter(failed.values()), None)


@functools.lru_cache(maxsize=1)
def _laid_out(run: str, told: bytes) -> Sequence[Step[Any]]:
    """The steps of a run, laid out once by each worker: images that are opened stay so."""
    recipe, steps = pickle.loads(told)
    out: Sequence[Step[Any]] = steps(recipe)
    return out
