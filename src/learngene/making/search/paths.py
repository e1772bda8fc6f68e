"""The path of a data set through its super net: which layers take the base block, by how many samples, how surely."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from learngene.system.errors import LearngeneError
from learngene.system.records import Record, RecordError

if TYPE_CHECKING:
    from torch import Tensor

    from learngene.making.search.super_net import SuperNet

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
    """The path that a run folder holds; None if its super net is not trained yet.

    Raises:
        LearngeneError: If the file is damaged.
    """
    if not (folder / NAME).exists():
        return None
    try:
        return TaskPath.read(folder / NAME)
    except RecordError:
        raise damaged(folder) from None


def layer_usage(net: SuperNet, batches: Iterable[tuple[Tensor, Any]]) -> tuple[list[float], list[float]]:
    """Runs a super net without noise and looks at its adapters.

    Args:
        net: The trained net; put into evaluation mode. Every layer sees what the layers before it chose.
        batches: Normalised images of the evaluation split, with labels that are not looked at.

    Returns:
        Per layer: the share of samples that prefer the base block, and their mean probability of it.
    """
    import torch

    device = next(net.parameters()).device
    prefer = torch.zeros(len(net.layers), dtype=torch.float64)
    sure, count = torch.zeros_like(prefer), 0
    net.eval()
    with torch.inference_mode():
        for images, _ in batches:
            net(images.to(device))
            prefer += torch.stack([layer.prefers.double().sum() for layer in net.layers]).cpu()
            sure += torch.stack([layer.probability.double().sum() for layer in net.layers]).cpu()
            count += len(images)
    return (prefer / count).tolist(), (sure / count).tolist()
