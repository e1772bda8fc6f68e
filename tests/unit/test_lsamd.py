"""LSAMD: stages of selected blocks, the paper's examples of expansion, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import learngene
from learngene import Ancestry, Budget, extract, plan, scratch
from learngene.methods import method
from learngene.methods.lsamd import LSAMD
from learngene.recipe.loading import build_recipe
from learngene.system.errors import LearngeneError
from learngene.vits.shape import MODULE_PARAMS
from pico import CLI, batch, condense_fields, make_ancestry, pico_gene, pico_shape

PARAMS = [name for names in MODULE_PARAMS.values() for name in names]

# Written out by hand from section "Building Variable-Sized Des-Nets"; the first three rows are the paper's examples.
NEIGHBOUR = """
1 4 5 7 8 | 1 4 5 7 8 8 | 1 4 5 5 7 8 8 | 1 1 4 5 5 7 8 8 | 1 1 4 5 5 7 8 8 8 | 1 1 4 5 5 5 7 8 8 8 |
1 1 1 4 5 5 5 7 8 8 8 | 1 1 1 4 5 5 5 7 8 8 8 8 | 1 1 1 4 5 5 5 5 7 8 8 8 8 | 1 1 1 1 4 5 5 5 5 7 8 8 8 8 |
1 1 1 1 4 5 5 5 5 7 8 8 8 8 8
"""
CYCLIC = """
1 4 5 7 8 | 1 4 5 7 8 7 | 1 4 5 4 7 8 7 | 1 1 4 5 4 7 8 7 | 1 1 4 5 4 7 8 7 8 | 1 1 4 5 4 5 7 8 7 8 |
1 1 1 4 5 4 5 7 8 7 8 | 1 1 1 4 5 4 5 7 8 7 8 7 | 1 1 1 4 5 4 5 4 7 8 7 8 7 | 1 1 1 1 4 5 4 5 4 7 8 7 8 7 |
1 1 1 1 4 5 4 5 4 7 8 7 8 7 8
"""
SPREAD = """
1 4 5 7 8 | 1 4 5 7 8 8 | 1 4 5 5 7 8 8 | 1 1 4 5 5 7 8 8 | 1 1 4 5 5 7 7 8 8 | 1 1 4 4 5 5 7 7 8 8 |
1 1 1 4 4 5 5 7 7 8 8 | 1 1 1 4 4 5 5 7 7 8 8 8 | 1 1 1 4 4 5 5 5 7 7 8 8 8 | 1 1 1 1 4 4 5 5 5 7 7 8 8 8 |
1 1 1 1 4 4 5 5 5 7 7 7 8 8 8
"""


def numbers(line: str) -> list[int]:
    return [int(word) for word in line.split()]


TABLE = [
    (expansion, row)
    for expansion, rows in (("neighbour", NEIGHBOUR), ("cyclic", CYCLIC), ("spread", SPREAD))
    for row in map(numbers, rows.split("|"))
]


def blocks(depth: int, layers: tuple[int, ...] = (1, 4, 5, 7, 8), **options: Any) -> list[int]:
    return LSAMD(layers=layers).block_of_layer(depth, **options)


# -- stages and their expansion ----------------------------------------------------------------------------


@pytest.mark.parametrize(("expansion", "row"), TABLE, ids=str)
def test_every_depth_of_the_paper(expansion: str, row: list[int]) -> None:
    assert blocks(len(row), expansion=expansion) == row
    assert expansion != "neighbour" or blocks(len(row)) == row  # the default


@pytest.mark.parametrize(
    ("priority", "row"),
    [
        ("first", "1 1 4 5 7 8"),
        ("middle", "1 4 5 5 7 8"),
        ("last", "1 4 5 7 8 8"),
        ("middle-first", "1 1 4 5 5 7 8"),
        ("last-first", "1 1 4 5 7 8 8"),
        ("last-middle", "1 4 5 5 7 8 8"),
        ("first-last-middle", "1 1 4 5 7 8 8"),
        ("first", "1 1 4 5 7 8 8"),  # the stages that a name leaves out follow in the default order
        ("middle", "1 4 5 5 7 8 8"),
        ("3,2,1", "1 4 5 5 7 8 8"),
        ("1,2,3", "1 1 4 5 5 7 8"),
        ([2, 1, 3], "1 1 4 5 5 7 8"),
        ((1, 3, 2), "1 1 4 5 7 8 8"),
    ],
)
def test_every_priority_of_table_4(priority: Any, row: str) -> None:
    assert blocks(len(numbers(row)), priority=priority) == numbers(row)


@pytest.mark.parametrize(
    ("layers", "stages"),
    [
        ((1, 4, 5, 7, 8), [[1], [4, 5], [7, 8]]),
        ((2,), [[2]]),
        ((1, 2, 3, 4), [[1, 2, 3, 4]]),
        ((1, 3, 5, 12), [[1], [3], [5], [12]]),
        ((3, 4, 5, 9, 10), [[3, 4, 5], [9, 10]]),
    ],
)
def test_a_stage_is_a_longest_run_of_adjacent_blocks(layers: tuple[int, ...], stages: list[list[int]]) -> None:
    assert LSAMD(layers=layers).stages() == stages
    assert blocks(len(layers), layers) == list(layers)


@pytest.mark.parametrize(
    ("layers", "options", "row"),
    [
        ((2, 3), {}, "2 3 3 3 3"),
        ((2, 3), {"expansion": "cyclic"}, "2 3 2 3 2"),
        ((2, 3), {"expansion": "spread", "priority": "middle"}, "2 2 3 3 3"),
        ((6,), {"expansion": "cyclic", "priority": 1}, "6 6 6"),
        ((1, 4, 5), {}, "1 1 4 5 5 5"),
        ((1, 4, 5), {"priority": "middle"}, "1 4 5 5"),
        ((1, 4, 5), {"priority": "first"}, "1 1 4 5"),
        ((1, 3, 5, 6), {}, "1 3 5 6 6"),
        ((1, 3, 5, 6), {"priority": "last-middle"}, "1 3 3 5 6 6"),
        ((1, 3, 5, 7), {"priority": "middle"}, "1 3 3 5 5 7"),
        ((1, 3, 5, 7), {"priority": "middle-first"}, "1 1 3 3 5 5 7"),
        ((1, 3, 5, 7), {}, "1 3 3 5 5 7 7"),
        ((1, 3, 5, 7), {"priority": "2,4,1,3"}, "1 3 3 5 7 7"),
        ((1, 2, 3, 7), {"expansion": "cyclic", "priority": "first"}, "1 2 3 1 2 7 7"),
        ((1, 2, 3, 7), {"expansion": "spread", "priority": "first"}, "1 2 2 3 3 7 7"),
    ],
    ids=str,
)
def test_other_numbers_of_stages(layers: tuple[int, ...], options: dict[str, Any], row: str) -> None:
    """Middle is all between first and last, later ones first; where stages coincide, names do."""
    assert blocks(len(numbers(row)), layers, **options) == numbers(row)


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["aligned", "official"])
def test_layers_are_copies_of_the_ancestrys_blocks_and_independent(ending: str, tmp_path: Path) -> None:
    teacher = scratch(pico_shape(depth=8, class_token=ending == "aligned", ending=ending), 3)
    gene = extract(Ancestry(teacher), method="lsamd")
    names = {name.partition(".")[0] for name in gene.tensors()}
    assert names - {"cls_token"} == {"pos_embed", "patch_embed", "norm", *(f"layer{i}" for i in (0, 3, 4, 6, 7))}
    gene.save(tmp_path / "g.safetensors")
    loaded = learngene.load(tmp_path / "g.safetensors")
    assert loaded.method == LSAMD()
    assert all(torch.equal(value, gene.tensors()[name]) for name, value in loaded.tensors().items())
    model = loaded.expand(9)
    assert model.learngene["fresh"] == ["head.weight", "head.bias"]
    source, state = teacher.state_dict(), model.state_dict()
    for layer, block in enumerate(numbers("1 1 4 5 5 7 8 8 8")):
        assert model.learngene["layers"][layer] == f"base block {block}"
        for name in PARAMS:
            assert torch.equal(state[f"blocks.{layer}.{name}"], source[f"blocks.{block - 1}.{name}"]), name
    rest = [name for name in state if not name.startswith(("blocks.", "head."))]
    assert len(rest) == 5 + gene.shape.class_token
    assert all(torch.equal(state[name], source[name]) for name in rest)


def test_without_stem_only_layers_are_carried() -> None:
    gene = pico_gene("lsamd", {"layers": (2, 3), "stem": False})
    assert {name.partition(".")[0] for name in gene.tensors()} == {"layer1", "layer2"}
    shape = gene.shape
    fresh = [*shape.stem_params(), *shape.norm_params(), *shape.head_params()]
    assert gene.expand(3).learngene["fresh"] == fresh
    with pytest.raises(LearngeneError, match="lsamd holds no head and no norm and no stem, so it computes nothing"):
        gene(batch(shape))


def test_plan_lists_every_depth_from_the_number_of_blocks_on() -> None:
    found = plan(pico_gene("lsamd", {"layers": (1, 3, 4)}), Budget(), expansion="cyclic")
    assert sorted(candidate.shape.depth for candidate in found) == list(range(3, 49))
    (five,) = (candidate for candidate in found if candidate.shape.depth == 5)
    assert five.layers == [f"base block {block}" for block in (1, 1, 3, 4, 3)]


def test_the_stored_parameters_of_the_paper() -> None:
    """36.11 M is a whole 5-layer model with the 100-class head that a gene does not hold, without positions."""
    shape = learngene.ViTShape.named("deit_base_patch16_224", class_token=True, num_classes=100)
    gene = sum(torch.Size(size).numel() for size in method("lsamd").gene_tensors(shape).values())
    head, positions = 100 * 768 + 100, (197 + 1) * 768
    assert gene + head - positions == shape.replace(depth=5).params_without_positions() == 36_108_388


# -- the command line --------------------------------------------------------------------------------------


def test_extract_and_expand_from_the_command_line(cli: CLI, tmp_path: Path) -> None:
    ancestry, gene, des = make_ancestry(tmp_path / "vit", depth=4), tmp_path / "g.safetensors", tmp_path / "des"
    result = cli("extract", ancestry, "--method", "lsamd", "-s", "layers=[1,3,4]", "--out", gene)
    assert result.out.startswith(f"{gene}: lsamd, "), result.err
    result = cli("expand", gene, "--depth", 6, "--set", "expansion=cyclic", "--set", "priority=last", "--out", des)
    assert result.code == 0, result.err
    record = json.loads((des / "learngene.json").read_text())
    assert record["layers"] == [f"base block {block}" for block in (1, 1, 3, 4, 3, 4)]
    assert record["options"] == {"expansion": "cyclic", "priority": "last"}
    result = cli("expand", gene, "--depth", 5, "--set", "priority=[1,2]", "--out", des)
    assert json.loads((des / "learngene.json").read_text())["layers"] == [f"base block {b}" for b in (1, 1, 3, 4, 4)]
    assert "layers=[1, 3, 4], stem=True" in cli("info", gene).out
    lines = cli("methods").out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("lsamd  "))
    assert "    gene: learngene extract or learngene search" in lines[start : start + 6]


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, r"lsamd: layers must be a list of positive integers such as \[1, 4, 5, 7, 8\], not \[\]"),
        ({"layers": 7}, "must be a list of positive integers .*, not 7"),
        ({"layers": "1,4"}, "must be a list of positive integers .*, not '1,4'"),
        ({"layers": [1, True]}, "must be a list of positive integers"),
        ({"layers": [1, 2.0]}, "must be a list of positive integers"),
        ({"layers": None}, "must be a list of positive integers .*, not None"),
        ({"layers": [1, 4, 4]}, r"layers \[1, 4, 4\] name a block twice; write \[1, 4\]"),
        ({"layers": [4, 1]}, r"layers \[4, 1\] name a block out of order; write \[1, 4\]"),
        ({"layers": [0, 1]}, "must be a list of positive integers"),
        ({"layers": [1, 5]}, "the ancestry has 4 blocks, so there is no block 5"),
        ({"stem": "yes"}, "stem must be true or false, not 'yes'"),
        ({"layer": [1]}, "settings of method 'lsamd': unknown key 'layer'; did you mean 'layers'"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message) as caught:
        pico_gene("lsamd", settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (2, {}, "lsamd: depth 2 is below the 3 blocks of this gene; the smallest depth is 3"),
        (4, {"expansion": "neighbor"}, "unknown expansion 'neighbor'; did you mean 'neighbour'"),
        (4, {"expansion": ["cyclic"]}, "unknown expansion"),
        (4, {"priority": "lost"}, "unknown priority 'lost'; join last, middle and first by -, each once at most"),
        (4, {"priority": "last-last"}, "unknown priority 'last-last'"),
        (4, {"priority": ""}, "unknown priority ''"),
        (4, {"priority": "2"}, "priority 2 must name each of the stages 1 to 2 once"),
        (4, {"priority": "1,x"}, "priority 1,x must name each of the stages 1 to 2 once"),
        (4, {"priority": [1, 1]}, "must name each of the stages 1 to 2 once"),
        (4, {"priority": [0, 1]}, "must name each of the stages 1 to 2 once"),
        (4, {"priority": [1, 2, 3]}, "must name each of the stages 1 to 2 once"),
        (4, {"priority": [2, True]}, "must name each of the stages 1 to 2 once"),
        (4, {"priority": None}, "priority None must name each of the stages"),
        (4, {"order": "last"}, "lsamd: expansion options: unknown key 'order'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_in_one_line(depth: int, options: dict[str, Any], message: str) -> None:
    gene = pico_gene("lsamd", {"layers": (1, 3, 4)})
    makers: list[Callable[..., object]] = [gene.expand, lambda depth, **o: gene.weights(pico_shape(depth=depth), **o)]
    for make in makers:
        with pytest.raises(LearngeneError, match=message) as caught:
            make(depth, **options)
        assert "\n" not in str(caught.value)


def test_it_is_not_condensed(images: Path, tmp_path: Path) -> None:
    fields = condense_fields("none", images, tmp_path / "run", method="lsamd")
    makes = "method lsamd is not trained: its gene is made by `learngene extract` or `learngene search`"
    with pytest.raises(LearngeneError, match=makes):
        build_recipe(fields)
