"""Condensing at several depths and shapes: each step trains the gene as a model of one of them, or of a few."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import written
from learngene import Ancestry, evaluate, save_descendant, scratch
from learngene.genes.gene import Learngene
from learngene.making.drawn_shapes import DrawnShapes
from learngene.methods import method
from learngene.recipe.loading import build_recipe
from learngene.system.errors import InterruptedRun, LearngeneError
from pico import FAST, condense_fields, pico_shape
from runs import HARD, SGD, condensed, same, state

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


# -- which shapes are drawn --------------------------------------------------------------------------------

SLICES = {"method": "nested-slices"}
SMALL, TALL, WIDE = {"embed_dim": 8, "depth": 1}, {"embed_dim": 8, "depth": 4}, {"embed_dim": 16, "depth": 2}


def drawn(tmp_path: Path, steps: int = 60, images: int = 24, **changes: Any) -> list[Any]:
    """What a run of 3 steps an epoch draws: (width, depth) of every step, or several of them."""
    recipe = build_recipe(condense_fields("teacher", "images", tmp_path / "run", **changes))
    shapes, out = DrawnShapes(Learngene(method(recipe.method), pico_shape()), recipe, images), []
    torch.manual_seed(0)
    for step in range(steps):
        shapes.draw(*divmod(step, images // 8))
        found = shapes.current if isinstance(shapes.current, tuple) else (shapes.current,)
        out.append([(each.embed_dim, each.depth) for each in found])
    return [each[0] if len(each) == 1 else each for each in out]


def test_depths_are_drawn_from_the_generator_of_the_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = [(16, (2, 4, 5)[int(torch.randint(3, ()))]) for _ in range(60)]
    assert drawn(tmp_path, depths=[2, 4, 5]) == expected
    assert all(expected.count((16, depth)) >= 10 for depth in (2, 4, 5))
    sizes = {"sizes": [{"depth": depth} for depth in (2, 4, 5)], "sampling": "per-process"}
    assert drawn(tmp_path, shapes=sizes) == expected


def test_shapes_come_in_turn_over_epochs_as_often_as_their_shares_say(tmp_path: Path) -> None:
    sizes = [{**SMALL, "share": 2}, TALL, WIDE]
    cycle = [(8, 1), (8, 4), (16, 2), (8, 1)]
    assert drawn(tmp_path, 8, shapes=sizes, **SLICES) == cycle * 2


def test_of_a_range_the_smallest_and_the_largest_are_always_among_what_is_trained(tmp_path: Path) -> None:
    """Widths 8 and 16 by depths 2 to 4; the other four share every third step."""
    found = drawn(tmp_path, shapes=[{"embed_dim": [5, 20], "depth": [2, 9]}], **SLICES)
    assert (set(found[0::3]), set(found[1::3])) == ({(8, 2)}, {(16, 4)})
    assert set(found[2::3]) == {(8, 3), (8, 4), (16, 2), (16, 3)}


def test_random_shapes_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    given = {"shapes": {"sizes": [SMALL, TALL, {**WIDE, "share": 6}], "sampling": "random"}, **SLICES}
    found = drawn(tmp_path, **given)
    assert drawn(tmp_path, 7, **given) == found[:7]
    assert 30 < found.count((16, 2)) < 57
    assert {(8, 1), (8, 4)} < set(found)
    assert drawn(tmp_path, train={**FAST, "seed": 1}, **given) != found


def test_a_sandwich_has_both_ends_and_others_in_turn(tmp_path: Path) -> None:
    sizes = [TALL, {"embed_dim": 16, "depth": 4}, SMALL, WIDE]
    found = drawn(tmp_path, 3, shapes={"sizes": sizes, "sandwich": 1}, **SLICES)
    assert found == [[(8, 1), (16, 4), other] for other in ((8, 4), (16, 2), (8, 4))]


# -- what is trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, FEATURES], ids=["logits", "features"])
def test_the_loss_of_a_sandwich_is_the_mean_of_its_shapes(changes: dict[str, Any], images: Path, teacher: Any) -> None:
    """Plain momentum's first step is the gradient, so that of two shapes is the mean of those of each."""
    train = {**FAST, **SGD, "epochs": 1, "batch_size": 24}
    if changes:  # for a bridge of its own
        changes = {**changes, "features": {"scale": "none"}}

    def step(*sizes: dict[str, Any], **more: Any) -> dict[str, torch.Tensor]:
        gene = condensed(None, images, teacher, shapes={"sizes": sizes, **more}, train=train, **SLICES, **changes)
        fresh = Learngene(gene.method, gene.shape).tensors()
        return {name: value - fresh[name] for name, value in gene.tensors().items()}

    both, one, other = step(SMALL, WIDE, sandwich=0), step(SMALL), step(WIDE)
    assert any(value.any() for value in one.values())
    for name, value in both.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, FEATURES], ids=["logits", "features"])
