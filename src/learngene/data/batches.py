"""Batches as a pure function of (seed, epoch, step), whatever the number of processes, loaders or restarts.

The order of an epoch, the random augmentation of every image and the mixing of every batch each have a seed of
their own, made from where they stand in the run and from nothing else. So a run can stop at any step and go on,
or be spread over more processes, and see the very same images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Integer, Num
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.utils.data import DataLoader

from learngene.data.images import ImageSet
from learngene.data.splits import accumulation, refuse_channels, refuse_unfit
from learngene.data.transforms import ImageTransform, eval_transform, train_transform
from learngene.data.views import MIX, ORDER, ImageViews, Part, Raw, seeded
from learngene.recipe.sections import Augment, DataSpec, Train

if TYPE_CHECKING:
    from learngene.data.mask_transforms import MaskTransform

CPU = torch.device("cpu")


def epoch_order(
    count: int,
    seed: int,
    epoch: int,
    batch_size: int,
    repeats: int = 1,
    balance: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """The images of one epoch in order, cut to whole batches.

    Args:
        count: Images in the set.
        seed: Of the run.
        epoch: Counted from 0.
        batch_size: Images per optimizer step.
        repeats: Repeated augmentation: every drawn image follows itself this many times, so that an epoch has about
            ``count / repeats`` distinct images, as in DeiT.
        balance: The class of every image, if all classes are to be drawn equally often: round by round an image of
            each. One of a small class comes again when all of that class have been drawn, of a large one some wait.

    Returns:
        Indices, ``count // batch_size * batch_size`` of them.
    """
    generator = np.random.default_rng([ORDER, seed, epoch])
    if balance is None:
        order = generator.permutation(count)
    else:
        labels, drawn = np.asarray(balance), -(-count // repeats)
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        rounds = -(-drawn // len(members))
        passes = [[generator.permutation(own) for _ in range(-(-rounds // len(own)))] for own in members]
        table = np.stack([np.concatenate(own)[:rounds] for own in passes])
        order = generator.permuted(table, axis=0).T.reshape(-1)[:drawn]
    return np.repeat(order, repeats)[: count // batch_size * batch_size]


def micro_batch(positions: np.ndarray, shard: int, shards: int) -> np.ndarray:
    """One process's share of a batch, or one accumulated part of it.

    timm's mixup pairs image i with image B-1-i. A share is therefore cut symmetrically around the middle: then every
    pair stays together and the same pairs are mixed on any number of processes.

    Args:
        positions: The batch, an even number of entries per shard (or any number if nothing is mixed).
        shard: Which share, counted from 0.
        shards: Processes times accumulated parts; divides the batch.

    Returns:
        ``len(positions) // shards`` entries.
    """
    size = len(positions) // shards
    if size % 2:
        return positions[shard * size : (shard + 1) * size]
    half = size // 2
    front = positions[shard * half : (shard + 1) * half]
    back = positions[::-1][shard * half : (shard + 1) * half][::-1]
    return np.concatenate([front, back])


class Batches(Protocol):
    """What the loop trains on."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """One list of parts per optimizer step, from a step on."""

    def mix(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """A part's mixed images and soft targets."""


