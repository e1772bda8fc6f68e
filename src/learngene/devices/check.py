"""Real images for a file's check and calibration, and the comparison of the file with the model on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learngene.data.batches import eval_loader
from learngene.data.class_match import numbered
from learngene.data.open_split import open_split
from learngene.data.preprocessing import fill_preprocessing
from learngene.devices.target import Session
from learngene.making.arguments import Data, data_section
from learngene.making.finetune import open_for
from learngene.system.errors import DataError, LearngeneError
from learngene.training.scores import ConfusionMatrix, TopKCounter
from learngene.vits.input_size import image_config, input_size

DIGITS = 64
"""Images that a file is checked on if no data are given: scikit-learn's digits, which are at hand everywhere."""


@dataclass(frozen=True)
class CheckImages:
    """What a file is checked on.

    Attributes:
        source: What they are, in words.
        batches: Normalised images, with labels or masks if they are judged.
        judged: Whether they are.
        ignore_index: The value of mask pixels that are not judged; None for labels.
    """

    source: str
    batches: Iterable[tuple[Tensor, Tensor]]
    judged: bool
    ignore_index: int | None = None


@dataclass(frozen=True)
class Agreement:
    """How near a file's outputs are to the model's.

    Attributes:
        source: The images.
        images: How many.
        largest_difference: Of an output.
        relative_difference: The same, relative to the model's largest output.
        top1_agreement: Percent of images (or pixels) with the same guess; of a model without classes the mean cosine
            of both outputs, in percent.
        score: Percent that the file gets right (mean IoU of a segmenter); None without labels.
        model_score: The same of the model.
    """

    source: str
    images: int
    largest_difference: float
    relative_difference: float
    top1_agreement: float
    score: float | None = None
    model_score: float | None = None


def check_images(model: Any, data: Data | None, batch: int) -> CheckImages:
    """The val split of data; without data some digits, or noise for a model that takes no such images.

    What is read at once has one image more than the largest batch that is checked.
    """
    chans, height, width = input_size(model)
    if data is None and (chans not in (1, 3) or height != width):
        noise = torch.randn(batch + 1, chans, height, width, generator=torch.Generator().manual_seed(0))
        return CheckImages("noise", [(noise, torch.zeros(batch + 1))], judged=False)
    spec = data_section(data or {"source": "digits", "workers": 0})
    _refuse_size(model, spec.img_size)
    if data is None or not model.num_classes:
        images = open_split(spec, "val") if data is None else open_split(spec, "val", None)
        few = max(DIGITS, batch + 1) if data is None else None
        return CheckImages(images.where, _batches(model, spec, images, few, batch), judged=False)
    images = numbered(open_for(model, spec, "val"), model, spec)
    return CheckImages(
        images.where, _batches(model, spec, images, None, batch), judged=True, ignore_index=images.ignore_index
    )


def calibration_images(model: Any, data: Data, count: int | None) -> Tensor:
    """Images of the train split, spread over it: as many as asked, or up to 128.

    Raises:
        DataError: If there are fewer than asked.
    """
    spec = data_section(data)
    _refuse_size(model, spec.img_size)
    images = open_for(model, spec, "train")
    if count is not None and count > len(images):
        raise DataError(f"{images.where}: {len(images)} training images, fewer than --calibrate {count}; ask for fewer")
    count = min(count or 128, len(images))
    return torch.cat([part for part, _ in _batches(model, spec, images, count)])[:count]


def agreement(model: Any, session: Session, on: CheckImages, batch: int) -> Agreement:
    """Runs a file on images, alone and in batches of the largest size that it takes, and the model beside it."""
    judges = [TopKCounter() if on.ignore_index is None else ConfusionMatrix(on.ignore_index) for _ in range(2)]
    same, of, images, difference, largest = 0.0, 0, 0, 0.0, 0.0
    with torch.inference_mode():
        for inputs, targets in on.batches:
            expected = model(inputs).float()
            parts = [inputs[:1], *inputs[1:].split(batch)] if not images else inputs.split(batch)
            found = torch.cat([session.run(part) for part in parts if len(part)])
            if found.shape != expected.shape:
                raise LearngeneError(f"export: the file gives outputs of shape {tuple(found.shape)}")
            images += len(inputs)
            apart = float((found - expected).abs().max())
            difference = apart if math.isnan(apart) else max(difference, apart)
            if math.isnan(difference):
                raise LearngeneError("export: the file gives what is no number; give another precision")
            largest = max(largest, float(expected.abs().max()))
            if model.num_classes:
                agreed = (found.argmax(1) == expected.argmax(1)).float()
            else:
                agreed = torch.nn.functional.cosine_similarity(found, expected, dim=1)
            same, of = same + float(agreed.sum()), of + agreed.numel()
            if on.judged:
                for judge, outputs in zip(judges, (found, expected), strict=True):
                    judge.add(outputs, targets)
    scores = [judge.result().main for judge in judges] if on.judged else [None, None]
    relative = difference / max(1.0, largest)
    return Agreement(on.source, images, difference, relative, 100 * same / of, *scores)


def _batches(
    model: Any, spec: Any, images: Any, count: int | None = None, batch: int = 0
) -> Iterable[tuple[Tensor, Tensor]]:
    """All images, or about so many that are spread over them, as the model takes them."""
    spec, (chans, side, _) = fill_preprocessing(spec, image_config(model)), input_size(model)
    every = max(1, len(images) // count) if count else 1
    return eval_loader(images, spec, img_size=side, in_chans=chans, batch_size=max(64, batch + 1), processes=every)


def _refuse_size(model: Any, img_size: int | None) -> None:
    chans, height, width = input_size(model)
    if img_size is not None and (img_size, img_size) != (height, width):
        raise DataError(f"data.img_size {img_size}: the model takes images of {height} x {width} px; leave it out")
    if chans not in (1, 3) or height != width:
        raise DataError(f"the model takes images of {chans} x {height} x {width}; only square ones in colour are read")
