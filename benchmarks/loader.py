"""Batches from files over a bare torchvision loop and over timm's own loader, in CPU time of one process and thread.

Crop and flip against an ``ImageFolder`` and a ``DataLoader`` with torchvision's transforms, which decode, crop, resize
and flip with Pillow and normalise each image; DeiT's augmentation with mixing against ``timm.data.create_loader`` as
timm's training script calls it. Batches of 32 at 56 px, of small JPEGs and of such as a camera's, reduced, would be,
timed by whole epochs. What is compared decodes in every epoch; what decoded images that are kept save is told apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import finish, paired_rounds, ratio, target
from PIL import Image
from timm.data import FastCollateMixup, auto_augment, create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

from learngene.data.batches import TrainBatches
from learngene.data.open_split import open_split
from learngene.data.transforms import posterize
from learngene.recipe.sections import DataSpec, Train

SIDE, BATCH, CLASSES, PER_CLASS, ROUNDS = 56, 32, 8, 16, 15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = {"75 x 75": (75, 75), "500 x 375": (500, 375)}
DEIT = {"hflip": 0.5, "color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1}


def main() -> None:
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for label, size in IMAGES.items():
            folder = Path(name) / label.replace(" ", "")
            draw_images(folder, size)
            cases = {
                "crop and flip": ours(folder, {"preset": "light"}),
                "torchvision": bare(folder),
                "DeiT": ours(folder, {"repeats": 1}),
                "DeiT, three views of each": ours(folder, {}),
                "timm": timms(folder),
                "crop and flip, kept": ours(folder, {"preset": "light"}, keep=True),
                "DeiT, kept": ours(folder, {"repeats": 1}, keep=True),
            }
            own = paired_rounds(cases, ROUNDS)
            times |= {f"{label}: {case}": values for case, values in own.items()}
            for case, base, limit in (
                ("crop and flip", "torchvision", 1.0),
                ("DeiT", "timm", 0.9),
                ("DeiT, three views of each", "timm", 0.9),
            ):
                targets.append(target(f"{label}: {case} over {base}", ratio(own, case, base), limit))
    finish("loader", times, targets, batch_size=BATCH, img_size=SIDE, rounds=ROUNDS)


def ours(folder: Path | str, augment: dict[str, Any], *, keep: bool = False) -> Callable[[], float]:
    """Epoch after epoch of a run's, mixed as its augmentation says; ``keep`` as a run without loader processes does."""
    spec = DataSpec(source=str(folder), workers=0, mean=MEAN, std=STD)
    made = TrainBatches(open_split(spec, "train"), spec, Train(batch_size=BATCH, augment=augment), img_size=SIDE)
    if not keep:
        made.views.room = 0
    epochs = count()

    def mixed() -> Iterator[Any]:
        epoch = next(epochs)
        for step, ((images, labels),) in enumerate(made.epoch(epoch)):
            yield made.mix(images, labels, epoch, step)

    return timed(mixed)


def bare(folder: Path) -> Callable[[], float]:
    """Torchvision's transforms and PyTorch's loader."""
    crop = tv.RandomResizedCrop(SIDE, scale=(0.6, 1.0), interpolation=tv.InterpolationMode.BICUBIC)
    steps = tv.Compose([crop, tv.RandomHorizontalFlip(), tv.ToTensor(), tv.Normalize(MEAN, STD)])
    return timed(DataLoader(ImageFolder(str(folder / "train"), steps), BATCH, shuffle=True, drop_last=True).__iter__)


def timms(folder: Path) -> Callable[[], float]:
    """Timm's loader, which normalises and erases whole batches, with its mixing of batches as they are put together."""
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize  # its own stops at no bits with Pillow 13
    loader = create_loader(
        create_dataset("", str(folder / "train")),
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        **DEIT,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        collate_fn=FastCollateMixup(**MIXING, num_classes=CLASSES),
    )
    return timed(loader.__iter__)


def timed(epoch: Callable[[], Iterator[Any]]) -> Callable[[], float]:
    """The CPU seconds of an epoch."""

    def run() -> float:
        start = time.process_time()
        assert sum(1 for _ in epoch()) == CLASSES * PER_CLASS // BATCH
        return time.process_time() - start

    return run


def draw_images(folder: Path, size: tuple[int, int]) -> None:
    """JPEGs of blurred spots with a little noise, which are about as hard to decode as photos."""
    for split, per_class in (("train", PER_CLASS), ("val", 1)):
        for number in range(CLASSES * per_class):
            path = folder / split / f"{number % CLASSES}" / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draws = np.random.default_rng([number, split == "val"])
            spots = Image.fromarray(draws.integers(0, 256, (size[1] // 12, size[0] // 12, 3), np.uint8)).resize(size)
            noise = draws.normal(0, 6, (size[1], size[0], 3))
            Image.fromarray((np.asarray(spots) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    main()
