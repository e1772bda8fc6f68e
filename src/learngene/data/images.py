"""Image sets: indexed labelled images of one split, wherever they come from; ``open_split`` opens them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from PIL import Image

from learngene.data.file_kinds import Left, told
from learngene.data.masks import NOT_JUDGED, Masks
from learngene.data.pixels import FULL_16, Decoding, Seen, opening, why_broken
from learngene.recipe.mask_values import MASK_VALUES
from learngene.system.errors import CorruptError, DataError

AT_ONCE = 10_000
"""Lines that are hashed together."""

SHOWN_CLASSES = 12
"""Most classes whose images are told one by one."""


@dataclass
class ImageSet:
    """Labelled images of one split, read on demand: with a class each, or with a mask that gives each pixel one.

    Attributes:
        where: What error messages call it.
        read: Opens the image at an index, undecoded or decoded.
        names: A name per image, for error messages and the fingerprint.
        labels: A class index per image; zeros for images with masks.
        class_names: Names of the classes: sorted, in the order of their values in the masks, or as a named data set
            orders them.
        corrupt: Images that were left out because they cannot be decoded.
        masks: Reads the mask at an index; None for images with a class each.
        decoding: How images become pixels.
        left: What lies beside the images and is none of them.
        seen: What the images needed to be decoded, once all of them were.
        named: Whether the classes have names, and not only numbers that stand for them.
        numbers: The class of every value that ``masks`` reads; None if they are the same.
    """

    where: str
    read: Callable[[int], Image.Image]
    names: Sequence[str]
    labels: Sequence[int] | np.ndarray
    class_names: list[str]
    corrupt: list[str] = field(default_factory=list)
    masks: Masks | None = None
    decoding: Decoding = field(default_factory=Decoding)
    left: Sequence[Left] = ()
    seen: Seen | None = None
    named: bool = True
    numbers: np.ndarray | None = None

    @property
    def segmentation(self) -> bool:
        """Whether every pixel has a class, instead of every image."""
        return self.masks is not None

    @property
    def ignore_index(self) -> int | None:
        """The value of mask pixels that are not judged; None for images with a class each."""
        if self.masks is None:
            return None
        return self.masks.ignore_index if self.numbers is None else NOT_JUDGED

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, mode: str = "RGB") -> Image.Image:
        """Decodes one image: upright, in 8 bits, over the background where it is transparent.

        Args:
            index: Which.
            mode: ``RGB``, or ``L`` for grey.

        Raises:
            CorruptError: If it cannot be decoded.
            DataError: If it does not say which values are black and white.
        """
        return self._decoded(index, mode)[0]

    def pair(self, index: int, mode: str = "RGB") -> tuple[Image.Image, np.ndarray]:
        """Decodes an image and its mask; see ``image`` and ``Masks``."""
        image, orientation = self._decoded(index, mode)
        return image, self.mask(index, image.size, orientation)

    def mask(self, index: int, size: tuple[int, int], orientation: int = 1) -> np.ndarray:
        """Decodes and checks the mask of an image of a size; see ``Masks``."""
        if self.masks is None:
            raise DataError(f"{self.where}: has no masks")
        values = self.masks.read(index, size, orientation)
        return values if self.numbers is None else self.numbers[values]

    def _decoded(self, index: int, mode: str, seen: Seen | None = None) -> tuple[Image.Image, int]:
        """An image, and the EXIF orientation it is stored in."""
        try:
            with opening(), self.read(index) as image:
                return self.decoding.decoded(image, mode, seen)
        except DataError as error:
            raise DataError(f"{self.where}: image {self.names[index]} {error}") from None
        except PermissionError as error:
            raise DataError(
                f"{self.where}: image {self.names[index]} is not readable ({error.strerror}); allow it, or take it out"
            ) from None
        except Exception as error:
            raise CorruptError(
                f"{self.where}: image {self.names[index]} cannot be decoded ({why_broken(error)}); "
                "repair it, or set data.skip_corrupt=true to count and leave out such images"
            ) from None

    def scan(self, skip: bool) -> ImageSet:
        """Decodes every image, and mask, once, and counts what they are made of.

        Args:
            skip: Leave out what cannot be decoded and remember its name, instead of refusing.

        Returns:
            The set of the images that can be decoded.

        Raises:
            DataError: If an image cannot be decoded and ``skip`` is off; the message counts all of them. If a mask
                does not fit its image or the classes.
        """
        bad: list[int] = []
        seen, pixels, first = Seen(), np.zeros(MASK_VALUES, np.int64), ""
        for index in range(len(self)):
            try:
                image, orientation = self._decoded(index, "RGB", seen)
                if self.masks is not None:
                    pixels += np.bincount(self.mask(index, image.size, orientation).ravel(), minlength=MASK_VALUES)
            except CorruptError as error:
                first = first or str(error).partition("cannot be decoded (")[2].partition("); repair")[0]
                bad.append(index)
        if bad and not skip:
            raise DataError(
                f"{self.where}: {len(bad)} of {len(self)} images cannot be decoded, the first is "
                f"{self.names[bad[0]]} ({first}); repair or remove them, or leave them out with data.skip_corrupt=true"
            )
        gone = set(bad)
        kept = [index for index in range(len(self)) if index not in gone]
        if not kept:
            raise DataError(f"{self.where}: none of its {len(self)} images can be decoded")
        scanned = self.picked(kept, corrupt=[self.names[i] for i in bad]) if bad else self
        scanned.seen = seen
        if scanned.masks is not None:
            scanned.masks.pixels = pixels
        return scanned

    def counted(self) -> str:
        """What the set has, what was left out of it and why, in one line."""
        parts = [f"{len(self)} images{self._of_classes()}"]
        if self.seen is not None:
            parts += [f"{count} {remark}" for remark, count in sorted(self.seen.remarks.items())]
            largest = self.seen.largest_16
            if 0 < largest <= FULL_16 // 4 and self.decoding.pixel_range is None:
                parts.append(
                    f"no 16-bit pixel above {largest} of {FULL_16}: if white is less, set data.pixel_range=[0, WHITE]"
                )
        line = ", ".join(parts)
        broken = [Left(tuple(name.split("/")), "corrupt") for name in self.corrupt]
        line += f"; left out: {left}" if (left := told([*broken, *self.left])) else ""
        if self.masks is not None and (shares := self.masks.shares(self.class_names, self.ignore_index)):
            line += f"; pixels: {shares}"
        return line

    def _of_classes(self) -> str:
        """How many images each class has, if there are few classes and images have one."""
        count = len(self.class_names)
        if count == 1 and not self.named:
            return ""
        if self.segmentation or count > SHOWN_CLASSES:
            return f" of {count} classes{' of pixels' if self.segmentation else ''}"
        sizes = np.bincount(np.asarray(self.labels, int), minlength=count)
        return f" ({', '.join(f'{size} {name}' for size, name in zip(sizes, self.class_names, strict=True))})"

    def picked(self, kept: Sequence[int], corrupt: Sequence[str] = ()) -> ImageSet:
        """The set of some of its images.

        Args:
            kept: Their indices.
            corrupt: Names of images that were left out because they cannot be decoded.
        """
        return dataclasses.replace(
            self,
            read=_Picked(self.read, kept),
            names=[self.names[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            corrupt=list(corrupt),
            masks=self.masks and self.masks.picked(kept),
            seen=None,
        )

    def numbered(self, class_names: Sequence[str], places: Sequence[int]) -> ImageSet:
        """The set with its classes under other numbers.

        Args:
            class_names: Names of all classes, of which the set may lack some.
            places: Where each of its own classes stands among them.
        """
        if list(class_names) == self.class_names and self.named:
            return self
        out = dataclasses.replace(self, class_names=list(class_names), named=True)
        if self.masks is None:
            out.labels = (
                np.asarray(places, np.int32)[self.labels]
                if isinstance(self.labels, np.ndarray)
                else [places[label] for label in self.labels]
            )
        elif list(places) != list(range(len(places))):
            numbers = np.full(MASK_VALUES, NOT_JUDGED, np.uint8)
            numbers[: len(places)] = places
            numbers[self.ignore_index] = NOT_JUDGED
            out.numbers = numbers if self.numbers is None else numbers[self.numbers]
            if self.masks.pixels is not None:
                pixels = np.zeros_like(self.masks.pixels)
                np.add.at(pixels, numbers, self.masks.pixels)
                out.masks = dataclasses.replace(self.masks, pixels=pixels)
        return out

    def fingerprint(self) -> str:
        """A short hash of the names and labels: two sets with the same hash list the same images."""
        digest = hashlib.sha256()
        labels = self.labels.tolist() if isinstance(self.labels, np.ndarray) else self.labels
        lines = (f"{name}\t{label}\n" for name, label in zip(self.names, labels, strict=True))
        while some := "".join(islice(lines, AT_ONCE)):
            digest.update(some.encode())
        return digest.hexdigest()[:16]


@dataclass
class _Picked:
    """Reads a subset; a class, not a closure, so that loader processes can receive it."""

    read: Callable[[int], Image.Image]
    kept: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.kept[index])
