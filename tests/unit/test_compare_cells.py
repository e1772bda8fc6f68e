"""What a comparison consists of: keys that depend on all that decides a result and on nothing else, and costs."""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from comparisons import IMAGES, cell, compare_fields, laid_out, recipe_of
from learngene.comparing.cost import Cost, ancestry_macs, cost_of, gene_macs, paid_macs
from learngene.comparing.run import OpenTasks, steps
from learngene.recipe.compare import CompareRecipe
from learngene.system.errors import LearngeneError, RecipeError
from learngene.training.record import RunRecord
from pico import pico_shape

TWO = {"tasks": {"two": {"source": "other"}}}


def keys(contender: str = "tleg", budget: str = "one", **changes: Any) -> dict[str, str | None]:
    """What identifies a cell, its gene and its ancestry."""
    found = cell(laid_out(compare_fields(**changes)), contender, budget=budget)
    gene = found.gene
    ancestry = gene.ancestry.folder.name if gene and gene.ancestry else None
    return {"cell": found.key, "gene": gene.path.name if gene else None, "ancestry": ancestry}


def differing(contender: str = "tleg", budget: str = "one", **changes: Any) -> set[str]:
    """Which of the three another recipe changes."""
    one, other = keys(contender, budget), keys(contender, budget, **changes)
    return {name for name in one if one[name] != other[name]}


# -- what there is to do -----------------------------------------------------------------------------------


def test_there_is_a_cell_for_every_combination() -> None:
    comparison = laid_out(compare_fields(**TWO, run={"seeds": [0, 5]}))
    assert len(comparison.cells) == len(set(map(str, comparison.cells))) == 2 * 2 * 2 * 2 * 2
    assert len({c.path for c in comparison.cells}) == 32
    assert [gene.name for gene in comparison.genes] == ["tleg d4 seed 0", "tleg d4 seed 5"]
    assert list(comparison.ancestries) == ["vit"]
    found = steps(comparison, OpenTasks(comparison.recipe))
    assert [step.name.split()[0] for step in found] == ["ancestry", "gene", "gene", *["cell"] * 32]
    assert [step.found() for step in found] == [None] * len(found)


def test_cells_have_the_classes_of_their_task_and_genes_those_of_home() -> None:
    found = cell(laid_out(compare_fields(**TWO)), "tleg", "d3", "two")
    assert found.gene is not None
    assert found.gene.recipe is not None
    assert (found.shape.depth, found.shape.num_classes, found.data.source) == (3, 2, "other")
    assert (found.gene.shape.depth, found.gene.shape.num_classes) == (4, 3)
    assert found.gene.recipe.data.source == "images"


def test_nothing_is_made_that_no_cell_needs() -> None:
    comparison = laid_out(compare_fields(run={"contenders": ["scratch"]}))
    assert (comparison.ancestries, comparison.genes) == ({}, [])
    labels = {"tleg": {"distill": {"preset": "none"}}}
    (gene,) = laid_out(compare_fields(contenders=labels)).genes
    assert gene.ancestry is None


def test_tuning_takes_the_epochs_of_the_budget_times_the_contender() -> None:
    budgets = {"untuned": {"epochs": 0}, "one": {"epochs": 2}}
    slow = {"slow": {"method": "scratch", "times": 2.5, "tune": {"lr": 0.5}}}
    comparison = laid_out(compare_fields(budgets=budgets, contenders=slow, run={"seeds": [7]}))
    train = cell(comparison, "slow", seed=7).train
    assert train is not None
    assert (train.epochs, train.lr, train.seed, train.batch_size) == (5, 0.5, 7, 8)
    assert cell(comparison, "slow", budget="untuned", seed=7).train is None


# -- keys: what decides a result ---------------------------------------------------------------------------

