"""The path of a data set through its super net: which layers take the base block, by how many samples, how surely."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.system.errors import LearngeneError
from learngene.system.files import write_file

if TYPE_CHECKING:
    from torch import Tensor

    from learngene.making.search.super_net import SuperNet

NAME, KIND, VERSION = "path.json", "learngene path", 1
ENTRIES = ("task", "ancestry", "data", "share", "soft", "score", "metric", "epochs", "seconds")


@dataclass(frozen=True)
class TaskPath:
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

    task: str
    ancestry: str
    data: str
    share: tuple[float, ...]
    soft: tuple[float, ...]
    score: float
    metric: str
    epochs: int
    seconds: float

    @property
    def uses(self) -> tuple[int, ...]:
        """g_i of equation 3 for every layer: 1 where at least half of the samples prefer the base block."""
        return tuple(int(share >= 0.5) for share in self.share)

    @property
    def base_layers(self) -> tuple[int, ...]:
        """The layers, counted from 1, where the data set takes the base block."""
        return tuple(layer for layer, used in enumerate(self.uses, start=1) if used)

    def write(self, folder: Path) -> None:
        """Puts the path into the run folder of its super net."""
        text = json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=1, allow_nan=False)
        write_file(folder / NAME, lambda temporary: temporary.write_text(text + "\n"))


def damaged(folder: Path) -> LearngeneError:
    """What to say of a path file that no search can have written."""
    return LearngeneError(f"{folder / NAME}: damaged; delete {folder} to search this data set again")


def read_path(folder: Path) -> TaskPath | None:
    """The path that a run folder holds; None if its super net is not trained yet.

    Raises:
        LearngeneError: If the file is damaged.
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        if content["kind"] != KIND or content["version"] != VERSION:
            raise ValueError
        fields: dict[str, Any] = {name: content[name] for name in ENTRIES}
        fields |= {name: tuple(float(value) for value in fields[name]) for name in ("share", "soft")}
        _check(fields)
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(folder) from None
    return TaskPath(**fields)


def _check(fields: dict[str, Any]) -> None:
    """Raises ``ValueError`` for entries that no search writes."""
    if len(fields["share"]) != len(fields["soft"]) or not fields["share"]:
        raise ValueError
    if not all(0 <= value <= 1 for name in ("share", "soft") for value in fields[name]):
        raise ValueError
    if not all(isinstance(fields[name], str) for name in ("task", "ancestry", "data", "metric")):
        raise ValueError
    if not all(isinstance(fields[name], int | float) and fields[name] >= 0 for name in ("score", "epochs", "seconds")):
        raise ValueError


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
