"""Views of images: each a pure function of (seed, epoch, position), made as 8-bit pixels, a part of a batch at a time.

Pixels are a quarter of what numbers take, also on their way between processes; they become numbers a batch at a time,
on the device, with the very values that one image after another would have.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from learngene.data.images import ImageSet
from learngene.data.transforms import ImageTransform

if TYPE_CHECKING:
    from learngene.data.mask_transforms import MaskTransform

KEEP_BYTES = 256 << 20
"""Most memory for what is kept of a set: views if they are the same in every epoch, else the images they are of."""

ORDER, AUGMENT, MIX = 1, 2, 3
"""Purposes of randomness: each has its own stream of seeds."""

Part = list[tuple[int, int, int]]
"""Addresses of the images that a process holds at once: (epoch, position in the epoch, index of the image)."""

Raw = tuple[Tensor, Tensor, list[tuple[int, Any, np.ndarray]]]
"""Pixels, labels or masks, and what is erased: in which image, where, and what is there instead."""


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restores Python's, numpy's and torch's CPU generators behind the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(*key: int) -> None:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's CPU generators inside the block and restores them behind it."""
    with _restored():
        _seed(*key)
        yield


class ImageViews:
    """Augmented images with their label or mask, addressed by (epoch, position in the epoch, index of the image)."""

    def __init__(
        self,
        images: ImageSet,
        transform: ImageTransform | MaskTransform,
        in_chans: int,
        seed: int,
        *,
        varied: bool,
        keep: bool,
    ) -> None:
        """Prepares the views.

        Args:
            images: What they are of.
            transform: Makes them.
            in_chans: 3 for colour, 1 for grey.
            seed: Of the run.
            varied: Whether two views of an image differ.
            keep: Whether what fits may stay in memory; loader processes would each keep their own.
        """
        self.images, self.transform, self.seed, self.varied = images, transform, seed, varied
        self.mode, self.room = "L" if in_chans == 1 else "RGB", KEEP_BYTES if keep else 0
        self._kept: dict[int, Any] = {}
        self._last: tuple[int, Any] = (-1, None)

    def __getitems__(self, part: Part) -> Raw:
        """The views of a part, as pixels (batch, height, width, channels) of uint8."""
        with _restored():  # once, as it takes longer than seeding
            views = [self._view(*address) for address in part]
        pixels, targets, erased = zip(*views, strict=True)
        rows = [(row, where, values) for row, some in enumerate(erased) for where, values in some]
        joined = torch.from_numpy(np.stack(targets)) if self.images.segmentation else torch.tensor(targets)
        return torch.from_numpy(np.stack(pixels)), joined, rows

    def finished(self, _part: Any, raw: Raw, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images (batch, channels, height, width), and labels or masks, on a device."""
        pixels, targets, erased = raw
        images = self.transform.normalise(pixels.to(device, non_blocking=True))
        for row, where, values in erased:
            images[(row, *where)] = torch.from_numpy(values).to(device)
        return images, targets.to(device, non_blocking=True)

    def _view(self, epoch: int, position: int, index: int) -> Any:
        if self.varied:
            source = self._source(index)
        elif index in self._kept:
            return self._kept[index]
        else:
            source = self._decoded(index)
        _seed(AUGMENT, self.seed, epoch, position)
        view = self.transform(*source)
        if not self.varied and not _almost_square(source[0]):
            self._keep(index, view, view[0].nbytes)
        return view

    def _source(self, index: int) -> tuple[Image, Any]:
        """An image, decoded once for all views of it that follow each other, or for good."""
        if index != self._last[0]:
            source = self._kept.get(index)
            if source is None:
                source = self._decoded(index)
                self._keep(index, source, 4 * source[0].width * source[0].height)
            self._last = index, source
        found: tuple[Image, Any] = self._last[1]
        return found

    def _decoded(self, index: int) -> tuple[Image, Any]:
        if self.images.segmentation:
            return self.images.pair(index, self.mode)
        return self.images.image(index, self.mode), int(self.images.labels[index])

    def _keep(self, index: int, what: Any, size: int) -> None:
        if size <= self.room:
            self.room -= size
            self._kept[index] = what


def _almost_square(image: Image) -> bool:
    """Whether timm's crop of the whole image, which is a square of its area, fits it in several places."""
    return image.width != image.height and round(math.sqrt(image.width * image.height)) <= min(image.size)
