"""Comparisons with contenders whose blocks are searched: jobs, keys, costs, and a whole run."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from comparisons import CLASSES, IMAGES, cell, compare_fields, laid_out, recipe_of, results, written
from learngene.comparing.cells import lay_out_declared
from learngene.comparing.claims.estimate import estimate
from learngene.comparing.claims.groups import ClaimGroup
from learngene.comparing.cost import cost_of, gene_macs, images_seen, part_macs
from learngene.comparing.jobs import Comparison
from learngene.comparing.run import OpenTasks, read_results, steps
from learngene.genes.gene_file import read_header
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import merge
from learngene.system.errors import RecipeError
from masked import make_masked
from pico import CLI, FAST, make_images, pico_shape

TWO = {"two": {"source": "other", "workers": 0}, "zwei": {"source": "noch eins", "workers": 0}}
SEARCH: dict[str, Any] = {
    "method": "lsamd", "ancestry": "vit", "search": {"select": {"rule": "top_k", "k": 2}},
    "train": {"schedule": {"warmup_epochs": 0}},
}  # fmt: skip
CONTENDERS = {
    "lsamd": SEARCH,
    "three": {"extends": "lsamd", "search": {"select": {"k": 3}}, "options": {"expansion": "cyclic"}},
    "img": {"extends": "lsamd", "search": {"routing": {"route": "img"}}},
}
SIZES = {name: {"images": IMAGES[name], "classes": CLASSES[name]} for name in IMAGES}


def fields(**changes: Any) -> dict[str, Any]:
    """Three searches, two of which differ in what they select only."""
    base = compare_fields(
        tasks=TWO, contenders=CONTENDERS, sizes=SIZES, shapes={"d3": {"depth": 3}}, run={"contenders": list(CONTENDERS)}
    )
    del base["shapes"]["d2"]
    return merge(base, changes)


def names(comparison: Comparison) -> list[str]:
    """Of all steps, in their order."""
    return [step.name for step in steps(comparison, OpenTasks(comparison.recipe))]


def searches(comparison: Comparison) -> list[str]:
    return [name for name in names(comparison) if name.startswith("search")]


def test_searches_that_differ_in_their_selection_only_share_their_super_nets() -> None:
    comparison = laid_out(fields())
    found, searched = names(comparison), searches(comparison)
    assert searched == ["search two seed 0", "search zwei seed 0"] * 2
    genes = {name: cell(comparison, name, "d3").gene for name in CONTENDERS}
    parts = {name: [task.out.name for task in gene.searches] for name, gene in genes.items() if gene}
    assert parts["lsamd"] == parts["three"]
    assert set(parts["lsamd"]).isdisjoint(parts["img"])
    assert len({gene.path for gene in genes.values() if gene}) == 3
    assert found.index(searched[0]) < next(i for i, name in enumerate(found) if name.startswith("gene"))
    kinds = [gene.method for gene in comparison.genes]
    assert [kind.layers for kind in kinds] == [(1, 2), (1, 2, 3), (1, 2)]  # type: ignore[attr-defined]


def test_a_searched_gene_is_searched_on_the_tasks_it_names_at_their_rates() -> None:
    one = {"search": {"tasks": ["zwei"], "rates": {"zwei": 0.5, "two": 0.25}}}
    comparison = laid_out(fields(contenders={"img": one}))
    genes = [gene for name in ("img", "lsamd") if (gene := cell(comparison, name, "d3").gene)]
    rates = [[(part.task, part.train.lr) for part in gene.searches] for gene in genes]
    assert rates == [[("zwei", 0.5)], [("two", FAST["lr"]), ("zwei", FAST["lr"])]]


def test_every_seed_searches_anew_and_a_key_depends_on_what_decides() -> None:
    def path(**changes: Any) -> str:
        gene = cell(laid_out(fields(**changes)), "lsamd", "d3").gene
        assert gene is not None
        return gene.path.name

    assert path(tune={"lr": 0.5}) == path(contenders={"img": {"options": {}}}) == path()
    different: list[dict[str, Any]] = [
        {"contenders": {"lsamd": {"search": {"select": {"k": 1}}}}},
        {"contenders": {"lsamd": {"search": {"stem": False}}}},
        {"contenders": {"lsamd": {"search": {"tasks": ["two"]}}}},
        {"contenders": {"lsamd": {"search": {"rates": {"two": 0.5}}}}},
        {"contenders": {"lsamd": {"search": {"routing": {"noise": "literal"}}}}},
        {"contenders": {"lsamd": {"train": {"lr": 0.5}}}},
        {"ancestries": {"vit": {"train": {"epochs": 2}}}},
        {"tasks": {"two": {"img_size": 16}}},
    ]
    assert len({path(), *(path(**changes) for changes in different)}) == len(different) + 1
    assert len(searches(laid_out(fields(run={"seeds": [0, 1]})))) == 8


def test_a_super_net_costs_its_steps_and_is_counted_once() -> None:
    comparison = laid_out(fields())
    images = {name: size["images"] for name, size in SIZES.items()}
    genes = comparison.genes
    part, origin = genes[0].searches[0], genes[0].ancestry
    assert origin is not None
    assert origin.shape is not None
    costs = part_macs(genes[0], images)
    assert costs[part.out] == 3 * origin.shape.macs() * images_seen(part.train, 16)
    assert gene_macs(genes[0], images) == sum(costs.values())
    cost = cost_of(cell(comparison, "three", "d3"), comparison, images)
    assert (cost.gene, cost.gene_shared_by) == (gene_macs(genes[1], images), 3)
    once = sum({path: macs for gene in genes for path, macs in part_macs(gene, images).items()}.values())
    assert sum(gene_macs(gene, images) for gene in genes) == 3 * once // 2
    claims = [{"text": "t", "statistic": {"of": {"contender": "lsamd"}, "at_least": 0}}]
    group = validated(ClaimGroup, {"id": "a.b", "paper": "A", "source": "s", "title": "t", "claims": claims}, "g")
    assert f"{once / 1e15:.3g} for genes" in estimate(group, recipe_of(fields()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such task": ({"contenders": {"lsamd": {"search": {"tasks": ["tow"]}}}}, "search: no 'tow' is defined; did you"),
    "no such rate": ({"contenders": {"lsamd": {"search": {"rates": {"tow": 1}}}}}, "search: no 'tow' is defined"),
    "another method": ({"contenders": {"x": {"method": "tleg", "ancestry": "vit", "search": {}}}}, "has no blocks to"),
    "layers": ({"contenders": {"lsamd": {"settings": {"layers": [1]}}}}, "search: finds the blocks that"),
    "no ancestry": ({"contenders": {"x": {"method": "lsamd", "search": {}}}}, "ancestry is missing"),
    "unknown key": ({"contenders": {"lsamd": {"search": {"task": ["two"]}}}}, "unknown key 'task'; did you mean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_that_cannot_be_is_refused(case: str) -> None:
    changes, text = REFUSED[case]
    with pytest.raises(RecipeError) as error:
        recipe_of(fields(**changes))
    (line,) = str(error.value).splitlines()
    assert text in line


def test_a_comparison_of_searches_runs_and_its_rows_know_their_search(cli: CLI, tmp_path: Path) -> None:
    sets = {"home": make_images(tmp_path / "home"), "zwei": make_masked(tmp_path / "zwei")}
    sets["two"] = make_images(tmp_path / "two", classes=("red", "blue"))
    made = compare_fields(
        tmp_path,
        sets["home"],
        contenders=CONTENDERS,
        shapes={"d3": {"depth": 3}},
        tasks={name: {"source": str(sets[name]), "workers": 0} for name in ("two", "zwei")},
        run={"contenders": list(CONTENDERS), "shapes": ["d3"], "tasks": ["two"], "budgets": ["untuned"]},
    )
    recipe = written(tmp_path / "r.yaml", made)
    done = cli("compare", recipe)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert sum(line.startswith("search ") for line in lines) == 4
    assert sum(line.startswith("gene lsamd seed 0: blocks ") for line in lines) == 3
    cells = results(tmp_path / "out")
    assert len(cells) == 3
    records = [content["gene"]["search"] for content in cells.values()]
    genes = [read_header(path).metadata["search"] for path in (tmp_path / "store").glob("lsamd-*.safetensors")]
    assert sorted(map(json.dumps, genes)) == sorted(map(json.dumps, records))
    rows = {row.contender: row for row in read_results(recipe_of(made)).rows}
    for row in rows.values():
        record = next(record for record in records if _choices(record) == row.choices and
                      len(record["layers"]) == (3 if row.contender == "three" else 2))  # fmt: skip
        assert len(row.choices) == 2 * 4
        assert row.search_score == pytest.approx(statistics.fmean(task["score"] for task in record["tasks"]))
    assert rows["lsamd"].choices == rows["three"].choices
    again = cli("compare", recipe)
    assert "search " not in again.out
    assert again.code == 0


def _choices(record: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(layer in task["layers"]) for task in record["tasks"] for layer in range(1, 5))


def test_a_segmentation_set_may_be_declared_without_data() -> None:
    found, images = lay_out_declared(recipe_of(fields(sizes={"zwei": {"masks": True}})))
    assert (len(searches(found)), found.masked, images) == (4, ["zwei"], IMAGES)


def test_a_task_may_have_images_of_its_own_size() -> None:
    found = laid_out(fields(tasks={"zwei": {"img_size": 2 * pico_shape().img_size}}))
    sizes = {task: cell(found, "lsamd", "d3", task=task).shape.img_size for task in ("home", "two", "zwei")}
    home = pico_shape().img_size
    assert sizes == {"home": home, "two": home, "zwei": 2 * home}
