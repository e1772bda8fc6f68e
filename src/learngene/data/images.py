"""Image sets: folders, tars, data sets by name and scikit-learn's digits, all as indexed labelled images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learngene.data import decathlon, digits
from learngene.data.file_kinds import Left, told
from learngene.data.image_files import ImageFile
from learngene.data.layouts import Source, open_source, split_folder
from learngene.data.masks import NOT_JUDGED, OBJECT, Masks, MaskTable
from learngene.data.pixels import FULL_16, Decoding, Seen, opening, why_broken
from learngene.recipe.mask_values import MASK_VALUES, class_names
from learngene.recipe.sections import DataSpec
from learngene.system.errors import CorruptError, DataError, NoSplitError
from learngene.vits.class_names import composed

TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
"""How the names of timm's data sets begin."""

SHOWN_CLASSES = 12
"""Most classes whose images are told one by one."""

SCAN_LIMIT = 20_000
"""Sets up to this size are decoded once before training, which takes seconds, so that bad files show at once."""


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
    labels: Sequence[int]
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
            out.labels = [places[label] for label in self.labels]
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
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\t{label}\n".encode())
        return digest.hexdigest()[:16]


@dataclass
class _Picked:
    """Reads a subset; a class, not a closure, so that loader processes can receive it."""

    read: Callable[[int], Image.Image]
    kept: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        return self.read(self.kept[index])


def open_split(spec: DataSpec, split: str, classes: list[str] | int | None = None) -> ImageSet:
    """Opens the ``train`` or ``val`` split of a data set and checks that it can be used.

    Args:
        spec: The data section of a recipe.
        split: ``train`` or ``val``; the recipe says what the data set calls it.
        classes: Of masks, where the section does not say them: names or number.

    Raises:
        DataError: If the data is missing, lacks the split, is empty, has one class, or has corrupt images that were
            not asked to be skipped.
    """
    dataset = decathlon.dataset_of(spec)
    if dataset is not None:
        decathlon.refuse_split(dataset, split)
    if split not in ("train", "val"):
        raise DataError(f"unknown split '{split}'; give train or val (data.val_split names another folder for val)")
    wanted = spec.train_split if split == "train" else spec.val_split
    where = " + ".join(spec.sources)
    if spec.sources == [digits.NAME]:
        images = _digits(wanted)
    elif dataset is not None:
        images = _decathlon(spec, dataset, wanted)
    elif all(Path(source).exists() or digits.variant_of(source) for source in spec.sources):
        images = _files(spec, wanted, classes)
    else:
        missing = next(source for source in spec.sources if not Path(source).exists())
        if len(spec.sources) > 1 and missing.startswith((*TIMM_PREFIXES, decathlon.PREFIX)):
            raise DataError(f"data {missing}: a data set by name stands alone; several sources are folders and tars")
        if not missing.startswith(TIMM_PREFIXES) or len(spec.sources) > 1:
            raise DataError(
                f"data {missing}: no such folder or tar, and not a data set name; give a folder, a tar, digits, "
                f"digits/VARIANT ({', '.join(digits.NAMES)}), a timm name such as torch/cifar100, or one of the "
                "Decathlon such as decathlon/aircraft"
            )
        images = _named(spec, missing, wanted)
    if not len(images):
        raise DataError(f"data {where}: the split '{wanted}' has no images")
    if spec.mask_classes is not None and not images.segmentation:
        raise DataError(f"data {where}: has a class per image and no masks; leave data.mask_classes out")
    if len(images.class_names) < 2 and (images.segmentation or split == "train"):  # others may lack classes
        if images.segmentation:
            raise DataError(
                f"data {where}: all pixels of the training masks have value {images.class_names[0]}, or the ignored "
                f"{spec.ignore_index}; a segmenter needs two classes: check data.ignore_index"
            )
        raise DataError(
            f"data {where}: the split '{wanted}' has one class ({images.class_names[0]}); a classifier needs two"
        )
    images.decoding = decoding_of(spec)
    if spec.skip_corrupt or len(images) <= SCAN_LIMIT:
        images = images.scan(spec.skip_corrupt)
    if images.masks is not None:
        images.masks.refuse_unjudged(wanted, images.class_names, split == "train", SCAN_LIMIT)
    return images


