"""scikit-learn's handwritten digits, and data sets made of them: nothing is downloaded, and all machines see the same.

``digits`` are the 1,797 images as they are. A variant, such as ``digits/negative``, is a small task of its own: digits
of the same split, drawn once and for all, and shown in another way or called by other names. Variants are folders of
images in memory, with a class per image, or with masks.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from learngene.data.image_files import ImageFile
from learngene.system.errors import DataError, nearest

NAME, PREFIX = "digits", "digits/"
IMAGES = {"train": 768, "val": 256}
"""Most images of a variant by split."""

SIDE = 16
"""Of a variant's images in pixels; a canvas is twice as wide."""

NOISE = 70.0
"""Standard deviation of the noise, in grey values of 255."""

INK = 64
"""Grey value, of 255, from which a pixel of a canvas belongs to its digit."""


@dataclass(frozen=True)
class Variant:
    """How digits are shown, what each is called, and the seed of their draw, which variants may share."""

    seed: int
    show: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    call: Callable[[int], str] = str


VARIANTS = {
    "rotated": Variant(0, lambda digit, _: np.rot90(digit)),
    "negative": Variant(1, lambda digit, _: 255 - digit),
    "parity": Variant(2, lambda digit, _: digit, lambda label: "odd" if label % 2 else "even"),
    "half": Variant(3, lambda digit, _: digit[::-1], lambda label: "5 to 9" if label >= 5 else "0 to 4"),
    "thirds": Variant(4, lambda digit, _: digit[:, ::-1], lambda label: f"rest {label % 3}"),
    "faint": Variant(5, lambda digit, _: 255 - digit // 2),
    "noisy": Variant(3, lambda digit, rng: (digit + rng.normal(0, NOISE, digit.shape)).clip(0, 255).astype(np.uint8)),
}
"""With a class per image. No two of as many classes have the same images."""

CANVAS, CANVAS_SEED = "canvas", 5
"""The variant with masks: background is 0, a digit below 5 is 1, another is 2."""
NAMES = (*VARIANTS, CANVAS)


def read_digits(split: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Pixels (number, 8, 8) of uint8, labels and names of a split; a quarter of every class, evenly spread, is ``val``.

    Raises:
        DataError: If the split is neither ``train`` nor ``val``.
    """
    from sklearn.datasets import load_digits

    if split not in IMAGES:
        raise DataError(f"data digits: no split '{split}'{nearest(split, IMAGES)}")
    data = load_digits()
    seen: Counter[int] = Counter()
    chosen = []
    for index, label in enumerate(data.target.tolist()):
        seen[label] += 1
        if (seen[label] % 4 == 0) == (split == "val"):
            chosen.append(index)
    pixels = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)
    return pixels, data.target[chosen].tolist(), [f"digits-{index}" for index in chosen]


def variant_of(source: str | Path) -> str | None:
    """The variant that a data source names, unless a folder or tar of that name is there."""
    name = str(source).removeprefix(PREFIX)
    return name if name in NAMES and name != str(source) and not Path(source).exists() else None


@functools.cache
def variant_files(name: str) -> list[ImageFile]:
    """The images of a variant as if they lay in a folder: ``SPLIT/CLASS``, or ``images/SPLIT`` and ``masks/SPLIT``."""
    return [found for number, split in enumerate(IMAGES) for found in _drawn(name, split, number)]


def _drawn(name: str, split: str, number: int) -> Iterator[ImageFile]:
    pixels, labels, _ = read_digits(split)
    variant = VARIANTS.get(name)
    rng = np.random.default_rng([variant.seed if variant else CANVAS_SEED, number])
    for file, index in enumerate(rng.permutation(len(labels))[: IMAGES[split]]):
        if variant:
            label = variant.call(labels[index])
            yield _png(variant.show(_resized(pixels[index], SIDE), rng), f"{split}/{label}/{file}.png")
        else:
            for folder, values in zip(("images", "masks"), _canvas(pixels, labels, rng), strict=True):
                yield _png(values, f"{folder}/{split}/{file}.png")


def _canvas(pixels: np.ndarray, labels: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two to four digits, each somewhere in a quarter of its own, and the class of every pixel."""
    image, mask = np.zeros((2, 2 * SIDE, 2 * SIDE), np.uint8)
    for quarter in rng.permutation(4)[: rng.integers(2, 5)]:
        digit, side = int(rng.integers(len(labels))), int(rng.integers(SIDE - 4, SIDE + 1))
        top, left = (SIDE * place + int(rng.integers(SIDE - side + 1)) for place in divmod(int(quarter), 2))
        here = slice(top, top + side), slice(left, left + side)
        image[here] = _resized(pixels[digit], side)
        mask[here] = np.where(image[here] >= INK, 1 + labels[digit] // 5, 0)
    return image, mask


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _png(pixels: np.ndarray, name: str) -> ImageFile:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, "png")
    return ImageFile(NAME, name, content=content.getvalue())
