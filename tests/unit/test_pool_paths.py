"""Rows and paths of Learngene Pool and SN-Net: how many, which, what they are called, and what is refused."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from learngene import Budget, LearngeneError, ViTShape, plan
from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.methods.stitching import StitchedRows
from learngene.system.errors import ShapeError
from learngene.vits.segment import Segment
from learngene.vits.stitched_shape import StitchedShape
from pico import batch, pico_gene, pico_shape
from pools import pool


def rows(name: str = "pool", **settings: Any) -> StitchedRows:
    kind = method(name, {"rows": (16, 32), **settings})
    assert isinstance(kind, StitchedRows)
    return kind


def wide(depth: int = 6, **changes: Any) -> ViTShape:
    return pico_shape(**{"embed_dim": 32, "num_heads": 4, "depth": depth, **changes})


def names(kind: StitchedRows, auxiliary: ViTShape) -> list[str]:
    return [path.path for path in kind.paths(auxiliary)]


def counts(kind: StitchedRows, auxiliary: ViTShape) -> list[str]:
    return [kind.counts(path) for path in kind.paths(auxiliary)]


def pool_gene(**settings: Any) -> Learngene:
    return pico_gene("pool", {"rows": (16, 32), **settings}, embed_dim=32, num_heads=4, depth=3)


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(LearngeneError) as error:
        call(*arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


THREE: dict[str, Any] = {"rows": (16, 24, 32)}
TRIPLES: dict[str, Any] = {**THREE, "nearest": False, "max_stitches": 2}

# -- how many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("depth", "number"), [(1, 3), (2, 6), (3, 9), (6, 18), (9, 27), (12, 36)])
def test_the_number_of_paths_of_a_pool(depth: int, number: int, direction: str) -> None:
    """Of two rows, and 4 + 3 (D - 2) pairs from depth 2 on: 18 and 27 are in the paper's costs."""
    kind = rows(direction=direction)
    found = kind.paths(wide(depth))
    assert len(found) == len(set(found)) == number
    assert len(kind.stitch_layers(wide(depth))) == max(depth - 1, 1)
    assert depth < 2 or number == 2 + 4 + 3 * (depth - 2)


def test_snnet_of_deit_ti_s_and_b_has_71_paths() -> None:
    kind, auxiliary = rows("sn-net", rows=(192, 384, 768)), ViTShape.named("deit_base_patch16_224")
    assert len(kind.paths(auxiliary)) == 71
    layers = kind.stitch_layers(auxiliary)
    assert len(layers) == 2 * 11
    assert set(layers.values()) == {(0, 1), (1, 2)}
    assert [len(kind.stitches(auxiliary, *pair)) for pair in kind.row_pairs()] == [34, 34]


@pytest.mark.parametrize(("depth", "number"), [(3, 57), (6, 201), (9, 426)])
def test_three_rows_with_all_pairs_and_triples(depth: int, number: int) -> None:
    kind, auxiliary = rows(**TRIPLES), wide(depth)
    found = kind.paths(auxiliary)
    assert len(found) == len(set(found)) == number
    pairs = 4 + 3 * (depth - 2)
    assert [sum(len(path.segments) == rows for path in found) for rows in (1, 2, 3)] == [
        3,
        3 * pairs,
        number - 3 - 3 * pairs,
    ]
    assert kind.row_pairs() == [(0, 1), (0, 2), (1, 2)]


# -- which -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 6, 9, 12])
def test_stitches_join_neighbouring_blocks_and_share_their_windows_layer(depth: int) -> None:
    found = rows().stitches(wide(depth), 0, 1)
    assert set(found) == {(i, j) for i in range(depth) for j in range(depth) if abs(i - j) <= 1}
    assert found == {(i, j): max(max(i, j) - 1, 0) for i, j in found}


def test_stitches_come_window_by_window() -> None:
    """The order of the released code, so that path numbers mean the same."""
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3)]
    assert list(rows().stitches(wide(4), 0, 1)) == order


def test_all_paths_of_a_small_pool() -> None:
    kind, auxiliary = rows(), wide(3)
    assert names(kind, auxiliary) == [
        *("16:1-3", "32:1-3", "16:1-1+32:1-3", "16:1-1+32:2-3", "16:1-2+32:1-3", "16:1-2+32:2-3", "16:1-2+32:3-3"),
        *("16:1-3+32:2-3", "16:1-3+32:3-3"),
    ]
    assert counts(kind, auxiliary) == ["3+0", "0+3", "1+3", "1+2", "2+3", "2+2", "2+1", "3+2", "3+1"]


