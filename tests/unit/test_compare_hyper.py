"""Comparisons with contenders that are hypernetworks: jobs, keys, costs, and a whole run."""

from pathlib import Path
from typing import Any

import pytest

from comparisons import CLASSES, IMAGES, cell, compare_fields, laid_out, recipe_of, results, written
from hyper import PICO
from learngene.comparing.cells import lay_out_declared
from learngene.comparing.claims.estimate import estimate
from learngene.comparing.claims.groups import ClaimGroup
from learngene.comparing.cost import gene_macs
from learngene.comparing.jobs import Comparison, GeneJob
from learngene.comparing.run import OpenTasks, steps
from learngene.genes.gene_file import read_header
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import merge
from learngene.system.errors import RecipeError
from pico import CLI, FAST, make_images, pico_shape

TWO = {"two": {"source": "other", "workers": 0}, "zwei": {"source": "noch eins", "workers": 0}}
SIZES = {name: {"images": IMAGES[name], "classes": CLASSES[name]} for name in IMAGES}
NAMES = ("home-only", "v1", "v2", "v3", "v4", "tal", "no-tsl", "no-anc")
CONTENDERS: dict[str, Any] = {
    "logah": {"method": "logah", "settings": PICO, "train": FAST},
    "home-only": {"method": "tal", "settings": {**PICO, "task_dim": 16}, "ancestry": "vit", "train": FAST},
    "v1": {"extends": "logah", "stage2": {"each": True, "fresh": True}},
    "v2": {"extends": "logah", "stage2": {"each": True}},
    "v3": {"extends": "logah", "stage2": {"fresh": True}},
    "v4": {"extends": "logah", "stage2": {}},
    "tal": {"extends": "home-only", "stage2": {}},
    "no-tsl": {"extends": "tal", "stage2": {"task_layers": False}},
    "no-anc": {"extends": "v4", "ancestry": "vit", "stage2": {"task_layers": True}},
}


def fields(**changes: Any) -> dict[str, Any]:
    """LoGAH v1 to v4, TAL and its ablations on two tasks."""
    base = compare_fields(
        tasks=TWO,
        contenders=CONTENDERS,
        sizes=SIZES,
        shape={**pico_shape().to_dict(), "num_classes": 0, "class_token": True, "depth": 2},
        run={"contenders": list(NAMES), "shapes": ["d2"], "tasks": ["two", "zwei"], "budgets": ["untuned"]},
    )
    return merge(base, changes)


def gene(comparison: Comparison, contender: str, task: str = "two") -> GeneJob:
    found = cell(comparison, contender, "d2", task=task, budget="untuned").gene
    assert found is not None
    return found


def test_contenders_differ_in_what_their_hypernetworks_saw() -> None:
    found = laid_out(fields())
    tasks = {name: list(job.recipe.tasks) for name in NAMES[1:] if (job := gene(found, name)).recipe}  # type: ignore[union-attr]
    assert tasks == {name: ["two"] if name in ("v1", "v2") else ["two", "zwei"] for name in NAMES[1:]}
    stage1 = {name: job.path if (job := gene(found, name).stage1) else None for name in NAMES}
    assert stage1["home-only"] is stage1["v1"] is stage1["v3"] is None
    assert stage1["tal"] == stage1["no-tsl"] == gene(found, "home-only").path
    assert stage1["v2"] == stage1["v4"] == stage1["no-anc"] != stage1["tal"]
    guided = {name: bool(job.stage1 and job.stage1.ancestry) for name in NAMES if (job := gene(found, name))}
    assert [name for name in NAMES if guided[name]] == ["tal", "no-tsl"]
    embedded = [name for name in NAMES[1:] if gene(found, name).ancestry]
    assert embedded == ["tal", "no-anc"]


def test_a_hypernetwork_per_task_is_made_for_every_task_and_one_for_all_once() -> None:
    found = laid_out(fields())
    for name in NAMES[1:]:
        alone = gene(found, name, "two").path != gene(found, name, "zwei").path
        assert alone == (name in ("v1", "v2")), name
    assert len({job.path for job in found.genes}) == len(found.genes) == 1 + 2 + 2 + 5
    order = [step.path for step in steps(found, OpenTasks(found.recipe))]
    for job in found.genes:
        if job.stage1:
            assert order.index(job.stage1.path) < order.index(job.path)


