"""Plots of comparisons: what is drawn of hand-made rows, and what the cost of several sizes counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learngene.comparing import plots
from learngene.comparing.results import ResultRow
from learngene.system.errors import LearngeneError

GENE, ANCESTRY, PER_LAYER = 1000, 500, 10


def a_row(contender: str = "tleg", depth: int = 4, seed: int = 0, **changes: Any) -> ResultRow:
    """A row: one gene for two sizes unless it is said otherwise."""
    values: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(ResultRow)}
    values |= {"contender": contender, "method": contender, "shape": f"d{depth}", "task": "home", "budget": "short"}
    values |= {"seed": seed, "depth": depth, "embed_dim": 48, "params": 1000 * depth, "hardware": "cpu", "epochs": 2}
    values |= {"untuned_top1": 50.0 + seed, "last_top1": 70.0 + depth, "untuned_loss": 1.0, "curve": (50.0, 60.0, 70.0)}
    values |= {"gene_macs": GENE, "ancestry_macs": ANCESTRY, "tune_macs": PER_LAYER * depth, "shared_by": 2}
    return ResultRow(**{**values, **changes})


def some_rows(*contenders: str, **changes: Any) -> list[ResultRow]:
    """Two depths and two seeds of each."""
    return [a_row(name, depth, seed, **changes) for name in contenders for depth in (6, 4) for seed in (0, 1)]


def drawn(path: Path) -> int:
    """Different colours in a picture, of which an empty one has a single one; opening it checks that it is whole."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return len(image.convert("RGB").getcolors(1 << 20) or ())


def test_all_plots_are_made_where_they_say_something(tmp_path: Path) -> None:
    rows = some_rows("tleg", "scratch") + some_rows("tleg", "scratch", budget="untuned", epochs=0, curve=(50.0,))
    paths = plots.save_plots(rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert {path.name for path in paths} == {
        "accuracy-params-home-short.png",
        "accuracy-params-home-untuned.png",
        "accuracy-epochs-home-short-d4.png",
        "accuracy-epochs-home-short-d6.png",
        "cost-sizes-home-short.png",
        "loss-depth-home.png",
    }
    assert all(drawn(path) > 10 for path in paths)


def test_one_size_has_no_plots_over_sizes(tmp_path: Path) -> None:
    paths = plots.save_plots([a_row(seed=0), a_row(seed=1)], tmp_path)
    assert [path.name for path in paths] == ["accuracy-epochs-home-short-d4.png"]
    assert plots.save_plots([a_row(epochs=0, curve=(50.0,))], tmp_path) == []
    assert plots.save_plots([], tmp_path) == []


def test_of_many_sizes_three_are_drawn_over_epochs(tmp_path: Path) -> None:
    names = [path.name for path in plots.save_plots([a_row(depth=depth) for depth in range(4, 9)], tmp_path)]
    assert [name for name in names if "epochs" in name] == [f"accuracy-epochs-home-short-d{d}.png" for d in (4, 6, 8)]


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    (path,) = plots.save_plots([a_row(task="../a b")], tmp_path)
    assert path.parent == tmp_path
    assert path.name == "accuracy-epochs-.._a_b-short-d4.png"


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match=r"^no results of task gtsrb, budget short to plot$"):
        plots.accuracy_over_params([a_row()], tmp_path / "plot.png", "gtsrb", "short")
    assert not list(tmp_path.iterdir())


def test_one_gene_for_all_is_paid_once() -> None:
    rows = some_rows("tleg")
    assert plots.total_costs(rows, "home", "short") == {"tleg": [ANCESTRY + GENE + 40, ANCESTRY + GENE + 100]}


def test_a_gene_per_size_is_paid_for_each() -> None:
    rows = [a_row(depth=depth, gene_macs=GENE * depth, shared_by=1, ancestry_macs=0) for depth in (4, 6)]
    assert plots.total_costs(rows, "home", "short") == {"tleg": [4 * GENE + 40, 10 * GENE + 100]}
    alike = [a_row(depth=depth, shared_by=1, ancestry_macs=0) for depth in (4, 6)]
    assert plots.total_costs(alike, "home", "short") == {"tleg": [GENE + 40, 2 * GENE + 100]}


@pytest.mark.parametrize(("shared_by", "genes"), [(4, 1), (2, 2)])
def test_sharing_counts_tasks_too(shared_by: int, genes: int) -> None:
    rows = some_rows("tleg", shared_by=shared_by) + some_rows("tleg", shared_by=shared_by, task="gtsrb")
    assert plots.total_costs(rows, "gtsrb", "short")["tleg"][-1] == ANCESTRY + genes * GENE + 100


def test_scratch_pays_for_tuning_alone() -> None:
    rows = some_rows("scratch", gene_macs=0, ancestry_macs=0, shared_by=1)
    assert plots.total_costs(rows, "home", "short") == {"scratch": [40, 100]}


def test_a_contender_without_all_sizes_has_no_total_cost(tmp_path: Path) -> None:
    rows = [*some_rows("tleg"), a_row("sws", 4)]
    assert list(plots.total_costs(rows, "home", "short")) == ["tleg"]
    plots.cost_over_sizes(rows, tmp_path / "cost.png", "home", "short")
    assert drawn(tmp_path / "cost.png") > 10
    with pytest.raises(LearngeneError, match="no contender has results at every size"):
        plots.cost_over_sizes([a_row("sws", 4), a_row("tleg", 6)], tmp_path / "none.png", "home", "short")


def test_twelve_contenders_look_different() -> None:
    names = ["sws", "tleg", "scratch", *(f"contender-{number}" for number in range(9))]
    look = plots.styles([a_row(name) for name in names])
    assert len({(style.color, style.marker) for style in look.values()}) == 12
    assert len({style.marker for style in look.values()}) == 12
    assert look["tleg"].color == plots.styles([a_row("tleg")])["tleg"].color
    colors = [style.color for style in look.values() if not style.hollow]
    assert len(colors) == len(set(colors))


def test_where_epochs_were_not_scored_only_the_ends_are_drawn() -> None:
    assert plots._scores(a_row(untuned_top1=50.0, last_top1=70.0)) == {0: 50.0, 1: 60.0, 2: 70.0}
    assert plots._scores(a_row(epochs=9, untuned_top1=50.0, last_top1=70.0)) == {0: 50.0, 9: 70.0}


def test_widths_get_lines_of_their_own(tmp_path: Path) -> None:
    rows = some_rows("tleg") + [a_row(depth=depth, shape=f"w96d{depth}", embed_dim=96) for depth in (4, 6)]
    plots.loss_over_depth(rows, tmp_path / "loss.png", "home")
    assert drawn(tmp_path / "loss.png") > 10
