"""The student's side of features: the gene at its auxiliary shape, and learnt bridges to every teacher."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn

from learngene.genes.gene import Learngene
from learngene.making.block_features import watched_blocks
from learngene.making.drawn_shapes import DrawnShapes
from learngene.making.feature_teacher import Features, FeatureTeacher
from learngene.recipe.features import FeatureTarget
from learngene.training.feature_losses import DISTANCES, Queue, queue_kl, self_similarity
from learngene.training.feature_scales import Scale
from learngene.training.losses import Parts
from learngene.vits.shape import ViTShape

MOST_QUEUED = 8192
"""Features in a queue by default, at most; as lightly-train."""


@dataclass
class Read:
    """What was read of a forward pass of a student.

    Attributes:
        pooled: (batch, width), what its head gets.
        last: (batch, tokens, width) behind its final norm.
        blocks: The same behind some of its blocks, by number.
        prefix: Tokens that stand for no patch.
    """

    prefix: int
    pooled: Tensor | None = None
    last: Tensor | None = None
    blocks: dict[int, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def reading(model: Any, numbers: Sequence[int]) -> Iterator[Read]:
    """Reads the next forward pass of a timm Vision Transformer, one without classes too.

    Args:
        model: The model.
        numbers: Blocks whose output is wanted, counted from 1, in rising order.
    """
    out = Read(int(model.num_prefix_tokens))

    def pooled(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        out.pooled = inputs[0]

    def last(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        out.last = output

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(model.head.register_forward_pre_hook(pooled))
        hooks.enter_context(model.norm.register_forward_hook(last))
        blocks = hooks.enter_context(watched_blocks(model, numbers, "the auxiliary model"))
        yield out
        out.blocks = dict(zip(numbers, blocks, strict=True))


def bridge(spec: FeatureTarget, width: int, wanted: int) -> nn.Module:
    """A learnt map from the student's width to a teacher's; drawn from torch's generator."""
    if spec.bridge == "linear":
        return nn.Linear(width, wanted)
    if spec.bridge == "norm-linear":
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wanted))
    hidden = spec.hidden or wanted
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, wanted))


class Match(nn.Module):
    """The bridges to one teacher, the scale of its features, and its loss.

    Attributes:
        spec: How its features are matched.
        grid: Patches along a side of its map; None if no patches are compared.
        bridges: By kind, from the student's width to the teacher's.
        others: The bridges of a student's further widths, by width.
        scales: By kind, what the teacher's features are turned into first; only where vectors are compared.
    """

    def __init__(
        self, spec: FeatureTarget, teacher: FeatureTeacher, width: int, images: int, others: Sequence[int] = ()
    ) -> None:
        """Draws the bridges from torch's generator.

        Args:
            spec: How its features are matched.
            teacher: The teacher.
            width: Of the student.
            images: For training, which a queue is not longer than.
            others: Further widths that the student may have.
        """
        super().__init__()
        self.spec, self.grid = spec, teacher.grid
        self._places = {kind: str(number) for number, kind in enumerate(teacher.widths)}  # no dot in modules' names
        self.bridges, *further = (
            nn.ModuleDict({self._places[kind]: bridge(spec, own, w) for kind, w in teacher.widths.items()})
            for own in (width, *others)
        )
        self.others = nn.ModuleDict({str(own): bridges for own, bridges in zip(others, further, strict=True)})
        distances = {kind: wide for kind, wide in teacher.widths.items() if self.loss(kind) in DISTANCES}
        self.scales = nn.ModuleDict({self._places[kind]: Scale(w, spec.scale) for kind, w in distances.items()})
        queued = [wide for kind, wide in teacher.widths.items() if self.loss(kind) == "queue-kl"]
        self.queue = Queue(queue_length(spec, images), queued[0]) if queued else None

    @property
    def kinds(self) -> list[str]:
        """What is compared: ``pooled`` or ``class``, ``patches``, ``block N``."""
        return list(self._places)

    def of_pooled(self) -> tuple[nn.Module, nn.Module | None]:
        """The bridge of the pooled vector, and the scale of the teacher's where there is one."""
        place = self._places["pooled"]
        return self.bridges[place], dict(self.scales.items()).get(place)

    @property
    def pooled(self) -> bool:
        """Whether what the head reads is compared."""
        return any(kind in ("pooled", "class") for kind in self.kinds)

    def loss(self, kind: str) -> str:
        """The name of the loss of a kind of features."""
        return loss_of(self.spec, kind)

    def forward(self, read: Read) -> Features:
        """The student's features in the teacher's space, by kind; without those of blocks that were not read."""
        pairs = {f"block {theirs}": mine for theirs, mine in self.spec.blocks}
        width = str(read.pooled.shape[-1]) if read.pooled is not None else ""
        bridges: Any = dict(self.others.items()).get(width, self.bridges)
        out: Features = {}
        for kind, place in self._places.items():
            if kind in pairs and pairs[kind] not in read.blocks:
                continue
            if kind in ("pooled", "class"):
                mine = read.pooled
            else:
                tokens = read.blocks[pairs[kind]] if kind in pairs else read.last
                assert tokens is not None
                mine = _on_grid(tokens[:, read.prefix :], self.grid)
            out[kind] = bridges[place](mine)
        return out

    def scaled(self, features: Features) -> Features:
        """The teacher's features as they are compared."""
        return {
            kind: self.scales[place](features[kind]) if place in self.scales else features[kind]
            for kind, place in self._places.items()
        }

    def parts(self, mine: Features, theirs: Features, *, push: bool) -> Parts:
        """The loss of every kind, unweighted, by its name; ``push`` puts the teacher's features into the queue first.

        Args:
            mine: The student's, as ``forward`` gives them.
            theirs: The teacher's, as they are.
            push: For batches that are trained on.
        """
        if self.queue is not None and push:
            self.queue.push(next(theirs[kind] for kind in self.kinds if self.loss(kind) == "queue-kl"))
        with torch.autocast(next(iter(mine.values())).device.type, enabled=False):
            return self._parts(mine, self.scaled(theirs))

    def _parts(self, mine: Features, theirs: Features) -> Parts:
        out: Parts = {}
        for kind in mine:
            name = self.loss(kind)
            if name == "queue-kl":
                assert self.queue is not None
                out[kind] = queue_kl(mine[kind], theirs[kind], self.queue.latest, self.spec.temperature)
            elif name == "self-similarity":
                out[kind] = self_similarity(mine[kind], theirs[kind], self.spec.temperature)
            else:
                out[kind] = DISTANCES[name](mine[kind], theirs[kind])
        return out

    def total(self, parts: Parts) -> Tensor:
        """The loss of this teacher: its kinds with the weight of patches, times the teacher's weight."""
        weights = {kind: 1.0 if kind in ("pooled", "class") else self.spec.patch_weight for kind in parts}
        return self.spec.weight * torch.stack([weights[kind] * value for kind, value in parts.items()]).sum()

    def fit_scales(self, features: Iterable[Features]) -> None:
        """Takes the statistics of the teacher's features, where a scale needs them."""
        if not needs_scales(self.spec, self.kinds):
            return
        scales = {kind: self.scales[place] for kind, place in self._places.items() if place in self.scales}
        for each in features:
            for kind, scale in scales.items():
                scale.see(each[kind])  # type: ignore[operator]
        for scale in scales.values():
            scale.settle()  # type: ignore[operator]


