"""Judging what was shipped: what a model says of every validation image, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learngene.data.images import ImageSet
from learngene.recipe.sections import DataSpec
from learngene.training.classification import Baseline, ClassificationReport, paired
from learngene.training.scores import Accuracy


@dataclass(frozen=True)
class Judged:
    """What a model says of the validation images.

    Attributes:
        probabilities: (images, classes).
        labels: (images,).
        score: Accuracy with its report.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    score: Accuracy

    @property
    def right(self) -> np.ndarray:
        """Whether the first guess is right, per image."""
        return np.asarray(self.probabilities.argmax(1) == self.labels)

    @property
    def report(self) -> ClassificationReport:
        """What its accuracy is worth."""
        assert self.score.report is not None
        return self.score.report

    def entry(self) -> dict[str, Any]:
        """The scores that a record has."""
        report = self.report
        return {
            "top1": round(self.score.top1, 2),
            "interval": [round(end, 2) for end in report.interval],
            "balanced": round(report.balanced_accuracy, 2),
            "calibration_error": round(report.calibration_error, 2),
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
    from learngene.training.scores import TopKCounter
    from learngene.vits.descendant_folder import load_descendant
    from learngene.vits.input_size import at_size, image_config

    model, chans, size = at_size(load_descendant(path), spec.img_size)
    images = numbered(images, model, spec)
    device = make_accelerator().device
    model = model.to(device).eval()
    loader = eval_loader(images, fill_preprocessing(spec, image_config(model)), img_size=size, in_chans=chans)
    tally, said = TopKCounter(), []
    with torch.inference_mode():
        for batch, labels in loader:
            logits = model(batch.to(device)).float().cpu()
            tally.add(logits, torch.as_tensor(labels))
            said.append(logits.softmax(1).numpy())
    score = tally.result(names=images.class_names)
    return Judged(np.concatenate(said), np.asarray(images.labels, int), score)


def behind(said: Mapping[str, Judged]) -> dict[str, list[float]]:
    """How many points every model is behind the best on the same images, and between which two: 95 % intervals."""
    best = max(said, key=lambda name: said[name].right.mean())
    out = {}
    for name, each in said.items():
        ours, theirs = said[best].right, each.right
        alone, there = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        found = paired(Baseline(name, theirs), alone, there, int(theirs.sum()), len(theirs))
        out[name] = [round(value, 2) for value in (found.difference, *found.interval)]
    return out
