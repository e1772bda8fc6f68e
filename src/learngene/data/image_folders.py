"""The images of folders, by their names alone: millions of them take some dozen bytes each, and no object.

Nothing of a listing is kept from run to run. Reading the names of all folders anew is the smaller part of the work,
and what could be asked instead, the time at which a folder changed, is not kept by every file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

import numpy as np

from learngene.data.image_files import ImageFile

BETWEEN = "/"
"""Stands between names that are kept together: no file's name has it, on any system."""

AT_ONCE = 10_000
"""Names that are made together."""


@dataclass(frozen=True)
class FilesOnDisk(Sequence[ImageFile]):
    """Images of one folder of a file system.

    Attributes:
        path: The folder.
        prefix: What the names of its images begin with: the path below the source, with a slash behind it.
        names: Of its images, one behind the other.
    """

    path: str
    prefix: str
    names: str

    def __len__(self) -> int:
        return self.names.count(BETWEEN) + 1

    def __getitem__(self, number: Any) -> Any:
        return list(self)[number]

    def __iter__(self) -> Iterator[ImageFile]:
        for name in self.names.split(BETWEEN):
            yield ImageFile(os.path.join(self.path, name), self.prefix + name)


@dataclass(frozen=True)
class ImageFolder:
    """A folder, of a file system or a tar, with the images that lie in it and not deeper.

    Attributes:
        parts: Its path below the source; empty for the source itself.
        images: In any order.
    """

    parts: tuple[str, ...]
    images: Sequence[ImageFile]


@dataclass(frozen=True, eq=False)
class FileTable(Sequence[ImageFile]):
    """Images of many folders of file systems, in an order.

    Attributes:
        folders: Path of each folder, and what its images' names begin with.
        folder: Of every image the number of its folder.
        start, end: Of every image where its name in the folder stands.
        names: These, in the encoding of the file system.
    """

    folders: list[tuple[str, str]]
    folder: np.ndarray
    start: np.ndarray
    end: np.ndarray
    names: bytes

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        path, prefix = self.folders[self.folder[number]]
        name = os.fsdecode(self.names[self.start[number] : self.end[number]])
        return ImageFile(os.path.join(path, name), prefix + name)

    def __iter__(self) -> Iterator[ImageFile]:
        return (self[number] for number in range(len(self)))

    def taken(self, numbers: np.ndarray) -> FileTable:
        """Some of the images."""
        return FileTable(self.folders, self.folder[numbers], self.start[numbers], self.end[numbers], self.names)


@dataclass(frozen=True, eq=False)
class FileNames(Sequence[str]):
    """The names of a table's images, made when asked for; equal to whatever has the same names in the same order."""

    table: FileTable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        return self.table[number].name

    def __iter__(self) -> Iterator[str]:
        table, names = self.table, self.table.names
        prefixes = [prefix for _, prefix in table.folders]
        for first in range(0, len(self), AT_ONCE):
            columns = (column[first : first + AT_ONCE].tolist() for column in (table.folder, table.start, table.end))
            for folder, start, end in zip(*columns, strict=True):
                yield prefixes[folder] + os.fsdecode(names[start:end])


def in_order(groups: Iterable[Sequence[ImageFolder]]) -> Sequence[ImageFile]:
    """The images of groups of folders: group after group, each by name."""
    groups = list(groups)
    if any(not isinstance(folder.images, FilesOnDisk) for group in groups for folder in group):
        return [
            place
            for group in groups
            for place in sorted((one for folder in group for one in folder.images), key=lambda one: one.name)
        ]
    folders: list[tuple[str, str]] = []
    numbers, names = [np.zeros(0, np.int32)], bytearray()
    for group in groups:
        found = [folder.images for folder in group if isinstance(folder.images, FilesOnDisk)]
        first = len(folders)
        folders += [(images.path, images.prefix) for images in found]
        if len(found) == 1:
            sorted_names = sorted(found[0].names.split(BETWEEN))
            numbers.append(np.full(len(sorted_names), first, np.int32))
        else:
            whole = [images.prefix + name for images in found for name in images.names.split(BETWEEN)]
            order = sorted(range(len(whole)), key=whole.__getitem__)
            sorted_names = [whole[number].rpartition("/")[2] for number in order]
            del whole
            lengths = [len(images) for images in found]
            numbers.append(np.repeat(np.arange(first, len(folders), dtype=np.int32), lengths)[order])
        for name in (BETWEEN.join(sorted_names), BETWEEN) if sorted_names else ():
            names += os.fsencode(name)
    packed = bytes(names)
    end = np.flatnonzero(np.frombuffer(packed, np.uint8) == ord(BETWEEN))
    start = np.concatenate([np.zeros(min(1, len(end)), np.int64), end[:-1] + 1])
    return FileTable(folders, np.concatenate(numbers), start, end, packed)


def names_of(places: Sequence[ImageFile]) -> Sequence[str]:
    """The names of images."""
    return FileNames(places) if isinstance(places, FileTable) else [place.name for place in places]


def some_of(places: Sequence[ImageFile], numbers: np.ndarray) -> Sequence[ImageFile]:
    """Those of some numbers."""
    return places.taken(numbers) if isinstance(places, FileTable) else [places[number] for number in numbers.tolist()]
