"""The state of a run on disk: enough to continue it bit for bit, written so that a crash cannot spoil it.

No random generator is stored, because none carries over: every random number of a run is drawn from a seed made of
(seed, epoch, step), see ``batches.py`` and ``loop.py``.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from learngene.recipe.content_hash import later_defaults
from learngene.recipe.loading import dump_recipe
from learngene.recipe.sections import Section
from learngene.system.errors import LearngeneError
from learngene.system.files import clear_unfinished, refuse_foreign, take_lock, write_file
from learngene.training.kept_runs import LAST, LOCK, MARKER, METRICS

FREE_TO_CHANGE = {
    "out",
    "baseline",
    "data.workers",
    "data.root",
    "train.micro_batch",
    "train.save_every",
    "train.compile",
    "train.track",
    "train.recompute",
    "train.shard",
    "train.shard_teachers",
    "pool.kept",
    *(f"distill.replay.{name}" for name in ("folder", "patches", "check", "make")),
}
"""Recipe entries that do not change what a run computes."""

AS_UNSAID = {"distill.replay.dtype": "float32"}
"""Values with which a run computes the same as without the section they are in."""


@dataclass
class Progress:
    """Where a run stands and what it has measured.

    Attributes:
        epoch: Epochs completed.
        step: Steps done in the current epoch.
        updates: Optimizer steps in all.
        loss_sum: Sum of the training losses of the current epoch.
        part_sums: Of every part of the loss its sum in the current epoch, and over how many steps.
        seconds: Time trained, over all restarts.
        best: Highest main score so far (top-1 or mean IoU), in percent.
        history: One entry per completed epoch.
        data: Fingerprint of the training images; states of older versions have none.
        made_of: SHA-256 of what the run starts from and is guided by, see ``Stage``.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    data: str = ""
    made_of: dict[str, str] = field(default_factory=dict)
    part_sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def part_means(self) -> dict[str, float]:
        """The mean of every part of the loss over the steps of the current epoch."""
        return {name: total / steps for name, (total, steps) in self.part_sums.items()}


def mark(folder: Path, recipe: Section) -> None:
    """Says whose a folder is; again if somebody removed it meanwhile."""
    text = dump_recipe(recipe)
    write_file(folder / MARKER, lambda temporary: temporary.write_text(text))


class RunFolder:
    """A folder with the resolved ``recipe``, ``metrics.jsonl`` and the last and best state."""

    def __init__(self, path: Path, recipe: Section) -> None:
        """Looks at the folder; ``begin`` makes it.

        Args:
            path: Where it is.
            recipe: The resolved recipe.

        Raises:
            LearngeneError: If the path exists and is not a run folder, or holds a run of another kind or recipe.
        """
        self.path = path
        self._lock: contextlib.ExitStack | None = None
        refuse_foreign(path, MARKER)
        refuse_other_kind(path, recipe)
        self._recipe = dump_recipe(recipe)
        self.recipe: dict[str, Any] = yaml.safe_load(self._recipe)
        if (path / LAST).exists():
            refuse_other_recipe(path, recipe)

    def begin(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Records the recipe and starts ``metrics.jsonl``; nothing is written before a run is known to be possible.

        Args:
            entries: Epochs of the saved state. Those that a crash left unsaved are trained, and logged, again.

        Raises:
            LearngeneError: If another process is running in this folder.
        """
        self._lock = take_lock(self.path / LOCK)
        if self._lock is None:
            raise LearngeneError(f"{self.path} is in use by another run; wait for it to end, or choose another out")
        clear_unfinished(self.path)
        self._describe(entries)

    def _describe(self, entries: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        write_file(self.path / MARKER, lambda temporary: temporary.write_text(self._recipe))
        write_file(self.path / METRICS, lambda temporary: temporary.write_text(lines))

    def release(self) -> None:
        """Lets another run use the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # Windows deletes no open file; there filelock does it itself
                (self.path / LOCK).unlink()
            self._lock.close()
            self._lock = None

    def save(self, tensors: Mapping[str, Any], progress: Progress, name: str = LAST) -> None:
        """Writes a state under a temporary name, flushed, then renamed over the old one."""
        if not (self.path / MARKER).exists():  # somebody removed the folder; the run goes on, and so must its folder
            self._describe(progress.history)
        content = {**tensors, "progress": json.dumps(asdict(progress))}
        write_file(self.path / name, lambda temporary: torch.save(content, temporary))

    def load(self, name: str = LAST) -> tuple[dict[str, Any], Progress] | None:
        """The saved state with its progress, or None if there is none. Read with weights-only loading."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            with zipfile.ZipFile(path) as records:  # torch writes checksums, and does not look at them
                if changed := records.testzip():
                    raise zipfile.BadZipFile(changed)
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content, Progress(**json.loads(content.pop("progress")))
        except Exception as error:
            raise LearngeneError(
                f"{path}: the saved state is damaged ({type(error).__name__}); delete it to start this run again"
            ) from None

    def log(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Appends the last of the completed epochs to ``metrics.jsonl``; all of them if somebody removed the folder."""
        if not (self.path / MARKER).exists():
            self._describe(entries)
            return
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(entries[-1]) + "\n")


def run_bytes(module: nn.Module) -> int:
    """Disk space a run needs: weights and two moments in the last, the best and a new state, and the model itself."""
    return 4 * (3 * 3 + 2) * sum(parameter.numel() for parameter in module.parameters())


def _read_recipe(path: Path) -> Mapping[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        fields = None
    if not isinstance(fields, Mapping):
        raise LearngeneError(f"{path}: the run's recipe is damaged; choose another out, or delete the folder")
    return fields


def refuse_other_kind(path: Path, recipe: Section) -> None:
    """Raises ``LearngeneError`` if a run folder holds a run of another command, whose files would be lost."""
    if not (path / MARKER).exists():
        return
    kind, mine = _read_recipe(path / MARKER).get("kind"), getattr(recipe, "kind", None)
    if kind not in (None, mine):
        raise LearngeneError(f"{path} holds a {kind} run; choose another out, or delete the folder")


def refuse_other_recipe(path: Path, recipe: Section) -> None:
    """Raises ``LearngeneError`` if a run folder has the recipe of a run that computes something else."""
    if not (path / MARKER).exists():
        return
    before, now = _flat(_read_recipe(path / MARKER)), _flat(yaml.safe_load(dump_recipe(recipe)))
    # A run of an older version says nothing of entries that came later: it had what is now their default.
    unsaid = later_defaults(recipe) - before.keys()
    for key in sorted((before.keys() | now.keys()) - unsaid):
        default = AS_UNSAID.get(key)
        if before.get(key, default) != now.get(key, default) and key not in FREE_TO_CHANGE:
            done = path / "descendant"
            more = key == "train.epochs" and done.exists()
            hint = f"; to train that model further, start another run from it: --model {done}" if more else ""
            raise LearngeneError(
                f"{path} holds a run with {key}={before.get(key)}, but this one has {key}={now.get(key)}; "
                f"choose another out, or delete the folder{hint}"
            )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(i): each for i, each in enumerate(value)}
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
