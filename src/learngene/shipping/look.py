"""A look at images before anything is planned: how many, of what classes and sizes, and what will mislead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from learngene.data.images import ImageSet
from learngene.data.splits import Splits
from learngene.system.errors import DataError

MOST_LOOKED_AT = 20_000
"""Images of a split that are decoded for a look; what is said of more is said of these."""

COMPARED, THUMBNAIL = 2000, 16
"""Images whose nearest others are sought, by pictures of so many pixels a side."""

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Sides that models are made for; each has patches of 4 to 16 pixels, about 8 along a side or more."""


@dataclass(frozen=True)
class Look:
    """What images are like.

    Attributes:
        train_images: Of the training split.
        val_images: Of the validation split.
        classes: How many.
        smallest: Training images of the rarest class.
        largest: Of the most common one.
        majority: Percent of validation images that are of the most common class of training.
        side: Median of the images' shorter side in pixels.
        duplicates: Validation images that are training images, too, pixel by pixel.
        neighbours: Percent of images whose nearest other one, as a small picture, is of their class.
        by_chance: The same of classes that are dealt out at random.
        remarks: What may mislead, a line each.
    """

    train_images: int
    val_images: int
    classes: int
    smallest: int
    largest: int
    majority: float
    side: int
    duplicates: int
    neighbours: float
    by_chance: float
    remarks: list[str] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {**vars(self), "remarks": list(self.remarks)}

    def told(self) -> Iterator[str]:
        """Lines for people."""
        each = f"{self.smallest}" if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        yield (
            f"{self.train_images} training and {self.val_images} validation images of {self.classes} classes "
            f"({each} training images each), {self.side} px"
        )
        yield from self.remarks


def look(splits: Splits) -> Look:
    """Looks at both splits.

    Raises:
        DataError: If images have masks, or all are the same.
    """
    train, val = splits
    if train.segmentation:
        raise DataError(f"{train.where}: has masks; ship makes classifiers, so use finetune for segmenters")
    counts = np.bincount(np.asarray(train.labels, int), minlength=len(train.class_names))
    shown, sides, small = _decoded(train)
    judged, _, _ = _decoded(val)
    if len(set(shown)) == 1 and len(shown) > 1:
        raise DataError(f"{train.where}: all {len(shown)} training images are the same; check how the set was written")
    labels = np.asarray(train.labels, int)
    agreeing, by_chance = _neighbours(small, labels[_few(len(train), COMPARED)])
    found = Look(
        train_images=len(train),
        val_images=len(val),
        classes=len(train.class_names),
        smallest=int(counts.min()),
        largest=int(counts.max()),
        majority=100 * float(np.mean(np.asarray(val.labels, int) == counts.argmax())),
        side=int(np.median(sides)),
        duplicates=len([digest for digest in judged if digest in set(shown)]),
        neighbours=agreeing,
        by_chance=by_chance,
    )
    found.remarks.extend(_remarks(found, splits, counts))
    return found


def _few(count: int, most: int) -> np.ndarray:
    """Places spread evenly over a set."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _decoded(images: ImageSet) -> tuple[list[int], list[int], np.ndarray]:
    """Of images their digests and shorter sides, and small pictures of a few."""
    import xxhash
    from PIL import Image

    digests, sides, small = [], [], []
    thumbnails = set(_few(len(images), COMPARED).tolist())
    for index in sorted(thumbnails | set(_few(len(images), MOST_LOOKED_AT).tolist())):
        image = images.image(index)
        digests.append(xxhash.xxh3_64_intdigest(image.tobytes() + str(image.size).encode()))
        sides.append(min(image.size))
        if index in thumbnails:
            picture = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
            small.append(np.asarray(picture, np.float32).ravel() / 255)
    return digests, sides, np.stack(small)


def _neighbours(small: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How often the nearest other image is of the same class, and how often it would be by chance, in percent."""
    squares = (small**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * small @ small.T
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(1)
    shares = np.bincount(labels) / len(labels)
    return 100 * float(np.mean(labels[nearest] == labels)), 100 * float((shares**2).sum())


def _remarks(found: Look, splits: Splits, counts: np.ndarray) -> Iterator[str]:
    train, val = splits
    absent = [train.class_names[i] for i in sorted(set(range(found.classes)) - set(val.labels))]
    if absent:
        yield f"classes without validation images, which nobody judges: {_some(absent)}"
    if found.smallest == 0:
        yield f"classes without training images: {_some([train.class_names[i] for i in np.flatnonzero(counts == 0)])}"
    if found.duplicates:
        yield (
            f"{found.duplicates} of {found.val_images} validation images are training images, too, pixel by pixel: "
            "scores will be too high; take them out of one split"
        )
    yield from (line.removeprefix(f"{train.where}: ") for line in splits.cautions())
    spread = 100 * math.sqrt(found.by_chance / 100 * (1 - found.by_chance / 100) / min(found.train_images, COMPARED))
    if found.train_images >= 100 and found.neighbours < found.by_chance + 2 * spread:
        yield (
            f"labels look shuffled: the nearest other image is of the same class for {found.neighbours:.1f} % of "
            f"images, and would be for {found.by_chance:.1f} % if classes were dealt out at random"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def model_size(side: int) -> int:
    """The side in pixels that models are made for: the nearest usual one that images have, 224 at most."""
    return max([size for size in SIZES if size <= side], default=SIZES[0])