@pytest.mark.parametrize("sampling", [{"sampling": "random"}, {"sandwich": 1}], ids=str)
def test_a_run_that_is_stopped_trains_the_shapes_of_one_that_is_not(
    changes: dict[str, Any], sampling: dict[str, Any], images: Path, teacher: Ancestry, tmp_path: Path,
    stop_at: Callable[..., None],
) -> None:  # fmt: skip
    given = {"shapes": {"sizes": [SMALL, TALL, WIDE], **sampling}, "train": HARD, **SLICES, **changes}
    whole = condensed(None, images, teacher, **given)
    stop_at(signal.SIGINT, epoch=1)
    with pytest.raises(InterruptedRun):
        condensed(tmp_path / "run", images, teacher, **given)
    gene = condensed(tmp_path / "run", images, teacher, **given)
    assert same(state(whole), state(gene))
    assert gene.metadata["shapes"] == whole.metadata["shapes"]


def test_a_gene_says_what_it_scores_at_its_shapes(images: Path, teacher: Ancestry) -> None:
    """As its descendants do; of a range at both ends and in the middle."""
    gene = condensed(None, images, teacher, shapes=[{"embed_dim": [8, 16], "depth": [1, 4]}], **SLICES)
    measured = {(entry["embed_dim"], entry["num_heads"], entry["depth"]): entry["top1"]
                for entry in gene.metadata["shapes"]}  # fmt: skip
    assert measured.keys() == {(8 * heads, heads, depth) for heads in (1, 2) for depth in (1, 3, 4)}
    data = {"source": str(images), "workers": 0, "img_size": 8}
    for (width, heads, depth), top1 in measured.items():
        model = gene.expand(gene.shape.replace(embed_dim=width, num_heads=heads, depth=depth))
        assert evaluate(model, data).top1 == pytest.approx(top1, abs=1e-3)
    features = condensed(None, images, teacher, shapes=[SMALL, WIDE], **SLICES, **FEATURES)
    assert [set(entry) for entry in features.metadata["shapes"]] == [
        {"embed_dim", "num_heads", "depth", "neighbours"}
    ] * 2


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
        ({"depths": [2], "settings": {"modules": ["msa"]}}, "depths: at depth 2 this gene has no blocks.0.norm1"),
        (
            {"shapes": [{"depth": 2}], "settings": {"modules": ["msa"]}},
            r"shapes: at 2 layers x 16 \(2 heads\) this gene has no",
        ),
        ({"depths": [2], "shapes": [SMALL]}, "depths: is short for shapes, which is there, too; give one of the two"),
        ({"shapes": []}, "shapes.*empty; give at least one"),
        (
            {"shapes": [SMALL, {"embed_dim": 12}], **SLICES},
            "shapes: embed_dim 12 is no multiple of 8, the .* use 8 or 16",
        ),
        ({"shapes": [{"embed_dim": 5}], **SLICES}, "embed_dim 5 is no multiple of 8, the width of .*; use 8, or say"),
        ({"shapes": [{"embed_dim": 12, "num_heads": 3}], **SLICES}, "shapes: nested-slices: heads are kept whole"),
        ({"shapes": [{"embed_dim": 8}]}, "shapes: shape: this gene has embed_dim 16, not 8"),
        ({"shapes": [{"depth": 9}], **SLICES}, "shapes: nested-slices: depth 9 is beyond the gene's 4"),
        ({"shapes": [SMALL, WIDE, SMALL], **SLICES}, r"shapes: 1 layers x 8 \(1 heads\) is given twice; leave one out"),
        ({"shapes": [{"depth": [9, 3]}]}, r"\[9, 3\] must be smallest first, then largest"),
        ({"shapes": [{"embed_dim": [9, 15]}], **SLICES}, r"shapes: embed_dim \[9, 15\] holds no multiple of 8"),
        (
            {"shapes": [{"depth": [5, 9]}], **SLICES},
            r"depth \[5, 9\] holds no shape that nested-slices makes: .*gene's 4",
        ),
        ({"shapes": [{"embed_dim": [1, 10**12]}], **SLICES}, "holds 125000000000 shapes, over 10000; narrow it"),
        ({"shapes": [{"depth": 2, "share": 10**9}]}, "share: .* less than or equal to 1000"),
        ({"shapes": [{"embed_dim": [8, 16]}]}, r"shapes: embed_dim \[8, 16\]: tleg makes 16 alone; say so"),
        ({"shapes": [{"depth": [4, 9]}], **SLICES}, r"shapes: depth \[4, 9\]: nested-slices makes 4 alone; say so"),
        ({"shapes": [{"depth": True}]}, "shapes.0.depth: must be a number, not true"),
        (
            {"shapes": [{"depth": [-1, 2, 3]}]},
            "depth: .* integer or List should have at most 2 items, not 3",
        ),
        ({"shapes": {"sizes": [SMALL, WIDE], "sandwich": True}, **SLICES}, "sandwich: must be a number, not true"),
        ({"shape": pico_shape(num_classes=7)}, "has 3 classes but the auxiliary shape has 7; set shape.num_classes=3"),
        ({"shape": pico_shape(in_chans=1)}, "with 3 channels, but the .* has 8 px with 1; set shape.in_chans=3"),
        ({"shapes": [{"depth": [1, 2], "num_heads": 2}]}, "num_heads: those of a range follow from the width"),
        (
            {"shapes": {"sizes": [SMALL, WIDE], "sandwich": 1}, **SLICES},
            "shapes: sandwich 1: .* there are 0; give at most that",
        ),
        ({"shapes": [{"width": 8}], **SLICES}, "unknown key 'width'"),
        (
            {"shapes": [SMALL], **SLICES, **FEATURES, "features": {"keep_bridge": True, "bridge": "linear"}},
            "none of shapes has its embed_dim",
        ),
        (
            {"shapes": [WIDE], "method": "pool", "settings": {"rows": [8, 16]}},
            "shapes: pool is not trained at an aux.* shape",
        ),
    ],
    ids=str,
)
def test_shapes_that_cannot_be_trained(changes: dict[str, Any], message: str, images: Path, teacher: Ancestry) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        condensed(None, images, teacher, **changes)
    assert "\n" not in str(error.value)


def test_check_says_what_is_trained(cli: Any, images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    for shapes, told in (
        ([SMALL, WIDE], "one per step, cycle"),
        ({"sizes": [SMALL, TALL, WIDE], "sandwich": 1}, "per step the smallest, the largest and 1 others, cycle"),
    ):
        fields = condense_fields(ancestry_folder, images, tmp_path / "run", shapes=shapes, **SLICES)
        made = cli("check", written(tmp_path / "r.yaml", fields))
        assert f"from 1 layers x 8 (1 heads) to 2 layers x 16 (2 heads), {told}" in made.out
