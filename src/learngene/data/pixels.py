"""One way from whatever Pillow can open to upright 8-bit pixels, for folders, tars and named sets alike.

An image is turned as its EXIF orientation says, scaled to 8 bits by the depth of its format, and what is transparent
shows a background. Colour profiles are left aside, as timm does.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from learngene.system.errors import DataError

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation; those from 5 on exchange width and height."""

FULL_16 = 65535
GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
SCALED_TO_16 = ("PPM", "PNG")
"""Formats whose 32-bit integers, in Pillow, are 16-bit greys."""

LOW_KEYS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greys of few bits with, but not the one grey that a PNG names as transparent."""

MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a file that are not the file's."""

NOT_THE_IMAGES = (MemoryError, DataError, RecursionError)
"""Exceptions that say nothing about the image that was being decoded."""


@dataclass
class Seen:
    """What was met while images were decoded.

    Attributes:
        remarks: How many images needed what.
        largest_16: The largest value of 16-bit greys; 0 if there were none.
    """

    remarks: Counter[str] = field(default_factory=Counter)
    largest_16: int = 0


@dataclass(frozen=True)
class Decoding:
    """How images become 8-bit pixels.

    Attributes:
        background: Red, green and blue of what shows through transparent pixels.
        pixel_range: Values of black and white in images of more than 8 bits; None takes those of their format.
        max_pixels: Most pixels of an image.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    pixel_range: tuple[float, float] | None = None
    max_pixels: int = 178_956_970

    def decoded(self, image: Image.Image, mode: str, seen: Seen | None = None) -> tuple[Image.Image, int]:
        """Decodes an opened image.

        Args:
            image: As Pillow opened it.
            mode: ``RGB``, or ``L`` for grey.
            seen: Takes note of what the image needed.

        Returns:
            The upright image in that mode, and the EXIF orientation it was stored in.

        Raises:
            DataError: If the values of black and white cannot be known.
            Exception: Whatever Pillow raises if the image is broken; ``TooLargeError`` if it has too many pixels.
        """
        self.refuse_large(image)
        key = _transparent_value(image)
        scale = _Scale.of(image)
        upright, orientation = turned(image)
        remarks = ["turned by their EXIF orientation"] if orientation != 1 else []
        if upright.mode in GREY_16 or upright.mode in ("I", "F"):
            remarks.append("of more than 8 bits")
            values = np.asarray(upright)
            if seen is not None and upright.mode in GREY_16:
                seen.largest_16 = max(seen.largest_16, int(values.max(initial=0)))
            upright = Image.fromarray(scale.to_8_bits(values, self.pixel_range))
            if key is not None:
                upright.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        elif key is not None:
            upright.info["transparency"] = key
        if upright.has_transparency_data:
            remarks.append("with transparency, over data.background")
            out = _over(upright, self.background)
        else:
            out = upright
        if out.mode == "LAB" and mode == "L":  # Pillow knows no way from LAB to grey
            out = out.convert("RGB")
        if seen is not None:
            seen.remarks.update(remarks)
        # Not copied, but for pixels that lie in a mapped file or in an array.
        return (out.convert(mode) if out.mode != mode or out.readonly else out), orientation

    def refuse_large(self, image: Image.Image) -> None:
        """Raises ``TooLargeError`` for an image of too many pixels, before any is decoded."""
        width, height = image.size
        if width * height > self.max_pixels:
            raise TooLargeError(f"{width} x {height} pixels are more than data.max_pixels {self.max_pixels}")


class TooLargeError(ValueError):
    """An image of more pixels than the recipe allows."""


@dataclass(frozen=True)
class _Scale:
    """How an image of more than 8 bits says what is black and white.

    Attributes:
        white: The largest value of its format; None if the format does not say.
        inverted: Whether 0 is white.
    """

    white: float | None
    inverted: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> _Scale:
        """What a file says before it is decoded, as some is forgotten then."""
        tags: Any = getattr(image, "tag_v2", {})
        if image.mode in GREY_16:
            # Pillow leaves 12-bit TIFFs and 16-bit greys whose white is 0 as they are.
            (bits, *_) = tags.get(TIFF_BITS, (16,))
            return cls(2 ** min(int(bits), 16) - 1, tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO)
        if image.mode == "I" and image.format in SCALED_TO_16:
            return cls(FULL_16)
        return cls(1.0 if image.mode == "F" else None)

    def to_8_bits(self, values: np.ndarray, given: tuple[float, float] | None) -> np.ndarray:
        """Values between black and white as the nearest of 0 to 255."""
        values = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
        least, most = float(values.min()), float(values.max())
        if not np.isfinite([least, most]).all():
            raise ValueError("pixels that are no finite numbers")
        if given is None and (self.white is None or least < 0 or most > self.white):
            raise DataError(
                f"has pixels from {least:g} to {most:g} and does not say which are black and white; set "
                "data.pixel_range=[BLACK, WHITE]"
            )
        black, white = given or (0.0, self.white or 1.0)
        shares = ((values - black) / (white - black)).clip(0, 1)
        return np.rint((1 - shares if self.inverted else shares) * 255).astype(np.uint8)


def orientation_of(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8, that an image or its XMP states; None if it states none that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF data, which nobody needs to see an image
        try:
            found = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:
            return None
    return found if isinstance(found, int) and (found == 1 or found in TURNS) else None


def turned(image: Image.Image) -> tuple[Image.Image, int]:
    """Decodes an image and makes it upright.

    Returns:
        The image as it is meant to be seen, and the EXIF orientation it was stored in; 1 if it needed no turn, or if
        Pillow has done it already, as for TIFF.
    """
    image.load()
    found = orientation_of(image)
    if found is None or found == 1:
        return image, 1
    return image.transpose(TURNS[found]), found


def _transparent_value(image: Image.Image) -> Any:
    """The one value that a PNG names as transparent, in the depth that Pillow gives its pixels; None if it has none."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or isinstance(key, bytes) or image.mode == "P":
        return None
    tiles = getattr(image, "tile", None)
    raw = tiles[0].args if tiles else None
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if raw == "RGB;16B" else key
    return key * LOW_KEYS.get(raw, 1) if isinstance(raw, str) else key


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An image with transparency laid over a colour."""
    if image.mode == "La":  # Pillow knows one way from here
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, background)
    ground.paste(rgba, mask=rgba)
    return ground


def why_broken(error: Exception) -> str:
    """What is wrong with an image, in a few words.

    Raises:
        Exception: The error itself, if it says nothing about the image.
    """
    if isinstance(error, NOT_THE_IMAGES) or (isinstance(error, OSError) and error.errno in MACHINE):
        raise error
    if isinstance(error, UnidentifiedImageError):
        return "not a format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error) or type(error).__name__).splitlines()[0][:120]
    return text if isinstance(error, (TooLargeError, OSError)) else f"{type(error).__name__}: {text}"


class _Limit:
    """Pillow's limit of pixels, which is one for all of a program, put aside while images are opened here."""

    def __init__(self) -> None:
        self._lock, self._users, self._saved = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """No limit of Pillow's inside the block, in which ``Decoding.max_pixels`` decides."""
        with self._lock:
            if not self._users:
                self._saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    Image.MAX_IMAGE_PIXELS = self._saved


opening = _Limit().lifted
"""The block in which images are opened."""