def test_down_goes_from_wide_to_narrow() -> None:
    kind, auxiliary = rows(direction="down"), wide(3)
    assert names(kind, auxiliary)[2:] == [
        *("32:1-1+16:1-3", "32:1-1+16:2-3", "32:1-2+16:1-3", "32:1-2+16:2-3", "32:1-2+16:3-3"),
        *("32:1-3+16:2-3", "32:1-3+16:3-3"),
    ]
    # Counts stay in the order of the rows, narrow to wide, whichever comes first.
    assert counts(kind, auxiliary)[2:] == ["3+1", "2+1", "3+2", "2+2", "1+2", "2+3", "1+3"]
    assert kind.stitch_layers(auxiliary) == {"stitch.1.0.0": (1, 0), "stitch.1.0.1": (1, 0)}
    assert rows(direction="down", **TRIPLES).row_pairs() == [(1, 0), (2, 0), (2, 1)]
    sizes = kind.gene_tensors(auxiliary)
    assert sizes["stitch.1.0.0.weight"] == (16, 32)
    assert sizes["stitch.1.0.0.bias"] == (16,)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_path_begins_with_its_first_rows_stem_and_ends_with_its_last_rows_head(direction: str) -> None:
    gene = pool_gene(direction=direction)
    first, last = (0, 1) if direction == "up" else (1, 0)
    shape = gene.method.named_shape(gene.shape, "2+2")
    weights, tensors = gene.weights(shape), gene.tensors()
    expected = {
        "pos_embed": f"row{first}.pos_embed",
        "patch_embed.proj.weight": f"row{first}.patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight": f"row{first}.blocks.0.mlp.fc1.weight",
        "blocks.1.norm1.bias": f"row{first}.blocks.1.norm1.bias",
        "blocks.2.stitch.weight": f"stitch.{first}.{last}.0.weight",
        "blocks.2.stitch.bias": f"stitch.{first}.{last}.0.bias",
        "blocks.2.attn.qkv.weight": f"row{last}.blocks.1.attn.qkv.weight",
        "blocks.3.mlp.fc2.bias": f"row{last}.blocks.2.mlp.fc2.bias",
        "norm.weight": f"row{last}.norm.weight",
        "head.bias": f"row{last}.head.bias",
    }
    for name, source in expected.items():
        assert weights[name] is tensors[source], name
    assert gene.method.describe(gene.shape, shape) == [
        f"row{first} block 1",
        f"row{first} block 2",
        f"stitch.{first}.{last}.0, row{last} block 2",
        f"row{last} block 3",
    ]


# -- rows of unequal depth ---------------------------------------------------------------------------------


@st.composite
def unequal(draw: st.DrawFn) -> tuple[StitchedRows, ViTShape]:
    depths = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kind = rows(
        "sn-net", rows=((16, depths[0], 2), (32, depths[1], 4)), direction=draw(st.sampled_from(["up", "down"]))
    )
    return kind, wide(depths[1])


