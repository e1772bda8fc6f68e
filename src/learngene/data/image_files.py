"""Where the bytes of an image lie: in a file, in a piece of a plain tar, which is read in place, or in memory."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from learngene.data.file_kinds import RAW_SUFFIXES


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
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))