DECIDES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "settings": ({"contenders": {"tleg": {"settings": {"first_layer": 2}}}}, {"cell", "gene"}),
    "how genes are trained": ({"condense": {"lr": 0.5}}, {"cell", "gene", "ancestry"}),
    "how this gene is trained": ({"contenders": {"tleg": {"train": {"lr": 0.5}}}}, {"cell", "gene"}),
    "distillation": ({"contenders": {"tleg": {"distill": {"alpha": 0.5}}}}, {"cell", "gene"}),
    "auxiliary shape": ({"contenders": {"tleg": {"auxiliary": {"depth": 6}}}}, {"cell", "gene"}),
    "ancestry's training": ({"ancestries": {"vit": {"train": {"epochs": 2}}}}, {"cell", "gene", "ancestry"}),
    "ancestry's shape": ({"ancestries": {"vit": {"shape": {"depth": 5}}}}, {"cell", "gene", "ancestry"}),
    "all shapes": ({"shape": {"embed_dim": 32}}, {"cell", "gene", "ancestry"}),
    "home": ({"data": {"source": "others"}}, {"cell", "gene", "ancestry"}),
    "normalisation": ({"data": {"mean": [0.5, 0.5, 0.5]}}, {"cell", "gene", "ancestry"}),
    "shape": ({"shapes": {"d2": {"mlp_ratio": 1.0}}}, {"cell"}),
    "tuning": ({"tune": {"lr": 0.5}}, {"cell"}),
    "this tuning": ({"contenders": {"tleg": {"tune": {"lr": 0.5}}}}, {"cell"}),
    "budget": ({"budgets": {"one": {"epochs": 2}}}, {"cell"}),
    "times": ({"contenders": {"tleg": {"times": 2}}}, {"cell"}),
    "layers": ({"contenders": {"tleg": {"layers": [1]}}}, {"cell"}),
    "modules": ({"contenders": {"tleg": {"modules": ["msa"]}}}, {"cell"}),
}  # fmt: skip


@pytest.mark.parametrize("case", DECIDES)
def test_a_key_depends_on_what_decides_the_result(case: str) -> None:
    changes, expected = DECIDES[case]
    assert differing(**changes) == expected


def test_a_key_depends_on_options() -> None:
    sws = {"method": "sws", "settings": {"stages": [2, 2]}, "distill": {"preset": "none"}}
    one = keys("a", contenders={"a": sws})
    other = keys("a", contenders={"a": {**sws, "options": {"order": "front-last-mid"}}})
    assert (one["gene"], one["cell"] == other["cell"]) == (other["gene"], False)


def test_a_key_depends_on_the_seed_and_the_task() -> None:
    comparison = laid_out(compare_fields(**TWO, run={"seeds": [0, 1]}))
    found = [cell(comparison, name, task=task, seed=seed) for name in ("scratch", "tleg") for task in ("home", "two")
             for seed in (0, 1)]  # fmt: skip
    assert len({c.key for c in found}) == 8
    assert len({c.gene.path for c in found if c.gene}) == 2


def test_an_extracted_gene_depends_on_settings_and_ancestry_and_not_on_the_seed() -> None:
    vanilla = {"method": "vanilla-lg", "ancestry": "vit", "settings": {"last": 1}}
    comparison = laid_out(compare_fields(contenders={"vanilla": vanilla}, run={"seeds": [0, 1]}))
    genes = [cell(comparison, "vanilla", shape, seed=seed).gene for shape in ("d2", "d3") for seed in (0, 1)]
    assert genes == [genes[0]] * 4
    assert genes[0] is not None
    assert genes[0].recipe is None
    assert genes[0].shape.depth == 4
    for changes in (
        {"contenders": {"vanilla": {**vanilla, "settings": {"last": 2}}}},
        {"contenders": {"vanilla": vanilla}, "ancestries": {"vit": {"train": {"lr": 0.5}}}},
        {"contenders": {"vanilla": vanilla}, "condense": {"epochs": 2}},
    ):
        assert keys("vanilla", **changes)["gene"] != genes[0].path.name


# -- keys: what does not -----------------------------------------------------------------------------------

SAME: dict[str, dict[str, Any]] = {
    "the data's folder": {"data": {"source": "/elsewhere/images"}},
    "the data's root": {"data": {"root": "/elsewhere"}},
    "loader processes": {"data": {"workers": 3}},
    "states of the ancestry": {"ancestries": {"vit": {"train": {"save_every": 7}}}},
    "saved states": {"condense": {"save_every": 7}, "tune": {"save_every": 7}},
    "parts of a batch": {"condense": {"micro_batch": 2}, "tune": {"micro_batch": 2}},
    "compiling": {"condense": {"compile": True}, "tune": {"compile": True}},
    "results and store": {"out": "a", "store": "b"},
    "kept runs": {"keep_runs": True},
    "other contenders": {"contenders": {"other": {"method": "scratch"}}},
    "other shapes": {"shapes": {"d3": {"depth": 5}}},
    "other tasks": TWO,
    "other seeds": {"run": {"seeds": [3, 0]}},
    "declared sizes": {"sizes": {"home": {"images": 1, "classes": 1}}},
    "defaults spelled out": {"tune": {"ema_decay": None}, "shapes": {"d2": {"embed_dim": 16}}},
}


