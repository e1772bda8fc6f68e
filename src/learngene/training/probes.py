"""Frozen features judged without fine-tuning: nearest neighbours, which train nothing, and a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene.data.images import ImageSet
from learngene.system.errors import DataError
from learngene.training.scores import autocast

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""As DINO, DINOv2 and RADIO vote."""

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS, BATCH = 1000, 256
MOST_COMPARED = 2048
"""Images among which neighbours in common are sought."""

LEAST_COMPARED = 5
"""Among fewer a quarter of the others is less than one image."""

CHUNK = 1024
"""Rows whose similarities to all others are held at once."""


def read_features(
    read: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Any]],
    device: torch.device,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """The features of images with their labels, on the CPU.

    Args:
        read: Images to (batch, width).
        batches: Normalised images and integer labels.
        device: Where the model is.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
    """
    features, labels = [], []
    with torch.inference_mode(), autocast(device.type, precision):
        for images, targets in batches:
            features.append(read(images.to(device)).float().cpu())
            labels.append(torch.as_tensor(targets).cpu())
    return torch.cat(features).clone(), torch.cat(labels).clone()


def knn_accuracy(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> float:
    """Percent of images whose nearest neighbours' vote is right: of the k most similar by cosine, exp(cosine / T) each.

    Args:
        train: Features (images, width) and labels of those that vote.
        test: The same of those that are judged.
        classes: Number of classes.
        k: Voters; all if there are fewer images.
        temperature: Of the vote.
    """
    bank, right = F.normalize(train[0].float(), dim=1), 0
    for rows, labels in zip(test[0].split(CHUNK), test[1].split(CHUNK), strict=True):
        near, places = (F.normalize(rows.float(), dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        # Only ratios count, and exp(1 / T) of a small T would be infinite.
        votes = ((near - near[:, :1]) / temperature).exp()
        counts = torch.zeros(len(rows), classes).scatter_add_(1, train[1][places], votes)
        right += int((counts.argmax(1) == labels).sum())
    return 100 * right / len(test[1])


def compared_neighbours(images: int) -> int:
    """How many nearest images are compared among so many: 20, but a quarter of the others at most, and one at least.

    Among twenty others the 20 nearest would be the same whatever the features.
    """
    return max(1, min(NEIGHBOURS, (images - 1) // 4))


def common_neighbours(one: Tensor, other: Tensor, k: int | None = None) -> Tensor:
    """Of the k nearest other images of every image, by cosine, the share that two kinds of features agree on.

    Args:
        one: (images, width).
        other: (images, any width).
        k: Neighbours, at most all others; by default as ``compared_neighbours`` says.

    Returns:
        (images,), each from 0 to 1.
    """
    count = len(one)
    k = min(compared_neighbours(count) if k is None else k, count - 1)
    if k < 1:
        return torch.ones(count)
    members = []
    for features in (one, other):
        similar = F.normalize(features.float(), dim=1)
        similar = (similar @ similar.T).fill_diagonal_(-2)
        members.append(torch.zeros(count, count, dtype=torch.bool).scatter_(1, similar.topk(k, dim=1).indices, True))
    return (members[0] & members[1]).sum(1) / k


@dataclass(frozen=True)
class LinearProbe:
    """What linear classifiers on frozen features score.

    Attributes:
        top1: Percent right with the best rate, the mean over seeds.
        rate: The best learning rate, chosen on images held out of training.
        seeds: Percent right of every seed.
    """

    top1: float
    rate: float
    seeds: tuple[float, ...]


def linear_probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    *,
    seeds: int = 3,
    rates: Sequence[float] = RATES,
    steps: int = STEPS,
) -> LinearProbe:
    """Trains linear classifiers on standardised features: every rate on four fifths, the best one on all, per seed.

    AdamW with a cosine schedule. The test images choose nothing.

    Args:
        train: Features (images, width) and labels.
        test: The same of those that are judged.
        classes: Number of classes.
        seeds: How often the best rate is tried.
        rates: The learning rates to try.
        steps: Optimizer steps of each.
    """
    mean, deviation = train[0].mean(0), train[0].std(0, unbiased=False)
    scaled = [(part - mean) / torch.where(deviation > 0, deviation, 1.0) for part in (train[0], test[0])]
    order = torch.randperm(len(scaled[0]), generator=torch.Generator().manual_seed(0))
    held, kept = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]

    def score(rate: float, seed: int, rows: Tensor, judged: Tensor, truth: Tensor) -> float:
        head = _fit(scaled[0][rows], train[1][rows], classes, rate, seed, steps)
        return 100 * float((head(judged).argmax(1) == truth).float().mean())

    best = max(rates, key=lambda rate: score(rate, 0, kept, scaled[0][held], train[1][held]))
    found = tuple(score(best, seed, order, scaled[1], test[1]) for seed in range(seeds))
    return LinearProbe(sum(found) / len(found), best, found)


def _fit(features: Tensor, labels: Tensor, classes: int, rate: float, seed: int, steps: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], classes)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(features), (min(BATCH, len(features)),), generator=generator)
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return head.requires_grad_(False)


def refuse_few_compared(images: ImageSet, split: str) -> None:
    """Raises ``DataError`` if a split has too few images for neighbours in common to say anything."""
    if len(images) < LEAST_COMPARED:
        raise DataError(
            f"{images.where}: {len(images)} {split} images; neighbours in common need {LEAST_COMPARED} or more"
        )


def refuse_few(images: ImageSet) -> None:
    """Raises ``DataError`` if a class of the images that vote has fewer than two, or images have masks or no labels."""
    if images.segmentation:
        raise DataError(f"{images.where}: has masks; kNN and linear probes need images with a class each")
    counts = torch.bincount(torch.as_tensor(images.labels), minlength=len(images.class_names))
    for name, count in zip(images.class_names, counts.tolist(), strict=True):
        if count < 2:
            raise DataError(
                f"{images.where}: class {name} has {count} training image{'s' * (count != 1)}; kNN and linear probes "
                "need two or more of each class"
            )
