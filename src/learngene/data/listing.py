"""What lies in a folder or tar: its images, folder by folder, and what is no part of the data set."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from learngene.data.file_kinds import NO_IMAGE, Left, holds_image, left_behind, says_image
from learngene.data.image_files import ImageFile
from learngene.data.image_folders import BETWEEN, FilesOnDisk, ImageFolder
from learngene.system.errors import DataError

MOST_LINKS = 16
"""Links of a tar that are followed from one to the next."""


@dataclass
class Contents:
    """What lies in a folder or tar.

    Attributes:
        folders: Those in which images lie.
        left: What is no part of the data set: other files, leftovers.
    """

    folders: list[ImageFolder] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


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


def in_folders(places: Iterable[ImageFile]) -> list[ImageFolder]:
    """Images by the folders that their names tell."""
    folders: dict[tuple[str, ...], list[ImageFile]] = defaultdict(list)
    for place in places:
        folders[tuple(place.name.split("/")[:-1])].append(place)
    return [ImageFolder(parts, images) for parts, images in folders.items()]


def _look_into(folder: Path, parts: tuple[str, ...], contents: Contents, above: tuple[tuple[int, int], ...]) -> None:
    """Takes in a folder and all below it, links too, but for those that lead back up."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, is_folder = entry.name, entry.is_dir()
            if not is_folder and says_image(name) and not name.startswith("."):  # nothing left behind is called so
                names.append(name)
            elif reason := left_behind(name, is_folder):
                contents.left.append(Left((*parts, name), reason))
            elif is_folder:
                _look_into(folder / name, (*parts, name), contents, (*above, here))
            elif says_image(name) or (len(parts) > 1 and _file_holds_image(entry)):
                names.append(name)
            else:
                contents.left.append(Left((*parts, name), NO_IMAGE))
    if names:
        prefix = "".join(f"{part}/" for part in parts)
        contents.folders.append(ImageFolder(parts, FilesOnDisk(str(folder), prefix, BETWEEN.join(names))))


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
        images = []
        with open(path, "rb") as raw:
            for name, place in places.items():
                parts = tuple(name.split("/"))
                if says_image(name) or (len(parts) > 2 and holds_image(_content(place, raw))):
                    images.append(place)
                else:
                    contents.left.append(Left(parts, NO_IMAGE))
        contents.folders += in_folders(images)
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
