"""Augmentation of an image together with its mask: what moves pixels moves both, what colours them the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from learngene.data.transforms import Erased, Normalise, channels_last
from learngene.recipe.sections import Augment, DataSpec


class _Crop(v2.RandomResizedCrop):
    """Torchvision's random crop, with masks resized about pixel centres as images are.

    Its own ``nearest`` for masks takes the pixel at the corner, which shifts a mask by up to half a pixel.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        exact = InterpolationMode.NEAREST_EXACT
        cut = v2.functional.resized_crop_image(
            inpt[None].as_subclass(Tensor), **params, size=self.size, interpolation=exact
        )
        return tv_tensors.Mask(cut[0])


class _Resize(v2.Resize):
    """Torchvision's resize, with masks resized about pixel centres as images are."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        exact = InterpolationMode.NEAREST_EXACT
        return tv_tensors.Mask(v2.functional.resize_image(inpt[None].as_subclass(Tensor), self.size, exact)[0])


class MaskTransform:
    """Image and mask to the pixels of a square image and a mask of the same size."""

    def __init__(self, spec: DataSpec, img_size: int, augment: Augment | None = None) -> None:
        """Chooses the transforms.

        Args:
            spec: Interpolation of images, mean and std.
            img_size: Side in pixels.
            augment: Of training; without it, or without a crop, the whole image is resized, whatever its aspect.
        """
        size, how = [img_size, img_size], str_to_interp_mode(spec.interpolation)
        steps: list[Any] = []
        if augment and augment.scale:
            steps.append(_Crop(size, scale=augment.scale, ratio=augment.ratio, interpolation=how))
        else:
            steps.append(_Resize(size, interpolation=how))
        if augment and augment.hflip:
            steps.append(v2.RandomHorizontalFlip(augment.hflip))
        if augment and augment.color_jitter:
            steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
        self.together = v2.Compose(steps)
        self.normalise = Normalise(spec, reciprocal=True)

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, Erased]:
        """Transforms both, drawing from torch's generator.

        Args:
            image: Decoded.
            mask: Values of its pixels, (height, width).

        Returns:
            The pixels (height, width, channels) and the mask as uint8, and that nothing is erased.
        """
        image, values = self.together(image, tv_tensors.Mask(torch.from_numpy(mask)))
        return channels_last(image), values.as_subclass(Tensor).numpy(), []
