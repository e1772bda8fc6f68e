"""The one door to the images of a run: both splits of a data set, refused where the run could not use them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learngene.data.class_match import of_split
from learngene.data.images import ImageSet
from learngene.data.layouts import open_source
from learngene.data.open_split import open_split
from learngene.data.shards import shards_folder
from learngene.data.transforms import train_transform
from learngene.data.unlabelled import lies_in_files, open_all, without_labels
from learngene.recipe.sections import DataSpec, Train
from learngene.system.errors import DataError
from learngene.vits.input_size import refuse_unread

NEEDS_LABELS = ("mixup", "cutmix", "erasing", "rand_augment", "smoothing")
"""Augmentations of timm's that know nothing of masks."""


ROUGH = 5.0
"""Points on either side of a score: where its 95 % interval is wider, sizes of a model can hardly be told apart."""

UNBALANCED = 5
"""Images of the largest class for each of the smallest, from which on classes are said to be unbalanced."""


class Splits(NamedTuple):
    """The images of a data set."""

    train: ImageSet
    val: ImageSet

    def counted(self) -> str:
        """What was counted in both splits, and what was left out and why: a line each."""
        where = self.train.where
        return f"{where}: training {self.train.counted()}\n{where}: validation {self.val.counted()}"

    def cautions(self) -> list[str]:
        """What speaks against trusting a classifier's scores on these images: a line each."""
        if self.train.segmentation or len(self.train.class_names) < 2:
            return []
        where, out = self.train.where, []
        half = 1.96 * 50 / math.sqrt(len(self.val))  # of a share of one half, which is the widest
        if half > ROUGH:
            out.append(
                f"{where}: {len(self.val)} validation images tell a score to ± {half:.1f} points (95 %), so that sizes "
                f"of a model can hardly be told apart; judge on {math.ceil((1.96 * 50 / ROUGH) ** 2)} or more"
            )
        counts = np.bincount(np.asarray(self.train.labels), minlength=len(self.train.class_names))
        few, many = (int(pick(counts)) for pick in (np.argmin, np.argmax))
        if counts[many] >= UNBALANCED * max(1, counts[few]):
            names = self.train.class_names
            out.append(
                f"{where}: classes are unbalanced, {counts[many]} training images of '{names[many]}' and {counts[few]} "
                f"of '{names[few]}'; look at balanced accuracy, and try train.class_weight or train.sampling=balanced"
            )
        return out


def open_splits(
    section: DataSpec,
    train: Train | None = None,
    *,
    opened: Splits | None = None,
    labels_for: str | None = None,
    unlabelled: bool = False,
    processes: int = 1,
    in_chans: int | None = None,
) -> Splits:
    """Opens both splits of a data set and checks whatever a run needs of them.

    Args:
        section: The data section; with mean and std filled in if ``in_chans`` is given.
        train: How the images will be trained on, if that is to be checked.
        opened: The splits, if they are open already; they are checked all the same.
        labels_for: Who needs a class per image, so that masks are refused; None takes both.
        unlabelled: Whether images will do whose classes nobody knows.
        processes: That share each batch.
        in_chans: Channels that the model takes, if they are to be checked.

    Raises:
        DataError: As ``open_split``; if the classes of the splits differ; for the first thing that does not fit.
    """
    splits = opened or _opened(section, unlabelled)
    if unlabelled and not section.labels:
        splits = Splits(*map(without_labels, splits))
    refuse_unfit(splits.train, train, labels_for)
    if train is not None:
        accumulation(train, processes)
    if in_chans is not None:
        refuse_channels(section, in_chans)
    if train is not None and not splits.train.segmentation:
        train_transform(train.augment, section, section.img_size or 224)  # timm refuses what it cannot read
    return splits


def _opened(section: DataSpec, unlabelled: bool) -> Splits:
    if unlabelled and not section.labels:
        if lies_in_files(section):
            return Splits(*open_all(section))
        section = section.model_copy(update={"labels": True})
    sources = None
    if lies_in_files(section) and shards_folder(section) is None:
        sources = [open_source(Path(source)) for source in section.sources]  # once, which takes seconds for a million
    train = open_split(section, "train", sources=sources)
    val = open_split(section, "val", train.class_names if train.segmentation else None, sources)
    return Splits(train, of_split(val, train))


def refuse_unfit(images: ImageSet, train: Train | None = None, labels_for: str | None = None) -> None:
    """Raises ``DataError`` if images have masks where ``labels_for`` needs labels, or cannot be trained on so."""
    if labels_for is not None and images.segmentation:
        raise DataError(
            f"{images.where}: has masks, but {labels_for} needs images with a class each (SPLIT/CLASS/IMAGE); masks "
            "are for finetune, eval and the tasks of a comparison"
        )
    if train is None:
        return
    for name in ("class_weight", "sampling"):
        if getattr(train, name) and (images.segmentation or len(images.class_names) < 2):
            raise DataError(f"{images.where}: train.{name}={getattr(train, name)} needs images with a class each")
    if len(images) < train.batch_size:
        raise DataError(
            f"{images.where}: {len(images)} training images are fewer than train.batch_size {train.batch_size}; "
            f"use {max(2, len(images) // 2 * 2)} or less"
        )
    on = [name for name in NEEDS_LABELS if getattr(train.augment, name)]
    if images.segmentation and on:
        raise DataError(
            f"{images.where}: masks cannot follow train.augment.{on[0]}={getattr(train.augment, on[0])}; "
            "use train.augment.preset=light (crop and flip)"
        )


def refuse_channels(section: DataSpec, in_chans: int) -> None:
    """Raises ``LearngeneError`` unless images are read with so many channels, of which mean and std have one value."""
    refuse_unread(in_chans)
    for name in ("mean", "std"):
        values = getattr(section, name) or ()
        if len(values) != in_chans:
            raise DataError(f"data.{name} has {len(values)} values, but the images have {in_chans} channels")


def accumulation(train: Train, processes: int) -> int:
    """How many parts a process accumulates so that ``batch_size`` stays what the recipe says.

    Raises:
        DataError: If the batch cannot be cut evenly.
    """
    if train.batch_size % processes:
        raise DataError(f"train.batch_size {train.batch_size} cannot be shared by {processes} processes evenly")
    share = train.batch_size // processes
    unit = 2 if train.augment.mixup or train.augment.cutmix else 1
    for parts in range(1, share + 1):
        size = share // parts
        if share % parts == 0 and size % unit == 0 and size <= (train.micro_batch or share):
            return parts
    raise DataError(
        f"train.micro_batch {train.micro_batch}: a process's {share} images per step cannot be cut into even parts "
        "of that size (mixing needs pairs)"
    )
