"""Counting what models get right, batch by batch, on one device or over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from learngene.training.measure import Accuracy, Overlap


class Guesses:
    """What a classifier gets right among its first and its five best guesses."""

    def __init__(self) -> None:
        """Starts at nothing."""
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._device = self._sums.device

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (batch, classes).
            labels: (batch,).
        """
        self._device = logits.device
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        count = torch.tensor(len(labels), device=logits.device)
        parts = [guesses[:, 0].sum(), guesses.any(1).sum(), loss, count]
        self._sums += torch.stack([part.double() for part in parts]).cpu()

    def result(self, reduce: Any = None) -> Accuracy:
        """Percentages and mean loss over all images of all processes."""
        total = self._sums
        if reduce is not None:
            total = reduce(total.float().to(self._device), reduction="sum").double().cpu()
        right, right5, loss, images = total.tolist()
        return Accuracy(100 * right / images, 100 * right5 / images, loss / images, int(images))


class Confusion:
    """How often a segmenter takes each class for each other, pixel by pixel."""

    def __init__(self, ignore_index: int) -> None:
        """Starts at nothing.

        Args:
            ignore_index: The value of mask pixels that are not judged.
        """
        self._ignore_index = ignore_index
        self._matrix: Tensor | None = None
        self._loss = torch.zeros((), dtype=torch.float64)
        self._images = 0
        self._device = torch.device("cpu")

    def add(self, logits: Tensor, masks: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (batch, classes, height, width).
            masks: (batch, height, width).
        """
        classes, masks = logits.shape[1], masks.long()
        judged = masks != self._ignore_index
        pairs = masks[judged] * classes + logits.argmax(1)[judged]
        counts = torch.bincount(pairs, minlength=classes * classes).cpu().view(classes, classes)
        self._matrix = counts if self._matrix is None else self._matrix + counts
        loss = F.cross_entropy(logits, masks, ignore_index=self._ignore_index, reduction="sum")
        self._loss += loss.double().cpu()
        self._images += len(masks)
        self._device = logits.device

    def result(self, reduce: Any = None) -> Overlap:
        """Intersection over union, over all pixels of all processes; 0 where no pixel was judged."""
        assert self._matrix is not None, "no images were counted"
        matrix, loss, images = self._matrix, self._loss, torch.tensor(self._images)
        if reduce is not None:
            # Counts as whole numbers: single precision would round those of a few large images already.
            matrix = reduce(matrix.to(self._device), reduction="sum").cpu()
            loss = reduce(loss.float().to(self._device), reduction="sum").double().cpu()
            images = reduce(images.to(self._device), reduction="sum").cpu()
        counts = matrix.double()
        hits, pixels = counts.diagonal(), float(counts.sum())
        union = counts.sum(0) + counts.sum(1) - hits
        ious = tuple(
            100 * hit / whole if whole else None for hit, whole in zip(hits.tolist(), union.tolist(), strict=True)
        )
        present = [iou for iou in ious if iou is not None]
        return Overlap(
            miou=sum(present) / max(1, len(present)),
            pixel_accuracy=100 * float(hits.sum()) / max(1.0, pixels),
            ious=ious,
            loss=float(loss) / max(1.0, pixels),
            images=int(images),
        )
