"""Masks: which class every pixel has, as values or colours of images beside the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from learngene.data.image_files import ImageFile
from learngene.data.pixels import GREY_16, TURNS, Decoding, opening, orientation_of, turned, why_broken
from learngene.recipe.mask_values import LARGEST, MASK_VALUES, sorted_items
from learngene.system.errors import CorruptError, DataError

LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")
"""Formats that change values."""

COLOUR = 1 << 24
"""Added to 65536 red + 256 green + blue of a colour that is no grey, which makes a number that no grey has."""

NOT_JUDGED = 255
"""What pixels that are not judged become where a table says what values mean."""

SHOWN = 12
"""Most values or colours that a message names."""

OBJECT = 255
"""The value of objects in masks that have no value but this and 0."""


@dataclass(frozen=True)
class MaskTable:
    """What the values and colours of masks mean.

    Attributes:
        codes: In ascending order.
        classes: The class of each, or ``NOT_JUDGED``; uint8.
        coloured: Whether it has colours, so that of a palette the colours count and not the numbers.
    """

    codes: np.ndarray
    classes: np.ndarray
    coloured: bool = False

    @classmethod
    def of(
        cls, values: Mapping[str, str | int | None], names: Sequence[str], ignore_index: int | None = None
    ) -> MaskTable:
        """The table of a recipe's ``mask_values``.

        Args:
            values: Value or colour to name, number or None.
            names: Of the classes, in order.
            ignore_index: One more grey that is not judged, if the values have neither it nor any colours.
        """
        entries: dict[int, int] = {}
        items = sorted_items(values)
        coloured = any(isinstance(code, tuple) for code, _ in items)
        if ignore_index is not None and not coloured:
            entries[ignore_index] = NOT_JUDGED
        for code, target in items:
            number = NOT_JUDGED if target is None else target if isinstance(target, int) else names.index(target)
            entries[code_of_colour(*code) if isinstance(code, tuple) else code] = number
        codes = np.array(sorted(entries), np.int32)
        return cls(codes, np.array([entries[int(code)] for code in codes], np.uint8), coloured)

    def look_up(self, codes: np.ndarray) -> np.ndarray:
        """The classes of pixels.

        Raises:
            KeyError: With the first code that the table has not.
        """
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        if (unknown := self.codes[places] != codes).any():
            raise KeyError(int(codes[unknown].min()))
        return self.classes[places]


@dataclass
class Masks:
    """Reads the masks of a set of images.

    Attributes:
        where: What error messages call the set.
        places: Where each lies.
        classes: How many there are.
        ignore_index: The value of pixels that are not judged.
        table: What values and colours mean; None if values are classes, counted from 0.
        lie: Whether masks that state no orientation lie on images as they are ``seen`` or ``stored``; None if their
            size tells.
        decoding: Says how large a mask may be.
        pixels: How many have each value from 0 to 255, once they were counted.
    """

    where: str
    places: Sequence[ImageFile]
    classes: int
    ignore_index: int
    table: MaskTable | None = None
    lie: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    pixels: np.ndarray | None = None

    def codes(self, index: int, size: tuple[int, int] | None = None, orientation: int = 1) -> np.ndarray:
        """The values of a mask's pixels, or their colours as numbers.

        Args:
            index: Which.
            size: Width and height of its image as it is seen; None does not turn the mask.
            orientation: EXIF orientation in which its image is stored.

        Returns:
            (height, width) of int32.

        Raises:
            CorruptError: If it cannot be decoded.
            DataError: If its pixels cannot be values; if it cannot be told how it lies on its image.
        """
        try:
            with opening(), self.places[index].open() as opened:
                self.decoding.refuse_large(opened)
                kind, own = str(opened.format), orientation_of(opened)
                mask, _ = turned(opened)
                if own is None and orientation != 1 and size is not None:
                    mask = self._laid(index, mask, size, orientation)
                codes = None if kind in LOSSY else _codes(mask, self.table is not None and self.table.coloured)
        except PermissionError as error:
            raise DataError(
                f"{self.where}: mask {self.places[index].name} is not readable ({error.strerror}); "
                "allow it, or take it out"
            ) from None
        except Exception as error:
            raise CorruptError(
                f"{self.where}: mask {self.places[index].name} cannot be decoded ({why_broken(error)}); "
                "repair it, or set data.skip_corrupt=true to count and leave out such images"
            ) from None
        if kind in LOSSY:
            raise self._fault(index, f"is a {kind}, which changes values; a mask is a PNG or another lossless image")
        if codes is None:
            raise self._fault(
                index,
                f"has pixels of mode {mask.mode}{' with transparency' if mask.has_transparency_data else ''}; a mask "
                "is a grey, palette or RGB image whose values or colours are classes, without transparency",
            )
        return codes

    def _laid(self, index: int, mask: Image.Image, size: tuple[int, int], orientation: int) -> Image.Image:
        """A mask turned as its image, if it lies on the image as that is stored."""
        stored = size[::-1] if orientation >= 5 else size
        lie = self.lie or ("seen" if mask.size != stored else "stored" if mask.size != size else None)
        if lie is None:
            raise self._fault(
                index,
                f"states no EXIF orientation, but its image is stored turned (orientation {orientation}), and the size "
                "does not tell whether the mask lies on it as it is seen; set data.mask_orientation=seen or stored",
            )
        return mask.transpose(TURNS[orientation]) if lie == "stored" else mask

    def read(self, index: int, size: tuple[int, int], orientation: int = 1) -> np.ndarray:
        """A mask that fits its image and the classes.

        Args:
            index: Which.
            size: Width and height of its image in pixels, as it is seen.
            orientation: EXIF orientation in which its image is stored.

        Returns:
            The class of every pixel, or ``ignore_index``: (height, width) of uint8.

        Raises:
            DataError: As ``codes``; if the sizes differ, or a value is beyond the classes.
        """
        codes = self.codes(index, size, orientation)
        height, width = codes.shape
        if (width, height) != size:
            raise self._fault(index, f"has {width} x {height} pixels, but its image has {size[0]} x {size[1]}")
        if self.table is not None:
            try:
                return self.table.look_up(codes)
            except KeyError as error:
                raise self._fault(
                    index,
                    f"has {_what(error.args[0])}, which data.mask_values does not name; add it, with null if such "
                    "pixels are not judged",
                ) from None
        largest = int(codes.max(initial=0, where=codes != self.ignore_index))
        if largest >= COLOUR:
            raise self._fault(index, f"has {_what(largest)}; {_say(np.unique(codes))}")
        if largest >= self.classes:
            raise self._fault(
                index,
                f"has value {largest}, but there are {self.classes} classes (0 to {self.classes - 1}); set "
                f"data.mask_classes, or data.ignore_index={largest} if it means unlabelled",
            )
        return codes.astype(np.uint8)

    def counted(self, skip: bool) -> int:
        """How many classes there must be: one more than the largest value, if all smaller ones occur.

        Args:
            skip: Pass over masks that cannot be decoded.

        Raises:
            DataError: If one cannot be decoded and ``skip`` is off, every pixel is to be ignored, or values are left
                out, so that the largest need not be a class.
        """
        found: set[int] = set()
        for index in range(len(self.places)):
            try:
                found |= set(np.unique(self.codes(index)).tolist())
            except CorruptError:
                if not skip:
                    raise
        found.discard(self.ignore_index)
        if not found:
            raise self._unjudged("training masks")
        largest = max(found)
        if largest >= MASK_VALUES:
            what = "colours" if largest >= COLOUR else f"value {largest}"
            raise DataError(f"{self.where}: the training masks have {what}; {_say(found)}")
        if gaps := set(range(largest)) - found - {self.ignore_index}:
            raise DataError(
                f"{self.where}: the training masks have value {largest} but not {min(gaps)}, so the number of classes "
                f"cannot be told; set data.ignore_index={largest} if that means unlabelled (it is "
                f"{self.ignore_index}), or data.mask_classes; or {_say(found)}"
            )
        return largest + 1

    def black_and_white(self, most: int) -> bool:
        """Whether masks have the values 0 and 255 alone, so that 255 means the object, not that it is not judged.

        Args:
            most: Masks that are looked at, spread evenly.
        """
        allowed = {0, OBJECT} | ({self.ignore_index} if self.ignore_index != OBJECT else set())
        found: set[int] = set()
        for index in evenly_spaced(len(self.places), most):
            try:
                found |= set(np.unique(self.codes(index)).tolist())
            except CorruptError:
                continue
            if not found <= allowed:
                return False
        return {0, OBJECT} <= found

    def refuse_unjudged(self, split: str, names: Sequence[str], needs_two: bool, most: int) -> None:
        """Raises ``DataError`` if no pixel has a class, so that nothing could be learned or judged, or one alone.

        Args:
            split: What the masks are called.
            names: Of the classes.
            needs_two: Whether one class is too few, as for training.
            most: Masks that are looked at, spread evenly, if their pixels were not counted yet.
        """
        if self.pixels is None:
            self.pixels = np.zeros(MASK_VALUES, np.int64)
            for index in evenly_spaced(len(self.places), most):
                codes = self.codes(index)
                values = codes if self.table is None else self.table.look_up(codes)
                self.pixels += np.bincount(values.ravel().clip(max=255), minlength=MASK_VALUES)
        judged = [value for value in np.flatnonzero(self.pixels).tolist() if value != self.ignore_index]
        if not judged:
            raise self._unjudged(f"masks of split '{split}'")
        if needs_two and len(judged) == 1:
            ignored = "" if self.table else f" or have the ignored value {self.ignore_index}"
            raise DataError(
                f"{self.where}: all pixels of the training masks are of class '{names[judged[0]]}'{ignored}; a "
                "segmenter needs two classes: say what the values mean with data.mask_values={0: ..., 255: ...}"
            )

    def shares(self, names: Sequence[str], ignore_index: int | None) -> str:
        """Which share of pixels each class has, largest first; empty if they were not counted."""
        if self.pixels is None or not (total := int(self.pixels.sum())):
            return ""
        counts = [(int(self.pixels[number]), name) for number, name in enumerate(names)]
        counts.sort(key=lambda pair: -pair[0])
        some = [f"{name} {100 * count / total:.1f} %" for count, name in counts[:SHOWN]]
        if rest := counts[SHOWN:]:
            some.append(f"{len(rest)} more {100 * sum(count for count, _ in rest) / total:.1f} %")
        if ignore_index is not None and (ignored := int(self.pixels[ignore_index])):
            some.append(f"not judged {100 * ignored / total:.1f} %")
        return ", ".join(some)

    def _unjudged(self, which: str) -> DataError:
        if self.table:
            return DataError(f"{self.where}: no pixel of the {which} is judged; check data.mask_values")
        return DataError(
            f"{self.where}: all pixels of the {which} have the ignored value {self.ignore_index}; "
            "set data.ignore_index to the value that means unlabelled"
        )

    def _fault(self, index: int, what: str) -> DataError:
        return DataError(f"{self.where}: mask {self.places[index].name} {what}")

    def picked(self, kept: Sequence[int]) -> Masks:
        """Those of some of the images."""
        return dataclasses.replace(self, places=[self.places[index] for index in kept], pixels=None)


def code_of_colour(red: int, green: int, blue: int) -> int:
    """The number of a colour; of a grey it is its value, so that grey masks may be saved as RGB."""
    return red if red == green == blue else COLOUR + (red << 16) + (green << 8) + blue


def evenly_spaced(count: int, most: int) -> Iterable[int]:
    """All of so many indices, or ``most`` of them at even distances."""
    return range(count) if count <= most else (number * count // most for number in range(most))


def _codes(mask: Image.Image, coloured: bool) -> np.ndarray | None:
    """The values of pixels, or colours as numbers; None for modes that have neither."""
    if mask.mode in ("LA", "RGBA") and mask.getchannel("A").getextrema() == (255, 255):
        mask = mask.convert(mask.mode[:-1])
    if mask.mode == "P" and coloured:
        mask.info.pop("transparency", None)
        mask = mask.convert("RGB")
    if mask.mode in ("L", "P", "1", *GREY_16):
        return np.asarray(mask).astype(np.int32)
    if mask.mode == "I":
        values = np.asarray(mask)
        return values if values.min() >= 0 and values.max() <= LARGEST else None
    if mask.mode in ("RGB", "RGBX"):
        red, green, blue = (np.asarray(mask)[..., band].astype(np.int32) for band in range(3))
        return np.where((red == green) & (green == blue), red, COLOUR + (red << 16) + (green << 8) + blue)
    return None


def _what(code: int) -> str:
    return f"colour {_key(code)}" if code >= COLOUR else f"value {code}"


def _key(code: int) -> str:
    """What ``mask_values`` calls a code."""
    if code < COLOUR:
        return str(code)
    return " ".join(str((code - COLOUR) >> shift & 255) for shift in (16, 8, 0))


def _say(codes: Iterable[int]) -> str:
    """The setting that says what values or colours mean, to be filled in."""
    found = sorted(int(code) for code in codes)
    keys = [_key(code) if found[-1] < COLOUR or code >= COLOUR else f"{code} {code} {code}" for code in found]
    if len(keys) >= MASK_VALUES:
        return f"{len(keys)} are too many for classes: is this a mask, saved without smoothing?"
    entries = [f"{key}: NAME" for key in keys[:SHOWN]] + ["..."] * (len(keys) > SHOWN)
    return f"say what they mean with data.mask_values={{{', '.join(entries)}}}, null for what is not judged"
