"""The paths of data sets through their super nets, and which base blocks the learngene keeps because of them.

A path says for every layer whether the data set takes the base block, by how many samples, and how surely.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from learngene.recipe.search import Selection
from learngene.system.errors import LearngeneError
from learngene.system.records import Record, RecordError

NAME = "path.json"
Share = Annotated[float, Field(ge=0, le=1)]


class TaskPath(Record):
    """What a search found out about one data set.

    Attributes:
        task: Its name.
        ancestry: SHA-256 of the ancestry's weights.
        data: Its fingerprint.
        share: Per layer, the share of evaluated samples that prefer the base block.
        soft: Per layer, the mean probability of the base block.
        score: Of the trained super net: top-1, or mean IoU of a segmentation set, in percent.
        metric: Which of the two.
        epochs: Of training.
        seconds: Of training.
    """

    kind: ClassVar = "learngene path"
    version: ClassVar = 1
    noun: ClassVar = "the path of a data set"

    task: str
    ancestry: str
    data: str
    share: tuple[Share, ...] = Field(min_length=1)
    soft: tuple[Share, ...]
    score: NonNegativeFloat
    metric: str
    epochs: NonNegativeInt
    seconds: NonNegativeFloat

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        if len(self.share) != len(self.soft):
            raise ValueError("share and soft have different numbers of layers")
        return self

    @property
    def uses(self) -> tuple[int, ...]:
        """g_i of equation 3 for every layer: 1 where at least half of the samples prefer the base block."""
        return tuple(int(share >= 0.5) for share in self.share)

    @property
    def base_layers(self) -> tuple[int, ...]:
        """The layers, counted from 1, where the data set takes the base block."""
        return tuple(layer for layer, used in enumerate(self.uses, start=1) if used)


def damaged(folder: Path) -> LearngeneError:
    """What to say of a path file that no search can have written."""
    return LearngeneError(f"{folder / NAME}: damaged; delete {folder} to search this data set again")


def read_path(folder: Path) -> TaskPath | None:
    """The path that a run folder holds; None if its super net is not trained yet."""
    if not (folder / NAME).exists():
        return None
    try:
        return TaskPath.read(folder / NAME)
    except RecordError:
        raise damaged(folder) from None


def usage(paths: Sequence[TaskPath]) -> list[int]:
    """G_i of equation 3: by how many data sets every base block is used, first layer first."""
    return [sum(used) for used in zip(*(path.uses for path in paths), strict=True)]


def soft_usage(paths: Sequence[TaskPath]) -> list[float]:
    """The same with probabilities instead of choices: more than the paper looks at, and never all zero."""
    return [sum(soft) for soft in zip(*(path.soft for path in paths), strict=True)]


def above(counts: Sequence[int], tau: int) -> tuple[int, ...]:
    """The layers, counted from 1, that more than ``tau`` data sets use."""
    return tuple(layer for layer, count in enumerate(counts, start=1) if count > tau)


def selected(paths: Sequence[TaskPath], spec: Selection, tau: int) -> tuple[int, ...]:
    """The layers whose base blocks become the learngene, counted from 1 and in the ancestry's order.

    By the threshold rule these are the blocks that more than ``tau`` data sets use. If there are none, the refusal says
    what other thresholds would keep.
    """
    counts, soft = usage(paths), soft_usage(paths)
    if spec.rule == "top_k":
        # Choices hide how close they were: over seeds, sums of probabilities rank the blocks far more alike.
        ranked = sorted(range(len(counts)), key=lambda i: (soft[i], counts[i]), reverse=True)
        return tuple(sorted(i + 1 for i in ranked[: spec.blocks]))
    kept = above(counts, tau)
    if not kept:
        lower = {low: above(counts, low) for low in range(tau - 1, -1, -1)}
        instead = "; ".join([f"tau={low} keeps {_listed(found)}" for low, found in lower.items() if found][:3])
        instead = instead or "no base block is used by any data set"
        raise LearngeneError(
            f"select: no base block is used by more than tau={tau} of {len(paths)} data sets (used by "
            f"{_listed(counts)}): {instead}; or use select.rule=top_k select.tau=null"
        )
    return kept


def _listed(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)