class TrainBatches:
    """The training batches of a run."""

    def __init__(
        self,
        images: ImageSet,
        spec: DataSpec,
        train: Train,
        *,
        img_size: int,
        in_chans: int = 3,
        rank: int = 0,
        processes: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """Prepares augmentation and mixing.

        Args:
            images: The training images.
            spec: The data section; its mean and std must be known by now.
            train: The train section.
            img_size: Side of the images in pixels.
            in_chans: 3 for colour, 1 for grey.
            rank: This process.
            processes: All of them.
            device: Where batches are to be.

        Raises:
            DataError: If there are fewer images than one batch, or masks cannot follow the augmentation.
        """
        refuse_unfit(images, train)
        refuse_channels(spec, in_chans)
        self.train, self.count, self.classes = train, len(images), len(images.class_names)
        self.rank, self.processes = rank, processes
        self.img_size, self.in_chans = img_size, in_chans
        self.parts = accumulation(train, processes)
        self.steps_per_epoch = self.count // train.batch_size
        self.masked = images.segmentation
        self.balance = images.labels if train.sampling else None
        self.weights = _class_weights(images) if train.class_weight else None
        transform = _transform(images, spec, img_size, train.augment)
        varied, keep = _is_random(train.augment), spec.workers == 0
        self.views = ImageViews(images, transform, in_chans, train.seed, varied=varied, keep=keep)
        self.workers, self.device = spec.workers, device
        self.mixup = _mixup(train.augment, self.classes)

    def epoch(self, epoch: int, first_step: int = 0, end: int | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Batches of one epoch, each as the list of this process's parts.

        Args:
            epoch: Counted from 0.
            first_step: Steps of this epoch that were done before an interruption.
            end: The step to stop before; None for all.

        Yields:
            One list per optimizer step of (normalised images, integer labels or masks), not yet mixed.
        """
        keys = Addresses(self.addresses(epoch), range(self.steps_per_epoch)[first_step:end])
        yield from loaded_parts(self.views, keys, self.parts, workers=self.workers, device=self.device)

    def addresses(self, epoch: int) -> Callable[[int], list[Part]]:
        """This process's parts of each step of an epoch."""
        spec = self.train
        order = epoch_order(self.count, spec.seed, epoch, spec.batch_size, spec.augment.repeats, self.balance)
        return lambda step: [
            [(epoch, int(position), int(order[position])) for position in self.positions(step, part, self.rank)]
            for part in range(self.parts)
        ]

    def positions(self, step: int, part: int, rank: int) -> np.ndarray:
        """Where the images of a process's part of a step stand in the order of an epoch."""
        size = self.train.batch_size
        batch = np.arange(step * size, (step + 1) * size)
        return micro_batch(batch, rank * self.parts + part, self.processes * self.parts)

    def mix(
        self,
        images: Float[Tensor, "batch channels height width"],
        labels: Integer[Tensor, "batch ..."],
        epoch: int,
        step: int,
    ) -> tuple[Float[Tensor, "batch channels height width"], Num[Tensor, "batch ..."]]:
        """Mixup or cutmix, the same for every part of a step, and label smoothing. Masks stay as they are.

        Returns:
            The mixed images and soft targets that sum to 1, or with weights of classes to those; or images and masks.
        """
        if self.masked:
            return images, labels
        if self.mixup is None:
            targets = mixup_target(labels, self.classes, smoothing=self.train.augment.smoothing)
        else:
            with seeded(MIX, self.train.seed, epoch, step):
                images, targets = self.mixup(images, labels)
        return images, targets if self.weights is None else targets * self.weights.to(targets)


@dataclass(frozen=True)
class Addresses(Iterable[Any]):
    """The parts of some steps, put together when their turn comes: those of all steps would fill the memory.

    Attributes:
        of_step: The parts of a step.
        steps: Which steps.
    """

    of_step: Callable[[int], list[Any]]
    steps: range

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            yield from self.of_step(step)


@runtime_checkable
class Addressed(Protocol):
    """Views by their addresses, a part at a time."""

    def __getitems__(self, part: Any) -> Raw:
        """Their pixels."""

    def finished(self, part: Any, raw: Raw, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images, and labels or masks."""


def loaded_parts(
    views: Addressed, keys: Iterable[Any], parts: int, *, workers: int, device: torch.device
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Loads parts by the addresses of their images, and gives those of one step at a time."""
    step: list[tuple[Tensor, Tensor]] = []
    for part in _loaded(views, keys, workers, device):
        step.append(part)
        if len(step) == parts:
            yield step
            step = []


def _loaded(
    views: Addressed, keys: Iterable[Any], workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    if multiprocessing.current_process().daemon:  # as workers of Dask are, which may start no process
        workers = 0
    loader: DataLoader[Any] = DataLoader(
        views,  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_they_are,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_stopping_to_parent,
    )
    for part, raw in zip(keys, loader, strict=True):
        yield views.finished(part, raw, device)


def _as_they_are(raw: Any) -> Any:
    return raw


class EvalBatches(Iterable[tuple[Tensor, Tensor]]):
    """A process's share of a split, in order."""

    def __init__(self, views: ImageViews, images: range, batch_size: int, workers: int, device: torch.device) -> None:
        self.views, self.images, self.batch_size, self.workers, self.device = views, images, batch_size, workers, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def batches(self, first: int = 0, end: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Some of its batches."""
        size = self.batch_size
        steps = range(-(-len(self.images) // size))[first:end]
        keys = Addresses(lambda step: [[(0, index, index) for index in self.images[step * size :][:size]]], steps)
        return _loaded(self.views, keys, self.workers, self.device)


def _transform(
    images: ImageSet, spec: DataSpec, img_size: int, augment: Augment | None = None
) -> ImageTransform | MaskTransform:
    """How images, with their masks if they have some, become pixels: augmented, or as they are judged."""
    if images.segmentation:
        from learngene.data.mask_transforms import MaskTransform  # loads torch's compiler

        return MaskTransform(spec, img_size, augment)
    return train_transform(augment, spec, img_size) if augment else eval_transform(spec, img_size)


def eval_loader(
    images: ImageSet,
    spec: DataSpec,
    *,
    img_size: int,
    in_chans: int = 3,
    batch_size: int = 256,
    rank: int = 0,
    processes: int = 1,
    device: torch.device = CPU,
) -> EvalBatches:
    """This process's share of a split, in order: resize to ``img_size / crop_pct``, centre crop; no crop with masks."""
    refuse_channels(spec, in_chans)
    views = ImageViews(images, _transform(images, spec, img_size), in_chans, 0, varied=False, keep=spec.workers == 0)
    return EvalBatches(views, range(rank, len(images), processes), batch_size, spec.workers, device)


def _leave_stopping_to_parent(_worker: int) -> None:
    """Makes a loader process deaf to Ctrl-C and SIGTERM, which a terminal or a scheduler sends to the whole group.

    Else it is gone before the run has saved, which looks like a fault. SIGTERM of its parent still ends it: a parent
    that could not start all of its workers waits at its end for those that it has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks: there SIGTERM ends a loader process, whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def _class_weights(images: ImageSet) -> Tensor:
    """What every class weighs in the loss: n / (classes x n of the class), so that an image weighs 1 on average.

    Cross-entropy is linear in its targets, so that weights on those are weights of the loss.
    """
    counts = np.bincount(np.asarray(images.labels), minlength=len(images.class_names))
    share = np.where(counts > 0, counts, np.inf) * np.count_nonzero(counts)
    return torch.from_numpy(len(images) / share).float()


def _is_random(augment: Augment) -> bool:
    """Whether two views of an image differ; mixing comes later and does not count."""
    return bool(augment.scale or augment.hflip or augment.color_jitter or augment.rand_augment or augment.erasing)


def _mixup(augment: Augment, classes: int) -> Mixup | None:
    if not (augment.mixup or augment.cutmix):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch,
        label_smoothing=augment.smoothing,
        num_classes=classes,
    )
