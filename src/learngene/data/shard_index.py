"""The index of a folder of shards in webdataset's form: where each image lies in them, its class and its name.

A shard is a plain tar in which files that follow each other and share their name up to its first dot are one sample;
what comes after the dot says which of its fields a file is. With the places of the images, shards are read like files,
in any order. The index is mapped, not read: memory does not grow with the set.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from learngene.data.file_kinds import left_behind, says_image
from learngene.data.image_files import ImageFile
from learngene.system.errors import DataError
from learngene.system.files import write_file
from learngene.system.speech import counted

INDEX, VERSION = "learngene-index.safetensors", "1"
CLASS_FILES = ("classnames.txt", "classes.txt")
"""Beside the shards, a name per line: of class 0, of class 1, and so on."""

LABEL_FIELDS = ("cls", "json")
"""Where the class of a sample stands, in order of preference: alone, or as ``label``."""

MOST_CLASSES = 1_000_000
AT_ONCE = 10_000
"""Names that are read together."""

NUMBER = re.compile(r"-?[0-9]+")
COLUMNS = {"offset": np.int64, "size": np.int64, "label": np.int32, "name_end": np.int64}

Label = int | str | None


@dataclass
class Shard:
    """What was read of a shard, or why it could not be.

    Attributes:
        name: Its path below the folder.
        length, mtime_ns: Size and time of its file.
        offset, size: Where its images lie in it.
        names: Of its images, one behind the other in UTF-8.
        lengths: Of each name.
        labels: What each image's class is.
        imageless: How many samples have no image.
        labelled: Which field has the class of all its images; empty if none has.
        fault: Why the shard cannot be used; empty if it can.
    """

    name: str
    length: int
    mtime_ns: int
    offset: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    names: bytes = b""
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: list[Label] = field(default_factory=list)
    imageless: int = 0
    labelled: str = ""
    fault: str = ""


class ShardIndex:
    """An index that was written, mapped into memory.

    Attributes:
        root: The folder of the shards.
        shards: Their paths below it, in order.
        first: The number of each shard's first image, and at the end that of all.
        columns: By name, a value per image.
        classes: Names of all classes; None if the shards have none.
        named: Whether these are names, and not only numbers.
        left: Shards that were left out as they were damaged.
        imageless: How many samples have no image.
    """

    def __init__(self, root: Path) -> None:
        """Maps the index of a folder.

        Raises:
            DataError: If there is none, it is damaged, or it is not of the shards that lie there now.
        """
        path, self.root, there = root / INDEX, root, shards_below(root)
        remedy = f"run `learngene index {root}`"
        if not path.is_file():
            raise DataError(f"data {root}: its shards have no index; {remedy}, once")
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            said = header.pop("__metadata__")
            if said["version"] != VERSION:
                raise DataError(f"{path}: an index of version {said['version']}; {remedy} anew")
            content = json.loads(said["content"])
            mapped = np.memmap(path, np.uint8, "c", 8 + length).view(np.ndarray)  # torch warns of what is mode "r"
            self.columns = {
                name: mapped[slice(*header[name]["data_offsets"])].view(dtype) for name, dtype in COLUMNS.items()
            }
            self._names = memoryview(mapped[slice(*header["names"]["data_offsets"])])  # type: ignore[arg-type]
            self.first = np.asarray(content["first"])
            self._places = [self.columns[name] for name in ("name_end", "offset", "size")]
            self._roots = [str(root / file["name"]) for file in content["shards"]]
            self._bounds: list[int] = content["first"]
            files = content["shards"]
            ends = self.columns["name_end"]
            if any(len(column) != self.first[-1] for column in self.columns.values()) or len(self._names) != ends[-1]:
                raise ValueError
        except (ValueError, KeyError, TypeError, OSError):
            raise DataError(f"{path}: the index is damaged; {remedy} anew") from None
        _refuse_older(root, files, remedy)
        left = {file["name"] for file in content["left"]}
        _refuse_older(root, content["left"], remedy)
        self.shards: list[str] = [file["name"] for file in files]
        if more := sorted({*there} - {*self.shards, *left}):
            raise DataError(f"{path}: the index is older than shard {more[0]}; {remedy} anew")
        self.left, self.imageless = sorted(left), int(content["imageless"])
        self.classes: list[str] | None = content["classes"]
        self.named = bool(content["named"])

    def place(self, row: int) -> ImageFile:
        """Where an image lies; asked for every image, for which arrays of one number would be slow."""
        ends, offsets, sizes = self._places
        shard = bisect_right(self._bounds, row) - 1
        name = str(self._names[ends.item(row - 1) if row else 0 : ends.item(row)], "utf-8")
        return ImageFile(self._roots[shard], f"{self.shards[shard]}/{name}", offsets.item(row), sizes.item(row))

    def names(self, rows: np.ndarray) -> list[str]:
        """The names of images: that of the shard, then that in the shard."""
        ends = self.columns["name_end"]
        starts = np.where(rows > 0, ends[rows - 1], 0).tolist()
        shards = (np.searchsorted(self.first, rows, "right") - 1).tolist()
        return [
            f"{self.shards[shard]}/{str(self._names[start:end], 'utf-8')}"
            for shard, start, end in zip(shards, starts, ends[rows].tolist(), strict=True)
        ]


@dataclass(frozen=True)
class ShardedImages:
    """Reads images of shards by index."""

    index: ShardIndex
    rows: np.ndarray | range

    def __call__(self, number: int) -> Any:
        """The image, not yet decoded."""
        return self.index.place(int(self.rows[number])).open()

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each image."""
        rows, labels = self.rows, self.index.columns["label"]
        return labels[rows.start : rows.stop] if isinstance(rows, range) else labels[rows]


