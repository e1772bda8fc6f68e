"""Scores: what a model gets right on a split, counted batch by batch, on one device or over several processes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene.training.classification import BINS, Baseline, ClassCounts, ClassificationReport, paired

Key = TypeVar("Key")


@dataclass(frozen=True)
class Accuracy:
    """What a classifier scores on a split.

    Attributes:
        top1: Percent of images whose first guess is right.
        top5: Percent whose class is among the five best guesses (all of them if there are fewer classes).
        loss: Mean cross-entropy in nats.
        images: How many images were judged.
        report: What top-1 is worth, where a model was judged for good, and not in between.
    """

    top1: float
    top5: float
    loss: float
    images: int
    report: ClassificationReport | None = None

    @property
    def main(self) -> float:
        """The score that models are compared by."""
        return self.top1

    @property
    def label(self) -> str:
        """What to call it."""
        return "top-1"

    def entry(self) -> dict[str, Any]:
        """The scores of an epoch, as its record has them."""
        return {"top1": self.top1, "top5": self.top5, "val_loss": self.loss}


@dataclass(frozen=True)
class SegmentationScore:
    """What a segmenter scores on a split, over all its pixels but those to be ignored.

    Attributes:
        miou: Mean over classes of intersection over union, in percent; classes that occur neither in predictions nor
            in masks are left aside.
        pixel_accuracy: Percent of pixels whose class is right.
        ious: Intersection over union of every class in percent; None for one that does not occur.
        loss: Mean cross-entropy of a pixel in nats.
        images: How many images were judged.
    """

    miou: float
    pixel_accuracy: float
    ious: tuple[float | None, ...]
    loss: float
    images: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "ious", tuple(self.ious))  # which JSON gives as a list

    @property
    def main(self) -> float:
        """The score that models are compared by."""
        return self.miou

    @property
    def label(self) -> str:
        """What to call it."""
        return "mean IoU"

    def entry(self) -> dict[str, Any]:
        """The scores of an epoch, as its record has them."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "ious": list(self.ious),
            "val_loss": self.loss,
        }


@dataclass(frozen=True)
class MeanTaskScore:
    """What a classifier of several tasks scores, each of which counts the same.

    Attributes:
        top1: Mean over the tasks of their top-1 accuracies, in percent.
        top5: The same of top-5.
        loss: Mean of their cross-entropies.
        images: How many images were judged in all.
        tasks: Top-1 of every task.
    """

    top1: float
    top5: float
    loss: float
    images: int
    tasks: Mapping[str, float]

    @classmethod
    def of(cls, scores: Mapping[str, Accuracy]) -> MeanTaskScore:
        """The average of tasks' scores."""
        top1, top5, loss = (
            statistics.fmean(getattr(score, name) for score in scores.values()) for name in ("top1", "top5", "loss")
        )
        images = sum(score.images for score in scores.values())
        return cls(top1, top5, loss, images, {name: score.top1 for name, score in scores.items()})

    @property
    def main(self) -> float:
        """The score that models are compared by."""
        return self.top1

    @property
    def label(self) -> str:
        """What to call it."""
        return "mean top-1"

    def entry(self) -> dict[str, Any]:
        """The scores of an epoch, as its record has them."""
        return {"top1": self.top1, "top5": self.top5, "val_loss": self.loss, "tasks": dict(self.tasks)}


