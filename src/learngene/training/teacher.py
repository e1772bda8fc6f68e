"""Teachers: frozen models that say something of every image that is trained on, in one form for all stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learngene.genes.ancestry import Ancestry

Outputs = dict[str, Tensor]
"""What a teacher says of a batch of images by name: ``logits``, ``pooled``, ``patches``, ``block 4`` and so on."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model, and what is read of it.

    Attributes:
        names: Of its outputs.
        decided_by: Plain values that decide them, beside the images: the weights' SHA-256, the size of its images.
        load: Makes the module that takes images, normalised and mixed for the student, to outputs.
    """

    names: tuple[str, ...]
    decided_by: Mapping[str, Any]
    load: Callable[[], nn.Module]


class Reading(nn.Module):
    """A frozen model that is asked for more, or for something else, than its forward gives."""

    def __init__(self, model: nn.Module, read: Callable[[Tensor], Outputs]) -> None:
        """Takes a model in evaluation mode, and what is asked of it."""
        super().__init__()
        self.model, self.read = model, read

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs by name."""
        return self.read(images)


class Asked:
    """A teacher that is asked about every batch."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        """Loads it."""
        self.module = teacher.load().to(device)

    def outputs(self, prints: Tensor | None, mixed: Tensor, epoch: int, step: int, part: int) -> Outputs:
        """What the teacher says of mixed images, wherever they stand in the run."""
        out: Outputs = self.module(mixed)
        return out


def teacher_of_logits(ancestry: Ancestry) -> Teacher:
    """An ancestry that teaches its predictions."""
    reading = Reading(ancestry, lambda images: {"logits": ancestry(images)})
    return Teacher(("logits",), {"sha256": ancestry.identity["sha256"]}, lambda: reading)
