"""Training on several tasks at once: every step takes the next batch of one task (TAL, equation 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from learngene.data.batches import CPU, Addresses, TrainBatches, eval_loader, loaded_parts
from learngene.data.file_kinds import Left
from learngene.data.images import ImageSet
from learngene.data.splits import Splits
from learngene.data.views import Part, Raw
from learngene.recipe.sections import DataSpec, Train
from learngene.training.scores import Accuracy, MeanTaskScore, accuracy

TaskPart = list[tuple[str, int, int, int]]
"""Addresses of the images of one task: its name, then as in ``Part``."""

TASK = 5
"""Purpose of randomness beside those of ``batches.py`` and ``loop.py``: whose turn it is."""


@dataclass(frozen=True)
class TaskImages:
    """One task's images and how they are prepared.

    Attributes:
        images: For training and validation.
        data: With mean and std set.
        train: The run's settings with the task's own augmentation.
    """

    images: Splits
    data: DataSpec
    train: Train


def sampling_shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """How often each task is drawn: (n / sum n) ** (1 / T), normalised. T = 1 is by size, a large T is evenly."""
    largest = max(sizes.values())  # in place of the sum, which changes nothing but that not all powers can vanish
    powers = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


class TaskBatches:
    """The training batches of a run on several tasks, a pure function of (seed, epoch, step).

    An epoch has as many steps as all images together fill batches. A task goes on with its next batch whenever it is
    drawn, through as many passes over its own images as that makes.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskImages],
        spec: Train,
        temperature: float,
        *,
        img_size: int,
        in_chans: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """Prepares the batches of every task.

        Args:
            tasks: By name.
            spec: The train section; batch size, epochs and seed are common to all.
            temperature: T of the sampling.
            img_size: Side of all images in pixels.
            in_chans: 3 for colour, 1 for grey.
            rank: This process.
            processes: All of them.
            device: Where batches are to be.
        """
        place: dict[str, Any] = {"rank": rank, "processes": processes, "device": device}
        size: dict[str, Any] = {"img_size": img_size, "in_chans": in_chans}
        self.of = {name: TrainBatches(t.images[0], t.data, t.train, **size, **place) for name, t in tasks.items()}
        self.spec, self.device = spec, device
        self.workers = max(batches.workers for batches in self.of.values())
        sizes = {name: len(task.images[0]) for name, task in tasks.items()}
        self.shares = sampling_shares(sizes, temperature)
        self.steps_per_epoch = -(-sum(sizes.values()) // spec.batch_size)
        self._turns: list[list[tuple[str, int]]] = []
        self._drawn = dict.fromkeys(self.of, 0)

    def _turn(self, epoch: int, step: int) -> tuple[str, int]:
        """The task of a step, and how often it was drawn before; epochs are drawn in order, each once."""
        names, shares = list(self.of), list(self.shares.values())
        while len(self._turns) <= epoch:
            generator = np.random.default_rng([TASK, self.spec.seed, len(self._turns)])
            self._turns.append([])
            for index in generator.choice(len(shares), size=self.steps_per_epoch, p=shares):
                name = names[int(index)]
                self._turns[-1].append((name, self._drawn[name]))
                self._drawn[name] += 1
        return self._turns[epoch][step]

    def turn(self, epoch: int, step: int) -> str:
        """The task of a step."""
        return self._turn(epoch, step)[0]

    def _own(self, epoch: int, step: int) -> tuple[int, int]:
        """Where a step's task stands in its own images: which pass, and which step of it."""
        name, before = self._turn(epoch, step)
        return divmod(before, self.of[name].steps_per_epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Batches of one epoch; see ``TrainBatches.epoch``."""
        passes: dict[tuple[str, int], Callable[[int], list[Part]]] = {}

        def of_step(step: int) -> list[TaskPart]:
            name, (number, own_step) = self.turn(epoch, step), self._own(epoch, step)
            if (name, number) not in passes:
                passes[name, number] = self.of[name].addresses(number)
            return [[(name, *address) for address in part] for part in passes[name, number](own_step)]

        keys = Addresses(of_step, range(first_step, self.steps_per_epoch))
        parts = next(iter(self.of.values())).parts
        yield from loaded_parts(_Views(self.of), keys, parts, workers=self.workers, device=self.device)

    def mix(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """A part's mixed images and soft targets, by its task's augmentation and classes."""
        return self.of[self.turn(epoch, step)].mix(images, labels, *self._own(epoch, step))


class _Views:
    """Views of several tasks, addressed by the task's name and the address within it; a part is of one task."""

    def __init__(self, of: Mapping[str, TrainBatches]) -> None:
        self.views = {name: batches.views for name, batches in of.items()}

    def __getitems__(self, part: TaskPart) -> Raw:
        return self.views[part[0][0]].__getitems__([(epoch, position, index) for _, epoch, position, index in part])

    def finished(self, part: TaskPart, raw: Raw, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.views[part[0][0]].finished(part, raw, device)


@dataclass
class TaskFeed:
    """Batches and scores of several tasks.

    Attributes:
        tasks: By name.
        spec: The train section.
        temperature: Of the sampling.
        img_size: Side of all images in pixels.
        in_chans: Of all images.
        enter: Called with the model and a task's name before its images are scored.
        current: The batches that were made last, which know whose turn it is.
        loaders: Of validation images, which keep what they have prepared.
    """

    tasks: Mapping[str, TaskImages]
    spec: Train
    temperature: float
    img_size: int
    in_chans: int
    enter: Callable[[nn.Module, str], None]
    current: TaskBatches | None = None
    loaders: dict[str, Iterable[Any]] = field(default_factory=dict)

    def batches(self, rank: int, processes: int, device: torch.device = CPU) -> TaskBatches:
        """This process's training batches."""
        size: dict[str, Any] = {"img_size": self.img_size, "in_chans": self.in_chans}
        place: dict[str, Any] = {"rank": rank, "processes": processes, "device": device}
        self.current = TaskBatches(self.tasks, self.spec, self.temperature, **size, **place)
        return self.current

    def turn(self, epoch: int, step: int) -> str:
        """The task of a step."""
        assert self.current is not None
        return self.current.turn(epoch, step)

    def score(self, model: nn.Module, precision: str, rank: int, processes: int, reduce: Any) -> MeanTaskScore:
        """Every task's accuracy, and their mean."""
        scores: dict[str, Accuracy] = {}
        for name, task in self.tasks.items():
            self.enter(model, name)
            if name not in self.loaders:
                self.loaders[name] = eval_loader(
                    task.images[1],
                    task.data,
                    img_size=self.img_size,
                    in_chans=self.in_chans,
                    batch_size=max(self.spec.batch_size, 64),
                    rank=rank,
                    processes=processes,
                )
            scores[name] = accuracy(model, self.loaders[name], precision=precision, reduce=reduce)
        return MeanTaskScore.of(scores)


def joined(tasks: Mapping[str, Splits]) -> Splits:
    """All tasks' images as one data set, for records and fingerprints; a task's name stands before each class."""
    return Splits(
        _joined({name: splits.train for name, splits in tasks.items()}),
        _joined({name: splits.val for name, splits in tasks.items()}),
    )


def _joined(sets: Mapping[str, ImageSet]) -> ImageSet:
    names: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    corrupt: list[str] = []
    left: list[Left] = []
    places: list[tuple[ImageSet, int]] = []
    for task, images in sets.items():
        names += [f"{task}/{name}" for name in images.names]
        labels += [len(classes) + label for label in images.labels]
        classes += [f"{task}/{name}" for name in images.class_names]
        corrupt += [f"{task}/{name}" for name in images.corrupt]
        left += [Left((task, *entry.parts), entry.reason) for entry in images.left]
        places += [(images, index) for index in range(len(images))]

    def read(index: int) -> Image.Image:
        images, own = places[index]
        return images.image(own)

    where = ", ".join(images.where for images in sets.values())
    return ImageSet(where, read, names, labels, classes, corrupt, left=left)
