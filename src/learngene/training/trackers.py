"""Where the numbers of a run go besides its folder: TensorBoard's events, trackio and wandb."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from learngene.recipe.sections import Tracked
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file

PROJECT = "learngene"
IDENTITY = "track-id"
"""Of a run folder: a file with what trackers know the run by, so that it goes on there, too."""

EXTRAS: dict[Tracked, str] = {"tensorboard": "track", "trackio": "trackio", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes the numbers of a run's epochs."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers under their names."""

    def close(self) -> None:
        """Sends what has not been sent."""


def refuse_missing(track: Sequence[Tracked] | None) -> None:
    """Raises ``LearngeneError`` if the package of a tracker that a recipe asks for is not installed."""
    for name in track or ():
        if importlib.util.find_spec(name) is None:
            raise LearngeneError(f"train.track: package '{name}' is missing; pip install 'learngene[{EXTRAS[name]}]'")


def trackers(track: Sequence[Tracked] | None, folder: Path, recipe: Mapping[str, Any]) -> list[Tracker]:
    """Opens the trackers of a run; call it in one process.

    Args:
        track: Which; None: TensorBoard's events, if that is installed.
        folder: The run folder.
        recipe: What trackers shall show as the settings of the run.

    Raises:
        LearngeneError: If one of those that are asked for is missing, or does not begin.
    """
    if track is None:
        with contextlib.suppress(ImportError):
            return [_Events(folder)]
        return []
    refuse_missing(track)
    return [_Events(folder) if name == "tensorboard" else _Accelerates(name, folder, recipe) for name in track]


class _Accelerates:
    """A tracker of Accelerate's."""

    def __init__(self, name: Tracked, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Begins a run there, or goes on with it."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        settings: dict[str, Any] = {"config": dict(recipe), "resume": "allow"}
        if name == "wandb":  # several runs at a time, whose files lie in their folders
            settings |= {"name": folder.name, "id": _identity(folder), "dir": str(folder), "reinit": "create_new"}
        else:
            settings |= {"name": f"{folder.name}-{_identity(folder)}"}
        self._tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT, **settings)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._tracker.start()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            remedy = "log in with `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else "or leave it out"
            raise LearngeneError(f"train.track: {name} does not begin ({reason}); {remedy}") from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers under their names."""
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what has not been sent."""
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(RuntimeError):
            self._tracker.finish()
            if self._tracker.name == "trackio":  # which would end its last run again, aloud, when Python ends
                importlib.import_module("trackio").finish()


def _identity(folder: Path) -> str:
    path = folder / IDENTITY
    if not path.exists():
        made = uuid.uuid4().hex[:8]
        write_file(path, lambda temporary: temporary.write_text(made))
    return path.read_text()


class _Events:
    """Writes TensorBoard events when it is asked to.

    Torch's writer does it in a thread of its own, where a full disk or a lost folder ends in a traceback.
    """

    def __init__(self, folder: Path) -> None:
        """Begins a file; raises ``ImportError`` without the ``track`` extra."""
        from torch.utils.tensorboard import summary

        self._scalar = summary.scalar
        # Named and begun as TensorBoard looks for it.
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._append({"file_version": "brain.Event:2"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers under their names."""
        self._append(*({"step": step, "summary": self._scalar(name, value)} for name, value in values.items()))

    def close(self) -> None:
        """Every write is whole."""

    def _append(self, *entries: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            records = RecordWriter(file)
            for entry in entries:
                records.write(Event(wall_time=time.time(), **entry).SerializeToString())
