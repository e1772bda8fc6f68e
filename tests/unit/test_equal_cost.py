"""What a comparison comes to: hand-made rows of scratch and a gene, and the lines below their table."""

from typing import Any

import pytest

from comparisons import result_row
from learngene.comparing.equal_cost import conclusions
from learngene.comparing.results import ResultRow, Results

CURVE = (10.0, 50.0, 60.0)
"""Of scratch, which tunes for two epochs of 50 multiply-adds each."""


def row(contender: str, depth: int = 4, seed: int = 0, **values: Any) -> ResultRow:
    scratch = {"epochs": 2, "tune_macs": 100, "total_macs": 100, "curve": CURVE, "last_top1": 60.0}
    return result_row(contender, depth, seed, **{**scratch, "shared_by": 2, "untuned_top1": 10.0, **values})


def told(*rows: ResultRow, **results: Any) -> list[str]:
    return conclusions(Results(list(rows), [], {}, [], **results))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Leads of 2 and 4 points: 3, give or take 12.71 (Student's t of one degree) times 1.41 / 1.41.
        (
            [
                row(name, depth, seed, last_top1=score)
                for name, scores in {"one": (70, 70), "two": (72, 74)}.items()
                for seed, score in enumerate(scores)
                for depth in (4, 6)
            ],
            "nobody wins at equal cost: two +3.00 points over one, 95 % interval -9.71 to +15.71, over 2 sizes and 2 "
            "seeds",
        ),
        # 60 and 50 % of 1000 images: 196 sqrt((0.24 + 0.25) / 1000) = 4.34.
        (
            [row("one", last_top1=50.0, val_images=1000), row("two", val_images=1000)],
            "two wins at equal cost, +10.00 points over one, 95 % interval +5.66 to +14.34, over 1 size and 1 seed",
        ),
        (
            [row("one", last_top1=50.0), row("two", total_macs=250)],
            "two is ahead, +10.00 points over one, over 1 size and 1 seed, but at 2.5 times its cost",
        ),
        ([row("one"), row("one", 6), row("two")], None),
        ([row("one", epochs=0, total_macs=0), row("two", epochs=0)], None),
    ],
    ids=["seeds", "images", "other costs", "sizes missing", "without any cost"],
)
def test_who_wins(rows: list[ResultRow], expected: str | None) -> None:
    assert told(*rows)[1:] == ([f"home, short: {expected}"] if expected else [])


@pytest.mark.parametrize(
    ("score", "tune", "expected"),
    [
        # Scratch has 50 % after 50; the gene's model after 20. Of 50 for the gene and 40 for its teacher 30 come back.
        (50.0, 20, "pays after 3 sizes: for its scores scratch needs 3e-11 T more for each"),
        (65.0, 20, "pays after at most 2 sizes: for its scores scratch needs more than 8e-11 T more for each"),
        (50.0, 60, "pays after no number of sizes: scratch reaches its scores for less than its tuning"),
        (65.0, 100, "may pay or not: scratch was not trained long enough to reach its scores"),
    ],
    ids=["pays", "never reached", "never pays", "unknown"],
)
@pytest.mark.parametrize("depths", [(4,), (4, 6)])
def test_after_how_many_sizes_a_gene_pays(score: float, tune: int, expected: str, depths: tuple[int, ...]) -> None:
    gene = {"last_top1": score, "tune_macs": tune, "gene_macs": 50, "ancestry_macs": 40}
    rows = [line for depth in depths for line in (row("scratch", depth), row("tleg", depth, **gene))]
    assert told(*rows)[-1] == f"home, short: the gene of tleg {expected}"


def test_a_gene_of_each_size_is_paid_with_it() -> None:
    """30 are saved of each size and 20 spent on its gene; 40 for the teacher come back after four sizes."""
    gene = {"last_top1": 50.0, "tune_macs": 20, "gene_macs": 20, "ancestry_macs": 40, "shared_by": 1}
    rows = [line for depth in (4, 6) for line in (row("scratch", depth), row("tleg", depth, **gene))]
    assert "pays after 4 sizes" in told(*rows)[-1]


def test_the_policy_is_told() -> None:
    (line,) = told(row("one"), teacher_cost="shared", unknown_teachers=["deit"])
    assert line.startswith("teacher_cost shared: the training of teachers is shared by a contender's models; what ")
    assert "deit" in line
    assert told(row("one"), teacher_cost="given") == ["teacher_cost given: teachers are there anyway and cost nothing"]
    assert told() == []
