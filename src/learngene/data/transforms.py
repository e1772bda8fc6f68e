"""Timm's transforms for the augmentation section of a recipe."""

from __future__ import annotations

from itertools import chain
from typing import Any

from PIL.Image import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize

from learngene.recipe.sections import Augment, DataSpec
from learngene.system.errors import DataError


def train_transform(augment: Augment, spec: DataSpec, img_size: int) -> Any:
    """Timm's training transform for an augmentation section."""
    scale, ratio = (augment.scale, augment.ratio) if augment.scale else ((1.0, 1.0), (1.0, 1.0))
    try:
        return _create_train_transform(augment, spec, img_size, scale, ratio)
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(f"train.augment.rand_augment '{augment.rand_augment}': timm refuses it ({error})") from None


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