def decoding_of(spec: DataSpec) -> Decoding:
    """How a data section says that images become pixels."""
    return Decoding(spec.background, spec.pixel_range, spec.max_pixels)


# -- the kinds of data --------------------------------------------------------------------------------


class _Pixels:
    """Images that are numbers in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def _digits(split: str) -> ImageSet:
    pixels, labels, names = digits.read_digits(split)
    return ImageSet(digits.NAME, _Pixels(pixels), names, labels, [str(digit) for digit in range(10)])


@dataclass
class _Files:
    places: list[ImageFile]

    def __call__(self, index: int) -> Image.Image:
        return self.places[index].open()


def _files(spec: DataSpec, split: str, classes: list[str] | int | None) -> ImageSet:
    """Folders and tars: SPLIT/CLASS/IMAGE, or images with masks; several of them are one set."""
    where = " + ".join(spec.sources)
    sources = [open_source(Path(source)) for source in spec.sources]
    for source in sources[1:]:
        if source.kind != sources[0].kind:
            raise DataError(
                f"data {where}: {sources[0].path.name} has {sources[0].kind} and {source.path.name} has {source.kind}; "
                "the sources of one set must be of one kind"
            )
    if sources[0].masked:
        return _masked(spec, sources, split, where, classes)
    found = [place for source in sources for place in source.found]
    splits = sorted({part for part, _, _ in found})
    if not found:
        raise DataError(
            f"data {where}: no images in SPLIT/CLASS/ folders; expected train/<class>/ and val/<class>/, or "
            "images/<split>/ and masks/<split>/"
        )
    folder = split_folder(split, splits, where)
    named = zip(composed([name for _, name, _ in found]), found, strict=True)
    chosen = sorted(
        ((name, place) for name, (part, _, place) in named if part == folder), key=lambda p: (p[0], p[1].name)
    )
    names = sorted({name for name, _ in chosen})
    index = {name: i for i, name in enumerate(names)}
    return ImageSet(
        f"data {where}",
        _Files([place for _, place in chosen]),
        [place.name for _, place in chosen],
        [index[name] for name, _ in chosen],
        names,
        left=[left for source in sources for left in source.left_of(folder)],
    )


def _masked(
    spec: DataSpec, sources: Sequence[Source], split: str, where: str, classes: list[str] | int | None
) -> ImageSet:
    """Images with masks; the classes are the section's, else the given ones, else what the training masks have."""
    if spec.crop_pct is not None:
        raise DataError(f"data {where}: masks are judged on the whole image; leave data.crop_pct out")
    pairs = [pair for source in sources for pair in source.pairs(split)]
    made = Masks(f"data {where}", [mask for _, mask in pairs], MASK_VALUES, spec.ignore_index)
    made.lie, made.decoding = spec.mask_orientation, decoding_of(spec)
    known = spec.mask_classes or classes
    if spec.mask_values is not None:
        names = class_names(spec.mask_values, known)
        made.table = MaskTable.of(spec.mask_values, names, spec.ignore_index)
    else:
        judging = _training_masks(spec, sources, split, made, known is not None)
        if (known is None or _number(known) == 2) and judging.black_and_white(SCAN_LIMIT):
            names = known if isinstance(known, list) else ["0", str(OBJECT)] if known is None else ["0", "1"]
            made.table = MaskTable.of({"0": 0, str(OBJECT): 1}, names, spec.ignore_index)
        else:
            known = known or judging.counted(spec.skip_corrupt)
            names = known if isinstance(known, list) else [str(value) for value in range(known)]
    made.classes = len(names)
    if made.table is not None:
        made.ignore_index = NOT_JUDGED
    left = [left for source in sources for left in source.left_of(_folder_of(source, split))]
    read = _Files([image for image, _ in pairs])
    return ImageSet(
        f"data {where}",
        read,
        [image.name for image, _ in pairs],
        [0] * len(pairs),
        names,
        masks=made,
        left=left,
        named=isinstance(known, list) or spec.mask_values is not None,
    )


