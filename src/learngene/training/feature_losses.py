"""Distances between a student's features and a teacher's, of whatever width and token.

Cosine, smooth L1 and their mixture are AM-RADIO's and Theia's terms; the relations, which need no common scale, are
lightly-train's: a queue of teacher features as a classifier, and who resembles whom inside an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

COSINE_SHARE = 0.9
"""Of cosine in ``mix``; the rest is smooth L1."""


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine, the mean over tokens: from 0, the same direction, to 2."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference up to 1, the difference less a half beyond; the mean over all numbers."""
    return F.smooth_l1_loss(student.float(), teacher.float())


def mix(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 cosine + 0.1 smooth L1."""
    return COSINE_SHARE * cosine(student, teacher) + (1 - COSINE_SHARE) * smooth_l1(student, teacher)


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over all numbers."""
    return F.mse_loss(student.float(), teacher.float())


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "smooth-l1": smooth_l1,
    "mix": mix,
    "mse": mse,
}
"""The losses that compare vector with vector, by the names of recipes."""


def queue_kl(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between similarities to a queue of teacher features, the mean over the batch.

    Args:
        student: (batch, width) in the teacher's space.
        teacher: (batch, width).
        queue: (length, width), normalised; what is not filled yet is zero.
        temperature: That similarities are divided by.
    """
    keys = queue.float().T / temperature
    student, teacher = (F.normalize(each.float(), dim=-1) @ keys for each in (student, teacher))
    return _divergence(student, teacher)


def self_similarity(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between similarities of the tokens of an image, the mean over images and tokens.

    Turning either feature space changes nothing.

    Args:
        student: (batch, tokens, width).
        teacher: (batch, tokens, any width).
        temperature: That similarities are divided by.
    """
    student, teacher = (F.normalize(each.float(), dim=-1) for each in (student, teacher))
    return _divergence(*(each @ each.transpose(1, 2) / temperature for each in (student, teacher)))


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), the mean over rows."""
    mine, theirs = (F.log_softmax(each, dim=-1).flatten(0, -2) for each in (student, teacher))
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True)


class Queue(nn.Module):
    """The teacher's features of the latest images, normalised, newest first; it begins with zeros."""

    latest: Tensor

    def __init__(self, length: int, width: int) -> None:
        """Makes an empty queue.

        Args:
            length: Images that it holds.
            width: Of a feature.
        """
        super().__init__()
        self.register_buffer("latest", torch.zeros(length, width))

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Puts a batch of features in front; the oldest fall out."""
        new = F.normalize(features.float(), dim=-1)
        self.latest.copy_(torch.cat([new, self.latest])[: len(self.latest)])  # in place: processes share buffers
