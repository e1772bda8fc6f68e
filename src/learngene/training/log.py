"""What a long run shows: where it stands and how long it takes, a line per epoch; in words, or in JSON."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from learngene.system.notes import note
from learngene.system.quantities import time_in_words
from learngene.system.speech import BETWEEN, BETWEEN_EVENTS, speech, tell
from learngene.training.kept_runs import SCORES
from learngene.training.trackers import Tracker

MEASURED = 3.0
"""Seconds after which a run says how long it takes."""


class TrainLog:
    """Shows progress, and hands numbers to trackers; silent where ``show`` is off."""

    def __init__(self, title: str, epochs: int, steps: int, trackers: Sequence[Tracker], show: bool) -> None:
        """Prepares the log.

        Args:
            title: What is being trained.
            epochs: Of the whole run.
            steps: Optimizer steps of an epoch.
            trackers: Where numbers go besides.
            show: Whether to print.
        """
        self.title, self.show = title, show and speech.progress
        self.console = Console(stderr=True)
        self._epochs, self._steps = epochs, steps
        self._numbers = ""
        self._measured: dict[str, float] = {}
        self._since: tuple[float, int] | None = None
        self._next, self._foretold = 0.0, False
        self._live: Progress | None = None
        self._trackers = trackers

    def watch(self, progress: Progress, done: int) -> None:
        """Has a live line from now on, behind so many steps."""
        self._live, self.console = progress, progress.console
        total = self._epochs * self._steps
        self._task = progress.add_task(self.title, total=total, completed=done, numbers="", place=self._place(done))

    def step(self, updates: int, loss: float, parts: Mapping[str, float], images_per_second: float) -> None:
        """Updates the live line."""
        if self.show:
            self._numbers = f"{_loss(loss, parts)}  {images_per_second:.0f} images/s"
            self._measured = {"loss": loss, **parts, "images_per_second": images_per_second}
        if self._live:
            self._live.update(self._task, completed=updates, numbers=self._numbers, place=self._place(updates))

    def pace(self, updates: int) -> None:
        """Behind a step: says once how long the run takes, then, where no live line does, now and then where it is.

        The first step here does not count, since it waits for loaders and compilers.
        """
        note(f"{self.title} {self._place(updates)}")
        if not self.show:
            return
        now = time.perf_counter()
        if self._since is None:
            self._since, self._next = (now, updates), now + (BETWEEN_EVENTS if speech.json else MEASURED)
        if now < self._next:
            return
        self._next = now + (BETWEEN_EVENTS if speech.json else BETWEEN)
        each = (now - self._since[0]) / (updates - self._since[1])
        seconds = each * (self._epochs * self._steps - updates)
        left = time_in_words(seconds)
        if speech.json:
            epoch, step = divmod(updates - 1, self._steps)
            at = {"epoch": epoch + 1, "epochs": self._epochs, "step": step + 1, "steps": self._steps}
            tell("step", run=self.title, **at, **self._measured, seconds_left=seconds)
        elif not self._foretold:
            self._foretold = True
            self.note(
                f"{self.title}  about {time_in_words(each * self._steps)} an epoch, {left} to go, evaluation on top"
            )
        elif not self._live:
            self.note(f"{self.title}  {self._place(updates)}  {self._numbers}  about {left} to go")

    def _place(self, updates: int) -> str:
        """The epoch, and the step within it."""
        epoch, step = divmod(max(updates - 1, 0), self._steps)
        return f"epoch {epoch + 1}/{self._epochs} step {min(step + 1, updates)}/{self._steps}"

    def epoch(self, entry: Mapping[str, Any], parts: Mapping[str, float]) -> None:
        """Prints one line for a finished epoch, parts of the loss in brackets, and hands its numbers to trackers."""
        for tracker in self._trackers:
            tracker.write(entry["epoch"], {key: value for key, value in entry.items() if isinstance(value, float)})
        if self.show and speech.json:
            tell("epoch", run=self.title, **entry)
        elif self.show:
            score = "".join(f"  {name} {entry[key]:.2f} %" for key, name in SCORES.items() if key in entry)
            self.console.print(
                f"{self.title}  epoch {entry['epoch']}/{entry['epochs']}  {_loss(entry['loss'], parts)}{score}  "
                f"{entry['images_per_second']:.0f} images/s",
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        """Prints a remark."""
        if self.show and speech.json:
            for line in text.splitlines():
                tell("note", run=self.title, text=line)
        elif self.show:
            self.console.print(text, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def live(logs: Sequence[tuple[TrainLog, int]]) -> Iterator[None]:
    """Shows a live line for each of some logs inside the block, if there is a terminal; with the steps done so far."""
    first = logs[0][0]
    if speech.json or not (first.show and first.console.is_terminal):
        yield
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[place]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    ]
    with Progress(*columns, console=first.console, transient=True) as progress:
        for log, done in logs:
            log.watch(progress, done)
        yield


def _loss(loss: float, parts: Mapping[str, float]) -> str:
    inside = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
    return f"loss {loss:.4g}" + (f" ({inside})" if inside else "")
