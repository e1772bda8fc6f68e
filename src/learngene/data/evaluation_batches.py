"""Images as evaluation sees them, in batches that lie as training batches do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from learngene.data.batches import eval_loader
from learngene.data.images import ImageSet
from learngene.data.preprocessing import crop_pct
from learngene.recipe.sections import Augment, DataSpec, Train

LEAST_BATCH = 64
"""Images that a run's evaluation looks at together, at least; else as many as a step trains on."""

Precision = Literal["fp32", "bf16", "fp16"]


class EvaluationBatches:
    """Images in the order of their set, as ``TrainBatches`` of a single process gives views of an epoch; none mixed."""

    parts, rank, processes = 1, 0, 1

    def __init__(
        self,
        images: ImageSet,
        data: DataSpec,
        precision: Precision,
        *,
        img_size: int,
        in_chans: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """Prepares the batches.

        Args:
            images: The images.
            data: How they are read and normalised.
            precision: In which the teacher is asked.
            img_size: Side of the images in pixels.
            in_chans: 3 for colour, 1 for grey.
            batch_size: Images that are looked at together, by which outputs differ by rounding.
            device: Where batches are to be.
        """
        self.images, self.data, self.count = images, data, len(images)
        self.img_size, self.in_chans, self.crop_pct = img_size, in_chans, crop_pct(data, img_size)
        self.device = device
        self.train = Train(batch_size=batch_size, precision=precision, augment=Augment(preset="none"))
        self.steps_per_epoch = -(-self.count // batch_size)

    def epoch(self, epoch: int, first_step: int = 0, end: int | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Batches, each as the one part of a step."""
        size: dict[str, Any] = {"img_size": self.img_size, "in_chans": self.in_chans}
        loader = eval_loader(self.images, self.data, **size, batch_size=self.train.batch_size, device=self.device)
        yield from ([part] for part in loader.batches(first_step, end))

    def positions(self, step: int, part: int, rank: int) -> np.ndarray:
        """Where the images of a step stand in their set."""
        size = self.train.batch_size
        return np.arange(step * size, min((step + 1) * size, self.count))

    def mix(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The images as they are."""
        return images, labels
