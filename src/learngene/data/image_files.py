"""Where the bytes of images lie: in folders, in plain tars, which are read in place, or in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from learngene.system.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFile:
    """Where the bytes of one image lie: a whole file, a piece of a plain tar, or bytes already unpacked."""

    path: str
    name: str
    offset: int = 0
    size: int = -1
    content: bytes | None = None

    def open(self) -> Image.Image:
        """The image, not yet decoded."""
        if self.content is not None:
            return Image.open(io.BytesIO(self.content))
        if self.size < 0:
            return Image.open(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))


Found = tuple[str, str, ImageFile]
"""An image with the names of the two folders above it: split and class, or images or masks and split."""


def places_of(source: Path) -> list[Found]:
    """The images of a folder or tar that lie at least two folders deep.

    Raises:
        DataError: If the source is a file that is no tar, or a damaged one.
    """
    if source.is_file() and not tarfile.is_tarfile(source):
        raise DataError(f"data {source}: a file that is no tar; give a folder or a tar")
    return list(_folder_places(source) if source.is_dir() else _tar_places(source))


def _folder_places(root: Path) -> Iterable[Found]:
    for path in root.glob("*/*/**/*"):
        if path.suffix.lower() in SUFFIXES:
            parts = path.relative_to(root).parts
            yield parts[0], parts[1], ImageFile(str(path), "/".join(parts))


def _tar_places(path: Path) -> Iterable[Found]:
    """Images of a tar. A plain one is read in place; a compressed one is unpacked into memory."""
    try:
        with tarfile.open(path) as archive:
            plain = _is_plain(path)
            for member in archive:
                parts = member.name.removeprefix("./").split("/")
                if not member.isfile() or len(parts) < 3 or not member.name.lower().endswith(SUFFIXES):
                    continue
                name = "/".join(parts)
                if plain:
                    place = ImageFile(str(path), name, member.offset_data, member.size)
                else:
                    content = archive.extractfile(member)
                    place = ImageFile(str(path), name, content=content.read() if content else b"")
                yield parts[0], parts[1], place
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"data {path}: the tar is damaged or truncated ({error})") from None


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False
