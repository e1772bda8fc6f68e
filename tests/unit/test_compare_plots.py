"""Plots of comparisons: what is drawn of hand-made rows, and what the cost of several sizes counts."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comparisons import result_row
from learngene.comparing.plots import save_plots, scores_by_epoch, styles, total_costs
from learngene.comparing.results import ResultRow

GENE, ANCESTRY, PER_LAYER = 1000, 500, 10


def a_row(contender: str = "tleg", depth: int = 4, seed: int = 0, **changes: Any) -> ResultRow:
    """A row: one gene for two sizes unless it is said otherwise."""
    values: dict[str, Any] = {
        "embed_dim": 48,
        "params": 1000 * depth,
        "epochs": 2,
        "untuned_top1": 50.0 + seed,
        "untuned_loss": 1.0,
    }
    values |= {"last_top1": 70.0 + depth, "tune_macs": PER_LAYER * depth, "curve": (50.0, 60.0, 70.0), "shared_by": 2}
    costs = {"gene_macs": GENE, "ancestry_macs": ANCESTRY}
    return result_row(contender, depth, seed, **{**values, **costs, **changes})


def some_rows(*contenders: str, **changes: Any) -> list[ResultRow]:
    """Two depths and two seeds of each."""
    return [a_row(name, depth, seed, **changes) for name in contenders for depth in (6, 4) for seed in (0, 1)]


def names(rows: list[ResultRow], folder: Path) -> list[str]:
    """The names of the plots of some rows, which are whole and not empty."""
    paths = save_plots(rows, folder)
    assert sorted(folder.glob("*")) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    return [path.name.removesuffix(".png") for path in paths]


UNTUNED: dict[str, Any] = {"budget": "untuned", "epochs": 0, "curve": (50.0,)}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            some_rows("tleg", "scratch") + some_rows("tleg", "scratch", **UNTUNED),
            [
                "accuracy-params-home-short", "cost-sizes-home-short", "accuracy-epochs-home-short-d4",
                "accuracy-epochs-home-short-d6", "accuracy-params-home-untuned", "loss-depth-home",
            ],
        ),
        ([a_row(seed=0), a_row(seed=1)], ["accuracy-epochs-home-short-d4"]),
        ([a_row(epochs=0, curve=(50.0,))], []),
        ([], []),
        ([a_row(task="../a b")], ["accuracy-epochs-.._a_b-short-d4"]),
        (  # of many sizes three over epochs
            [a_row(depth=depth) for depth in range(4, 9)],
            ["accuracy-params-home-short", "cost-sizes-home-short",
             *(f"accuracy-epochs-home-short-d{depth}" for depth in (4, 6, 8))],
        ),
        (  # a contender lacks a size
            [a_row("sws", 4), a_row("tleg", 6)],
            ["accuracy-params-home-short", *(f"accuracy-epochs-home-short-d{depth}" for depth in (4, 6))],
        ),
        (  # two widths
            [a_row(depth=d, shape=f"w{w}d{d}", embed_dim=w, params=w * d, **UNTUNED) for d in (4, 6) for w in (48, 96)],
            ["accuracy-params-home-untuned", "loss-depth-home"],
        ),
    ],
    ids=["all", "one size", "untuned", "none", "name", "many sizes", "sizes missing", "widths"],
)  # fmt: skip
def test_plots_are_made_where_they_say_something(rows: list[ResultRow], expected: list[str], tmp_path: Path) -> None:
    assert names(rows, tmp_path) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (some_rows("tleg"), {"tleg": [ANCESTRY + GENE + 40, ANCESTRY + GENE + 100]}),
        (  # a gene per size
            [a_row(depth=depth, gene_macs=GENE * depth, shared_by=1, ancestry_macs=0) for depth in (4, 6)],
            {"tleg": [4 * GENE + 40, 10 * GENE + 100]},
        ),
        ([a_row(depth=depth, shared_by=1, ancestry_macs=0) for depth in (4, 6)], {"tleg": [GENE + 40, 2 * GENE + 100]}),
        (some_rows("scratch", gene_macs=0, ancestry_macs=0, shared_by=1), {"scratch": [40, 100]}),
        ([*some_rows("tleg"), a_row("sws", 4)], {"tleg": [ANCESTRY + GENE + 40, ANCESTRY + GENE + 100]}),
    ],
    ids=["one gene", "a gene per size", "genes of equal cost", "scratch", "a size is missing"],
)  # fmt: skip
def test_total_costs(rows: list[ResultRow], expected: dict[str, list[float]]) -> None:
    assert total_costs(rows, "home", "short") == expected


@pytest.mark.parametrize(("shared_by", "genes"), [(4, 1), (2, 2)])
def test_sharing_counts_tasks_too(shared_by: int, genes: int) -> None:
    rows = some_rows("tleg", shared_by=shared_by) + some_rows("tleg", shared_by=shared_by, task="gtsrb")
    assert total_costs(rows, "gtsrb", "short")["tleg"][-1] == ANCESTRY + genes * GENE + 100


def test_twelve_contenders_look_different() -> None:
    names = ["sws", "tleg", "scratch", *(f"contender-{number}" for number in range(9))]
    look = styles([a_row(name) for name in names])
    assert len({(style.color, style.marker) for style in look.values()}) == 12
    assert len({style.marker for style in look.values()}) == 12
    assert look["tleg"].color == styles([a_row("tleg")])["tleg"].color
    colors = [style.color for style in look.values() if not style.hollow]
    assert len(colors) == len(set(colors))


def test_where_epochs_were_not_scored_only_the_ends_are_drawn() -> None:
    assert scores_by_epoch(a_row(untuned_top1=50.0, last_top1=70.0)) == {0: 50.0, 1: 60.0, 2: 70.0}
    assert scores_by_epoch(a_row(epochs=9, untuned_top1=50.0, last_top1=70.0)) == {0: 50.0, 9: 70.0}
