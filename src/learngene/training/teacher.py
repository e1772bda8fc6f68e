"""Teachers: frozen models that say something of every image that is trained on, in one form for all stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from learngene.genes.ancestry import Ancestry
from learngene.training.sharding import shard

Outputs = dict[str, Tensor]
"""What a teacher says of a batch of images by name: ``logits``, ``pooled``, ``patches``, ``block 4`` and so on."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model, and what is read of it.

    Attributes:
        names: Of its outputs.
        decided_by: Plain values that decide them, beside the images: the weights' SHA-256, the size of its images.
        load: Makes the module that takes images, normalised and mixed for the student, to outputs.
        absent: Tells whether its weights are not loaded yet.
    """

    names: tuple[str, ...]
    decided_by: Mapping[str, Any]
    load: Callable[[], nn.Module]
    absent: Callable[[], bool] = lambda: False

    def covers(self, other: Teacher) -> bool:
        """Whether it says all that another would, and the same."""
        return self.decided_by == other.decided_by and set(self.names) >= set(other.names)


class _Covering(Protocol):
    def covers(self, other: Any, /) -> bool: ...


C = TypeVar("C", bound=_Covering)


def fewest(several: Iterable[C]) -> list[C]:
    """Those of some teachers that say what all of them would, in their order; or of what is stored of them."""
    out: list[C] = []
    for each in several:
        if not any(other.covers(each) for other in out):
            out = [other for other in out if not each.covers(other)] + [each]
    return out


def said_by(teachers: Sequence[Teacher], said: Sequence[tuple[Teacher, Outputs]]) -> list[Outputs]:
    """What each of some teachers says, from what those say that were asked."""
    found = [next(output for asked, output in said if asked.covers(teacher)) for teacher in teachers]
    return [{name: output[name] for name in each.names} for each, output in zip(teachers, found, strict=True)]


class _Reading(nn.Module):
    """An ancestry, and what is read of it."""

    def __init__(self, ancestry: Ancestry, read: Callable[[Tensor], Outputs]) -> None:
        super().__init__()
        self.ancestry, self.read = ancestry, read

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs by name."""
        return self.read(images)


class Asked:
    """A teacher that is asked about every batch."""

    def __init__(self, teacher: Teacher, device: torch.device, sharing: int = 1) -> None:
        """Loads it, of several processes that are ``sharing`` its weights a part in each."""
        self.teacher = teacher
        self.module = teacher.load()
        if sharing > 1:
            shard(self.module, device, sharing)
        self.module.to(device)

    def outputs(self, prints: Tensor | None, mixed: Tensor, epoch: int, step: int, part: int) -> Outputs:
        """What the teacher says of mixed images, wherever they stand in the run."""
        out: Outputs = self.module(mixed)
        return out


def teacher_of(ancestry: Ancestry, names: Sequence[str], read: Callable[[Tensor], Outputs]) -> Teacher:
    """An ancestry of which something is read; its weights are loaded when somebody asks, if they are not yet.

    Args:
        ancestry: The model.
        names: Of what is read.
        read: Images to outputs by these names.
    """
    sha256 = ancestry.identity["sha256"]
    absent = lambda: not ancestry.has_weights  # noqa: E731
    return Teacher(tuple(names), {"sha256": sha256}, lambda: _Reading(ancestry.with_weights(), read), absent)


def teacher_of_logits(ancestry: Ancestry) -> Teacher:
    """An ancestry that teaches its predictions."""
    return teacher_of(ancestry, ["logits"], lambda images: {"logits": ancestry(images)})
