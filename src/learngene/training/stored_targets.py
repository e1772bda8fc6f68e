"""What a teacher says of the views of a run, stored once and read again by every run that has the same views.

A view is a pure function of (seed, epoch, position), see ``data/batches.py``; so is what a teacher says of it. Whatever
else decides it is in the key, a hash that names a folder, with the values of the key beside the files. Epochs are not:
a longer run adds to what a shorter one has stored.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from learngene.data.batches import TrainBatches
from learngene.data.evaluation_batches import EvaluationBatches
from learngene.recipe.content_hash import short_hash
from learngene.recipe.sections import DataSpec, Replay
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import clear_unfinished, refuse_full_disk, write_file
from learngene.system.quantities import size_in_words
from learngene.training.kept_runs import TARGETS_KEY as KEY
from learngene.training.scores import autocast
from learngene.training.target_keys import difference, flat, read_key
from learngene.training.target_shards import Collected, DamagedTargetsError, Form, Like, Shard, pixel_prints
from learngene.training.teacher import Outputs, Teacher

CHECKED = "checked"
HOUR = 3600.0
CLOSE = 0.02
"""Largest difference of two machines' outputs over their largest value that passes for rounding."""

T = TypeVar("T")

UNSEEN = ("preset", "smoothing")
"""Entries of the augmentation that change no pixel."""


@dataclass(frozen=True)
class Views:
    """The views of a run, and what decides them.

    Attributes:
        batches: The training batches, or images as evaluation sees them.
        data: How images are read and normalised.
        fingerprint: Of the images' names and labels.
        epochs: With different views.
    """

    batches: TrainBatches | EvaluationBatches
    data: DataSpec
    fingerprint: str
    epochs: int

    def key(self) -> dict[str, Any]:
        """Plain values that decide what a teacher sees, and in which precision it is asked."""
        train, data = self.batches.train, self.data
        augment = {name: value for name, value in train.augment.model_dump(mode="json").items() if name not in UNSEEN}
        said = ("mean", "std", "interpolation", "background", "pixel_range")
        seen = {"evaluated": self.batches.crop_pct} if isinstance(self.batches, EvaluationBatches) else {}
        return {
            "images": {"fingerprint": self.fingerprint, "count": self.batches.count},
            "preprocessing": {"img_size": self.batches.img_size, "in_chans": self.batches.in_chans}
            | data.model_dump(mode="json", include=set(said))
            | seen,
            "augment": augment,
            "batch_size": train.batch_size,
            **({"sampling": train.sampling} if train.sampling else {}),
            "seed": train.seed,
            "precision": train.precision,
            "versions": {name: metadata.version(name).partition("+")[0] for name in LIBRARIES},
        }

    @property
    def in_words(self) -> str:
        """Which they are."""
        if isinstance(self.batches, EvaluationBatches):
            return f"{self.batches.count} images as evaluation sees them"
        return f"all {self.epochs} epochs"


LIBRARIES = ("pillow", "torchvision", "timm", "torch")
"""Whose versions decide pixels and outputs."""


@dataclass
class _Place:
    """Where the reader of one output stands: a range of steps, its file, or what is collected for it."""

    form: Form
    at: tuple[int, int] | None = None
    shard: Shard | None = None
    collected: Collected | None = None


