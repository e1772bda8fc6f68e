"""Damaged images of twelve formats in a folder of whole ones: named, left out if asked for, and never a crash."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from faults.trials import Verdicts, damage
from learngene.data.open_split import open_split
from learngene.recipe.sections import DataSpec
from pico import make_images

FORMATS = ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm", "jp2", "ico", "tga", "pcx", "avif")
EACH = 100


def damaged_images(folder: Path, share: float, seed: int) -> dict[str, Any]:
    """So many damaged copies of one image per format; the other images must still be read."""
    warnings.simplefilter("ignore")
    verdicts, left_out = Verdicts(), 0
    for kind in FORMATS:
        images = make_images(folder / kind, size=24)
        whole = images / "train" / "blue" / "00.png"
        path = whole.with_name(f"damaged.{kind}")
        with Image.open(whole) as picture:
            picture.convert("RGB").save(path)
        content = path.read_bytes()
        for number in range(round(share * EACH)):
            trial, changed = damage(content, random.Random(f"{kind} {seed} {number}"))
            path.write_bytes(changed)
            kept: list[int] = []
            verdicts.judge(kind, f"{number} ({trial})", lambda images=images, kept=kept: _read(images, kept))
            left_out += bool(kept and kept[0] < 25)
    return verdicts.record(left_out=left_out)


def _read(images: Path, kept: list[int]) -> bool:
    """With ``skip_corrupt`` every image that is left can be read; without, the damaged one is named."""
    found = open_split(DataSpec(source=str(images), workers=0), "train").scan(skip=True)
    kept.append(len(found))
    pictures = [found.image(index) for index in range(len(found))]
    if len(found) < 25:
        try:
            open_split(DataSpec(source=str(images), workers=0), "train").scan(skip=False)
        except Exception as error:
            if "damaged." not in str(error):
                raise
        else:
            return False
    return len(pictures) >= 24
