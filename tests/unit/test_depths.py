"""Condensing at several depths: each step trains the gene as a model of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learngene import Ancestry, save_descendant, scratch
from learngene.genes.gene import Learngene
from learngene.making.depths import DrawnDepth
from learngene.methods import method
from learngene.recipe.loading import build_recipe
from learngene.system.errors import LearngeneError
from pico import condense_fields, pico_shape
from runs import condensed, same, state

FEATURES = {"distill": {"target": "features"}, "shape": {**pico_shape().to_dict(), "num_classes": 0}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Ancestry:
    """Read only."""
    folder = tmp_path_factory.mktemp("teacher") / "vit"
    save_descendant(scratch(pico_shape(depth=2), seed=1), folder)
    return Ancestry(folder)


@pytest.mark.parametrize("changes", [{}, FEATURES], ids=["logits", "features"])
def test_the_auxiliary_depth_alone_is_what_is_trained_without_depths(
    changes: dict[str, Any], images: Path, teacher: Ancestry
) -> None:
    plain = condensed(None, images, teacher, **changes)
    assert same(state(plain), state(condensed(None, images, teacher, depths=[pico_shape().depth], **changes)))


@pytest.mark.parametrize("changes", [{}, FEATURES], ids=["logits", "features"])
def test_what_a_depth_does_not_use_is_not_trained(changes: dict[str, Any], images: Path, teacher: Ancestry) -> None:
    fresh = Learngene(method("tleg"), pico_shape(num_classes=3 if not changes else 0)).tensors()
    one = condensed(None, images, teacher, depths=[1], **changes).tensors()  # theta_1 = B, equation 1
    assert all(torch.equal(value, fresh[name]) for name, value in one.items() if name.startswith("A."))
    assert not any(torch.equal(value, fresh[name]) for name, value in one.items() if name == "B.attn.qkv.weight")


def test_every_depth_has_its_turn(images: Path, tmp_path: Path) -> None:
    recipe = build_recipe(condense_fields("teacher", images, tmp_path / "run", depths=[2, 4, 5]))
    depth, drawn = DrawnDepth(Learngene(method("tleg"), pico_shape()), recipe), []
    torch.manual_seed(0)
    for step in range(60):
        depth.draw(0, step)
        assert depth.shape
        drawn.append(depth.shape.depth)
    assert {each: drawn.count(each) >= 10 for each in set(drawn)} == {2: True, 4: True, 5: True}


def test_the_gene_says_at_which_depths_it_was_trained(images: Path, teacher: Ancestry) -> None:
    gene = condensed(None, images, teacher, depths=[2, 3])
    assert gene.metadata["training"]["recipe"]["depths"] == [2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [2, 2]}, "2 is named twice"),
        ({"depths": [0]}, "depths"),
        ({"depths": [1], "method": "sws", "settings": {"stages": [2, 2]}}, "depth 1 is below the 2 stages"),
        ({"depths": [2], "method": "pool", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}}, "is not trained at an aux"),
        ({"depths": [2], "settings": {"modules": ["msa"]}}, "at depth 2 this gene has no blocks.0.norm1"),
    ],
)
def test_depths_that_cannot_be_trained(changes: dict[str, Any], message: str, images: Path, teacher: Ancestry) -> None:
    with pytest.raises(LearngeneError, match=message):
        condensed(None, images, teacher, **changes)