@dataclass
class StoredTargets:
    """One teacher's outputs in a folder: read where they are stored, else asked for and stored.

    Attributes:
        teacher: Loaded only if it has to be asked.
        spec: Where and how outputs are stored.
        views: Of the run.
        accelerator: The processes and the device.
    """

    teacher: Teacher
    spec: Replay
    views: Views
    accelerator: Accelerator
    places: list[_Place] = field(init=False)
    _module: nn.Module | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        content = {"teacher": dict(self.teacher.decided_by), **self.views.key()}
        self.key = json.loads(json.dumps(content))  # as it is read
        self.folder = self.spec.folder / f"targets-{short_hash(self.key)}"
        self.places = [_Place(Form.of(name, self.spec)) for name in self.teacher.names]
        self._device = self.accelerator.device
        self._refuse_other_key()

    def covers(self, other: StoredTargets) -> bool:
        """Whether its files are all those of another, too."""
        same = self.folder == other.folder and self.views.epochs >= other.views.epochs
        return same and self.teacher.covers(other.teacher)

    # -- what is there ---------------------------------------------------------------------------------

    def path(self, form: Form, epoch: int, first: int) -> Path:
        """The file of an output in a range of steps of an epoch."""
        return self.folder / form.folder / f"epoch{epoch:05d}-step{first:07d}.safetensors"

    def ranges(self, form: Form) -> Iterator[range]:
        """Ranges of an epoch's steps, each of which is one file of an output."""
        steps, count = self.views.batches.steps_per_epoch, form.steps(self.views.batches.train.batch_size)
        return (self._range_of(form, first) for first in range(0, steps, count))

    def _range_of(self, form: Form, step: int) -> range:
        count = form.steps(self.views.batches.train.batch_size)
        first = step - step % count
        return range(first, min(first + count, self.views.batches.steps_per_epoch))

    def rows(self, steps: range) -> int:
        """Views of a range of steps; the last may have fewer."""
        size, batches = self.views.batches.train.batch_size, self.views.batches
        return min(steps.stop * size, batches.count) - steps.start * size

    def missing(self) -> dict[Path, tuple[Form, int, range]]:
        """Every file that is not there, with its output, epoch and steps."""
        wanted = {
            self.path(place.form, epoch, steps.start): (place.form, epoch, steps)
            for place in self.places
            for epoch in range(self.views.epochs)
            for steps in self.ranges(place.form)
        }
        there = {path for place in self.places for path in (self.folder / place.form.folder).glob("*.safetensors")}
        return {path: of for path, of in wanted.items() if path not in there}

    def units(self) -> Iterator[tuple[int, range, list[Path]]]:
        """Epochs and ranges of steps that are made in one go, with the files that come of it."""
        forms = [place.form for place in self.places]
        widest = min((list(self.ranges(form)) for form in forms), key=len)
        for epoch in range(self.views.epochs):
            for whole in widest:
                parts = [(form, part) for form in forms for part in self.ranges(form) if part.start in whole]
                yield epoch, whole, [self.path(form, epoch, part.start) for form, part in parts]

    def clear_unfinished(self) -> None:
        """Deletes what killed writers have left; others may be writing now."""
        for place in self.places:
            clear_unfinished(self.folder / place.form.folder, untouched=HOUR)

    def clear_damaged(self) -> list[Path]:
        """Deletes and lists the files that do not hold what was written."""
        out = []
        for place in self.places:
            for epoch in range(self.views.epochs):
                for steps in self.ranges(place.form):
                    path = self.path(place.form, epoch, steps.start)
                    try:
                        if path.exists():
                            Shard.read(path, self.rows(steps))
                    except DamagedTargetsError:
                        path.unlink()
                        out.append(path)
        return out

    def prepare(self) -> list[str]:
        """Says what is stored; if not all of it is, loads the teacher and refuses a disk that is too full.

        Returns:
            Lines for whoever follows the run.

        Raises:
            LearngeneError: If the disk is too full, outputs are missing that may not be made, or the teacher says
                something else than what is stored.
        """
        self.clear_unfinished()
        missing = self._agreed(self.missing())
        names = ", ".join(place.form.folder for place in self.places)
        if not missing:
            done = "loaded" if self.teacher.absent() else "asked"
            line = f"{names} of {self.views.in_words} are stored, so the teacher is not {done}"
        else:
            if not self.spec.make:
                raise LearngeneError(
                    f"{next(iter(missing))} is missing{self._nearest()}; let it be made with distill.replay.make=true"
                )
            needed = self.bytes_of(missing.values())
            refuse_full_disk(self.folder, needed)
            what = f"{names} of {self.views.in_words}"
            line = f"the teacher is run where {what} are not stored, which adds {size_in_words(needed)}"
        return [f"{self.folder}: {line}", *self._check_once(missing)]

    def bytes_of(self, files: Any) -> int:
        """Bytes that files of outputs take."""
        shapes = self._shapes()
        return sum(form.view_bytes(shapes[form.name]) * self.rows(steps) for form, _, steps in files)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output of one view."""
        chans, side = self.views.batches.in_chans, self.views.batches.img_size
        found = self._ask(torch.zeros(1, chans, side, side, device=self._device))
        for place in self.places:
            place.form.encoded(found[place.form.name])  # which refuses what cannot be
        return {name: tuple(value.shape[1:]) for name, value in found.items()}

    def _refuse_other_key(self) -> None:
        path = self.folder / KEY
        if path.exists() and (there := read_key(path)) != self.key:
            raise LearngeneError(f"{self.folder} is of other targets: {difference(there, self.key)}; delete it")

    def _nearest(self) -> str:
        """In which way the stored targets of the folder that are most like these differ."""
        others = [flat(read_key(path)) for path in self.spec.folder.glob(f"targets-*/{KEY}")]
        mine = flat(self.key)
        if not others or self.key in [read_key(path) for path in self.spec.folder.glob(f"targets-*/{KEY}")]:
            return ""
        nearest = min(others, key=lambda other: sum(other.get(name) != value for name, value in mine.items()))
        return f": the stored targets that are most like these have another {difference(nearest, mine)}"

    # -- reading and asking ----------------------------------------------------------------------------

    def outputs(self, prints: Tensor | None, mixed: Tensor, epoch: int, step: int, part: int) -> Outputs:
        """What the teacher says of a part of a step.

        Args:
            prints: Of its images as the loader gives them, see ``pixel_prints``.
            mixed: The images, mixed, on the device.
            epoch: Of the views.
            step: Of the epoch.
            part: Of the step.
        """
        assert prints is not None
        for place in self.places * 2:  # what one makes on its way may move the others
            self._go_to(place, epoch, step)
        asked = self._ask(mixed) if any(place.shard is None for place in self.places) else {}
        batches, out = self.views.batches, {}
        for place in self.places:
            name = place.form.name
            if place.shard is None:
                encoded = place.form.encoded(asked[name])
                self._collect(place, encoded, asked[name], prints, step, part)
                out[name] = place.form.decoded(encoded, Like.of(asked[name]))
            else:
                out[name] = self._read(place, batches.positions(step, part, batches.rank), prints, epoch, step)
        return out

    def read(self, positions: np.ndarray, prints: Tensor, epoch: int, step: int) -> Outputs:
        """What is stored of views of a step, which must all be there.

        Args:
            positions: Theirs, in the order of the epoch.
            prints: Of their images.
            epoch: Of the views.
            step: Of the epoch.
        """
        for place in self.places:
            self._go_to(place, epoch, step)
        return {place.form.name: self._read(place, positions, prints, epoch, step) for place in self.places}

    def _read(self, place: _Place, positions: np.ndarray, prints: Tensor, epoch: int, step: int) -> Tensor:
        assert place.shard is not None
        rows = self._rows(place, positions)
        encoded = {key: value[rows] for key, value in place.shard.tensors.items()}
        self._refuse_other_pixels(encoded.pop("pixels"), prints, epoch, step)
        encoded = {key: value.to(self._device, non_blocking=True) for key, value in encoded.items()}
        return place.form.decoded(encoded, place.shard.like)

    def make(self, epoch: int, steps: range) -> None:
        """Asks the teacher about a range of steps, and stores what is missing of it."""
        for step, part, prints, mixed in self._views(epoch, steps):
            self.outputs(prints, mixed, epoch, step, part)

    def _views(self, epoch: int, steps: range) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Step, part, fingerprints and mixed images of a range of steps, in the run's precision."""
        batches, device = self.views.batches, self._device
        # A loader draws a seed that nobody uses; the run's own numbers must not depend on it.
        with torch.random.fork_rng(devices=[]), autocast(device.type, batches.train.precision):
            for step, parts in enumerate(batches.epoch(epoch, steps.start, steps.stop), start=steps.start):
                for part, (raw, labels) in enumerate(parts):
                    prints = pixel_prints(raw)  # before mixing, which changes images where they are
                    yield step, part, prints, batches.mix(raw, labels, epoch, step)[0]

    def _go_to(self, place: _Place, epoch: int, step: int) -> None:
        """Opens the file of a step if there is one; if not, what the teacher says is collected for it."""
        if place.at == (epoch, self._range_of(place.form, step).start):
            return
        steps = self._range_of(place.form, step)
        place.at, place.collected = (epoch, steps.start), None
        path, rows = self.path(place.form, epoch, steps.start), self.rows(steps)
        if not self._agreed(path.exists()):
            if step == steps.start:
                place.shard, place.collected = None, Collected(rows, {})
                return
            place.at = None
            self.make(epoch, steps)  # a run that goes on in the middle of the range
            place.at = (epoch, steps.start)
        place.shard = Shard.read(path, rows)

    def _collect(
        self, place: _Place, encoded: Mapping[str, Tensor], output: Tensor, prints: Tensor, step: int, part: int
    ) -> None:
        """Keeps the rows of all processes, and writes the file when its last row is there."""
        batches = self.views.batches
        assert place.collected is not None
        assert place.at is not None
        rows = {**encoded, "pixels": prints.to(self._device)}
        if batches.processes > 1:
            rows = {name: self.accelerator.gather(value.contiguous()) for name, value in rows.items()}
        positions = np.concatenate([batches.positions(step, part, rank) for rank in range(batches.processes)])
        if batches.rank == 0:
            place.collected.add(self._rows(place, positions), rows, output)
        epoch, first = place.at
        if step == self._range_of(place.form, first)[-1] and part == batches.parts - 1:
            if batches.rank == 0:
                self._write_key()
                place.collected.write(self.path(place.form, epoch, first))
            place.at = None
            if batches.processes > 1:
                self.accelerator.wait_for_everyone()

    def _rows(self, place: _Place, positions: np.ndarray) -> Tensor:
        assert place.at is not None
        return torch.from_numpy(positions - place.at[1] * self.views.batches.train.batch_size)

    def _agreed(self, mine: T) -> T:
        """What the main process sees, so that all do the same while files come to be."""
        answer = [mine]
        return answer[0] if self.views.batches.processes == 1 else broadcast_object_list(answer)[0]

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Outputs:
        if self._module is None:
            self._module = self.teacher.load().to(self._device)
        out: Outputs = self._module(images)
        return out

    def _write_key(self) -> None:
        for path, content in ((self.folder / KEY, self.key), (self._mark(), _machine(self._device))):
            if not path.exists():
                text = json.dumps(content, indent=2) + "\n"
                write_file(path, partial(_write, text=text))

    # -- checks ----------------------------------------------------------------------------------------

    def _refuse_other_pixels(self, stored: Tensor, prints: Tensor, epoch: int, step: int) -> None:
        if not torch.equal(stored, prints):
            raise LearngeneError(
                f"{self.folder}: the images of epoch {epoch + 1}, step {step + 1} are not those that these targets are "
                "of; files under the same names, or libraries that read them, have changed: choose another "
                "distill.replay.folder"
            )

    def _mark(self) -> Path:
        return self.folder / CHECKED / f"{short_hash(_machine(self._device))}.json"

    def _check_once(self, missing: Mapping[Path, Any]) -> list[str]:
        """Asks the teacher again about some stored views, the first time on this kind of machine."""
        if not self.spec.check or self._agreed(self._mark().exists() or not self.folder.exists()):
            return []
        stored = [
            (epoch, step)
            for epoch in range(self.views.epochs)
            for step in range(self.views.batches.steps_per_epoch)
            if not any(epoch == other and step in steps for _, other, steps in missing.values())
        ]
        if not stored:
            return []
        count = max(1, round(self.spec.check * len(stored)))
        chosen = [stored[int(place)] for place in np.linspace(0, len(stored) - 1, count)]
        for epoch, step in chosen:
            self._check(epoch, step)
        if self.views.batches.rank == 0:
            self._write_key()
        return [f"{self.folder}: the teacher says again what is stored of {count} of {len(stored)} steps"]

    def _check(self, epoch: int, step: int) -> None:
        """Raises ``LearngeneError`` if the teacher says something else of a step than what is stored."""
        for _, part, prints, mixed in self._views(epoch, range(step, step + 1)):
            stored, said = self.outputs(prints, mixed, epoch, step, part), self._ask(mixed)
            for place in self.places:
                form, name = place.form, place.form.name
                again = form.decoded(form.encoded(said[name]), Like.of(said[name])).float()
                apart = (stored[name].float() - again).abs().max() / again.abs().max().clamp(min=1e-12)
                if not apart <= CLOSE:
                    raise LearngeneError(
                        f"{self.folder}: {name} of epoch {epoch + 1}, step {step + 1} differ by {float(apart):.1%} of "
                        "the largest from what the teacher says now; choose another distill.replay.folder"
                    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@functools.cache
def _machine(device: torch.device) -> dict[str, Any]:
    """The kind of machine, on which outputs depend by rounding."""
    here = environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else here["processor"]
    return {"device": device.type, "name": name, "machine": here["machine"], "system": here["system"]}
