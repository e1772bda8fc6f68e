"""Condensing at several shapes: each step trains the gene as a model of one of them, or of a few at once.

The papers condense at the auxiliary shape alone, and what is expanded to another depth wants fine-tuning. A gene that
was trained at the shapes at which it will be used needs none, and its steps cost what the mean of the shapes costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.evaluation_batches import LEAST_BATCH
from learngene.data.splits import Splits
from learngene.genes.gene import Learngene
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.shapes import measured
from learngene.system.errors import LearngeneError
from learngene.training.loop import make_accelerator
from learngene.training.scores import Accuracy, FeatureScore, accuracies
from learngene.training.stage import set_drop_path
from learngene.vits.shape import ViTShape

SHAPE = 6
"""Purpose of randomness beside those of ``batches.py``, ``loop.py`` and ``task_batches.py``: what is trained."""


class DrawnShapes:
    """The shapes of this step's model.

    Attributes:
        current: What the gene is asked for: one shape or several; None stands for the auxiliary model, as in
            ``Learngene.forward``.
    """

    def __init__(self, gene: Learngene, recipe: CondenseRecipe, images: int) -> None:
        """Sets stochastic depth of every model.

        Args:
            gene: What is trained.
            recipe: Says which shapes there are.
            images: For training; how many steps make an epoch follows.
        """
        self.current: ViTShape | tuple[ViTShape, ...] | None = None
        self._gene, self._train, self._spec = gene, recipe.train, recipe.trained_shapes
        self._steps = images // recipe.train.batch_size
        turns = recipe.turns()
        self._ends: tuple[ViTShape, ...] = ()
        if self._spec and self._spec.sandwich is not None:
            self._ends, turns = tuple(self._spec.ends(turns)), self._spec.between(turns)
        rounds = range(max((turn.share for turn in turns), default=0))
        self._order = [turn.shapes for number in rounds for turn in turns if turn.share > number]
        self._ready: set[ViTShape | None] = set()
        for shape in (None, *self._ends, *(shapes[0] for shapes in self._order if len(shapes) == 1)):
            self._prepare(shape)

    @property
    def several(self) -> bool:
        """Whether there is anything to draw, so that not every step uses all parameters."""
        return self._spec is not None

    def draw(self, epoch: int, step: int) -> None:
        """Chooses the shapes of a step, by where it stands in the run; ``per-process`` by the loop's generator."""
        if self._spec is None:
            return
        sandwich = self._spec.sandwich
        shapes = self._ends + self._chosen(1 if sandwich is None else sandwich, epoch, step)
        for shape in shapes:
            self._prepare(shape)
        self.current = shapes[0] if sandwich is None else shapes

    def _chosen(self, count: int, epoch: int, step: int) -> tuple[ViTShape, ...]:
        assert self._spec is not None
        generator = np.random.default_rng([SHAPE, self._train.seed, epoch, step])
        own, cycle = self._spec.sampling == "per-process", self._spec.sampling == "cycle"

        def one_of(several: Sequence[Any]) -> Any:
            return several[int(torch.randint(len(several), ()) if own else generator.integers(len(several)))]

        first = (epoch * self._steps + step) * count
        turns = [self._order[(first + k) % len(self._order)] if cycle else one_of(self._order) for k in range(count)]
        return tuple(shapes[0] if len(shapes) == 1 else one_of(shapes) for shapes in turns)

    def _prepare(self, shape: ViTShape | None) -> None:
        """Builds a model when it is first needed; what that may draw is drawn from nobody's generator."""
        if shape not in self._ready:
            with torch.random.fork_rng(devices=[]):
                set_drop_path(self._gene.skeleton(shape), self._train.drop_path)
            self._ready.add(shape)


@torch.no_grad()
def refuse_lacking(gene: Learngene, recipe: CondenseRecipe) -> None:
    """Raises ``LearngeneError`` unless the gene has all weights of a model of every shape."""
    for shape in measured(recipe.turns()):
        held = gene.weights(shape)
        if lacking := [name for name in shape.all_params() if name not in held]:
            key, where = ("shapes", shape.size) if recipe.depths is None else ("depths", f"depth {shape.depth}")
            raise LearngeneError(
                f"{key}: at {where} this gene has no {lacking[0]}, so it cannot be trained there; leave {key} out, to "
                "train it at its auxiliary shape alone"
            )


# -- how well it does at every shape -----------------------------------------------------------------------


def shape_scores(
    recipe: CondenseRecipe,
    images: Splits,
    score: Callable[[Sequence[ViTShape], Any, torch.device, Any], Mapping[ViTShape, Accuracy | FeatureScore]],
) -> dict[str, Any]:
    """What a gene's metadata says of the shapes that it was trained at; nothing if that was the auxiliary one alone.

    Args:
        recipe: With mean and std.
        images: Those of its validation split count.
        score: (shapes, this process's batches, device, sum over processes) to the score at every shape.
    """
    shapes = measured(recipe.turns())
    if not shapes:
        return {}
    accelerator, shape = make_accelerator(), recipe.shape
    loader = eval_loader(
        images.val,
        recipe.data,
        img_size=shape.img_size,
        in_chans=shape.in_chans,
        batch_size=max(recipe.train.batch_size, LEAST_BATCH),
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        device=accelerator.device,
    )
    reduce = accelerator.reduce if accelerator.num_processes > 1 else None
    found = score(shapes, loader, accelerator.device, reduce)
    return {"shapes": [_entry(shape, found[shape]) for shape in shapes]}


def _entry(shape: ViTShape, score: Accuracy | FeatureScore) -> dict[str, Any]:
    size = {name: getattr(shape, name) for name in ("embed_dim", "num_heads", "depth")}
    names = ("top1",) if isinstance(score, Accuracy) else ("neighbours", "knn")
    values = {name: getattr(score, name) for name in names}
    return size | {name: round(value, 4) for name, value in values.items() if value is not None}


class _At(nn.Module):
    """A gene at one shape."""

    def __init__(self, gene: Learngene, shape: ViTShape) -> None:
        super().__init__()
        self.gene, self.shape = gene, shape

    def forward(self, images: Tensor) -> Any:
        return self.gene(images, self.shape)


def shape_accuracies(gene: Learngene, recipe: CondenseRecipe, images: Splits) -> dict[str, Any]:
    """``shape_scores`` of a gene that learnt classes."""

    def score(shapes: Sequence[ViTShape], batches: Any, device: torch.device, reduce: Any) -> dict[ViTShape, Accuracy]:
        models = {shape: _At(gene, shape) for shape in shapes}
        gene.to(device)
        found = accuracies(models, batches, precision=recipe.train.precision, reduce=reduce)
        gene.to("cpu")
        return found

    return shape_scores(recipe, images, score)
