"""Measuring: accuracy on a split, latency on this machine, and the fingerprint of that machine."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from learngene.training.scores import Confusion, Guesses
    from learngene.vits.stitched_shape import Shape


Key = TypeVar("Key")


@dataclass(frozen=True)
class Accuracy:
    """What a classifier scores on a split.

    Attributes:
        top1: Percent of images whose first guess is right.
        top5: Percent whose class is among the five best guesses (all of them if there are fewer classes).
        loss: Mean cross-entropy in nats.
        images: How many images were judged.
    """

    top1: float
    top5: float
    loss: float
    images: int

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
class Overlap:
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
class Average:
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
    def of(cls, scores: Mapping[str, Accuracy]) -> Average:
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


SetScore = Accuracy | Overlap
"""Of one data set."""

Score = SetScore | Average


def score_from(values: Mapping[str, Any]) -> Score:
    """A score from the plain values that ``dataclasses.asdict`` made of it."""
    if "miou" in values:
        return Overlap(**values)
    return Average(**values) if "tasks" in values else Accuracy(**values)


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], *, precision: str = "fp32", reduce: Any = None
) -> Accuracy:
    """Scores a classifier; see ``accuracies``."""
    return accuracies({"": model}, batches, precision=precision, reduce=reduce)[""]


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
    from learngene.training.scores import Guesses

    tallies = {key: Guesses() for key in models}
    _count(models, tallies, batches, precision)
    return {key: tally.result(reduce) for key, tally in tallies.items()}


def task_score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    ignore_index: int | None,
    *,
    precision: str = "fp32",
    reduce: Any = None,
) -> SetScore:
    """Scores a classifier or a segmenter.

    Args:
        model: Put into evaluation mode and back.
        batches: Normalised images, with integer labels or masks.
        ignore_index: The value of mask pixels that are not judged; None for labels.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
        reduce: Sums a tensor over processes, for example ``Accelerator.reduce``; None with one process.

    Returns:
        ``Accuracy`` or ``Overlap``, over all images of all processes.
    """
    from learngene.training.scores import Confusion

    if ignore_index is None:
        return accuracy(model, batches, precision=precision, reduce=reduce)
    tally = Confusion(ignore_index)
    _count({"": model}, {"": tally}, batches, precision)
    return tally.result(reduce)


def _count(
    models: Mapping[Key, nn.Module],
    tallies: Mapping[Key, Guesses] | Mapping[Key, Confusion],
    batches: Iterable[tuple[Tensor, Any]],
    precision: str,
) -> None:
    """Adds what models say of images to their tallies; the images are read once."""
    import torch

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
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device_type, dtype)


def latency(shape: Shape, *, batch_size: int = 1, rounds: int = 9, device: str = "cpu") -> float:
    """Median time of one forward pass of a ViT of this shape, eager, float32.

    Args:
        shape: What to time; its weights do not matter.
        batch_size: Images per pass.
        rounds: Timed passes, after three that warm up.
        device: Where to run.

    Returns:
        Milliseconds.
    """
    import torch

    model = shape.skeleton().to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # uninitialised memory may hold denormals, which are slow
    images = torch.full((batch_size, shape.in_chans, shape.img_size, shape.img_size), 0.1, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(rounds + 3):
            start = time.perf_counter()
            model(images)
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def multiply_adds(model: nn.Module, in_chans: int, img_size: int) -> int:
    """Multiply-adds of one image through any model, by torch's own counter, whose FLOPs are two per multiply-add.

    Args:
        model: Any model.
        in_chans: Channels of an image.
        img_size: Its side in pixels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, in_chans, img_size, img_size, device=next(model.parameters()).device))
    return int(counter.get_total_flops() // 2)


def environment() -> dict[str, Any]:
    """What a measurement depends on: processor, threads, accelerator and versions. Imports no torch."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        "versions": versions(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the source tree learngene runs from, None if it is installed from a package."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__]
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return None


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    out = {}
    for package in ("learngene", "torch", "timm", "torchvision", "accelerate", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
