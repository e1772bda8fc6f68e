"""What a classifier's accuracy is worth: beside chance, class by class, and with the interval that its images allow.

Everything follows from counts per class and per bin of confidence, which add up over batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Of equal width, over the probability of the first guess: as many as in Guo et al. (2017), equation 3."""

RESAMPLES = 2000
"""Bootstrap samples behind an interval, whose ends then are off by about a fiftieth of its width."""

SHOWN_CLASSES = 12
"""Most classes that a terminal lists; of more, those that are found least."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScore:
    """How a classifier fares on one class.

    Attributes:
        name: Of the class.
        images: How many images it has.
        recall: Percent of them that are found; None without images.
        precision: Percent of the guesses of this class that are right; None without such guesses.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Baseline:
    """A model to compare another with.

    Attributes:
        name: What to call it.
        hits: (images,) of bool, whether it gets each image right, in the order in which they are judged.
    """

    name: str
    hits: np.ndarray


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: how much better the one is than the other.

    Attributes:
        baseline: What the other is called.
        top1: Its top-1 in percent.
        difference: Top-1 of the model less that of the other, in points.
        interval: Where it lies with 95 % probability: percentiles of a paired bootstrap over images.
        only_model: Images that the model alone gets right.
        only_baseline: Images that the other alone gets right.
        p_value: Of McNemar's exact test: how probable so unequal a pair of counts is between models equally good.
    """

    baseline: str
    top1: float
    difference: float
    interval: Interval
    only_model: int
    only_baseline: int
    p_value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", tuple(self.interval))  # which JSON gives as a list

    def told(self) -> str:
        """One line about it."""
        low, high = self.interval
        return (
            f"{self.difference:+.2f} points against {self.baseline} ({self.top1:.2f} %), 95 % interval {low:+.2f} to "
            f"{high:+.2f}; {self.only_model} images right here alone, {self.only_baseline} there alone, McNemar's "
            f"exact test p = {self.p_value:.2g}"
        )


@dataclass(frozen=True)
class ClassificationReport:
    """What stands beside a top-1 accuracy; intervals are percentiles of a seeded bootstrap over images.

    Attributes:
        chance: Percent that guessing at random gets right.
        majority: Percent that always guessing the most frequent class of these images gets right.
        majority_class: Its name.
        interval: Where top-1 lies with 95 % probability, as far as these images say.
        balanced_accuracy: The mean of the classes' recalls in percent; classes without images are left aside.
        balanced_interval: The same of it.
        calibration_error: Expected calibration error in percent: how far the probability of the first guess is from
            how often it is right, averaged over images by bins of that probability.
        calibration_bins: How many bins those are.
        classes: Class by class.
        baseline: Another model on the same images, if there is one to be compared with, such as the teacher.
    """

    chance: float
    majority: float
    majority_class: str
    interval: Interval
    balanced_accuracy: float
    balanced_interval: Interval
    calibration_error: float
    calibration_bins: int
    classes: tuple[ClassScore, ...]
    baseline: Paired | None = None

    def __post_init__(self) -> None:
        for name in ("interval", "balanced_interval", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ClassificationReport:
        """A report from the plain values that ``dataclasses.asdict`` made of it."""
        paired = values.get("baseline")
        parts = {"classes": [ClassScore(**each) for each in values["classes"]], "baseline": paired and Paired(**paired)}
        return cls(**{**values, **parts})

    def told(self) -> list[str]:
        """The lines that a terminal shows: what the accuracy is worth, then the classes."""
        low, high = self.interval
        below, above = self.balanced_interval
        out = [
            f"95 % interval {low:.2f} to {high:.2f} %; chance {self.chance:.2f} %, always '{self.majority_class}' "
            f"{self.majority:.2f} %",
            f"balanced accuracy {self.balanced_accuracy:.2f} % ({below:.2f} to {above:.2f}), expected calibration "
            f"error {self.calibration_error:.2f} % ({self.calibration_bins} bins)",
        ]
        out += [self.baseline.told()] if self.baseline else []
        return out + self.table()

    def table(self) -> list[str]:
        """A line per class; of many classes those that are found least."""
        shown, count = list(self.classes), len(self.classes)
        if count > SHOWN_CLASSES:
            known = [each for each in shown if each.recall is not None]
            shown = sorted(known, key=lambda each: (each.recall, -each.images))[:SHOWN_CLASSES]
        wide = max(len("class"), *(len(each.name) for each in shown))
        lines = [f"{'class':{wide}s}  images  recall  precision"]
        for each in shown:
            rates = [f"{rate:5.1f} %" if rate is not None else "-" for rate in (each.recall, each.precision)]
            lines.append(f"{each.name:{wide}s}  {each.images:6d} {rates[0]:>7s}    {rates[1]:>7s}")
        return lines + ([f"({len(shown)} of {count} classes, found least)"] if count > len(shown) else [])


@dataclass
class ClassCounts:
    """What a report is made of, summed over images.

    Attributes:
        images: Per class, its images.
        guesses: Per class, how often it is the first guess.
        right: Per class, images whose first guess is right.
        bins: Per bin of the first guess's probability: images, sum of the probabilities, images that are right.
    """

    images: np.ndarray
    guesses: np.ndarray
    right: np.ndarray
    bins: np.ndarray

    def report(self, names: Sequence[str], seed: int = 0) -> ClassificationReport:
        """The report of these counts.

        Args:
            names: Of the classes.
            seed: Of the bootstrap.
        """
        total, largest = int(self.images.sum()), int(self.images.argmax())
        interval, balanced = self._intervals(seed)
        hits, sums = self.bins[2], self.bins[1]
        classes = [
            ClassScore(name, int(count), _percent(right, count), _percent(right, guessed))
            for name, count, guessed, right in zip(names, self.images, self.guesses, self.right, strict=True)
        ]
        present = self.images > 0
        return ClassificationReport(
            chance=100 / len(names),
            majority=100 * float(self.images[largest]) / total,
            majority_class=names[largest],
            interval=interval,
            balanced_accuracy=100 * float((self.right[present] / self.images[present]).mean()),
            balanced_interval=balanced,
            calibration_error=100 * float(np.abs(sums - hits).sum()) / total,
            calibration_bins=self.bins.shape[1],
            classes=tuple(classes),
        )

    def _intervals(self, seed: int) -> tuple[Interval, Interval]:
        """Of top-1 and of balanced accuracy.

        To draw images again is to draw, for every class, how many of them are right and how many wrong.
        """
        present = self.images > 0
        images, right = self.images[present], self.right[present]
        drawn = _resampled([*right, *(images - right)], seed)
        hits, misses = drawn[:, : len(right)], drawn[:, len(right) :]
        counts = hits + misses
        recalls = hits / np.maximum(counts, 1)
        balanced = recalls.sum(1) / (counts > 0).sum(1)
        return _interval(hits.sum(1) / counts.sum(1)), _interval(balanced)


def paired(baseline: Baseline, alone: int, there: int, right: int, images: int, seed: int = 0) -> Paired:
    """Compares two models on the same images.

    Args:
        baseline: The other model.
        alone: Images that the model alone gets right.
        there: Images that the other alone gets right.
        right: Images that the other gets right.
        images: All of them.
        seed: Of the bootstrap.
    """
    from scipy.stats import binomtest

    drawn = _resampled([alone, there, images - alone - there], seed)
    interval = _interval((drawn[:, 0] - drawn[:, 1]) / images)
    p_value = float(binomtest(alone, alone + there).pvalue) if alone + there else 1.0
    difference = 100 * (alone - there) / images
    return Paired(baseline.name, 100 * right / images, difference, interval, alone, there, p_value)


def _resampled(counts: Sequence[int], seed: int) -> np.ndarray:
    """Bootstrap samples of images that fall into cells: per sample, how many fall into each."""
    cells = np.asarray(counts, dtype=np.float64)
    return np.random.default_rng(seed).multinomial(int(cells.sum()), cells / cells.sum(), RESAMPLES)


def _interval(shares: np.ndarray) -> Interval:
    low, high = np.percentile(100 * shares, [2.5, 97.5])
    return float(low), float(high)


def _percent(part: int, whole: int) -> float | None:
    return 100 * int(part) / int(whole) if whole else None
