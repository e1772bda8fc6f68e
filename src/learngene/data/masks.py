"""Masks: which class every pixel has, as grey or palette PNGs beside the images; and the layouts that hold both."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from learngene.data.digits import variant_files, variant_of
from learngene.data.image_files import Found, ImageFile, places_of
from learngene.recipe.sections import MASK_VALUES
from learngene.system.errors import CorruptError, DataError, NoSplitError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Folder names that count as a split, in order of preference."""

UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError)
"""What Pillow raises for an image that cannot be decoded."""

IMAGES, MASKS = "images", "masks"
VOC_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")
"""Where torchvision leaves the folders of VOC, seen from what a user may give."""

INDEX_MODES = ("L", "P", "1")
"""Pillow's names of images whose pixels are one small number: grey, index into a palette, black and white."""


@dataclass
class Masks:
    """Reads the masks of a set of images.

    Attributes:
        where: What error messages call the set.
        places: Where each lies.
        classes: Values from 0 that pixels may have.
        ignore_index: One more value, of pixels that are not judged.
    """

    where: str
    places: Sequence[ImageFile]
    classes: int
    ignore_index: int

    def values(self, index: int) -> np.ndarray:
        """The values of a mask's pixels, (height, width) of uint8, a palette's colours left aside.

        Raises:
            CorruptError: If it cannot be decoded.
            DataError: If its pixels are no single small numbers.
        """
        name = self.places[index].name
        try:
            with self.places[index].open() as mask:
                mode, values = mask.mode, np.array(mask)
        except UNREADABLE as error:
            raise CorruptError(
                f"{self.where}: mask {name} cannot be decoded ({type(error).__name__}); "
                "mend it, or set data.skip_corrupt=true to count and leave out such images"
            ) from None
        if mode not in INDEX_MODES:
            raise DataError(
                f"{self.where}: mask {name} has pixels of mode {mode}; "
                "a mask is an 8-bit grey or palette PNG whose values are classes"
            )
        return values.astype(np.uint8)

    def read(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """A mask that fits its image and the classes.

        Args:
            index: Which.
            size: Width and height of its image in pixels.

        Raises:
            DataError: As ``values``; if the sizes differ, or a value is beyond the classes.
        """
        values = self.values(index)
        name, (height, width) = self.places[index].name, values.shape
        if (width, height) != size:
            raise DataError(
                f"{self.where}: mask {name} has {width} x {height} pixels, but its image has {size[0]} x {size[1]}"
            )
        largest = int(values.max(initial=0, where=values != self.ignore_index))
        if largest >= self.classes:
            raise DataError(
                f"{self.where}: mask {name} has value {largest}, but there are {self.classes} classes (0 to "
                f"{self.classes - 1}); set data.mask_classes, or data.ignore_index={largest} if it means unlabelled"
            )
        return values

    def counted(self, skip: bool) -> int:
        """How many classes there must be: one more than the largest value, if all smaller ones occur.

        Args:
            skip: Pass over masks that cannot be decoded.

        Raises:
            DataError: If one cannot be decoded and ``skip`` is off, every pixel is to be ignored, or values are left
                out, so that the largest need not be a class.
        """
        found = np.zeros(MASK_VALUES, bool)
        for index in range(len(self.places)):
            try:
                found[self.values(index)] = True
            except CorruptError:
                if not skip:
                    raise
        found[self.ignore_index] = False
        if not found.any():
            raise self._unjudged("training masks")
        largest = int(found.nonzero()[0].max())
        found[self.ignore_index] = True
        if not found[:largest].all():
            gap = int((~found).nonzero()[0].min())
            raise DataError(
                f"{self.where}: the training masks have value {largest} but not {gap}, so the number of classes cannot "
                f"be told; set data.ignore_index={largest} if that means unlabelled (it is {self.ignore_index}), or "
                "data.mask_classes"
            )
        return largest + 1

    def refuse_unjudged(self, split: str) -> None:
        """Raises ``DataError`` if no pixel has a class, so that nothing could be learned or judged.

        Args:
            split: What the masks are called.
        """
        if all((self.values(index) == self.ignore_index).all() for index in range(len(self.places))):
            raise self._unjudged(f"masks of split '{split}'")

    def _unjudged(self, which: str) -> DataError:
        return DataError(
            f"{self.where}: all pixels of the {which} have the ignored value {self.ignore_index}; "
            "set data.ignore_index to the value that means unlabelled"
        )

    def picked(self, kept: Sequence[int]) -> Masks:
        """Those of some of the images."""
        return dataclasses.replace(self, places=[self.places[index] for index in kept])


@dataclass
class Source:
    """One folder or tar of images.

    Attributes:
        path: Where it is.
        kind: What it holds, for error messages.
        found: The images with the folders they lie in; empty for VOC, whose lists name them.
        voc: The folder with VOC's folders, if it is one.
    """

    path: Path
    kind: str
    found: list[Found]
    voc: Path | None = None

    @property
    def masked(self) -> bool:
        """Whether its images have masks."""
        return self.kind != "class folders"

    def pairs(self, split: str) -> list[tuple[ImageFile, ImageFile]]:
        """Every image of a split with its mask, by name.

        Raises:
            DataError: If there is no such split, or an image without a mask, or a mask without an image.
        """
        return _voc_pairs(self.voc, split) if self.voc else _folder_pairs(self.path, self.found, split)


def open_source(path: Path) -> Source:
    """Looks at a folder or tar and says what it holds.

    Raises:
        DataError: If it is a file that is no tar, or a damaged one.
    """
    for place in VOC_PLACES:
        if all((path / place / name).is_dir() for name in ("JPEGImages", "SegmentationClass")):
            return Source(path, "VOC folders", [], path / place)
    variant = variant_of(path)
    found = variant_files(variant) if variant else places_of(path)
    masked = {IMAGES, MASKS} <= {top for top, _, _ in found}
    return Source(path, "image and mask folders" if masked else "class folders", found)


def split_folder(split: str, found: Collection[str], where: str | Path) -> str:
    """What a data set calls a split.

    Raises:
        NoSplitError: If it has none of that name.
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in found:
            return name
    raise NoSplitError(f"data {where}: no split '{split}'; found: {', '.join(sorted(found))}")


def _folder_pairs(path: Path, found: Sequence[Found], split: str) -> list[tuple[ImageFile, ImageFile]]:
    folder = split_folder(split, {part for top, part, _ in found if top == IMAGES}, path)
    sides: dict[str, dict[str, ImageFile]] = {IMAGES: {}, MASKS: {}}
    for top, part, place in found:
        if top in sides and part == folder:
            name = place.name.partition("/")[2].rpartition(".")[0]
            if name in sides[top]:
                raise DataError(f"data {path}: {sides[top][name].name} and {place.name} have the same name")
            sides[top][name] = place
    images, masks = sides[IMAGES], sides[MASKS]
    for name in sorted(images.keys() ^ masks.keys()):
        if name in images:
            raise DataError(f"data {path}: image {images[name].name} has no mask {MASKS}/{name}.png")
        raise DataError(f"data {path}: mask {masks[name].name} has no image {IMAGES}/{name}.jpg")
    for place in masks.values():
        if not place.name.lower().endswith(".png"):
            raise DataError(f"data {path}: mask {place.name} is no PNG, whose pixels alone keep their values")
    return [(images[name], masks[name]) for name in sorted(images)]


def _voc_pairs(root: Path, split: str) -> list[tuple[ImageFile, ImageFile]]:
    lists = root / "ImageSets" / "Segmentation"
    name = split_folder(split, {path.stem for path in lists.glob("*.txt")}, root)
    out = []
    for line in (lists / f"{name}.txt").read_text().split():
        pair = [f"JPEGImages/{line}.jpg", f"SegmentationClass/{line}.png"]
        for file, what in zip(pair, ("image", "mask"), strict=True):
            if not (root / file).is_file():
                raise DataError(f"data {root}: {lists.name}/{name}.txt names {line}, but there is no {what} {file}")
        image, mask = (ImageFile(str(root / file), file) for file in pair)
        out.append((image, mask))
    return out