@settings(max_examples=60, deadline=None)
@given(unequal())
def test_rows_of_unequal_depth_reach_every_block(given_: tuple[StitchedRows, ViTShape]) -> None:
    kind, auxiliary = given_
    pair = kind.row_pairs()[0]
    found = kind.stitches(auxiliary, *pair)
    shapes = kind.row_shapes(auxiliary)
    depths = shapes[pair[0]].depth, shapes[pair[1]].depth
    assert {i for i, _ in found} == set(range(depths[0]))
    assert {j for _, j in found} == set(range(depths[1]))
    # On the shallower row's scale the blocks that are joined are neighbours.
    scale = min(depths)
    places = {(i, j): (i * scale // depths[0], j * scale // depths[1]) for i, j in found}
    assert all(abs(a - b) <= 1 for a, b in places.values())
    assert found == {pair: max(max(place) - 1, 0) for pair, place in places.items()}
    assert sorted(set(found.values())) == list(range(max(scale - 1, 1)))
    # And all neighbours are joined.
    joined = [(i, j) for i in range(depths[0]) for j in range(depths[1])
              if abs(i * scale // depths[0] - j * scale // depths[1]) <= 1]  # fmt: skip
    assert set(found) == set(joined)


def test_a_path_through_rows_of_unequal_depth() -> None:
    kind, auxiliary = rows("sn-net", rows=((16, 2, 2), (32, 4, 4))), wide(4)
    assert kind.stitches(auxiliary, 0, 1) == {(i, j): 0 for i in range(2) for j in range(4)}
    assert kind.named_shape(auxiliary, "16:1-2+32:4-4").depth == 3
    assert kind.named_shape(auxiliary, "2+0") == wide(2, embed_dim=16, num_heads=2)
    assert len(kind.paths(auxiliary)) == 2 + 8


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_in_a_pool_of_two_rows_either_name_says_which_path(depth: int, direction: str) -> None:
    kind, auxiliary = rows(direction=direction), wide(depth)
    for path in kind.paths(auxiliary):
        assert kind.named_shape(auxiliary, path.path) == path
        assert kind.named_shape(auxiliary, kind.counts(path)) == path


def test_a_shape_by_name_is_the_papers_path() -> None:
    kind, auxiliary = method("pool"), ViTShape.named("deit_base_patch16_224", depth=6, class_token=True)
    expected = StitchedShape((Segment(192, 3, 1, 4), Segment(768, 12, 5, 6)), class_token=True)
    for name in ("4+2", " 4 + 2", "192:1-4+768:5-6", "192:1-4 + 768:5-6", "04+2"):
        assert kind.named_shape(auxiliary, name) == expected
    assert kind.named_shape(auxiliary, "6+0") == auxiliary.replace(embed_dim=192, num_heads=3)
    assert kind.named_shape(auxiliary, "0+6") == kind.named_shape(auxiliary, "768:1-6") == auxiliary


def test_counts_that_several_paths_have_are_refused_with_the_full_names() -> None:
    """With three rows of depth 3: 1+1+2 says not which block of the middle row."""
    kind, auxiliary = rows(**TRIPLES), wide(3)
    with pytest.raises(ShapeError) as error:
        kind.named_shape(auxiliary, "1+1+2")
    full = [path.path for path in kind.paths(auxiliary) if kind.counts(path) == "1+1+2"]
    assert len(full) > 1
    assert str(error.value) == f"pool: {len(full)} paths have 1+1+2 blocks; use {' or '.join(full)}"
    for name in full:
        assert kind.named_shape(auxiliary, name).depth == 4


def test_paths_keep_the_task_of_the_base() -> None:
    kind, auxiliary = rows(), wide(3)
    base = auxiliary.replace(num_classes=7, img_size=12, ending="official")
    found = list(kind.shapes(auxiliary, base))
    assert {(shape.num_classes, shape.img_size, shape.ending) for shape in found} == {(7, 12, "official")}
    assert [shape.path for shape in found] == names(kind, auxiliary)


def test_planning_lists_the_paths_that_fit_largest_first() -> None:
    gene = pool_gene()
    found = plan(gene)
    assert len(found) == 9
    assert [candidate.params for candidate in found] == sorted((c.params for c in found), reverse=True)
    assert not any(candidate.beyond_auxiliary for candidate in found)
    assert all(candidate.top1 is None for candidate in found)
    limit = gene.method.named_shape(gene.shape, "2+1")
    fitting = plan(gene, Budget(max_params=limit.params(), max_macs=limit.macs()))
    assert fitting[0].shape == limit
    assert fitting[0].layers == ["row0 block 1", "row0 block 2", "stitch.0.1.1, row1 block 3"]
    assert plan(gene, Budget(max_params=1)) == []


def test_measured_accuracy_decides_for_the_same_task_only() -> None:
    gene = pool_gene()
    kind = gene.method
    assert isinstance(kind, StitchedRows)
    order = [5, 1, 8, 0, 2, 7, 3, 6, 4]
    paths = kind.paths(gene.shape)
    gene.metadata["paths"] = [{"path": path.path, "blocks": kind.counts(path), "top1": top1}
                              for path, top1 in zip(paths, order, strict=True)]  # fmt: skip
    assert [candidate.top1 for candidate in plan(gene)] == sorted(order, reverse=True)
    assert plan(gene)[0].shape == paths[2]
    for changes in ({"num_classes": 5}, {"img_size": 12}):
        found = plan(gene, **changes)  # type: ignore[arg-type]
        assert all(candidate.top1 is None for candidate in found)
        assert found[0].params == max(candidate.params for candidate in found)


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("16:1-1+32:4-4", {"1+3 (16:1-1+32:2-4)", "2+2 (16:1-2+32:3-4)", "3+1 (16:1-3+32:4-4)"}),
        ("16:1-3", {"4+0 (16:1-4)"}),
        ("32:1-2", {"0+4 (32:1-4)"}),
        ("4+4", set()),
        ("0+0", set()),
        ("16:1-4+32:5-5", set()),
        ("16:2-4", set()),
        ("32:1-2+16:3-4", set()),
    ],
)
def test_a_path_that_is_none_is_refused_with_the_nearest(name: str, near: set[str]) -> None:
    kind, auxiliary = rows(), wide(4)
    text = message(kind.named_shape, auxiliary, name)
    head = f"pool: the pool has no path {name}; the nearest of its 12 paths are "
    assert text.startswith(head)
    listed = set(text.removeprefix(head).split(", "))
    assert len(listed) == 3
    legal = {f"{kind.counts(path)} ({path.path})" for path in kind.paths(auxiliary)}
    assert listed <= legal
    assert near <= listed


@pytest.mark.parametrize("name", ["4", "4-2", "a+b", "1+2+3", "", "²+1", "+4", "16-1:4"])
def test_a_text_that_is_no_name_is_refused_with_the_forms(name: str) -> None:
    text = message(rows().named_shape, wide(4), name)
    assert re.search(r"is neither of the form 192:1-4\+768:5-6 nor a number of blocks|is not of the form WIDTH", text)
    assert "(16 + 32), such as " in text or "WIDTH:FIRST-LAST" in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mlp_ratio": 4.0}, "this gene has mlp_ratio 2.0, not 4.0"),
        ({"patch_size": 2}, "this gene has patch_size 4, not 2"),
        ({"in_chans": 1}, "this gene has in_chans 3, not 1"),
        ({"class_token": True}, "this gene has class_token False, not True"),
        ({"final_norm": False}, "stitched paths of this gene have a final norm; use final_norm=True"),
        ({"segments": ((24, 3, 1, 2), (32, 4, 3, 3))}, "no row has width 24; rows have 16, 32"),
        ({"segments": ((16, 4, 1, 2), (32, 4, 3, 3))}, "row 16 has 2 heads, not 4; heads are never reinterpreted"),
        ({"segments": ((16, 2, 1, 1), (32, 4, 3, 3))}, "the pool has no path 16:1-1+32:3-3; the nearest of its 9"),
        ({"segments": ((16, 2, 1, 2), (16, 2, 3, 3))}, "the pool has no path"),
    ],
    ids=str,
)
def test_a_shape_that_is_no_path_is_refused(changes: dict[str, Any], text: str) -> None:
    gene = pool_gene()
    shape = gene.method.named_shape(gene.shape, "2+1").replace(**changes)
    for call in (gene.expand, gene.weights):
        assert text in message(call, shape)


