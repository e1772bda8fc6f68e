"""One way to images, whatever they lie in: folders, tars, masks, scikit-learn's digits, data sets by name."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from learngene.data import decathlon, digits
from learngene.data.image_files import ImageFile
from learngene.data.image_folders import ImageFolder, in_order, names_of
from learngene.data.images import ImageSet
from learngene.data.layouts import Source, open_source, split_folder
from learngene.data.masks import NOT_JUDGED, OBJECT, Masks, MaskTable
from learngene.data.pixels import Decoding
from learngene.data.shards import open_shards, shards_folder
from learngene.data.timm_sets import TIMM_PREFIXES, open_timm_set
from learngene.recipe.mask_values import MASK_VALUES, class_names
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError, NoClassesError, NoSplitError
from learngene.vits.class_names import composed

SCAN_LIMIT = 20_000
"""Sets up to this size are decoded once before training, which takes seconds, so that bad files show at once."""


def open_split(
    spec: DataSpec, split: str, classes: list[str] | int | None = None, sources: Sequence[Source] | None = None
) -> ImageSet:
    """Opens the ``train`` or ``val`` split of a data set and checks that it can be used.

    Args:
        spec: The data section of a recipe.
        split: ``train`` or ``val``; the recipe says what the data set calls it.
        classes: Of masks, where the section does not say them: names or number.
        sources: The folders and tars, if they are listed already.

    Raises:
        DataError: If the data is missing, lacks the split, is empty, has one class, or has corrupt images that were
            not asked to be skipped.
    """
    if not spec.labels:
        raise DataError("data.labels is false, but here images need a class or a mask each; leave data.labels out")
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
    elif (folder := shards_folder(spec)) is not None:
        images = open_shards(folder, wanted)
    elif all(Path(source).exists() or digits.variant_of(source) for source in spec.sources):
        images = _files(spec, wanted, classes, sources)
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
        images = open_timm_set(spec, missing, wanted)
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
class Files:
    """Reads image files by index."""

    places: Sequence[ImageFile]

    def __call__(self, index: int) -> Image.Image:  # noqa: D102
        return self.places[index].open()


def _files(spec: DataSpec, split: str, classes: list[str] | int | None, sources: Sequence[Source] | None) -> ImageSet:
    """Folders and tars: SPLIT/CLASS/IMAGE, or images with masks; several of them are one set."""
    where = " + ".join(spec.sources)
    sources = sources or [open_source(Path(source)) for source in spec.sources]
    for source in sources[1:]:
        if source.kind != sources[0].kind:
            raise DataError(
                f"data {where}: {sources[0].path.name} has {sources[0].kind} and {source.path.name} has {source.kind}; "
                "the sources of one set must be of one kind"
            )
    if sources[0].masked:
        return _masked(spec, sources, split, where, classes)
    found = [folder for source in sources for folder in source.placed]
    if not found:
        raise NoClassesError(
            f"data {where}: no images in SPLIT/CLASS/ folders; expected train/<class>/ and val/<class>/, or "
            "images/<split>/ and masks/<split>/"
        )
    wanted = split_folder(split, sorted({folder.parts[0] for folder in found}), where)
    written = list({folder.parts[1] for folder in found})
    spelled = dict(zip(written, composed(written), strict=True))
    classes_of: dict[str, list[ImageFolder]] = defaultdict(list)
    for folder in found:
        if folder.parts[0] == wanted:
            classes_of[spelled[folder.parts[1]]].append(folder)
    names = sorted(classes_of)
    sizes = [sum(len(folder.images) for folder in classes_of[name]) for name in names]
    places = in_order(classes_of[name] for name in names)
    return ImageSet(
        f"data {where}",
        Files(places),
        names_of(places),
        [number for number, size in enumerate(sizes) for _ in range(size)],
        names,
        left=[left for source in sources for left in source.left_of(wanted)],
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
    read = Files([image for image, _ in pairs])
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
    parts = {folder.parts[1] for folder in source.placed}
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
    return ImageSet(where, Files(listed.places), names, listed.labels, listed.class_names)
