"""What a teacher says of images as evaluation sees them: one epoch of views, stored before the first is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from learngene.data.evaluation_batches import EvaluationBatches
from learngene.recipe.sections import Replay
from learngene.training.stored_targets import StoredTargets, Views
from learngene.training.target_shards import pixel_prints
from learngene.training.teacher import Outputs, Teacher


class EvaluationTargets:
    """A teacher's outputs of images as evaluation sees them, read from where they are stored, exactly.

    Attributes:
        stored: Where.
    """

    def __init__(
        self,
        teacher: Teacher,
        replay: Replay,
        batches: EvaluationBatches,
        accelerator: Accelerator,
        *,
        dealt: bool = False,
    ) -> None:
        """Says what has to be stored.

        Args:
            teacher: Loaded only if something is missing.
            replay: Where outputs are stored.
            batches: Of the images.
            accelerator: The processes and the device.
            dealt: Whether images are dealt out to processes, one by one; else each process looks at all.
        """
        seen = Views(batches, batches.data, batches.images.fingerprint(), epochs=1)
        exactly = replay.model_copy(update={"dtype": "float32"})
        self.stored, self._accelerator = StoredTargets(teacher, exactly, seen, accelerator), accelerator
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        self._first: int = self._rank if dealt else 0
        self._apart: int = self._processes if dealt else 1

    def prepare(self) -> list[str]:
        """Stores what is missing, and says so; see ``StoredTargets.prepare``."""
        notes = self.stored.prepare()
        for number, (epoch, steps, paths) in enumerate(self.stored.units()):
            if number % self._processes == self._rank and not all(path.exists() for path in paths):
                self.stored.make(epoch, steps)
        self._accelerator.wait_for_everyone()
        return notes

    def said(self, batch: Tensor, before: int) -> Outputs:
        """What the teacher says of a batch.

        Args:
            batch: As the loader gives it.
            before: How many images this process has looked at before.
        """
        places = self._first + self._apart * np.arange(before, before + len(batch))
        steps, prints = places // self.stored.views.batches.train.batch_size, pixel_prints(batch)
        pieces = [
            self.stored.read(places[steps == step], prints[torch.from_numpy(steps == step)], 0, int(step))
            for step in np.unique(steps)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


class AskedAgain:
    """A teacher that is asked about images whenever they are evaluated."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        """Loads it."""
        self._module, self._device = teacher.load().to(device), device

    def prepare(self) -> list[str]:
        """Nothing."""
        return []

    def said(self, batch: Tensor, before: int) -> Outputs:
        """What the teacher says of a batch."""
        out: Outputs = self._module(batch.to(self._device))
        return out


Evaluated = Sequence[EvaluationTargets | AskedAgain]
"""How to know what every teacher says of images as evaluation sees them."""
