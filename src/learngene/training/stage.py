"""What is trained: a stage is a module with its objective, its images' size and whatever goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from learngene.data.batches import Batches
from learngene.system.errors import LearngeneError
from learngene.training.classification import Baseline
from learngene.training.evaluation_targets import Evaluated
from learngene.training.losses import Parts
from learngene.training.scores import Score
from learngene.training.teacher import Outputs, Teacher

Objective = Callable[[nn.Module, Tensor, Tensor, Sequence[Outputs]], Parts]
"""(model, mixed images, soft targets or masks, what every teacher says of them) to the loss of one batch and its parts.

Processes wrap the model.
"""

Scoring = Callable[[nn.Module, Iterable[tuple[Tensor, Any]], str, Any], Score]
"""See ``Stage.score``."""


class Feed(Protocol):
    """Batches and scores of a stage that is trained on more than one data set."""

    def batches(self, rank: int, processes: int, device: torch.device) -> Batches:
        """This process's training batches."""

    def score(self, model: nn.Module, precision: str, rank: int, processes: int, reduce: Any) -> Score:
        """The score of a model on all validation images."""


@dataclass
class Stage:
    """One thing to train.

    Attributes:
        name: Shown while it runs.
        module: Its parameters are trained, its forward takes images to logits.
        objective: The loss, by parts.
        img_size: Side of the images in pixels.
        in_chans: Channels of the images.
        teachers: Asked about every batch; the objective gets what they say.
        before_step: Called with epoch and step before every optimizer step, when torch's generator was seeded for it.
        before_scoring: Called before every evaluation.
        uses_all: Whether every step uses all parameters; if not, processes have to find out which.
        feed: Where batches and scores come from, if not from one data set.
        score: (module, validation batches, precision, sum over processes) to its score, if that is not the accuracy.
        evaluated: How the score knows what teachers say, which is made ready before the run.
        baseline: A model that the last score of a classifier is compared with, on the validation images.
        made_of: What a saved run must have had, too, to be continued: the SHA-256 of the gene, of the ancestry,
            and how the gene's tensors are read.
    """

    name: str
    module: nn.Module
    objective: Objective
    img_size: int
    in_chans: int = 3
    teachers: tuple[Teacher, ...] = ()
    before_step: Callable[[int, int], None] | None = None
    before_scoring: Callable[[], None] | None = None
    uses_all: bool = True
    feed: Feed | None = None
    score: Scoring | None = None
    evaluated: Evaluated = ()
    baseline: Baseline | None = None
    made_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Attributes:
        history: One entry per epoch: loss and its parts, learning rate, images per second and, when evaluated, scores.
        final: Score on the val split at the end.
        best: Highest main score (top-1, or mean IoU) of any evaluated epoch, in percent.
        updates: Optimizer steps.
        images: Training images seen.
        seconds: Time trained, evaluation included, over all restarts.
        averaged: The exponential average of the module, if one was tracked.
    """

    history: list[dict[str, Any]]
    final: Score
    best: float
    updates: int
    images: int
    seconds: float
    averaged: nn.Module | None = None


def set_drop_path(model: nn.Module, rate: float, rates: Sequence[float] | None = None) -> None:
    """Sets stochastic depth of a timm ViT's layers.

    Args:
        model: The model.
        rate: Of the last layer; it rises linearly from 0 at the first.
        rates: Of every layer, if they do not rise so.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not all(hasattr(block, "drop_path1") for block in blocks):
        if rate:
            raise LearngeneError(
                f"train.drop_path {rate}: {type(model).__name__} is not a timm ViT whose layers can be dropped; use 0"
            )
        return
    for block, p in zip(blocks, rates or torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        block.drop_path1 = DropPath(p) if p else nn.Identity()
        block.drop_path2 = DropPath(p) if p else nn.Identity()
