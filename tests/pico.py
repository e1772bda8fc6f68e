"""Pico models, genes, images and recipes that many tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from learngene import ViTShape, save_descendant, scratch
from learngene.genes.gene import Learngene
from learngene.methods import method

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 50, 40)}

# One step of an epoch of the fixture's images is 8 of 24; without augmentation a pico model learns in a few epochs.
FAST: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "lr": 3e-3,
    "lr_batch": None,
    "schedule": {"warmup_epochs": 0},
    "augment": {"preset": "none"},
}
MIXED: dict[str, Any] = {**FAST, "augment": {"repeats": 1, "rand_augment": None}}
"""With crops, flips, erasing, mixup, cutmix and smoothing."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


CLI = Callable[..., Outcome]


def pico_shape(**changes: Any) -> ViTShape:
    """A ViT of 4 tokens, width 16 and depth 4, for the three colours."""
    fields: dict[str, Any] = {"embed_dim": 16, "depth": 4, "num_heads": 2, "patch_size": 4, "img_size": 8}
    return ViTShape(**{**fields, "mlp_ratio": 2.0, "num_classes": 3, **changes})


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tensors without zeros and ones in telling places: no bias or norm may look untouched by accident."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def pico_gene(
    name: str = "tleg", settings: Mapping[str, Any] | None = None, *, seed: int = 0, **shape: Any
) -> Learngene:
    """A gene whose tensors are all random, in evaluation mode."""
    kind = method(name, settings)
    if name == "sws" and "depth" not in shape:
        shape["depth"] = sum(kind.stages)  # type: ignore[attr-defined]
    gene = Learngene(kind, pico_shape(**shape))
    with torch.no_grad():
        for key, value in random_tensors({k: tuple(v.shape) for k, v in gene.tensors().items()}, seed).items():
            gene.tensors()[key].copy_(value)
    return gene.eval()


def batch(shape: ViTShape, count: int = 2, seed: int = 0) -> Tensor:
    """Random normalised images for a shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, shape.in_chans, shape.img_size, shape.img_size, generator=generator)


def make_images(
    root: Path, train: int = 8, val: int = 4, size: int = 8, classes: tuple[str, ...] = tuple(COLOURS)
) -> Path:
    """Writes SPLIT/COLOUR/NUMBER.png, noisy squares of one colour."""
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            for number in range(count):
                noise = np.random.default_rng([*name.encode(), number, split == "val"]).integers(
                    -40, 40, (size, size, 3)
                )
                pixels = np.clip(np.array(COLOURS.get(name, (128, 128, 128))) + noise, 0, 255).astype(np.uint8)
                path = root / split / name / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def make_ancestry(path: Path, **changes: Any) -> Path:
    """Writes a small timm ViT with random weights and the colours as class names, as a descendant folder."""
    shape = pico_shape(**{"depth": 2, "num_heads": 4, **changes})
    model = scratch(shape, seed=1, class_names=sorted(COLOURS)[: shape.num_classes])
    save_descendant(model, path)
    return path


def condense_fields(ancestry: Path | str, images: Path | str, out: Path, **changes: Any) -> dict[str, Any]:
    """A condense recipe that runs in about a second."""
    fields: dict[str, Any] = {
        "kind": "condense",
        "method": "tleg",
        "ancestry": {"source": str(ancestry)},
        "shape": pico_shape().to_dict(),
        "data": {"source": str(images), "workers": 0},
        "train": FAST,
        "out": str(out),
    }
    return {**fields, **changes}


def finetune_fields(model: Path | str, images: Path | str, out: Path, **changes: Any) -> dict[str, Any]:
    """A finetune recipe that runs in about a second."""
    data = {"source": str(images), "workers": 0}
    return {"kind": "finetune", "model": str(model), "data": data, "train": FAST, "out": str(out), **changes}


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the real console script in a process of its own."""
    script = Path(sys.executable).with_name("learngene")
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, check=False, **options)
