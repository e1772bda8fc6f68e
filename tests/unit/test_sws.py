"""SWS: which stage feeds which layer, in every order and assignment, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learngene import ViTShape
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.sws import SWS
from learngene.system.errors import LearngeneError
from pico import batch, pico_gene, pico_shape

PAPER = SWS()
STAGES = [(4,), (2, 2), (1, 1, 1), (3, 1, 2), (1, 4, 1, 1, 4, 1), (3, 3, 4, 3, 3), (4, 1, 5, 2, 3)]


def string(text: str) -> list[int]:
    """A layer string of the papers."""
    return [int(part) for part in text.split(",")]


@pytest.mark.parametrize("stages", STAGES, ids=str)
def test_the_auxiliary_model_is_the_descendant_at_its_shape_and_trains_the_whole_gene(stages: tuple[int, ...]) -> None:
    gene = pico_gene("sws", {"stages": stages})
    images = batch(gene.shape)
    logits = gene(images)
    assert torch.equal(logits, gene.expand()(images))
    logits.square().sum().backward()
    assert [name for name, value in gene.tensors().items() if value.grad is None or not value.grad.any()] == []
    assert gene.expand().learngene["layers"] == [f"stage{m}" for m, times in enumerate(stages) for _ in range(times)]


# -- the papers' layer strings -----------------------------------------------------------------------------

FRONT_MID_LAST = {
    5: "0,1,2,3,4",
    6: "0,0,1,2,3,4",
    7: "0,0,1,1,2,3,4",
    8: "0,0,1,1,2,2,3,4",
    9: "0,0,1,1,2,2,3,3,4",
    10: "0,0,1,1,2,2,3,3,4,4",
    11: "0,0,0,1,1,2,2,3,3,4,4",
    12: "0,0,0,1,1,1,2,2,3,3,4,4",  # the one that is published
    13: "0,0,0,1,1,1,2,2,2,3,3,4,4",
    14: "0,0,0,1,1,1,2,2,2,3,3,3,4,4",
    15: "0,0,0,1,1,1,2,2,2,3,3,3,4,4,4",
}
FRONT_LAST_MID = {
    5: "0,1,2,3,4",
    6: "0,0,1,2,3,4",
    7: "0,0,1,2,3,4,4",
    8: "0,0,1,1,2,3,4,4",
    9: "0,0,1,1,2,3,3,4,4",
    10: "0,0,1,1,2,2,3,3,4,4",
    11: "0,0,0,1,1,2,2,3,3,4,4",
    12: "0,0,0,1,1,2,2,3,3,4,4,4",
    13: "0,0,0,1,1,1,2,2,3,3,4,4,4",
    14: "0,0,0,1,1,1,2,2,3,3,3,4,4,4",
    15: "0,0,0,1,1,1,2,2,2,3,3,3,4,4,4",
}


@pytest.mark.parametrize("depth", FRONT_MID_LAST)
def test_both_orders_give_the_papers_strings(depth: int) -> None:
    assert PAPER.stage_of_layer(depth) == string(FRONT_MID_LAST[depth])
    assert PAPER.stage_of_layer(depth, order="front-mid-last") == string(FRONT_MID_LAST[depth])
    assert PAPER.stage_of_layer(depth, order="front-last-mid") == string(FRONT_LAST_MID[depth])
    assert PAPER.stage_of_layer(depth, order=[0, 4, 1, 3, 2]) == string(FRONT_LAST_MID[depth])


def test_both_orders_agree_exactly_where_table_4_has_equal_numbers() -> None:
    """78.0 and 78.9 at depths 10 and 11 in both rows; 7, 8, 9 and 12 differ."""
    equal = [d for d in range(7, 13) if PAPER.stage_of_layer(d) == PAPER.stage_of_layer(d, order="front-last-mid")]
    assert equal == [10, 11]
    gene = pico_gene("sws", {"stages": (1, 1, 1, 1, 1)})
    images = batch(gene.shape)
    for depth in (10, 11):
        one, other = (gene.expand(depth, order=order) for order in ("front-mid-last", "front-last-mid"))
        assert torch.equal(one(images), other(images))
    one, other = (gene.expand(12, order=order) for order in ("front-mid-last", "front-last-mid"))
    assert not torch.equal(one(images), other(images))


def test_depth_16_is_as_trained_unless_an_order_is_named() -> None:
    trained = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    cyclic = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert PAPER.stage_of_layer(16) == PAPER.stage_of_layer(16, assign="as-trained") == trained
    assert PAPER.stage_of_layer(16, assign="cyclic") == cyclic
    assert PAPER.stage_of_layer(16, order="front-mid-last") == cyclic
    assert SWS((2, 2, 2)).order("front-last-mid") == [0, 2, 1]  # Figure 3c
    assert len({tuple(PAPER.stage_of_layer(10, assign="random", assign_seed=seed)) for seed in range(20)}) > 10


@given(stages=st.lists(st.integers(1, 5), min_size=1, max_size=7), more=st.integers(0, 20), data=st.data())
def test_every_stage_is_used_in_place_and_evenly(stages: list[int], more: int, data: st.DataObject) -> None:
    kind, count = SWS(tuple(stages)), len(stages)
    order = data.draw(st.permutations(range(count)))
    layers = kind.stage_of_layer(count + more, order=order, assign="cyclic")
    repeats = [layers.count(m) for m in range(count)]
    assert layers == sorted(layers)
    assert len(layers) == count + more
    assert max(repeats) - min(repeats) <= 1
    assert [m for m in order if repeats[m] == max(repeats)] == order[: (count + more) % count or count]


@given(stages=st.integers(1, 6), more=st.integers(0, 12), seed=st.integers(0, 2**32))
def test_the_random_assignment_is_seeded_sorted_and_leaves_no_stage_out(stages: int, more: int, seed: int) -> None:
    kind = SWS((1,) * stages)
    layers = kind.stage_of_layer(stages + more, assign="random", assign_seed=seed)
    assert layers == kind.stage_of_layer(stages + more, assign="random", assign_seed=seed)
    assert layers == sorted(layers)
    assert set(layers) == set(range(stages))
    assert len(layers) == stages + more


def test_the_choices_reach_the_weights() -> None:
    gene = pico_gene("sws", {"stages": (2, 1, 1)})
    model = gene.expand(5, order=[2, 0, 1])
    assert model.learngene["layers"] == ["stage0", "stage0", "stage1", "stage2", "stage2"]
    assert model.learngene["options"] == {"order": [2, 0, 1]}
    for i, m in enumerate([0, 0, 1, 2, 2]):
        expected = gene.tensors()[f"stage{m}.attn.qkv.weight"]
        assert torch.equal(model.state_dict()[f"blocks.{i}.attn.qkv.weight"], expected)


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "front-last-mit"}, "unknown order 'front-last-mit'; did you mean 'front-last-mid'"),
        ({"order": [0, 1]}, "must name each of the stages 0 to 2 once"),
        ({"order": [0, 1, 1]}, "must name each of the stages 0 to 2 once"),
        ({"order": [0, 1, 3]}, "must name each of the stages 0 to 2 once"),
        ({"order": "0,2"}, "must name each of the stages 0 to 2 once"),
        ({"assign": "cycle"}, "unknown assignment 'cycle'; did you mean 'cyclic'"),
        ({"assign": "as-trained"}, "'as-trained' needs the auxiliary depth 4, not 5"),
        ({"ordre": "0,1,2"}, "expansion options: unknown key 'ordre'; did you mean 'order'"),
        ({"order": 3}, "must name each of the stages 0 to 2 once"),
        ({"order": [0, "one", 2]}, "must name each of the stages 0 to 2 once"),
        ({"assign": 1}, "unknown assignment"),
        ({"assign": "random", "assign_seed": "x"}, "assign_seed must be an integer, not 'x'"),
        *(
            ({"depth": 2, **more}, "depth 2 is below the 3 stages of this gene; the smallest depth is 3")
            for more in ({}, {"order": "front-last-mid"}, {"assign": "random"}, {"assign": "cyclic"})
        ),
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused(options: dict[str, Any], message: str) -> None:
    depth = (options := dict(options)).pop("depth", 5)
    with pytest.raises(LearngeneError, match=message):
        pico_gene("sws", {"stages": (2, 1, 1)}).expand(depth, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": []}, r"list of positive integers such as \[3, 3, 4, 3, 3\], not \[\]"),
        ({"stages": [2, 0]}, "list of positive integers"),
        ({"stages": [2, -1]}, "list of positive integers"),
        ({"stages": "3,3"}, "list of positive integers"),
        ({"stages": 4}, "list of positive integers"),
        ({"stages": [1.5, 2]}, "list of positive integers"),
        ({"stages": None}, "list of positive integers"),
        ({"stage": [1]}, "unknown key 'stage'; did you mean 'stages'"),
        ({"stages": (2, 1)}, "stages 2,1 add up to 3 layers, but the auxiliary shape has depth 4"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        Learngene(method("sws", settings), pico_shape(depth=4))


def test_a_gene_of_twelve_heads_does_not_make_six() -> None:
    """The released SWS code trains an auxiliary model of 12 heads for descendants of 6, and nothing complains."""
    gene = Learngene(method("sws"), ViTShape.named("sws_official_aux_small", img_size=32))
    target = ViTShape.named("deit_small_patch16_224", img_size=32)
    with pytest.raises(LearngeneError, match="this gene has num_heads 12, not 6"):
        gene.expand(target)
