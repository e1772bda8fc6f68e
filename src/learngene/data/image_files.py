"""Where the bytes of images lie: in folders, in plain tars, which are read in place, or in memory."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from learngene.data.file_kinds import (
    NO_CLASS,
    NO_IMAGE,
    RAW_SUFFIXES,
    Left,
    holds_image,
    left_behind,
    says_image,
)
from learngene.system.errors import DataError

MOST_LINKS = 16
"""Links of a tar that are followed from one to the next."""


class ImageFile(NamedTuple):
    """Where the bytes of one image lie: a whole file, a piece of a plain tar, or bytes already unpacked."""

    path: str
    name: str
    offset: int = 0
    size: int = -1
    content: bytes | None = None

    def open(self) -> Image.Image:
        """The image, not yet decoded."""
        if self.name.lower().endswith(RAW_SUFFIXES):
            raise ValueError("a camera's raw file; convert it")
        if self.content is not None:
            return Image.open(io.BytesIO(self.content))
        if self.size < 0:
            return Image.open(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))


PlacedImage = tuple[str, str, ImageFile]
"""An image with the names of the two folders above it: split and class, or images or masks and split."""


@dataclass
class Contents:
    """What lies in a folder or tar.

    Attributes:
        found: The images that lie at least two folders deep.
        images: All images, wherever they lie.
        left: What is no part of the data set: other files, leftovers, images that lie elsewhere.
    """

    found: list[PlacedImage] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    images: list[ImageFile] = field(default_factory=list)

    def add(self, place: ImageFile, parts: tuple[str, ...], image: bool) -> None:
        """Takes in a file of a name, cut into its parts, which is an image or not."""
        if image:
            self.images.append(place)
        if image and len(parts) > 2:
            self.found.append((parts[0], parts[1], place))
        else:
            self.left.append(Left(parts, NO_CLASS if image else NO_IMAGE))


def contents_of(source: Path) -> Contents:
    """The images of a folder or tar, and what else is there.

    Raises:
        DataError: If the source is a file that is no tar, or a damaged one.
    """
    if source.is_file() and not tarfile.is_tarfile(source):
        raise DataError(f"data {source}: a file that is no tar; give a folder or a tar")
    contents = Contents()
    if source.is_dir():
        _look_into(source, (), contents, ())
    else:
        _read_tar(source, contents)
    return contents


def _look_into(folder: Path, parts: tuple[str, ...], contents: Contents, above: tuple[tuple[int, int], ...]) -> None:
    """Takes in a folder and all below it, links too, but for those that lead back up."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    prefix = "".join(f"{part}/" for part in parts)
    with os.scandir(folder) as entries:
        for entry in entries:
            below = (*parts, entry.name)
            is_folder = entry.is_dir()
            if reason := left_behind(entry.name, is_folder):
                contents.left.append(Left(below, reason))
            elif is_folder:
                _look_into(folder / entry.name, below, contents, (*above, here))
            else:
                image = says_image(entry.name) or (len(below) > 2 and _file_holds_image(entry))
                contents.add(ImageFile(entry.path, prefix + entry.name), below, image)


def _file_holds_image(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():  # a pipe would never end
            return False
        with open(entry.path, "rb") as file:
            return holds_image(file)
    except OSError:
        return False


def _read_tar(path: Path, contents: Contents) -> None:
    """Takes in a tar. A plain one is read in place; a compressed one is unpacked into memory."""
    try:
        plain = _is_plain(path)
        with tarfile.open(path) as archive:
            members: dict[str, tarfile.TarInfo] = {}
            places: dict[str, ImageFile] = {}
            for member in archive:  # the last of a name is what unpacking gives
                name = posixpath.normpath(member.name)
                members[name] = member
                if member.isreg() and not _left_in_tar(name, False):
                    places[name] = _place(path, archive, member, name, plain)
            for name, member in members.items():
                target = _target(name, members) if member.islnk() or member.issym() else None
                if target is not None and not _left_in_tar(name, False):
                    places[name] = _place(path, archive, target, name, plain)
            left = {_left_in_tar(name, member.isdir()) for name, member in members.items()}
        contents.left += sorted(entry for entry in left if entry is not None)
        with open(path, "rb") as raw:
            for name, place in places.items():
                parts = tuple(name.split("/"))
                contents.add(place, parts, says_image(name) or (len(parts) > 2 and holds_image(_content(place, raw))))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"data {path}: the tar is damaged or truncated ({error})") from None


def _place(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, plain: bool) -> ImageFile:
    if plain and member.sparse is None:
        return ImageFile(str(path), name, member.offset_data, member.size)
    unpacked = archive.extractfile(member)
    return ImageFile(str(path), name, content=unpacked.read() if unpacked else b"")


def _left_in_tar(name: str, is_folder: bool) -> Left | None:
    """What of a path was left behind: its first such folder, or the file."""
    parts = tuple(name.split("/"))
    for depth, part in enumerate(parts, start=1):
        if part != "." and (reason := left_behind(part, depth < len(parts) or is_folder)):
            return Left(parts[:depth], reason)
    return None


def _target(name: str, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The file that an entry of a tar is or links to; tars keep the second of two equal files as a link."""
    for _ in range(MOST_LINKS):
        member = members.get(name)
        if member is None or member.isreg():
            return member
        near = posixpath.dirname(name) if member.issym() else ""
        name = posixpath.normpath(posixpath.join(near, member.linkname))
    return None


def _content(place: ImageFile, raw: io.BufferedReader) -> io.BytesIO:
    """The bytes of a piece of a tar."""
    if place.content is not None:
        return io.BytesIO(place.content)
    raw.seek(place.offset)
    return io.BytesIO(raw.read(place.size))


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False
