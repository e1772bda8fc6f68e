"""Timm's transforms for the augmentation section of a recipe: of each image up to 8-bit pixels, then of a batch."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Transpose
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip

from learngene.data.preprocessing import crop_pct
from learngene.recipe.sections import Augment, DataSpec
from learngene.system.errors import DataError

Erased = list[tuple[Any, np.ndarray]]
"""Where something is erased from an image, and what is there instead."""


class Normalise:
    """Pixels of a batch as normalised numbers, to the last bit those of timm's or torchvision's transform of each."""

    def __init__(self, spec: DataSpec, *, reciprocal: bool = False) -> None:
        """Prepares it; ``reciprocal`` multiplies by 1 / 255 as torchvision's new transforms do, instead of dividing."""
        self.reciprocal = reciprocal
        terms = (255.0,), spec.mean or (), spec.std or ()  # 255 as a tensor, too: CUDA takes the reciprocal of a number
        self.white, self.mean, self.std = (torch.tensor(term)[:, None, None] for term in terms)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(batch, height, width, channels) of uint8 as (batch, channels, height, width) of float32."""
        if self.white.device != pixels.device:
            self.white, self.mean, self.std = (v.to(pixels.device) for v in (self.white, self.mean, self.std))
        planes = pixels.permute(0, 3, 1, 2)
        numbers = torch.empty(planes.shape, device=pixels.device).copy_(planes)
        numbers = numbers.mul_(1 / 255) if self.reciprocal else numbers.div_(self.white)
        return numbers.sub_(self.mean).div_(self.std)


class ImageTransform:
    """A transform of timm's, whose steps up to numbers are done image by image, without what they need for tensors."""

    def __init__(self, spec: DataSpec, transform: Any) -> None:
        """Takes a transform apart that ends with numbers, normalisation and, perhaps, erasing."""
        steps = transform.transforms
        end = next(place for place, step in enumerate(steps) if isinstance(step, MaybeToTensor))
        self.steps = [_by_pillow(step, spec) for step in steps[:end]]
        self.normalise = Normalise(spec)
        self.erasing = next((step for step in steps[end:] if isinstance(step, RandomErasing)), None)

    def __call__(self, image: Image, target: int) -> tuple[np.ndarray, int, Erased]:
        """The pixels (height, width, channels) of a view, and what is to be erased once they are numbers."""
        for step in self.steps:
            image = step(image)
        pixels = channels_last(image)
        erased = _Noted(pixels.shape)
        if self.erasing:
            self.erasing(erased)
        return pixels, target, erased


def channels_last(image: Image) -> np.ndarray:
    """The pixels of an image (height, width, channels)."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


class _Noted(list[tuple[Any, np.ndarray]]):
    """Notes what timm's erasing would write into an image of numbers."""

    dtype = torch.float32

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def size(self) -> tuple[int, ...]:
        height, width, channels = self.shape
        return channels, height, width

    def __setitem__(self, where: Any, values: Any) -> None:
        self.append((where, values.numpy()))


def _by_pillow(step: Any, spec: DataSpec) -> Any:
    """The same step, drawing the same numbers, on images of Pillow's alone."""
    if isinstance(step, RandomResizedCropAndInterpolation):
        return partial(_crop, step, str_to_pil_interp(spec.interpolation))
    if isinstance(step, RandomHorizontalFlip):
        return partial(_flip, step.p)
    if isinstance(step, RandAugment) and step.choice_weights is None:
        return partial(_rand_augment, step)
    return step


def _crop(step: RandomResizedCropAndInterpolation, how: Any, image: Image) -> Image:
    top, left, height, width = step.get_params(image, step.scale, step.ratio)
    return image.crop((left, top, left + width, top + height)).resize(step.size, how)


def _flip(probability: float, image: Image) -> Image:
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < probability else image


def _rand_augment(step: RandAugment, image: Image) -> Image:
    for number in np.random.randint(0, len(step.ops), size=step.num_layers):
        image = step.ops[number](image)
    return image


def train_transform(augment: Augment, spec: DataSpec, img_size: int) -> ImageTransform:
    """Timm's training transform for an augmentation section."""
    scale, ratio = (augment.scale, augment.ratio) if augment.scale else ((1.0, 1.0), (1.0, 1.0))
    try:
        return ImageTransform(spec, _create_train_transform(augment, spec, img_size, scale, ratio))
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(f"train.augment.rand_augment '{augment.rand_augment}': timm refuses it ({error})") from None


def eval_transform(spec: DataSpec, img_size: int) -> ImageTransform:
    """Timm's transform for evaluation: resize to ``img_size / crop_pct``, then crop the centre."""
    norm: dict[str, Any] = {"mean": spec.mean or (), "std": spec.std or ()}
    made = create_transform(img_size, interpolation=spec.interpolation, crop_pct=crop_pct(spec, img_size), **norm)
    return ImageTransform(spec, made)


def _create_train_transform(
    augment: Augment, spec: DataSpec, img_size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Any:
    transform = create_transform(
        img_size,
        is_training=True,
        scale=scale,
        ratio=ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.rand_augment,
        interpolation=spec.interpolation,
        mean=spec.mean or (),
        std=spec.std or (),
        re_prob=augment.erasing,
        re_mode=augment.erasing_mode,
        re_count=augment.erasing_count,
    )
    for step in transform.transforms:
        policies = getattr(step, "ops", None) or getattr(step, "policy", [])
        for operation in chain.from_iterable(some if isinstance(some, list) else [some] for some in policies):
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = posterize
    return transform


def posterize(image: Image, bits: int, **settings: Any) -> Image:
    """Timm's, down to no bits at all: black, as Pillow had it; since version 13 it refuses what timm asks of it."""
    return timm_posterize(image, bits, **settings) if bits else image.point(lambda _: 0)