def test_what_decides_a_tuned_gene_decides_its_name() -> None:
    def path(**changes: Any) -> str:
        return gene(laid_out(fields(**changes)), "tal").path.name

    own = path()
    assert own == path(shapes={"d3": {"depth": 4}}, tune={"epochs": 9}, contenders={"v4": {"train": {"epochs": 7}}})
    for changes in (
        {"contenders": {"home-only": {"train": {"epochs": 7}}}},
        {"contenders": {"home-only": {"hyper": {"meta_batch": 2}}}},
        {"contenders": {"home-only": {"hyper": {"guidance": {"alpha": 0.5}}}}},
        {"contenders": {"tal": {"stage2": {"temperature": 1.0}}}},
        {"contenders": {"tal": {"stage2": {"freeze_encoder": True}}}},
        {"contenders": {"tal": {"stage2": {"train": {"epochs": 7}}}}},
        {"contenders": {"tal": {"stage2": {"augment": {"two": {"hflip": 0.0}}}}}},
        {"tasks": {"zwei": {"source": "another"}}},
        {"ancestries": {"vit": {"shape": {"depth": 5}}}},
    ):
        assert path(**changes) != own, changes


def test_a_hypernetwork_costs_its_vits_and_the_teacher_and_stage_1_once() -> None:
    found = laid_out(fields())
    shapes = [
        pico_shape(class_token=True, depth=d, embed_dim=w, num_heads=h, num_classes=3).macs()
        for d, w, h in PICO["architectures"]
    ]
    student, teacher = sum(shapes) // 2, pico_shape(depth=4, class_token=True).macs()
    home = FAST["epochs"] * IMAGES["home"] // FAST["batch_size"] * FAST["batch_size"]
    assert gene_macs(gene(found, "home-only"), IMAGES) == home * (3 * student + teacher)
    both = FAST["epochs"] * -(-32 // FAST["batch_size"]) * FAST["batch_size"]
    assert gene_macs(gene(found, "v3"), IMAGES) == both * 3 * student
    assert gene_macs(gene(found, "v4"), IMAGES) == both * 3 * student + home * 3 * student
    line = estimate(
        validated(ClaimGroup, {"id": "a.b", "paper": "TAL", "source": "Table 1", "title": "t", "claims": [
            {"text": "x", "printed": "1", "statistic": {"of": {}, "at_least": 0}}]}, "claims"),
        recipe_of(fields()),
    )  # fmt: skip
    assert line.startswith(f"a.b: 1 ancestries, {len(found.genes)} genes, {len(found.cells)} cells; ")
    assert lay_out_declared(recipe_of(fields()))[0].cells == found.cells


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tal": {"ancestry": None}}, "ancestry is missing: the task embeddings of tal are its features"),
    ({"scratch": {"stage2": {}}}, "stage2: method scratch is no hypernetwork; leave it out"),
    ({"tleg": {"hyper": {}}}, "hyper: method tleg is no hypernetwork; leave it out"),
    ({"v4": {"stage2": {"tasks": ["drei"]}}}, "contenders.v4.stage2: no 'drei' is defined"),
    ({"v4": {"stage2": {"tasks": []}}}, "stage2.tasks"),
    ({"v4": {"stage2": {"train": {"epochs": -1}}}}, "contenders.v4.stage2.train: epochs"),
]


@pytest.mark.parametrize(("contenders", "text"), REFUSED, ids=str)
def test_a_stage_2_that_cannot_be_is_refused(contenders: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as error:
        laid_out(fields(contenders=contenders))
    (line,) = str(error.value).splitlines()
    assert text in line


def test_a_comparison_of_hypernetworks_runs_on_seen_and_unseen_tasks(cli: CLI, tmp_path: Path) -> None:
    sets = {"home": make_images(tmp_path / "home")}
    sets |= {name: make_images(tmp_path / name, classes=("red", "blue")) for name in ("two", "zwei", "neu")}
    seen = {"stage2": {"tasks": ["two", "zwei"]}}
    made = fields(
        out=str(tmp_path / "out"),
        store=str(tmp_path / "store"),
        data={"source": str(sets["home"])},
        tasks={name: {"source": str(sets[name]), "workers": 0} for name in ("two", "zwei", "neu")},
        sizes=None,
        contenders={"tal": seen, "no-anc": seen},
        run={"contenders": ["v2", "tal", "no-tsl", "no-anc"], "tasks": ["two", "neu"]},
    )
    recipe = written(tmp_path / "r.yaml", made)
    done = cli("compare", recipe)
    assert done.code == 0, done.err
    cells = list(results(tmp_path / "out").values())
    assert sorted(content["contender"] for content in cells) == sorted(["v2", "tal", "no-tsl", "no-anc"] * 2)
    for content in cells:
        assert ("task_share" in content["gene"]) == (content["contender"] in ("tal", "no-anc"))
        assert 0 <= content["gene"].get("task_share", 0.0) <= 1
        assert content["task"] == "neu" or "two" in content["gene"]["tasks"]
    genes = {path.name: read_header(path).metadata for path in (tmp_path / "store").glob("*.safetensors")}
    embedded = [
        name for name, metadata in genes.items() if any("embedding" in task for task in metadata.get("tasks", ()))
    ]
    assert sorted(name.split("-")[0] for name in embedded) == ["logah", "tal"]
    again = cli("compare", recipe)
    assert (again.code, "gene " in again.out) == (0, False)