def test_a_pool_without_final_norm_makes_no_path_with_one() -> None:
    kind, with_norm = rows(final_norm=False), rows().named_shape(wide(3), "2+1")
    assert "stitched paths of this gene have no final norm; use final_norm=False" in message(
        kind.refuse, wide(3), with_norm
    )
    # Whole rows always have theirs.
    assert kind.refuse(wide(3), wide(3, embed_dim=16, num_heads=2)) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("depth", [2, 4])
def test_another_depth_of_a_row_is_refused(depth: int) -> None:
    gene = pool_gene()
    assert "the pool has no path 32:1-" in message(gene.expand, depth)
    assert "unknown key 'order'" in message(lambda: gene.expand("2+1", order="front"))


AUXILIARY = {"embed_dim": 32, "num_heads": 4, "depth": 3}


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("pool", {"rows": [[16, 2, 2], 32]}, "rows must be equally deep, but width 16 has 2 blocks and width 32 has 3; "
         "method sn-net stitches rows of any depth"),
        ("pool", {"rows": [[16, 3, 5], 32]}, "embed_dim 16 is not divisible by num_heads 5; the nearest"),
        ("pool", {"rows": [20, 32]}, "row of width 20 cannot have heads of 8 as the auxiliary shape's; use a multiple "
         "of 8, or [20, DEPTH, HEADS]"),
        ("pool", {"rows": [24, 16, 32]}, "rows must go from narrow to wide, but width 16 follows 24"),
        ("pool", {"rows": [32, 32]}, "rows must go from narrow to wide, but width 32 follows 32"),
        ("pool", {"rows": [32, 16]}, "the last row must be the auxiliary shape: it has width 16, depth 3 and 2 heads, "
         "the shape 32, 3 and 4; set settings.rows or shape"),
        ("pool", {"rows": [16, 24]}, "the last row must be the auxiliary shape: it has width 24, depth 3 and 3 heads"),
        ("pool", {}, "the last row must be the auxiliary shape: it has width 768"),
        ("sn-net", {"rows": [16, [32, 4, 4]]}, "it has width 32, depth 4 and 4 heads, the shape 32, 3 and 4"),
        ("pool", {"rows": [16, [32, 3, 2]]}, "it has width 32, depth 3 and 2 heads, the shape 32, 3 and 4"),
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_do_not_fit_the_auxiliary_shape_are_refused(name: str, settings: dict[str, Any], text: str) -> None:
    assert text in message(lambda: Learngene(method(name, settings), pico_shape(**AUXILIARY)))


