"""Judging what was shipped: what a model says of every validation image, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learngene.data.images import ImageSet
from learngene.recipe.sections import DataSpec

DRAWS = 2000
"""Of the bootstrap over images."""


@dataclass(frozen=True)
class Judged:
    """What a model says of the validation images.

    Attributes:
        probabilities: (images, classes).
        labels: (images,).
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the first guess is right, per image."""
        return np.asarray(self.probabilities.argmax(1) == self.labels)

    def entry(self) -> dict[str, Any]:
        """The scores that a record has."""
        right = self.right
        rng = np.random.default_rng(0)
        drawn = rng.binomial(len(right), right.mean(), DRAWS) / len(right)
        present = np.unique(self.labels)
        per_class = [float(right[self.labels == label].mean()) for label in present]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return {
            "top1": round(100 * float(right.mean()), 2),
            "interval": [round(100 * float(low), 2), round(100 * float(high), 2)],
            "balanced": round(100 * float(np.mean(per_class)), 2),
        }


def judged(path: Path, spec: DataSpec, images: ImageSet) -> Judged:
    """Asks a model folder about every image.

    Args:
        path: The folder.
        spec: The data section.
        images: The validation images.
    """
    import torch

    from learngene.data.batches import eval_loader
    from learngene.data.class_match import numbered
    from learngene.data.preprocessing import fill_preprocessing
    from learngene.training.loop import make_accelerator
    from learngene.vits.descendant_folder import load_descendant
    from learngene.vits.input_size import at_size, image_config

    model, chans, size = at_size(load_descendant(path), spec.img_size)
    images = numbered(images, model, spec)
    device = make_accelerator().device
    model = model.to(device).eval()
    loader = eval_loader(images, fill_preprocessing(spec, image_config(model)), img_size=size, in_chans=chans)
    with torch.inference_mode():
        said = [model(batch.to(device)).float().softmax(1).cpu().numpy() for batch, _ in loader]
    return Judged(np.concatenate(said), np.asarray(images.labels, int))
