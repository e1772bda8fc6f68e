"""Recipes of searches: what they refuse, what a data set says for itself, and what decides a path."""

from pathlib import Path
from typing import Any

import pytest

from learngene.recipe.loading import apply_overrides
from learngene.recipe.sections import Train
from learngene.system.errors import RecipeError
from searches import search_fields, search_recipe

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no data sets": ({"tasks": None}, "tasks: Input should be a mapping of keys to values"),
    "all removed": ({"tasks": {"a": None, "b": None}}, "recipe: tasks: empty; give at least one"),
    "no name": ({"tasks": {"": {"data": {"source": "x"}}}}, "tasks: '' cannot name a folder"),
    "folder above": ({"tasks": {"..": {"data": {"source": "x"}}}}, "tasks: '..' cannot name a folder"),
    "slash": ({"tasks": {"a/b": {"data": {"source": "x"}}}}, "tasks: 'a/b' cannot name a folder; use letters, digits"),
    "long": ({"tasks": {"a" * 101: {"data": {"source": "x"}}}}, "is too long for a folder; use 100 characters"),
    "a number": ({"tasks": {1: {"data": {"source": "x"}}}}, "Input should be a valid string"),
    "no mapping": ({"tasks": {"x": "digits"}}, "recipe: tasks.x: Input should be a mapping of keys to values (given"),
    "source": ({"tasks": {"x": {"data": {"source": 3}}}}, "recipe: tasks.x.data.source: Input should be a valid"),
    "typo": ({"tasks": {"x": {"dat": {}}}}, "recipe: tasks.x: unknown key 'dat'; did you mean 'data'?"),
    "name of a type": ({"tasks": {"str": {"data": {"source": 3}}}}, "recipe: tasks.str.data.source: Input should be"),
    "no data": ({"tasks": {"x": {}}}, "tasks.x.data: required, but missing"),
    "drop path": ({"train": {"drop_path": 0.1}}, "tasks.a: train.drop_path is not for super nets"),
    "drop path of one": ({"tasks": {"b": {"train": {"drop_path": 0.1}}}}, "tasks.b: train.drop_path"),
    "layer decay": ({"train": {"layer_decay": 0.9}}, "tasks.a: train.layer_decay is for fine-tuning"),
    "unknown train": ({"tasks": {"b": {"train": {"lrr": 1}}}}, "tasks.b.train: unknown key 'lrr'; did you mean"),
    "negative tau": ({"select": {"tau": -1}}, "select.tau: Input should be greater than or equal to 0 (given: -1)"),
    "large tau": ({"select": {"tau": 2}}, "no block can be used by more than 2 of 2 data sets; use 0 to 1"),
    "k of threshold": ({"select": {"rule": "threshold", "k": 3}}, "select: k means nothing for rule threshold"),
    "tau of top k": ({"select": {"rule": "top_k", "k": 1, "tau": 1}}, "select: tau means nothing for rule top_k"),
    "a gate that never begins": ({"routing": {"gate": "two-branch"}}, "routing: without noise a two-branch gate"),
    "compared by no gate": (
        {"routing": {"compared": 0.5}},
        "recipe: routing: compared means nothing for gate straight-through; leave it out, or use gate: two-branch",
    ),
    "unknown key": ({"routing": {"rout": "img"}}, "routing: unknown key 'rout'; did you mean 'route'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_that_cannot_be_searched_is_refused(case: str) -> None:
    changes, line = REFUSED[case]
    fields = search_fields("vit", {"a": Path("a"), "b": Path("b")}, Path("out"), **changes)
    if "select" not in changes or "k" not in changes["select"]:
        fields["select"] = changes.get("select", {})
    with pytest.raises(RecipeError) as error:
        search_recipe(fields)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_data_set_that_is_null_is_left_out() -> None:
    fields = search_fields("vit", {"a": Path("a"), "b": Path("b")}, Path("out"))
    assert list(search_recipe(apply_overrides(fields, ["tasks.a=null"])).tasks) == ["b"]


def test_the_same_data_under_two_names_is_refused(tmp_path: Path) -> None:
    for same in (tmp_path / "a", tmp_path / "b" / ".." / "a"):
        with pytest.raises(RecipeError, match="tasks: one and other are the same data; leave one out"):
            search_recipe(search_fields("vit", {"one": tmp_path / "a", "other": same}, tmp_path))
    other = {"data": {"source": str(tmp_path / "a"), "img_size": 16}}
    with pytest.raises(RecipeError, match="are the same data"):
        search_recipe(search_fields("vit", {"one": tmp_path / "a"}, tmp_path, tasks={"other": other}))


def test_data_that_has_the_same_file_name_elsewhere_is_other_data(tmp_path: Path) -> None:
    recipe = search_recipe(search_fields("vit", {"a": tmp_path / "a" / "set", "b": tmp_path / "b" / "set"}, tmp_path))
    assert recipe.task("a").out != recipe.task("b").out


def test_what_decides_a_path_names_its_folder_and_nothing_else_does(ancestry: Path, sets: dict[str, Path]) -> None:
    def folder(**changes: Any) -> str:
        return search_recipe(search_fields(ancestry, sets, Path("out"), **changes)).task("two").out.name

    one = folder()
    assert one.startswith("two-s0-")
    for same in (
        {"select": {"k": 1}}, {"stem": False}, {"dtype": "float16"}, {"train": {"save_every": 3}},
        {"tasks": {"two": {"data": {"workers": 2}}}}, {"tasks": {"colours": {"train": {"lr": 1.0}}}},
        {"ancestry": {"source": f"/elsewhere/{ancestry.parent.name}/{ancestry.name}"}},
    ):  # fmt: skip
        assert folder(**same) == one, same
    for other in (
        {"train": {"lr": 1.0}}, {"tasks": {"two": {"train": {"lr": 1.0}}}}, {"routing": {"route": "img"}},
        {"train": {"seed": 1}}, {"tasks": {"two": {"data": {"img_size": 16}}}}, {"ancestry": {"source": "other"}},
    ):  # fmt: skip
        assert folder(**other) != one, other
    assert search_recipe(search_fields(ancestry, sets, Path("out"), kept="kept")).task("two").out == Path("kept") / one


def test_the_default_threshold_is_half_of_the_data_sets(ancestry: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    twelve = {f"t{number}": tmp_path / str(number) for number in range(12)}
    fields = search_fields(ancestry, twelve, tmp_path / "s", select={"rule": "threshold", "k": None})
    assert search_recipe(fields).tau == 6
    assert search_recipe(search_fields(ancestry, sets, tmp_path, select={"rule": "threshold", "k": None})).tau == 1


def test_a_preset_of_one_data_set_replaces_what_all_have_in_common(ancestry: Path, tmp_path: Path) -> None:
    sets = {name: tmp_path / name for name in ("a", "b")}
    common = {"train": {"augment": {"preset": "light"}}}
    recipe = search_recipe(
        search_fields(ancestry, sets, tmp_path, **common, tasks={"a": {"train": {"augment": {"preset": "none"}}}})
    )
    assert recipe.task("a").train.augment.scale is None
    assert recipe.task("a").train.augment.hflip == 0
    assert recipe.task("b").train.augment.scale == (0.6, 1.0)
    assert recipe.task("a").train.batch_size == recipe.task("b").train.batch_size
    whole = search_recipe(search_fields(ancestry, sets, tmp_path, tasks={"a": {"train": {"preset": "official"}}}))
    assert whole.task("a").train.model_copy(update={"seed": 0}) == Train(preset="official")