@dataclass(frozen=True)
class ShardedNames(Sequence[str]):
    """The names of images of shards, made when asked for."""

    images: ShardedImages

    def __len__(self) -> int:
        return len(self.images.rows)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self.images.index.names(np.asarray(self.images.rows[start : start + AT_ONCE]))

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        return self.images.index.place(int(self.images.rows[number])).name


def shards_below(root: Path) -> list[str]:
    """The paths of all tars below a folder, in order."""
    if not root.is_dir():
        raise DataError(f"data {root}: no such folder of shards")
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.tar")
        if not left_behind(path.name) and path.is_file()
    )


def write_index(root: Path, *, processes: int = 1, skip_corrupt: bool = False) -> ShardIndex:
    """Reads the headers of all shards below a folder and writes their index into it.

    Args:
        root: The folder.
        processes: That read shards at the same time.
        skip_corrupt: Leave out shards that are damaged, and remember them, instead of refusing.

    Raises:
        DataError: For the first shard that is damaged, or has other fields than the first.
    """
    found = shards_below(root)
    if not found:
        raise DataError(f"data {root}: no shards; expected plain tars such as train-000000.tar or train/000000.tar")
    kept: list[Shard] = []
    left: list[Shard] = []
    for shard in counted(f"index {root}: shards", _read_all(root, found, processes), len(found)):
        if shard.fault and not skip_corrupt:
            raise DataError(
                f"{root / shard.name}: {shard.fault}; write the shard anew, or leave such out with --skip-corrupt"
            )
        (left if shard.fault else kept).append(shard)
    full = [shard for shard in kept if shard.labels]
    if not full:
        raise DataError(f"data {root}: none of {len(found)} shards has an image")
    for shard in full:
        if shard.labelled != full[0].labelled:
            one, other = (f"{each.name} has {_told(each.labelled)}" for each in (full[0], shard))
            raise DataError(f"{root}: shards of different fields: {one}, {other}; all must have the class in one field")
    _write(root, kept, left)
    return ShardIndex(root)


def _told(labelled: str) -> str:
    return f"a .{labelled} with the class" if labelled else "no class"


def _read_all(root: Path, names: Sequence[str], processes: int) -> Iterator[Shard]:
    if processes == 1:
        yield from (read_shard(root, name) for name in names)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            yield from pool.map(read_shard, [root] * len(names), names)
        finally:
            pool.shutdown(cancel_futures=True)


