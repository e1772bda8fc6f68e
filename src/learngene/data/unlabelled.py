"""Images whose classes nobody knows or asks for: all images of folders and tars, however they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learngene.data.digits import variant_of
from learngene.data.file_kinds import Left
from learngene.data.image_files import ImageFile
from learngene.data.image_folders import ImageFolder, in_order, names_of, some_of
from learngene.data.images import ImageSet
from learngene.data.layouts import IMAGES, SPLIT_NAMES, Source, open_source
from learngene.data.open_split import SCAN_LIMIT, Files, decoding_of
from learngene.data.shards import open_all_shards, shards_folder
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError

HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 20, 5, 2000
"""Of so many images one is held out to judge by, where none are set apart; at least and at most so many in all.

Among fewer than five, nearest neighbours say nothing.
"""

NO_CLASSES = ["unlabelled"]
NO_SPLIT = "images outside the folders of both splits"


def without_labels(images: ImageSet) -> ImageSet:
    """The images without their classes or masks."""
    return dataclasses.replace(images, labels=[0] * len(images), class_names=NO_CLASSES, named=False, masks=None)


def lies_in_files(spec: DataSpec) -> bool:
    """Whether all sources of a data section are folders and tars, or shards."""
    return shards_folder(spec) is not None or all(
        Path(source).exists() or variant_of(source) for source in spec.sources
    )


def open_all(spec: DataSpec) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to judge by.

    Folders named as the splits are taken for them, at the top and below images/. Without a folder to train on, all but
    the images to judge by are trained on; without those, every twentieth by name, five at least, is held out.

    Raises:
        DataError: If there are fewer than two images, or some cannot be decoded that were not asked to be skipped.
    """
    where = f"data {' + '.join(spec.sources)}"
    if (folder := shards_folder(spec)) is not None:
        both = open_all_shards(folder, spec.train_split, spec.val_split, lambda count: _held_out(count, where))
        return _scanned(both[0], spec), _scanned(both[1], spec)
    sources = [open_source(Path(source)) for source in spec.sources]
    split: tuple[list[Sequence[ImageFile]], list[Sequence[ImageFile]]] = ([], [])
    left: list[Left] = []
    for source in sources:
        for mine, more in zip(split, _split(source, spec, left), strict=True):
            mine.append(more)
    train, val = (_one(parts) for parts in split)
    if not len(train):
        raise DataError(f"{where}: no images; give folders or tars with images in them")
    if not len(val):
        kept, out = _held_out(len(train), where)
        train, val = some_of(train, kept), some_of(train, out)
    return _set(where, train, spec, [*(left for source in sources for left in source.left), *left]), _set(
        where, val, spec, []
    )


def _one(parts: Sequence[Sequence[ImageFile]]) -> Sequence[ImageFile]:
    full = [part for part in parts if len(part)]
    return full[0] if len(full) == 1 else [place for part in full for place in part]


def _held_out(count: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many images to train on, and which to judge by."""
    if count < 2:
        raise DataError(f"{where}: one image; two are needed, to train on and to judge by")
    step = max(HELD_OUT, -(-count // MOST_HELD_OUT))
    most = count // LEAST_HELD_OUT
    step = min(step, most if most > 1 else count)
    judged = np.arange(1, count + 1) % step == 0
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def _split(source: Source, spec: DataSpec, left: list[Left]) -> tuple[Sequence[ImageFile], Sequence[ImageFile]]:
    """Images of a source to train on, and to judge by, each in the order of their names; the others are ``left``."""
    if source.voc is not None:
        return [image for image, _ in source.pairs(spec.train_split)], [
            image for image, _ in source.pairs(spec.val_split)
        ]
    train, val = ((name, *SPLIT_NAMES.get(name, ())) for name in (spec.train_split, spec.val_split))
    above = (IMAGES,) if source.masked else ()
    folders = [folder for folder in source.folders if folder.parts[: len(above)] == above]
    tops = [next(iter(folder.parts[len(above) :]), "") for folder in folders]
    judged = next((name for name in val if name in tops), None)
    trained = next((name for name in train if name in tops), None)
    of_split: tuple[list[ImageFolder], list[ImageFolder]] = ([], [])
    for folder, top in zip(folders, tops, strict=True):
        if top == trained or (trained is None and top != judged):
            of_split[0].append(folder)
        elif top == judged:
            of_split[1].append(folder)
        elif not source.masked:
            left += [Left(tuple(place.name.split("/")), NO_SPLIT) for place in folder.images]
    return in_order([of_split[0]]), in_order([of_split[1]])


def _set(where: str, places: Sequence[ImageFile], spec: DataSpec, left: Sequence[Left]) -> ImageSet:
    labels = [0] * len(places)
    images = ImageSet(where, Files(places), names_of(places), labels, NO_CLASSES, left=left, named=False)
    return _scanned(images, spec)


def _scanned(images: ImageSet, spec: DataSpec) -> ImageSet:
    images.decoding = decoding_of(spec)
    return images.scan(spec.skip_corrupt) if spec.skip_corrupt or len(images) <= SCAN_LIMIT else images