def _number(classes: list[str] | int) -> int:
    return len(classes) if isinstance(classes, list) else classes


def _folder_of(source: Source, split: str) -> str:
    """What a source of masks calls a split; VOC's has no folder for it."""
    parts = {part for _, part, _ in source.found}
    return split_folder(split, parts, source.path) if parts else ""


def _training_masks(spec: DataSpec, sources: Sequence[Source], split: str, made: Masks, known: bool) -> Masks:
    """The masks whose values say what values mean: those of training; those of the split if classes are ``known``."""
    if split == spec.train_split:
        return made
    try:
        train = [mask for source in sources for _, mask in source.pairs(spec.train_split)]
    except DataError as error:
        if known:
            return made
        if not isinstance(error, NoSplitError):
            raise
        raise DataError(f"{error}; without training masks, say how many classes with data.mask_classes") from None
    return dataclasses.replace(made, places=train)


def _decathlon(spec: DataSpec, dataset: str, split: str) -> ImageSet:
    listed = decathlon.listed(dataset, spec.root, split)
    names = [place.name for place in listed.places]
    where = f"data {decathlon.PREFIX}{dataset}"
    return ImageSet(where, _Files(listed.places), names, listed.labels, listed.class_names)


class _Named:
    """Reads a timm data set; its items are (image, label).

    timm's own class for Hugging Face's sets converts images without regard to bits and transparency, and gives the
    next image in place of one that it cannot read; so what it reads from is asked instead.
    """

    def __init__(self, dataset: Any) -> None:
        self.items = getattr(dataset, "reader", dataset)
        if getattr(dataset, "loader", None) is not None:  # torchvision's, which converts too
            dataset.loader = str

    def __call__(self, index: int) -> Image.Image:
        image = self.items[index][0]
        return image if isinstance(image, Image.Image) else Image.open(image)

    def label(self, index: int) -> int:
        """The class of an image, which is not opened."""
        return int(self.items[index][1])


def _named(spec: DataSpec, name: str, split: str) -> ImageSet:
    from timm.data import create_dataset

    def unusable(error: Exception) -> DataError:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return DataError(f"data {name}: timm cannot open it ({reason}); set data.root and data.download")

    try:
        dataset = create_dataset(name, root=spec.root, split=split, download=spec.download)
    except ImportError as error:
        raise DataError(f"data {name}: package '{error.name}' is missing; pip install 'learngene[data]'") from None
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError, KeyError) as error:
        raise unusable(error) from None
    read = _Named(dataset)
    try:
        count = len(dataset)
        read.label(0)
    except (NotImplementedError, TypeError, KeyError) as error:  # what streaming sets raise when asked for an index
        raise DataError(
            f"data {name}: needs random access, which this data set does not give ({error}); use a map-style one"
        ) from None
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise unusable(error) from None
    labels = getattr(dataset, "targets", None)
    labels = [read.label(i) for i in range(count)] if labels is None else [int(label) for label in labels]
    known = getattr(dataset, "classes", None) or _reader_classes(dataset, labels)
    classes = [str(label) for label in known or range(max(labels) + 1)]
    names = [f"{split}-{index}" for index in range(count)]
    return ImageSet(f"data {name}", read, names, labels, classes, named=bool(known))


def _reader_classes(dataset: Any, labels: Sequence[int]) -> list[str] | None:
    """The names of classes that timm's reader of a data set knows; None if it does not know all of them."""
    index: dict[str, int] = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    whole = sorted(index.values()) == list(range(len(index))) and len(index) > max(labels)
    return sorted(index, key=index.__getitem__) if whole else None