@dataclass(frozen=True)
class FeatureScore:
    """How well features are matched on a split, whose classes do not count.

    Attributes:
        neighbours: Of the 20 nearest images of every image (at most a quarter of the others), by its pooled features,
            the percentage that is also among its teacher's; the mean over images and teachers.
        loss: What is minimised, on this split; without labels.
        images: How many images were judged.
        cosine: 100 times the mean cosine with the teacher's features; None where none are compared as vectors.
        knn: Percent of labelled images that their nearest neighbours name rightly; None without such images.
    """

    neighbours: float
    loss: float
    images: int
    cosine: float | None = None
    knn: float | None = None

    @property
    def main(self) -> float:
        """The score that models are compared by."""
        return self.neighbours if self.knn is None else self.knn

    @property
    def label(self) -> str:
        """What to call it."""
        return "neighbours in common" if self.knn is None else "kNN"

    def entry(self) -> dict[str, Any]:
        """The scores of an epoch, as its record has them."""
        scores = {"neighbours": self.neighbours, "cosine": self.cosine, "knn": self.knn, "val_loss": self.loss}
        return {name: value for name, value in scores.items() if value is not None}


SetScore = Accuracy | SegmentationScore
"""Of one data set."""


Score = SetScore | MeanTaskScore | FeatureScore


def score_from(values: Mapping[str, Any]) -> Score:
    """A score from the plain values that ``dataclasses.asdict`` made of it."""
    if "miou" in values:
        return SegmentationScore(**values)
    if "neighbours" in values:
        return FeatureScore(**values)
    if "tasks" in values:
        return MeanTaskScore(**values)
    report = values.get("report")
    return Accuracy(**{**values, "report": report and ClassificationReport.from_values(report)})


class TopKCounter:
    """What a classifier gets right among its first and its five best guesses, class by class.

    Attributes:
        hits: Of every batch of this process, which first guesses are right.
    """

    def __init__(self) -> None:
        """Starts at nothing."""
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._classes = self._bins = torch.zeros(0)
        self._device = self._sums.device
        self.hits: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (batch, classes).
            labels: (batch,).
        """
        self._device, classes = logits.device, logits.shape[1]
        guesses = logits.topk(min(5, classes), dim=1).indices
        found = guesses == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        count = torch.tensor(len(labels), device=logits.device)
        parts = [found[:, 0].sum(), found.any(1).sum(), loss, count]
        self._sums += torch.stack([part.double() for part in parts]).cpu()
        hits, first, labels = found[:, 0].cpu(), guesses[:, 0].cpu(), labels.cpu()
        confidence = logits.softmax(1).amax(1).double().nan_to_num().cpu()
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        if not self.hits:
            self._classes, self._bins = torch.zeros(3, classes, dtype=torch.long), torch.zeros(3, BINS).double()
        self._classes += torch.stack([torch.bincount(of, minlength=classes) for of in (labels, first, labels[hits])])
        weights = (torch.ones_like(confidence), confidence, hits.double())
        self._bins += torch.stack([torch.bincount(bins, each, minlength=BINS) for each in weights])
        self.hits.append(hits)

    def result(
        self, reduce: Any = None, names: Sequence[str] | None = None, baseline: Baseline | None = None
    ) -> Accuracy:
        """Percentages and mean loss over all images of all processes.

        Args:
            reduce: Sums a tensor over processes; None with one process.
            names: Of the classes, for a report; None makes none.
            baseline: A model that the report compares with, on this process's images.
        """
        total = self._sums
        if reduce is not None:
            total = reduce(total.float().to(self._device), reduction="sum").double().cpu()
        right, right5, loss, images = total.tolist()
        score = Accuracy(100 * right / images, 100 * right5 / images, loss / images, int(images))
        return score if names is None else replace(score, report=self._report(names, baseline, reduce))

    def _report(self, names: Sequence[str], baseline: Baseline | None, reduce: Any) -> ClassificationReport:
        classes, bins, pairs = self._classes, self._bins, torch.zeros(3, dtype=torch.long)
        if baseline is not None:
            ours, theirs = torch.cat(self.hits), torch.from_numpy(baseline.hits)
            pairs = torch.stack([(ours & ~theirs).sum(), (theirs & ~ours).sum(), theirs.sum()])
        if reduce is not None:
            classes, pairs = (reduce(each.to(self._device), reduction="sum").cpu() for each in (classes, pairs))
            bins = reduce(bins.float().to(self._device), reduction="sum").double().cpu()
        report = ClassCounts(classes[0].numpy(), classes[1].numpy(), classes[2].numpy(), bins.numpy()).report(names)
        if baseline is None:
            return report
        alone, there, right = pairs.tolist()
        return replace(report, baseline=paired(baseline, alone, there, right, int(classes[0].sum())))


class ConfusionMatrix:
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

    def result(self, reduce: Any = None) -> SegmentationScore:
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
        return SegmentationScore(
            miou=sum(present) / max(1, len(present)),
            pixel_accuracy=100 * float(hits.sum()) / max(1.0, pixels),
            ious=ious,
            loss=float(loss) / max(1.0, pixels),
            images=int(images),
        )


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], *, precision: str = "fp32", reduce: Any = None
) -> Accuracy:
    """Scores a classifier; see ``accuracies``."""
    return counted(model, batches, precision=precision).result(reduce)


def counted(model: nn.Module, batches: Iterable[tuple[Tensor, Any]], *, precision: str = "fp32") -> TopKCounter:
    """What a classifier gets right of this process's images; see ``accuracies``."""
    tally = TopKCounter()
    _count({"": model}, {"": tally}, batches, precision)
    return tally


