"""Paths of a pool that learn a teacher's features: no classes, and no labels, are needed.

Every row has learnt bridges of its own; a path goes on with those of the row in which it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learngene.genes.elastic import ElasticViT
from learngene.making.features.stage import one_vector
from learngene.making.features.student import Match, reading
from learngene.training.evaluation_targets import Evaluated
from learngene.training.loop import make_accelerator
from learngene.training.probes import MOST_COMPARED, common_neighbours
from learngene.training.scores import autocast
from learngene.vits.stitched_shape import Shape


class PathStudent(nn.Module):
    """What is trained: a pool, and the matches of every row. Patches are compared behind the last block alone.

    Attributes:
        elastic: The pool, which computes along one path at a time.
        rows: The matches of every row, by its width.
    """

    def __init__(self, elastic: ElasticViT, rows: Sequence[Sequence[Match]], widths: Sequence[int]) -> None:
        """Takes pool and matches over; they are trained in place."""
        super().__init__()
        self.elastic = elastic
        self.rows = nn.ModuleDict({str(width): nn.ModuleList(row) for width, row in zip(widths, rows, strict=True)})

    @property
    def current(self) -> list[Match]:
        """The matches of the row in which the current path ends."""
        row: Any = self.rows[str(self.elastic.shape.segments[-1].embed_dim)]
        return list(row)

    def forward(self, images: Tensor, matched: bool = False) -> Any:
        """As ``FeatureStudent``'s, along the current path."""
        if not matched:
            return self.elastic(images)
        with reading(self.elastic.views()[self.elastic.shape], []) as read:
            logits = self.elastic(images)
        return logits, read.pooled, [match(read) for match in self.current]

    def no_weight_decay(self) -> set[str]:
        """The rows' position embeddings and class tokens."""
        return {f"elastic.{name}" for name in self.elastic.no_weight_decay()}


@torch.inference_mode()
def path_neighbours(
    elastic: ElasticViT, teachers: Evaluated, batches: Iterable[tuple[Tensor, Any]], precision: str
) -> dict[Shape, float]:
    """Of every path, how many nearest images it has in common with its teachers, in percent, as ``FeatureScore`` does.

    Args:
        elastic: A pool without classes, whose outputs are what heads would read.
        teachers: The teachers.
        batches: Images to judge by, which are read once.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
    """
    device, views = make_accelerator().device, elastic.views()
    elastic.to(device)
    for view in views.values():
        view.to(device).eval()
    own: list[list[Tensor]] = [[] for _ in views]
    others: list[list[Tensor]] = [[] for _ in teachers]
    images = 0
    for batch, _ in batches:
        with autocast(device.type, precision):
            for rows, view in zip(own, views.values(), strict=True):
                rows.append(view(batch.to(device)).float().cpu())
            for rows, teacher in zip(others, teachers, strict=True):
                rows.append(one_vector(teacher.said(batch, images)).float().cpu())
        images += len(batch)
        if images >= MOST_COMPARED:
            break
    elastic.to("cpu")
    students, vectors = ([torch.cat(rows) for rows in each] for each in (own, others))
    return {
        shape: 100 * float(torch.stack([common_neighbours(mine, other) for other in vectors]).mean())
        for shape, mine in zip(views, students, strict=True)
    }