def read_shard(root: Path, name: str) -> Shard:
    """Reads the headers of a shard, and what says classes; no images."""
    status = (root / name).stat()
    shard = Shard(name, status.st_size, status.st_mtime_ns)
    try:
        with tarfile.open(root / name, "r:") as archive:
            fields: set[str] | None = None
            names: list[bytes] = []
            places: list[tuple[int, int]] = []
            for key, members in _samples(archive):
                image = _image_of(key, members)
                if image is None:
                    shard.imageless += 1
                    continue
                labels = {
                    which: label for which in LABEL_FIELDS if (label := _label(archive, members, which)) is not None
                }
                fields = {*labels} if fields is None else fields & {*labels}
                shard.labels.append(next(iter(labels.values()), None))
                names.append(posixpath.normpath(image.name).encode())
                places.append((image.offset_data, image.size))
            if _bytes(archive, archive.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                # Behind a damaged header, or a cut between two files, tarfile ends as if that were all.
                raise tarfile.ReadError(f"no end and no file at byte {archive.offset}")
        shard.labelled = next((which for which in LABEL_FIELDS if which in (fields or ())), "")
        shard.names, shard.lengths = b"".join(names), np.asarray([len(name) for name in names], np.int64)
        shard.offset, shard.size = np.asarray(places, np.int64).reshape(-1, 2).T
    except (tarfile.TarError, EOFError) as error:
        shard.fault = f"the shard is truncated, compressed or no tar ({error})"
    except ValueError as error:
        shard.fault = str(error)
    except OSError as error:
        shard.fault = f"cannot be read ({error.strerror})"
    return shard


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a tar: a key, and a file per field."""
    last, members = "", dict[str, tarfile.TarInfo]()
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # which would grow with the shard
        name = posixpath.normpath(member.name)
        folder, base = posixpath.split(name)
        if not member.isreg() or any(left_behind(part) for part in name.split("/")):
            continue
        stem, _, which = base.partition(".")
        key, which = posixpath.join(folder, stem), which.lower()
        if key != last and members:
            yield last, members
            members = {}
        if which in members:
            raise ValueError(f"sample {key} has two files .{which}")
        last, members[which] = key, member
    if members:
        yield last, members


def _image_of(key: str, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The image of a sample: the field that is an image, where there are several the one with a plain suffix."""
    images = [which for which in members if says_image(f"x.{which}")]
    plain = [which for which in images if "." not in which]
    if len(images) > 1 and len(plain) != 1:
        raise ValueError(f"sample {key} has the images .{' and .'.join(images)}, and one is needed")
    return members[(plain or images)[0]] if images else None


def _bytes(archive: tarfile.TarFile, offset: int, size: int) -> bytes:
    file: Any = archive.fileobj
    file.seek(offset)
    content: bytes = file.read(size)
    return content


def _label(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], which: str) -> Label:
    """The class that a field of a sample says, by number or name; None if it says none."""
    if which not in members or (which == "json" and "cls" in members):
        return None
    member = members[which]
    try:
        text = _bytes(archive, member.offset_data, member.size).decode().strip()
        label: Any = json.loads(text) if which == "json" else int(text) if NUMBER.fullmatch(text) else text
    except ValueError:
        raise ValueError(f"{member.name} is not {'JSON' if which == 'json' else 'text'}") from None
    if which == "json":
        label = label.get("label") if isinstance(label, dict) else None
    if label is None or label == "":
        return None
    if isinstance(label, str) or (type(label) is int and 0 <= label < MOST_CLASSES):
        return label
    raise ValueError(
        f"{member.name} has {str(label)[:40]} for a class; expected a number from 0 to {MOST_CLASSES - 1}, or a name"
    )


def _refuse_older(root: Path, files: Sequence[dict[str, Any]], remedy: str) -> None:
    for file in files:
        try:
            status = (root / file["name"]).stat()
        except FileNotFoundError:
            raise DataError(f"{root / INDEX}: shard {file['name']} is gone; put it back, or {remedy} anew") from None
        if (status.st_size, status.st_mtime_ns) != (file["size"], file["mtime_ns"]):
            raise DataError(f"{root / INDEX}: the index is older than shard {file['name']}; {remedy} anew")


def _write(root: Path, kept: Sequence[Shard], left: Sequence[Shard]) -> None:
    from safetensors.numpy import save_file

    ids, classes, named = _numbered(root, [shard for shard in kept if shard.labels])
    tensors = {
        "offset": np.concatenate([shard.offset for shard in kept]),
        "size": np.concatenate([shard.size for shard in kept]),
        "label": ids,
        "name_end": np.cumsum(np.concatenate([shard.lengths for shard in kept])),
        "names": np.frombuffer(b"".join(shard.names for shard in kept), np.uint8),
    }
    said = {
        "shards": [_stated(shard) for shard in kept],
        "left": [_stated(shard) for shard in left],
        "first": np.cumsum([0, *(len(shard.labels) for shard in kept)]).tolist(),
        "classes": classes,
        "named": named,
        "imageless": sum(shard.imageless for shard in kept),
    }
    content = {"version": VERSION, "content": json.dumps(said)}
    write_file(root / INDEX, lambda temporary: save_file(tensors, str(temporary), content))


def _stated(shard: Shard) -> dict[str, Any]:
    return {"name": shard.name, "size": shard.length, "mtime_ns": shard.mtime_ns}


def _numbered(root: Path, shards: Sequence[Shard]) -> tuple[np.ndarray, list[str] | None, bool]:
    """A number per image, the names of the classes, and whether they are more than numbers; -1 and None without."""
    count = sum(len(shard.labels) for shard in shards)
    if not shards[0].labelled:
        return np.full(count, -1, np.int32), None, False
    given = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    found, named = {label for shard in shards for label in shard.labels}, given is not None
    if all(isinstance(label, int) for label in found):
        place: dict[Label, int] = {label: label for label in found if isinstance(label, int)}
        classes = 1 + max(place.values())
        names = [str(number) for number in range(classes)]
        if given is not None:
            names = [name.strip() for name in given.read_text("utf-8").splitlines() if name.strip()]
            if len(names) < classes:
                raise DataError(
                    f"{given}: {len(names)} names, but the shards have class {classes - 1}; one name a line"
                )
    else:
        names, named = sorted({str(label) for label in found}), True
        numbers = {name: number for number, name in enumerate(names)}
        place = {label: numbers[str(label)] for label in found}
    labels = (place[label] for shard in shards for label in shard.labels)
    return np.fromiter(labels, np.int32, count), names, named
