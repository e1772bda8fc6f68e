"""Recipes of comparisons: every name exists, contenders extend each other, and what is wrong is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comparisons import compare_fields, recipe_of, written
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.loading import apply_overrides, with_data
from learngene.system.errors import RecipeError

SCRATCH, VANILLA = {"method": "scratch"}, {"method": "vanilla-lg", "ancestry": "vit"}


def refusal(**changes: Any) -> str:
    """The line that a recipe with these changes gets."""
    with pytest.raises(RecipeError) as error:
        recipe_of(compare_fields(**changes))
    (line,) = str(error.value).splitlines()
    return line


# -- what is read ------------------------------------------------------------------------------------------


def test_everything_is_run_unless_names_are_chosen() -> None:
    recipe = recipe_of(compare_fields(tasks={"two": {"source": "b"}}))
    assert recipe.chosen("tasks") == ["home", "two"]
    assert recipe.chosen("shapes") == ["d2", "d3"]
    assert recipe.chosen("contenders") == ["scratch", "tleg"]
    assert recipe.chosen("budgets") == ["untuned", "one"]
    run = {"tasks": ["two"], "shapes": ["d3", "d2"], "contenders": ["tleg"], "budgets": ["one"]}
    recipe = recipe_of(compare_fields(tasks={"two": {"source": "b"}}, run=run))
    assert {name: recipe.chosen(name) for name in run} == run  # type: ignore[arg-type]


def test_there_are_three_seeds_unless_others_are_given() -> None:
    fields = compare_fields()
    del fields["run"]
    assert recipe_of(fields).run.seeds == [0, 1, 2]


def test_a_recipe_survives_being_written_out() -> None:
    recipe = recipe_of(compare_fields(budgets={"equal": {"epochs": 1, "cost_of": "tleg"}}))
    assert CompareRecipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("contender", "trained"),
    [
        (VANILLA, False),
        ({"method": "pre-fin", "each": True}, True),
        ({"method": "pre-fin", "auxiliary": {"depth": 3}}, True),
        ({"method": "pre-fin", "ancestry": "vit"}, False),
        ({"method": "tleg", "ancestry": "vit"}, True),
        (SCRATCH, False),
    ],
    ids=str,
)
def test_a_gene_that_could_be_extracted_is_trained_if_it_has_a_shape_of_its_own(
    contender: dict[str, Any], trained: bool
) -> None:
    assert recipe_of(compare_fields(contenders={"a": contender})).contenders["a"].trained is trained


# -- extends -----------------------------------------------------------------------------------------------


def test_a_contender_extends_another_and_wins() -> None:
    contenders = {
        "third": {"extends": "second", "settings": {"stages": [1, 3]}, "train": {"schedule": {"min_lr": 0}}},
        "first": {"method": "sws", "settings": {"stages": [2, 2]}, "ancestry": "vit", "train": {"epochs": 3}},
        "second": {"extends": "first", "options": {"order": "front-last-mid"}, "train": {"lr": 0.5}},
    }
    found = recipe_of(compare_fields(contenders=contenders)).contenders
    assert found["first"].train == {"epochs": 3}
    assert found["second"].settings == {"stages": [2, 2]}
    assert found["second"].train == {"epochs": 3, "lr": 0.5}
    third = found["third"]
    assert (third.method, third.ancestry, third.options) == ("sws", "vit", {"order": "front-last-mid"})
    assert third.settings == {"stages": [1, 3]}
    assert third.train == {"epochs": 3, "lr": 0.5, "schedule": {"min_lr": 0}}


# -- what is refused ---------------------------------------------------------------------------------------

TWICE = {"tasks": "home", "shapes": "d2", "contenders": "tleg", "budgets": "one"}
ONE_ORIGIN = "ancestry: give source (a trained model), or architecture or shape (trained here)"
REFUSED: list[tuple[dict[str, Any], str]] = [
    # contenders that extend what they cannot
    ({"contenders": {"a": {"extends": "tlge"}}}, "contenders.a.extends: no 'tlge' is defined; did you mean 'tleg'?"),
    ({"contenders": {"a": {"extends": 3}}}, "contenders.a.extends: no '3' is defined"),
    ({"contenders": {"a": {"extends": "a"}}}, "contenders.a.extends: 'a' extends itself"),
    ({"contenders": {"a": {"extends": "b"}, "b": {"extends": "a"}}}, "extends itself"),
    ({"contenders": {"a": {"extends": "b"}, "b": {"extends": "c"}, "c": {"extends": "b"}}}, "extends itself"),
    # names that there are not
    ({"run": {"tasks": ["hom"]}}, "run.tasks: no 'hom' is defined; did you mean 'home'?"),
    ({"run": {"tasks": ["second"]}}, "run.tasks: no 'second' is defined; known: home"),
    ({"run": {"shapes": ["d4"]}}, "run.shapes: no 'd4' is defined; known: d2, d3"),
    ({"run": {"contenders": ["scatch"]}}, "run.contenders: no 'scatch' is defined; did you mean 'scratch'?"),
    ({"run": {"budgets": ["untunned"]}}, "run.budgets: no 'untunned' is defined; did you mean 'untuned'?"),
    ({"contenders": {"tleg": {"ancestry": "vti"}}}, "tleg.ancestry: no 'vti' is defined; did you mean 'vit'?"),
    ({"budgets": {"equal": {"epochs": 1, "cost_of": "tlge"}}}, "budgets.equal.cost_of: no 'tlge' is defined; did you "),
    ({"contenders": {"a": {"method": "tlge"}}}, "unknown method 'tlge'; did you mean 'tleg'"),
    *(({"run": {field: [name, name]}}, "twice") for field, name in TWICE.items()),
    # values that cannot be
    ({"tasks": {"home": {"source": "b"}}}, "tasks: 'home' is the task of `data`; give this one another name"),
    ({"run": {"seeds": [0, 1, 0]}}, "run.seeds: 0 is named twice"),
    ({"run": {"seeds": []}}, "run.seeds: empty; give at least one"),
    ({"run": {"seeds": [-1]}}, "run.seeds.0: Input should be greater than or equal to 0"),
    *(({"contenders": {"a": {"method": name}}}, f"ancestry is missing: {name} is taken from a trained model; name one")
      for name in ("vanilla-lg", "pre-fin")),
    *(({"contenders": {"a": {**given, "each": True}}}, f"a gene per shape needs a method that is trained, which {name}")
      for name, given in (("vanilla-lg is not", VANILLA), ("scratch is not", SCRATCH))),
    ({"ancestries": {"vit": {"architecture": "resnet10t"}}}, ONE_ORIGIN),
    ({"ancestries": {"other": {}}}, ONE_ORIGIN),
    ({"budgets": {"one": {"epochs": -1}}}, "budgets.one.epochs: Input should be greater than or"),
    ({"contenders": {"scratch": {"times": 0}}}, "contenders.scratch.times: Input should be greater than 0"),
    ({"contenders": {"tleg": {"layers": [0]}}}, "contenders.tleg.layers.0: Input should be greater than"),
    # keys that there are not
    ({"contendrs": {}}, "recipe: unknown key 'contendrs'; did you mean 'contenders'?"),
    ({"run": {"seed": [1]}}, "run: unknown key 'seed'; did you mean 'seeds'?"),
    ({"contenders": {"tleg": {"auxilary": {}}}}, "contenders.tleg: unknown key 'auxilary'; did you mean"),
    ({"contenders": {"tleg": {"settings": {"first_layr": 2}}}}, "'first_layr'; did you mean 'first_layer'"),
    ({"contenders": {"scratch": {"extend": "tleg"}}}, "contenders.scratch: unknown key 'extend'"),
    ({"budgets": {"one": {"epoch": 1}}}, "budgets.one: unknown key 'epoch'; did you mean 'epochs'?"),
    ({"ancestries": {"vit": {"trian": {}}}}, "recipe: ancestries.vit: unknown key 'trian'; did you mean 'train'?"),
    ({"shape": {"dept": 3}}, "shape: unknown key 'dept'; did you mean 'depth'?"),
    ({"shapes": {"d2": {"witdh": 3}}}, "shape: unknown key 'witdh'"),
    ({"sizes": {"home": {"image": 5, "classes": 3}}}, "unknown key 'image'; did you mean 'images'?"),
    ({"tune": {"epohs": 3}}, "recipe: tune: unknown key 'epohs'; did you mean 'epochs'?"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), REFUSED, ids=str)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], line: str) -> None:
    assert line in refusal(**changes)


@pytest.mark.parametrize("key", ["data", "shapes", "contenders", "budgets"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe: {key}: required, but missing"):
        recipe_of({name: value for name, value in compare_fields().items() if name != key})


def test_a_task_that_is_null_is_left_out() -> None:
    tasks = {"two": {"source": "a"}, "zwei": {"source": "b"}}
    recipe = recipe_of(apply_overrides(compare_fields(tasks=tasks), ["tasks.two=null"]))
    assert recipe.chosen("tasks") == recipe.needed() == ["home", "zwei"]
    assert "run.tasks: no 'two' is defined" in refusal(tasks={**tasks, "two": None}, run={"tasks": ["two"]})


# -- $DATA -------------------------------------------------------------------------------------------------

ELSEWHERE: dict[str, Any] = {
    "data": {"source": ["$DATA/a.tar", "$DATA/b.tar"]},
    "tasks": {"two": {"source": "$DATA/two"}},
    "ancestries": {"loaded": {"source": "$DATA/model"}},
}


def test_the_data_folder_is_filled_in_everywhere() -> None:
    recipe = recipe_of(with_data(compare_fields(**ELSEWHERE), Path("/sets")))
    assert recipe.data.sources == ["/sets/a.tar", "/sets/b.tar"]
    assert recipe.tasks["two"].source == "/sets/two"
    assert recipe.ancestries["loaded"].source == "/sets/model"


def test_a_recipe_that_needs_a_data_folder_says_so(refused: Callable[..., str], tmp_path: Path) -> None:
    path = written(tmp_path / "r.yaml", compare_fields(tmp_path, "$DATA/colours"))
    line = "the recipe reads '$DATA/colours'; say where that folder is with --data FOLDER"
    assert refused("compare", path) == f"learngene: {line}"
    assert "no such folder" in refused("compare", path, "--data", tmp_path / "none")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.yaml"]


def test_a_recipe_without_the_word_needs_no_folder() -> None:
    fields = compare_fields(images="$DAT/a")
    assert with_data(fields, None) == fields