@pytest.mark.parametrize("case", SAME)
def test_a_key_does_not_depend_on(case: str) -> None:
    assert differing(**SAME[case]) == set()


def test_an_untuned_cell_does_not_depend_on_tuning() -> None:
    assert differing(budget="untuned", tune={"lr": 0.5}) == set()
    assert differing("scratch", condense={"lr": 0.5}, ancestries={"vit": {"train": {"lr": 0.5}}}) == set()


def test_names_of_contenders_shapes_tasks_and_budgets_do_not_matter() -> None:
    here = laid_out(compare_fields(**TWO))
    fields = compare_fields(tasks={"zwei": {"source": "other"}}, shapes={"flat": {"depth": 2}})
    fields["contenders"] = {"gene": fields["contenders"]["tleg"]}
    fields["budgets"] = {"brief": {"epochs": 1}}
    there = laid_out(fields)
    one = cell(here, "tleg", "d2", "two", "one")
    other = cell(there, "gene", "flat", "zwei", "brief")
    assert (one.key, one.path) == (other.key, other.path)


def test_contenders_with_equal_content_share_gene_and_cells() -> None:
    twins = {"twin": {"extends": "tleg"}, "first-only": {"extends": "tleg", "layers": [1]}}
    comparison = laid_out(compare_fields(contenders=twins))
    assert len(comparison.genes) == 1
    tleg, twin, first = (cell(comparison, name) for name in ("tleg", "twin", "first-only"))
    assert tleg.gene is twin.gene is first.gene is comparison.genes[0]
    assert tleg.path == twin.path != first.path


def test_one_gene_serves_all_shapes_unless_each_has_its_own() -> None:
    comparison = laid_out(compare_fields(contenders={"pre-fin": {"method": "pre-fin", "each": True}}))
    tleg = [cell(comparison, "tleg", shape).gene for shape in ("d2", "d3")]
    own = [cell(comparison, "pre-fin", shape).gene for shape in ("d2", "d3")]
    assert tleg[0] is tleg[1]
    assert [gene.shape.depth for gene in own if gene] == [2, 3]
    assert len(comparison.genes) == 3


def test_the_folder_of_a_loaded_ancestry_does_not_matter() -> None:
    here, there = ({"vit": {"source": f"{folder}/model", "shape": None}} for folder in ("/here", "/there"))
    assert keys(ancestries=here) == keys(ancestries=there)


def test_a_contender_may_change_the_preset() -> None:
    changes = {"tune": {"augment": {"preset": "light"}}}
    train = cell(laid_out(compare_fields(contenders={"scratch": changes})), "scratch").train
    assert train is not None
    assert train.augment.hflip == 0.5


def test_a_recipe_that_was_sent_to_another_process_has_the_same_keys() -> None:
    fields = compare_fields(contenders={"scratch": {"tune": {"augment": {"preset": "none"}}}})
    del fields["tune"]["augment"]
    here = recipe_of(fields)
    there = CompareRecipe.model_validate_json(here.model_dump_json())
    one, other = (laid_out(recipe) for recipe in (here, there))
    assert [c.path for c in one.cells] == [c.path for c in other.cells]


def test_tasks_whose_files_have_the_same_name_are_refused() -> None:
    tasks = {"two": {"source": "/one/set"}, "zwei": {"source": "/other/set"}}
    with pytest.raises(RecipeError, match="same file name as those of 'two'"):
        recipe_of(compare_fields(tasks=tasks))


# -- costs, computed by hand -------------------------------------------------------------------------------

# 4 patches of 4 x 4 x 3 on width 16: 3072; a layer 4 tokens x 16 x (4 x 16 + 2 x 32) + 2 x 4 x 4 x 16; a head.
LAYER = 8192 + 512
D2, D3, D4 = (3072 + depth * LAYER + 16 * 3 for depth in (2, 3, 4))
EPOCH = 24  # images at home


def test_the_hand_agrees_with_the_shapes() -> None:
    comparison = laid_out(compare_fields())
    assert [cell(comparison, "tleg", shape).shape.macs() for shape in ("d2", "d3")] == [D2, D3] == [20528, 29232]