def accuracies(
    models: Mapping[Key, nn.Module],
    batches: Iterable[tuple[Tensor, Any]],
    *,
    precision: str = "fp32",
    reduce: Any = None,
) -> dict[Key, Accuracy]:
    """Scores classifiers on the same images, which are read once.

    Args:
        models: Classifiers on one device; put into evaluation mode and back.
        batches: Normalised images and integer labels.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
        reduce: Sums a tensor over processes, for example ``Accelerator.reduce``; None with one process.

    Returns:
        Percentages and mean loss over all images of all processes, per model.
    """
    tallies = {key: TopKCounter() for key in models}
    _count(models, tallies, batches, precision)
    return {key: tally.result(reduce) for key, tally in tallies.items()}


def task_score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    ignore_index: int | None,
    *,
    precision: str = "fp32",
    reduce: Any = None,
    names: Sequence[str] | None = None,
    baseline: Baseline | None = None,
) -> SetScore:
    """Scores a classifier or a segmenter.

    Args:
        model: Put into evaluation mode and back.
        batches: Normalised images, with integer labels or masks.
        ignore_index: The value of mask pixels that are not judged; None for labels.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
        reduce: Sums a tensor over processes, for example ``Accelerator.reduce``; None with one process.
        names: Of the classes, for the report of a classifier; None makes none.
        baseline: A model that the report compares with, on this process's images.

    Returns:
        ``Accuracy`` or ``SegmentationScore``, over all images of all processes.
    """
    if ignore_index is None:
        return counted(model, batches, precision=precision).result(reduce, names, baseline)
    tally = ConfusionMatrix(ignore_index)
    _count({"": model}, {"": tally}, batches, precision)
    return tally.result(reduce)


def _count(
    models: Mapping[Key, nn.Module],
    tallies: Mapping[Key, TopKCounter] | Mapping[Key, ConfusionMatrix],
    batches: Iterable[tuple[Tensor, Any]],
    precision: str,
) -> None:
    """Adds what models say of images to their tallies; the images are read once."""
    device = next(next(iter(models.values())).parameters()).device
    training = {key: model.training for key, model in models.items()}
    for model in models.values():
        model.eval()
    with torch.inference_mode():
        for images, targets in batches:
            images, targets = images.to(device, non_blocking=True), targets.to(device)
            for key, model in models.items():
                with autocast(device.type, precision):
                    logits = model(images).float()
                tallies[key].add(logits, targets)
    for key, model in models.items():
        model.train(training[key])


def autocast(device_type: str, precision: str) -> contextlib.AbstractContextManager[None]:
    """Torch's autocast for a recipe's precision; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device_type, dtype)
