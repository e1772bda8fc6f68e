"""Which files of a data set are images: by content, and not what programs and systems leave beside them."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import IO, NamedTuple

from PIL import Image

from learngene.data.pixels import opening

IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".tga"),
    *(".j2c", ".jpc", ".pcx", ".ico", ".icns", ".cur", ".sgi", ".dds", ".ras", ".xbm", ".xpm"),
    *(".heic", ".heif", ".jxl", ".svg", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    ".icloud",
}
"""What everybody takes for an image: such a file counts, and if it cannot be decoded, it is a broken image. Suffixes of
which Pillow reads none are here so that nobody's images are left out as if they were notes."""

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf")
"""Of cameras, in which Pillow finds at most a small preview."""

NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG")
"""Formats that Pillow knows the look of, but which hold no picture."""

SURE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"\x00\x00\x00\x0cJXL ", b"\xff\x0a")
"""First bytes that nothing but an image has, be it whole or not: PNG, JPEG, GIF and JPEG XL."""

HEIF = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
"""Bytes 4 to 12 of what phones make, which Pillow reads with a plugin only."""

LEFT_NAMES = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
"""Names, in small letters, of what archives, network drives and operating systems leave behind."""

LEFT_ENDINGS = (
    *("~", ".bak", ".orig", ".old", ".tmp", ".temp", ".swp", ".part", ".partial", ".filepart", ".crdownload"),
)
"""Of copies that editors keep, and of files that were never whole."""

HIDDEN, SYSTEM, BACKUP = "hidden", "left by archives or systems", "backups or partial downloads"
NO_IMAGE, NO_CLASS = "no images", "images outside class folders"


class Left(NamedTuple):
    """Something that is not part of a data set.

    Attributes:
        parts: Its path below the source.
        reason: Why it was left out.
    """

    parts: tuple[str, ...]
    reason: str


def left_behind(name: str, folder: bool = False) -> str | None:
    """Why a file, or a folder, of that name is no part of a data set; None if it may be."""
    small = name.lower()
    if small in LEFT_NAMES:
        return SYSTEM
    if name.startswith(".") and not small.endswith(".icloud"):  # which stands for an image that is still to be fetched
        return HIDDEN
    if not folder and (small.endswith(LEFT_ENDINGS) or (name.startswith("#") and name.endswith("#"))):
        return BACKUP
    return None


def says_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def holds_image(file: IO[bytes]) -> bool:
    """Whether the content of a file is an image of a format that can be told by its beginning."""
    prefix = file.read(16)
    if prefix.startswith(SURE) or prefix[4:12] in HEIF:
        return True
    Image.init()
    formats = []
    for name, (_, accept) in Image.OPEN.items():
        if accept is None or name in NO_PICTURES:
            continue
        found: bool | str = False
        with contextlib.suppress(Exception):  # of files shorter than what a format looks at
            found = accept(prefix)
        if isinstance(found, str):  # the look is right, but this Pillow was built without what reads it
            return True
        if found:
            formats.append(name)
    if formats:
        with opening(), warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            Image.open(file, formats=formats)
            return True
    return False


def told(left: Iterable[Left]) -> str:
    """What was left out and why, in a few words; empty if nothing was."""
    names: dict[str, list[str]] = defaultdict(list)
    for parts, reason in left:
        names[reason].append("/".join(parts))
    groups = Counter({reason: len(some) for reason, some in names.items()}).most_common()
    return ", ".join(f"{count} {reason} ({_examples(names[reason])})" for reason, count in groups)


def _examples(names: list[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} ..."