def loss_of(spec: FeatureTarget, kind: str) -> str:
    """The name of the loss of a kind of features."""
    return spec.pooled_loss if kind in ("pooled", "class") else spec.patch_loss


def needs_scales(spec: FeatureTarget, kinds: Iterable[str]) -> bool:
    """Whether the statistics of a first pass are used."""
    return spec.scale != "none" and any(loss_of(spec, kind) in DISTANCES for kind in kinds)


def queue_length(spec: FeatureTarget, images: int) -> int:
    """Features in a queue: half the images, at most 8192, unless the recipe says."""
    return spec.queue or max(1, min(MOST_QUEUED, images // 2))


def _on_grid(patches: Tensor, grid: int | None) -> Tensor:
    """A student's patches on the teacher's grid, resized bilinearly if their own is another."""
    side = math.isqrt(patches.shape[1])
    if grid is None or side == grid:
        return patches
    plane = patches.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(plane, (grid, grid), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def current_matches(student: nn.Module) -> list[Match]:
    """The match of every teacher for what a student computes now: a gene, a row, or a pool along its current path."""
    return list(student.current)  # type: ignore[arg-type]


class FeatureStudent(nn.Module):
    """What is trained: a model, and a match per teacher. Its state is the model's and that of bridges and queues.

    Attributes:
        model: A gene, or a plain timm ViT, which alone is kept.
        matches: One per teacher, in their order.
        drawn: At which shapes a gene is matched in this step; None stands for its auxiliary shape in all.
    """

    def __init__(self, model: nn.Module, matches: Sequence[Match], drawn: DrawnShapes | None = None) -> None:
        """Takes the model over; it is trained in place."""
        super().__init__()
        self.drawn = drawn
        self.model, self.matches = model, nn.ModuleList(matches)
        self.blocks = sorted({mine for match in matches for _, mine in match.spec.blocks})

    @property
    def current(self) -> list[Match]:
        """The matches, which are always the same."""
        return [match for match in self.matches if isinstance(match, Match)]

    def forward(self, images: Tensor, matched: bool = False) -> Any:
        """Logits, or pooled features of a gene without classes.

        With ``matched`` also the pooled features, and a list of features in the space of every teacher, at the shape of
        this step while it trains; of several shapes a list of all that.
        """
        if not matched:
            return self.model(images)
        shape = self.drawn.current if self.drawn and self.training else None
        if isinstance(shape, tuple):
            return [self.matched(images, one) for one in shape]
        return self.matched(images, shape)

    def matched(self, images: Tensor, shape: ViTShape | None) -> tuple[Tensor, Tensor | None, list[Features]]:
        """Logits, pooled features, and features in the space of every teacher, at one shape or the auxiliary one."""
        body = self.model.skeleton(shape) if isinstance(self.model, Learngene) else self.model
        with reading(body, self.blocks) as read:
            logits = self.model(images) if shape is None else self.model(images, shape)
        return logits, read.pooled, [match(read) for match in self.matches]

    def no_weight_decay(self) -> set[str]:
        """The model's position embedding and class token."""
        own: Any = self.model
        return {f"model.{name}" for name in own.no_weight_decay()}
