"""Condensing at several depths: each step trains the gene as a model of one of them.

The papers condense at the auxiliary depth alone, and what is expanded to another depth wants fine-tuning. A gene that
was trained at the depths at which it will be used needs none, and its steps cost what the mean of the depths costs.
"""

from __future__ import annotations

import torch

from learngene.genes.gene import Learngene
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError
from learngene.training.stage import set_drop_path
from learngene.vits.shape import ViTShape


class DrawnDepth:
    """The shape of this step's model.

    Attributes:
        shape: None stands for the auxiliary model, as in ``Learngene.forward``.
    """

    def __init__(self, gene: Learngene, recipe: CondenseRecipe) -> None:
        """Sets stochastic depth of every model; ``recipe.depths`` says which there are."""
        self.shape: ViTShape | None = None
        self._shapes = shapes_of(recipe)
        for shape in (None, *self._shapes):
            set_drop_path(gene.skeleton(shape), recipe.train.drop_path)

    @property
    def several(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._shapes)

    def draw(self, _epoch: int, _step: int) -> None:
        """Every process draws its own, all with equal probability, from the generator that the loop has seeded."""
        if self._shapes:
            self.shape = self._shapes[int(torch.randint(len(self._shapes), ()))]


def shapes_of(recipe: CondenseRecipe) -> list[ViTShape]:
    """The auxiliary shape at every depth that the recipe names."""
    return [recipe.shape.replace(depth=depth) for depth in recipe.depths or ()]


def refuse_depths(gene: Learngene, recipe: CondenseRecipe) -> None:
    """Raises ``LearngeneError`` unless the gene has all weights of a model of every depth."""
    for shape in shapes_of(recipe):
        if lacking := [name for name in shape.all_params() if name not in gene.weights(shape)]:
            raise LearngeneError(
                f"depths: at depth {shape.depth} this gene has no {lacking[0]}, so it cannot be trained there; "
                f"use depth {gene.shape.depth} alone, which leaving depths out means"
            )
