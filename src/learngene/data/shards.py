"""Splits of webdataset's shards, which their index makes a set of images like any other."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from learngene.data.file_kinds import Left
from learngene.data.images import ImageSet
from learngene.data.layouts import SPLIT_NAMES
from learngene.data.shard_index import ShardedImages, ShardedNames, ShardIndex
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError, NoSplitError

PREFIX = "wds/"

HeldOut = Callable[[int], tuple[np.ndarray, np.ndarray]]


def shards_folder(spec: DataSpec) -> Path | None:
    """The folder of shards that a data section names; None if it names something else."""
    first = spec.sources[0]
    if not first.startswith(PREFIX):
        return None
    if len(spec.sources) > 1:
        raise DataError(f"data {first}: shards stand alone; put them below one folder and index that")
    return (spec.root or Path()) / first.removeprefix(PREFIX)


def open_shards(root: Path, split: str) -> ImageSet:
    """A split of the shards below a folder, with a class per image.

    Raises:
        DataError: If they have no index, or an old one, no such split, or no classes.
    """
    index = ShardIndex(root)
    if index.classes is None:
        raise DataError(
            f"data {PREFIX}{root}: the shards have no class for every image, neither as .cls nor as label in .json; "
            "set data.labels=false where none is needed"
        )
    chosen = _of_split(index.shards, split)
    if not chosen:
        raise NoSplitError(
            f"data {PREFIX}{root}: no shards of split '{split}'; found: {_some(index.shards)}; say with "
            "data.train_split and data.val_split which, by a word of their names or as train-{000..099}.tar"
        )
    return _set(index, _rows(index, chosen), index.classes)


def open_all_shards(root: Path, train_split: str, val_split: str, held_out: HeldOut) -> tuple[ImageSet, ImageSet]:
    """Images of shards whose classes nobody asks for: to train on, and to judge by.

    Args:
        root: The folder of the shards.
        train_split: The split to train on; where there is none, all but the other.
        val_split: The split to judge by; where there is none, some images are held out.
        held_out: Says of so many images which to train on, and which to judge by.
    """
    index = ShardIndex(root)
    val = _of_split(index.shards, val_split)
    train = _of_split(index.shards, train_split) or [name for name in index.shards if name not in {*val}]
    rows, judged = _rows(index, train), _rows(index, val)
    if not val:
        rows, judged = (np.asarray(rows)[some] for some in held_out(len(rows)))
    return _set(index, rows, None), _set(index, judged, None)


def _of_split(shards: Sequence[str], split: str) -> list[str]:
    """The shards of a split: by a pattern, else by the folder or the word of their names that is called so."""
    if split.endswith(".tar"):
        patterns = _expanded(split)
        return [name for name in shards if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    words = {name: {*re.split(r"[^0-9a-z]+", name.lower()), *name.split("/")[:-1]} for name in shards}
    for known in SPLIT_NAMES.get(split, (split,)):
        if found := [name for name in shards if known in words[name]]:
            return found
    return []


def _expanded(pattern: str) -> list[str]:
    """The names for which ``{000..099}`` and ``{a,b}`` stand."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    values = words.split(",") if words else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [name for value in values for name in _expanded(pattern[: found.start()] + value + pattern[found.end() :])]


def _rows(index: ShardIndex, chosen: Collection[str]) -> np.ndarray | range:
    """The numbers of the images of some shards; a range if they follow each other, which takes no memory."""
    wanted = set(chosen)
    spans = [
        (int(index.first[number]), int(index.first[number + 1]))
        for number, name in enumerate(index.shards)
        if name in wanted
    ]
    if spans and all(stop == start for (_, stop), (start, _) in pairwise(spans)):
        return range(spans[0][0], spans[-1][1])
    return np.concatenate([np.arange(*span) for span in spans]) if spans else range(0)


def _set(index: ShardIndex, rows: np.ndarray | range, classes: list[str] | None) -> ImageSet:
    read = ShardedImages(index, rows)
    left = [Left((name,), "damaged shards") for name in index.left]
    labels = np.zeros(len(rows), np.int32) if classes is None else read.labels
    names = classes or ["unlabelled"]
    where, named = f"data {PREFIX}{index.root}", index.named and classes is not None
    return ImageSet(where, read, ShardedNames(read), labels, names, left=left, named=named)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
