"""Comparisons of genes that learnt a teacher's features, from images without labels, judged on labelled sets."""

import csv
from pathlib import Path
from typing import Any

import pytest

from comparisons import compare_fields, laid_out, recipe_of, results
from learngene import load, save_descendant, scratch
from learngene.comparing.cells import lay_out
from learngene.comparing.cost import cost_of, own_macs
from learngene.comparing.run import compare, prepare
from learngene.comparing.tables import as_markdown, save_tables
from learngene.making.probe import probe
from learngene.recipe.sections import merge
from learngene.system.errors import LearngeneError
from pico import make_images, pico_shape

UNLABELLED: dict[str, Any] = {
    "data": {"labels": False},
    "tasks": {"two": {"source": "two", "workers": 0}},
    "ancestries": {"vit": {"source": "somewhere", "shape": None}},
    "contenders": {"tleg": {"distill": {"target": "features"}, "features": {"tokens": ["pooled"]}}},
}
FROZEN = {"untuned": None, "knn": {"epochs": 0, "judge": "knn"}, "linear": {"epochs": 0, "judge": "linear"}}


def fields(folder: Path = Path("results"), images: Path | str = "images", **changes: Any) -> dict[str, Any]:
    return merge(compare_fields(folder, images, **UNLABELLED), changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole comparison: its recipe, and its folder."""
    folder = tmp_path_factory.mktemp("features")
    make_images(folder / "two", train=10, classes=("blue", "red"))
    flat = folder / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(make_images(folder / "home").rglob("*.png"))):
        path.rename(flat / f"{number:03d}.png")
    save_descendant(scratch(pico_shape(num_classes=0, depth=2), seed=1), folder / "teacher")
    changes: dict[str, Any] = {"tasks": {"two": {"source": str(folder / "two")}}}
    changes |= {"ancestries": {"vit": {"source": str(folder / "teacher")}}}
    changes |= {"budgets": {name: spec for name, spec in FROZEN.items() if spec}}
    changes["contenders"] = {
        "distilled": {"extends": "tleg", "method": "distilled", "each": True},
        "pool": {"extends": "tleg", "method": "pool", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}},
    }
    given = fields(folder, flat, **changes, shapes={"d4": {"depth": 4}}, run={"skip_impossible": True})
    del given["budgets"]["untuned"]
    outcome = compare(recipe_of(given), say=lambda text: None)
    assert not outcome.faults, outcome.faults
    save_tables(outcome, folder / "out")
    (folder / "out" / "table.txt").write_text(as_markdown(outcome.rows))
    return given, folder


def test_every_contender_is_judged_frozen_and_tuned(finished: tuple[dict[str, Any], Path]) -> None:
    _, folder = finished
    cells = results(folder / "out")
    assert {(cell["contender"], name.split("-")[-3]) for name, cell in cells.items()} == {
        (contender, how) for contender in ("scratch", "tleg", "distilled", "pool") for how in ("knn", "linear", "e1")
    }
    assert all(cell["task"] == "two" for cell in cells.values())
    table = (folder / "out" / "table.txt").read_text()
    assert "| two (kNN) | knn | d2 | tleg |" in table
    rows = list(csv.DictReader((folder / "out" / "results.csv").read_text().splitlines()))
    assert {row["judge"] for row in rows} == {"head", "knn", "linear"}
    assert all((row["top5"] == "") == (row["judge"] != "head") for row in rows)


def test_a_frozen_cell_has_what_the_probe_says(finished: tuple[dict[str, Any], Path]) -> None:
    given, folder = finished
    (cell,) = (found for name, found in results(folder / "out").items() if name.startswith("tleg-d2w16-two-knn"))
    (gene,) = (folder / "store").glob("tleg-d4-*.safetensors")
    assert load(gene).shape.num_classes == 0
    found = probe(load(gene).expand(2), {"source": given["tasks"]["two"]["source"], "workers": 0})
    assert cell["untuned"]["top1"] == pytest.approx(found.knn)
    assert cell["last"].pop("report", None) is None  # which is of classifiers
    assert cell["untuned"] == cell["last"]


def test_what_is_there_is_not_made_again(finished: tuple[dict[str, Any], Path]) -> None:
    given, _ = finished
    said: list[str] = []
    compare(recipe_of(given), say=said.append)
    assert said == []


def test_costs_count_the_teacher_at_its_own_size(finished: tuple[dict[str, Any], Path]) -> None:
    comparison, sizes, _ = prepare(recipe_of(finished[0]))
    cell = next(cell for cell in comparison.cells if cell.contender == "tleg")
    shape, teacher = pico_shape(num_classes=0), pico_shape(num_classes=0, depth=2)
    seen = sizes["home"] // 8 * 8
    assert cost_of(cell, comparison, sizes).gene == seen * (3 * shape.macs() + teacher.macs())


def test_cells_that_are_judged_by_a_head_keep_their_keys() -> None:
    old = laid_out(compare_fields())
    judged = lay_out(recipe_of(compare_fields(budgets={"untuned": {"judge": "head"}})), {"home": 3}, {"home": 24})
    assert [cell.key for cell in old.cells] == [cell.key for cell in judged.cells]
    knn = laid_out(compare_fields(budgets={"untuned": {"judge": "knn"}}))
    assert [one.key == other.key for one, other in zip(old.cells, knn.cells, strict=True)] == [False, True] * 4


def test_features_decide_a_genes_name() -> None:
    sizes = {"home": 1, "two": 2}, {"home": 24, "two": 16}
    names = set()
    for features in ({}, {"tokens": ["pooled"]}, {"tokens": ["pooled"], "bridge": "mlp"}):
        contender = {"tleg": {"features": None, "distill": {"target": "features"}}}
        given = merge(fields(), {"contenders": contender})
        given["contenders"]["tleg"]["features"] = features
        (gene,) = lay_out(recipe_of(given), *sizes).genes
        names.add(gene.path.name)
    assert len(names) == 3


def test_depths_decide_a_genes_name_and_its_cost() -> None:
    costs, labelled = {}, compare_fields(Path("results"), "images")
    for depths in (None, [4], [1, 3]):
        given = merge(labelled, {"contenders": {"tleg": {"depths": depths}}, "run": {"contenders": ["tleg"]}})
        gene = lay_out(recipe_of(given), {"home": 3}, {"home": 24}).genes[0]
        costs[gene.path.name] = own_macs(gene, {"home": 24})
        two, four = (gene.shape.replace(depth=depth).macs() for depth in (2, 4))
    whole, alone, several = costs.values()
    assert whole == alone
    assert whole - several == 24 * 3 * (four - two)  # one epoch; depths 1 and 3 are two layers on average


def test_a_home_without_labels_is_no_task() -> None:
    recipe = recipe_of(fields())
    assert recipe.chosen("tasks") == ["two"]
    assert recipe.needed() == ["home", "two"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contenders": {"tleg": {"distill": None, "features": None}}}, r"tleg: learns the home task's .*=features"),
        ({"contenders": {"tleg": {"distill": {"alpha": 0.5}}}}, "contenders.tleg: learns the home task's classes"),
        ({"ancestries": {"vit": {"source": None, "shape": {"depth": 4}}}}, r"ancestries.vit: .* give a source"),
        ({"tasks": {"two": None}}, "the images of 'home' have no classes to judge by"),
        ({"run": {"tasks": ["home"]}}, "the images of 'home' have no classes to judge by"),
        ({"budgets": {"one": {"judge": "knn"}}}, "judge: knn is of frozen features; set epochs to 0"),
    ],
)  # fmt: skip
def test_what_needs_classes_is_refused_without_labels(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        recipe_of(fields(**changes))
    assert "\n" not in str(error.value)


def test_a_task_with_too_few_images_for_neighbours_is_refused(images: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "few", train=1, classes=("blue", "red"))
    save_descendant(scratch(pico_shape(num_classes=0, depth=2), seed=1), tmp_path / "teacher")
    given = fields(tmp_path, images, tasks={"two": {"source": str(tmp_path / "few")}}, budgets=FROZEN)
    given["budgets"] = {"knn": FROZEN["knn"]}
    given["ancestries"]["vit"]["source"] = str(tmp_path / "teacher")
    with pytest.raises(LearngeneError, match="class blue has 1 training image"):
        prepare(recipe_of(given))