@pytest.mark.parametrize("name", ["pool", "sn-net"])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rows": [16]}, "rows must be a list of two widths or more, not [16]"),
        ({"rows": []}, "rows must be a list of two widths or more, not []"),
        ({"rows": "16,32"}, "rows must be a list of two widths or more, not '16,32'"),
        ({"rows": 32}, "rows must be a list of two widths or more, not 32"),
        ({"rows": [16, "32"]}, "a row is a width or [embed_dim, depth, num_heads], all positive integers, not '32'"),
        ({"rows": [16, 32.0]}, "not 32.0"),
        ({"rows": [0, 32]}, "all positive integers, not 0"),
        ({"rows": [True, 32]}, "all positive integers, not True"),
        ({"rows": [[16, 3], 32]}, "all positive integers, not [16, 3]"),
        ({"rows": [[16, 3, -2], 32]}, "all positive integers, not [16, 3, -2]"),
        ({"rows": [{"embed_dim": 16, "heads": 2}, 32]}, "a row: unknown key 'heads'; did you mean 'num_heads'"),
        ({"rows": [{"embed_dim": 16, "depth": 3}, 32]}, "all positive integers, not [16, 3, None]"),
        ({"direction": "upp"}, "unknown direction 'upp'; did you mean 'up'"),
        ({"direction": 1}, "unknown direction '1'"),
        ({"nearest": 1}, "nearest must be true or false, not 1"),
        ({"final_norm": "yes"}, "final_norm must be true or false, not 'yes'"),
        ({"max_stitches": 0}, "max_stitches must be a positive integer, not 0"),
        ({"max_stitches": True}, "max_stitches must be a positive integer, not True"),
        ({"max_stitches": 1.5}, "max_stitches must be a positive integer, not 1.5"),
        ({"row": [16, 32]}, "unknown key 'row'; did you mean 'rows'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(name: str, settings: dict[str, Any], text: str) -> None:
    assert text in message(method, name, settings)


def test_a_row_is_written_in_any_form() -> None:
    forms: list[Any] = [[16, 32], [[16, 3, 2], 32], [{"embed_dim": 16, "depth": 3, "num_heads": 2}, [32]]]
    shapes = [rows(rows=form).row_shapes(wide(3)) for form in forms]
    assert shapes[0] == shapes[1] == shapes[2] == [wide(3, embed_dim=16, num_heads=2), wide(3)]


def test_rows_may_have_heads_of_unequal_width() -> None:
    """Rows of 4 heads of 4 and 4 of 8, as SN-Net's anchors may; a whole row is timm's ViT with those heads."""
    gene = pool(settings={"rows": [[16, 3, 4], 32]})
    stitched = gene.expand("16:1-2+32:3-3").eval()
    assert [block.attn.num_heads for block in stitched.blocks] == [4, 4, 4]
    assert gene.expand("2+1").learngene["shape"] == stitched.learngene["shape"]
    row = gene.expand("3+0").eval()
    names = ("img_size", "patch_size", "in_chans", "num_classes", "mlp_ratio")
    size: dict[str, Any] = {name: getattr(gene.shape, name) for name in names}
    size |= {"embed_dim": 16, "depth": 3, "num_heads": 4, "class_token": False, "global_pool": "avg", "fc_norm": False}
    plain = VisionTransformer(**size).eval()
    plain.load_state_dict({k.removeprefix("row0."): v for k, v in gene.tensors().items() if k.startswith("row0.")})
    torch.testing.assert_close(row(batch(gene.shape)), plain(batch(gene.shape)))


# -- other methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tleg", {}),
        ("sws", {"stages": (2, 2)}),
        ("share-init", {}),
        ("mini-init", {"blocks": 2}),
        ("weight-selection", {}),
        ("weight-subcloning", {}),
    ],
)
def test_other_methods_make_no_paths(name: str, settings: dict[str, Any]) -> None:
    gene = pico_gene(name, settings)
    assert f"{name}: has no paths, and so no '4+2'; give a depth" in message(gene.expand, "4+2")
    path = StitchedShape.of(gene.shape, [Segment(8, 1, 1, 2), Segment(16, 2, 3, 4)])
    for call in (gene.expand, gene.weights):
        text = message(call, path)
        assert text == "shape: this gene makes plain ViTs of one width, not a path such as 8:1-2+16:3-4"