LABELS = {"contenders": {"tleg": {"distill": {"preset": "none"}}}}
TAKEN = {"contenders": {"vanilla": {"method": "vanilla-lg", "ancestry": "vit", "settings": {"last": 1}}},
         "ancestries": {"vit": {"train": {"epochs": 3}}}}  # fmt: skip
OWN = {**TWO, "contenders": {"pre-fin": {"method": "pre-fin", "each": True},
                             "own": {"method": "distilled", "each": True, "ancestry": "vit"}}}  # fmt: skip
ONCE, TEACH = EPOCH * 3, EPOCH  # an epoch of training, and of a teacher's looks, at home
COSTS: dict[str, tuple[str, str, dict[str, Any], Cost]] = {
    "whole batches": ("scratch", "d2", {"budgets": {"one": {"epochs": 2}}, "tune": {"batch_size": 10}},
                      Cost(2 * 20 * 3 * D2, 0, 0, 1, 2)),
    "nothing": ("scratch", "d2", {"budgets": {"one": {"epochs": 0}}}, Cost(0, 0, 0, 1, 2)),
    "shared by shapes": ("tleg", "d2", {}, Cost(ONCE * D2, (ONCE + TEACH) * D4, ONCE * D4, 2, 2)),
    "not by seeds": ("tleg", "d2", {"run": {"seeds": [0, 1]}}, Cost(ONCE * D2, (ONCE + TEACH) * D4, ONCE * D4, 2, 2)),
    "by tasks": ("tleg", "d2", TWO, Cost(ONCE * D2, (ONCE + TEACH) * D4, ONCE * D4, 4, 4)),
    "by tasks alone": ("tleg", "d2", {**TWO, "run": {"shapes": ["d2"]}},
                       Cost(ONCE * D2, (ONCE + TEACH) * D4, ONCE * D4, 2, 2)),
    "labels have no teacher": ("tleg", "d2", LABELS, Cost(ONCE * D2, ONCE * D4, 0, 2, 2)),
    "extracted": ("vanilla", "d2", TAKEN, Cost(ONCE * D2, 0, 3 * ONCE * D4, 2, 2)),
    "a gene for each shape": ("pre-fin", "d3", OWN, Cost(ONCE * D3, ONCE * D3, 0, 2, 4)),
    "with a teacher": ("own", "d3", OWN, Cost(ONCE * D3, ONCE * D3 + TEACH * D4, ONCE * D4, 2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", COSTS)
def test_the_cost_of_a_descendant(case: str) -> None:
    contender, shape, changes, expected = COSTS[case]
    comparison = laid_out(compare_fields(**changes))
    assert cost_of(cell(comparison, contender, shape), comparison, IMAGES) == expected


def test_the_total_is_the_tuning_and_the_shares_of_gene_and_ancestry() -> None:
    comparison = laid_out(compare_fields(**TWO))
    assert cost_of(cell(comparison, "tleg"), comparison, IMAGES).total == ONCE * D2 + Fraction(EPOCH * 7 * D4, 4)
    assert cost_of(cell(comparison, "scratch", budget="untuned"), comparison, IMAGES).total == 0


def test_a_loaded_ancestry_costs_nothing_but_its_looks() -> None:
    loaded = {"vit": {"source": "levit_128s", "shape": None}}
    comparison = laid_out(compare_fields(ancestries=loaded, data={"img_size": 224}))
    assert ancestry_macs(comparison.ancestries["vit"], EPOCH) == 0
    (gene,) = comparison.genes
    assert gene_macs(gene, {"home": EPOCH}) > EPOCH * 3 * D4


@pytest.mark.parametrize(("policy", "ancestry", "shared_by"), [("all", ONCE * D4, 1), ("given", 0, 2)])
def test_how_teachers_count(policy: str, ancestry: int, shared_by: int) -> None:
    comparison = laid_out(compare_fields(teacher_cost=policy))
    expected = Cost(ONCE * D2, (ONCE + TEACH) * D4, ancestry, 2, shared_by)
    assert cost_of(cell(comparison, "tleg"), comparison, IMAGES) == expected


def test_a_loaded_teacher_costs_what_its_run_says(ancestry_folder: Path, tmp_path: Path) -> None:
    """It saw 240 images; without a record nobody knows, unless the recipe does."""
    source = tmp_path / "run" / "descendant"
    shutil.copytree(ancestry_folder, source)

    def paid(**changes: Any) -> int | None:
        loaded = {"vit": {"source": str(source), "shape": None, **changes}}
        return paid_macs(laid_out(compare_fields(ancestries=loaded)).ancestries["vit"], EPOCH)

    assert paid() is None
    score = {"top1": 50.0, "top5": 100.0, "loss": 1.0, "images": 12}
    metrics = {"final": score, "best_top1": 50.0, "history": []}
    cost = {"seconds": 1.0, "updates": 30, "images": 240}
    run: dict[str, Any] = {"recipe": {}, "seed": 0, "commit": None, "environment": {}, "data": {}, "error": None}
    RunRecord(**run, cost=cost, metrics=metrics).write(tmp_path / "run" / "result.json")
    assert paid() == 240 * 3 * pico_shape(depth=2, num_heads=4).macs()
    assert paid(trained_macs=7) == 7
    assert laid_out(compare_fields()).genes[0].path == laid_out(compare_fields(teacher_cost="given")).genes[0].path


# -- equal costs -------------------------------------------------------------------------------------------


def test_equal_costs_are_turned_into_whole_epochs() -> None:
    comparison = laid_out(compare_fields(budgets={"one": {"epochs": 1, "cost_of": "tleg"}}))
    shared = EPOCH * 7 * D4 / 2
    for shape, macs, by_hand in (("d2", D2, 3), ("d3", D3, 2)):
        assert int((EPOCH * 3 * macs + shared) // (EPOCH * 3 * macs)) == by_hand
        trains = [cell(comparison, name, shape).train for name in ("scratch", "tleg")]
        assert [train.epochs for train in trains if train] == [by_hand, 1]
        left = cost_of(cell(comparison, "tleg", shape), comparison, IMAGES).total - by_hand * EPOCH * 3 * macs
        assert 0 <= left < EPOCH * 3 * macs
    assert cell(comparison, "scratch", budget="untuned").train is None


def test_an_epoch_less_of_tuning_pays_for_the_gene() -> None:
    budgets = {"one": {"epochs": 10, "cost_of": "scratch"}}
    comparison = laid_out(compare_fields(budgets=budgets))
    tuned, reference = cell(comparison, "tleg", "d2").train, cell(comparison, "scratch", "d2").train
    assert tuned is not None
    assert reference is not None
    assert (tuned.epochs, reference.epochs) == (10 - 3, 10)  # the shares cost 2.16 epochs
    assert cell(comparison, "tleg", "d2").key != cell(laid_out(compare_fields()), "tleg", "d2").key


@pytest.mark.parametrize(
    ("equal_to", "contenders", "line"),
    [
        ("scratch", ["scratch", "tleg"], "budgets: no equal cost is possible: tleg at d2 costs more than scratch "
         "before any tuning; tleg at d3 costs more than scratch before any tuning; give it more epochs, more shapes to "
         "share the cost, or leave teachers out with teacher_cost=given"),
        ("tleg", ["scratch"], "budgets.one.cost_of: contender 'tleg' is not run; add it to run.contenders"),
    ],
)  # fmt: skip
def test_impossible_equal_costs_are_refused(equal_to: str, contenders: list[str], line: str) -> None:
    budgets = {"one": {"epochs": 1, "cost_of": equal_to}}
    with pytest.raises(LearngeneError) as error:
        laid_out(compare_fields(budgets=budgets, run={"contenders": contenders}))
    assert str(error.value) == line


def test_equal_contenders_get_equal_epochs() -> None:
    """Shares are fractions: what is left must not be a hair below a whole number of epochs."""
    for epochs in (1, 2, 5):
        for count in range(1, 5):
            fields = compare_fields(contenders={"twin": {"extends": "tleg"}})
            fields["budgets"] = {"one": {"epochs": epochs, "cost_of": "tleg"}}
            fields["shapes"] = {f"d{depth}": {"depth": depth} for depth in range(2, 2 + count)}
            comparison = laid_out({**fields, "run": {"seeds": [0], "contenders": ["tleg", "twin"]}})
            assert {c.train.epochs for c in comparison.cells if c.train} == {epochs}
            assert len(comparison.cells) == 2 * count


def test_equal_costs_count_the_epochs_of_the_contenders_own_batches() -> None:
    own = {"scratch": {"tune": {"batch_size": 16}}}
    comparison = laid_out(compare_fields(budgets={"one": {"epochs": 3, "cost_of": "tleg"}}, contenders=own))
    costs = [cost_of(cell(comparison, name), comparison, IMAGES).total for name in ("tleg", "scratch")]
    assert 0 <= costs[0] - costs[1] < 16 * 3 * D2  # an epoch of one batch of 16
