"""Shape annotations are checked while the suite runs: a wrong shape is caught where it enters."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from learngene import Ancestry
from learngene.recipe.sections import Distill
from learngene.training.losses import classification_loss, distillation_loss
from pico import pico_gene

THREE, FOUR = torch.zeros(2, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: classification_loss(THREE, FOUR),
        lambda: classification_loss(THREE[0], THREE[0]),
        lambda: distillation_loss(THREE, FOUR, THREE, Distill()),
        lambda: pico_gene()(torch.zeros(3, 8, 8)),
        lambda: pico_gene()(torch.zeros(2, 3, 8, 8, dtype=torch.int64)),
        lambda: Ancestry(pico_gene().expand())(torch.zeros(3, 8, 8)),
    ],
)
def test_a_wrong_shape_is_caught(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_right_shapes_pass() -> None:
    assert pico_gene()(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert classification_loss(FOUR, FOUR).shape == ()
