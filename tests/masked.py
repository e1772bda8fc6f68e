"""Tiny images with masks, in both layouts, that the tests of segmentation share."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learngene.recipe.sections import DataSpec
from pico import FAST

LIGHT: dict[str, Any] = {**FAST, "augment": {"preset": "light"}}
SHADES = (20, 120, 230)
"""Grey of the pixels of every class, so that an image says what its mask should be."""

IGNORED = 255


def pair(number: int, split: str, size: tuple[int, int] = (12, 8), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image of (width, height) and its mask: blocks of 2 x 2 pixels, a border of unlabelled ones at the top."""
    width, height = size
    draw = np.random.default_rng([number, split == "val"])
    mask = draw.integers(0, classes, (height // 2, width // 2)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    mask[-1, -1] = classes - 1
    image = np.array(SHADES, np.uint8)[mask][..., None].repeat(3, 2)
    mask[0] = IGNORED
    return image, mask


def make_masked(root: Path, train: int = 12, val: int = 4, size: tuple[int, int] = (12, 8), classes: int = 3) -> Path:
    """Writes images/SPLIT/NUMBER.png and masks/SPLIT/NUMBER.png."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            for kind, pixels in zip(("images", "masks"), pair(number, split, size, classes), strict=True):
                path = root / kind / split / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def make_voc(root: Path, train: int = 12, val: int = 4) -> Path:
    """Writes torchvision's folders of VOC, with palette masks whose colours are not their values."""
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(base / "JPEGImages" / "unlisted.jpg")
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}_{number:02d}" for number in range(count)]
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            image, mask = pair(number, split)
            Image.fromarray(image).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
            coloured = Image.fromarray(mask, "L").copy()
            coloured.putpalette([value for index in range(256) for value in (255 - index, 7, index // 2)])
            coloured.save(base / "SegmentationClass" / f"{name}.png")
    return root


def make_tar(root: Path, mode: str = "w") -> Path:
    """The same as folders, in a tar beside them."""
    path = root.with_suffix(".tar")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for kind in ("images", "masks"):
            archive.add(root / kind, kind)
    return path


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folders": make_masked,
    "tar": lambda root: make_tar(make_masked(root)),
    "compressed tar": lambda root: make_tar(make_masked(root), "w:xz"),
    "voc": make_voc,
}


def masked_data(source: Path | str, **fields: Any) -> DataSpec:
    """A data section that leaves pixels as they are."""
    return DataSpec(**{"source": str(source), "mean": (0.0,) * 3, "std": (1.0,) * 3, "workers": 0, **fields})
