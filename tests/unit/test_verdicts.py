"""Verdicts: the rule against intervals from printed t tables, and exact claims against arithmetic of their own."""

import math
from typing import Any

import pytest

from comparisons import result_row
from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.claims.groups import Statistic
from learngene.comparing.claims.verdict import Verdict, half_width, judge, overall
from learngene.comparing.results import ResultRow
from learngene.recipe.one_line_faults import validated
from learngene.system.errors import RecipeError

T95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 9: 1.833}
"""95 % points of Student's t by degrees of freedom, as printed in tables."""


def row(contender: str, value: float, seed: int = 0, depth: int = 4, **changes: Any) -> ResultRow:
    return result_row(contender, depth, seed, **{"last_top1": value, **changes})


def seeds(contender: str, *values: float, **changes: Any) -> list[ResultRow]:
    """A row per seed."""
    return [row(contender, value, seed, **changes) for seed, value in enumerate(values)]


def statistic(**fields: Any) -> Statistic:
    return validated(Statistic, {"of": {"contender": "a"}, **fields}, "statistic")


def verdict(rows: list[ResultRow], **fields: Any) -> Verdict:
    (one,) = judge(statistic(**fields), rows)
    return one


# -- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "deviation"),
    [
        ((1.0, 2.0, 3.0), 1.0),
        ((0.0, 1.0, 2.0, 3.0, 4.0), math.sqrt(2.5)),
        ((5.0, 7.0), math.sqrt(2.0)),
        (tuple(float(k) for k in range(10)), math.sqrt(82.5 / 9)),
    ],
)
def test_the_interval_is_students(values: tuple[float, ...], deviation: float) -> None:
    by_hand = T95[len(values) - 1] * deviation / math.sqrt(len(values))
    assert half_width(values) == pytest.approx(by_hand, rel=2e-4)


# Three seeds 1, 2, 3: mean 2, standard deviation 1, half width 2.920 / sqrt(3) = 1.686: from 0.314 to 3.686.
@pytest.mark.parametrize(
    ("threshold", "at_least", "at_most"),
    [
        (-1.0, "holds", "does not hold"),
        (0.313, "holds", "does not hold"),
        (0.316, "inconclusive", "inconclusive"),
        (2.0, "inconclusive", "inconclusive"),
        (3.684, "inconclusive", "inconclusive"),
        (3.687, "does not hold", "holds"),
    ],
)
def test_a_claim_holds_if_the_whole_interval_is_on_its_side(threshold: float, at_least: str, at_most: str) -> None:
    rows = seeds("a", 1, 2, 3)
    for field, expected in (("at_least", at_least), ("at_most", at_most)):
        found = verdict(rows, **{field: threshold})
        assert found.outcome == expected
        assert found.values == (1, 2, 3)
        assert (found.mean, found.against) == (2, "")
        assert (found.low, found.high) == (pytest.approx(0.3142, abs=5e-4), pytest.approx(3.6858, abs=5e-4))
        assert found.reason == ("the threshold lies within the interval" if expected == "inconclusive" else "")


@pytest.mark.parametrize("field", ["at_least", "at_most"])
def test_equal_values_conclude_only_if_they_are_the_threshold(field: str) -> None:
    found = verdict(seeds("a", 5, 5, 5), **{field: 5})
    assert (found.outcome, found.low, found.mean, found.high) == ("holds", 5, 5, 5)
    for threshold in (4.99, 5.01):
        found = verdict(seeds("a", 5, 5, 5), **{field: threshold})
        assert (found.outcome, found.reason) == ("inconclusive", "nothing depends on the seed: seen once")


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_say_nothing(count: int) -> None:
    found = verdict(seeds("a", *[99.0] * count), at_least=0)
    assert (found.outcome, found.values) == ("inconclusive", (99.0,) * count)
    assert (found.mean, found.low, found.high) == (None, None, None)
    assert found.reason == f"fewer than 3 seeds: {count}"


# -- what is compared --------------------------------------------------------------------------------------


def test_seeds_are_paired() -> None:
    """Both sides vary by tens from seed to seed, their difference does not."""
    rows = seeds("a", 11, 41, 82) + seeds("b", 10, 40, 80)
    found = verdict(rows, minus=[{"contender": "b"}], at_least=0)
    assert found.values == (1, 1, 2)
    half = 2.920 * math.sqrt(1 / 3) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(4 / 3 - half, abs=1e-3), pytest.approx(4 / 3 + half, abs=1e-3))
    assert (found.outcome, found.against) == ("holds", "b")


DEPTHS = [row(name, value + depth, seed, depth) for seed in range(3) for depth in (2, 4)
          for name, value in (("a", 10 + seed), ("b", 0))]  # fmt: skip
PLACES = seeds("a", 1, 1, 1) + seeds("a", 2, 2, 2, task="two") + seeds("a", 4, 4, 4, budget="long")
SLOPES = [row("a", (3 + seed / 100) * depth + (0.5 if depth == 4 else 0), seed, depth) for seed in range(3)
          for depth in (2, 4, 6)]  # fmt: skip
STEEPER = [row("b", 5 * depth, seed, depth) for seed in range(3) for depth in (2, 4, 6)]
FIRST = seeds("a", 0, 0, 0, first_top1=30.0) + seeds("b", 20, 20, 20, first_top1=99.0)
LESS_B: dict[str, Any] = {"minus": [{"contender": "b"}]}
# Twelve choices of two searches: both base 5, both specific 3, one alone 3 and 1. They agree on 8 of 12; by chance on
# 8/12 * 6/12 + 4/12 * 6/12 = 1/2 of them, so kappa is (2/3 - 1/2) / (1 - 1/2) = 1/3.
ONE = (1,) * 5 + (0,) * 3 + (1,) * 3 + (0,)
OTHER = (1,) * 5 + (0,) * 3 + (0,) * 3 + (1,)
VALUES: dict[str, tuple[list[ResultRow], dict[str, Any], tuple[float, ...]]] = {
    "seeds in any order": ([row("a", 5 + seed, seed) for seed in (9, 3, 7)], {}, (8, 12, 14)),
    "rows of a seed are averaged": (DEPTHS, LESS_B, (10, 11, 12)),
    "one shape": (DEPTHS, {"of": {"contender": "a", "shape": "d4"}}, (14, 15, 16)),
    "several": (DEPTHS, {"of": {"contender": ["a", "b"], "shape": ["d2", "d4"]}}, (8, 8.5, 9)),
    "one task": (PLACES, {"of": {"task": "two"}}, (2, 2, 2)),
    "task and budget": (PLACES, {"of": {"task": "home", "budget": "long"}}, (4, 4, 4)),
    "less another task": (PLACES, {"of": {"task": "two"}, "minus": [{"task": "home", "budget": ["short"]}]}, (1, 1, 1)),
    "slope per layer": (SLOPES, {"slope": True}, (3, 3.01, 3.02)),
    "difference of slopes": (SLOPES + STEEPER, {"slope": True, **LESS_B}, (-2, -1.99, -1.98)),
    # Depths 1, 2, 4 and values 1, 2, 9: sums 7, 12, 21, 41, so (3 x 41 - 7 x 12) / (3 x 21 - 49) = 39 / 14.
    "slope of least squares": (
        [row("a", value, seed, depth) for seed in range(3) for depth, value in ((1, 1), (2, 2), (4, 9))],
        {"slope": True},
        (39 / 14,) * 3,
    ),
    "share": (seeds("a", 3, 4, 5) + seeds("b", 2, 2, 2), {"relative": True, **LESS_B}, (0.5, 1.0, 1.5)),
    "share of less than 0": (
        seeds("a", 3, 4, 5) + seeds("b", -2, -2, -2), {"relative": True, **LESS_B}, (2.5, 3.0, 3.5)
    ),
    "own metrics": (FIRST, {"metric": "first_top1", "minus_metric": "last_top1", **LESS_B}, (10, 10, 10)),
    "one metric": (FIRST, {"metric": "first_top1", **LESS_B}, (-69, -69, -69)),
    "agreement": (
        [*seeds("a", 1, 1, choices=ONE), *seeds("b", 2, 2, choices=OTHER),
         *(row(name, 3.0, 2, choices=ONE) for name in "ab")],
        {"agreement": True, **LESS_B},
        (1 / 3, 1 / 3, 1),
    ),
    "opposite searches": ([*seeds("a", 1, 1, 1, choices=(1, 0)), *seeds("b", 2, 2, 2, choices=(0, 1))],
                          {"agreement": True, **LESS_B}, (-1, -1, -1)),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "fields", "values"), VALUES.values(), ids=VALUES)
def test_a_statistic_per_seed(rows: list[ResultRow], fields: dict[str, Any], values: tuple[float, ...]) -> None:
    assert verdict(rows, **fields, at_least=0).values == pytest.approx(values)


def test_several_comparisons_must_all_hold() -> None:
    rows = seeds("a", 10, 10, 10) + seeds("b", 9, 9.1, 8.9) + seeds("c", 11, 11.1, 10.9) + seeds("d", 0, 10, 20)
    minus = [{"contender": name} for name in "bcd"]
    found = judge(statistic(minus=minus, at_least=0), rows)
    assert [one.outcome for one in found] == ["holds", "does not hold", "inconclusive"]
    assert [one.against for one in found] == ["b", "c", "d"]
    assert overall(one.outcome for one in found) == "does not hold"
    assert overall([found[0].outcome, found[2].outcome]) == "inconclusive"
    assert overall([found[0].outcome] * 2) == "holds"
    assert overall([]) == "inconclusive"


# -- what is missing ---------------------------------------------------------------------------------------


def searches(one: tuple[int, ...], other: tuple[int, ...]) -> list[ResultRow]:
    return [*seeds("a", 1, 1, 1, choices=one), *seeds("b", 2, 2, 2, choices=other)]


TWO_DEPTHS: dict[str, Any] = {"of": {"contender": "a", "shape": ["d4", "d12"]}}
UNDEFINED = "seed 0: the statistic is not defined"
MISSING: dict[str, tuple[list[ResultRow], dict[str, Any], str]] = {
    "no results": ([], {}, "no results"),
    "none of this side": (seeds("b", 1, 2, 3), {}, "seed 0: 0 results"),
    "a seed of one side": (seeds("a", 9, 9, 9, 9) + seeds("b", 1, 1, 1), LESS_B,
                           "seed 3: 1 results of one side, 0 of the other, not the same cells"),
    "a seed of the other": (seeds("a", 9, 9) + seeds("b", 1, 1, 1), LESS_B,
                            "seed 2: 0 results of one side, 1 of the other, not the same cells"),
    "other depths": (seeds("a", 9, 9, 9, depth=12) + seeds("b", 1, 1, 1, depth=4),
                     {**TWO_DEPTHS, "minus": [{"contender": "b", "shape": ["d4", "d12"]}]}, "not the same cells"),
    "some results of a seed": (seeds("a", 1, 1, 1, 1, depth=4) + seeds("a", 9, 9, 9, depth=12), {}, "seed 3: 1 result"),
    "a slope over a single depth": (seeds("a", 1, 2, 3), {"slope": True}, UNDEFINED),
    "a share of nothing": (seeds("a", 1, 1, 1) + seeds("b", 0, 0, 0), {"relative": True, **LESS_B}, UNDEFINED),
    "numbers that are none": (seeds("a", 1, math.nan, 3), {}, "seed 1: a result is not a number"),
    "searches that always agree": (searches((1, 1), (1, 1)), {"agreement": True, **LESS_B}, UNDEFINED),
    "empty searches": (searches((), ()), {"agreement": True, **LESS_B}, UNDEFINED),
    "searches of other tasks": (searches((1, 0, 1), (1, 0)), {"agreement": True, **LESS_B}, UNDEFINED),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "fields", "reason"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_said_and_nothing_concluded(
    rows: list[ResultRow], fields: dict[str, Any], reason: str
) -> None:
    found = verdict(rows, **fields, at_least=0)
    assert (found.outcome, found.mean) == ("inconclusive", None)
    assert reason in (found.reason or "")


# -- statistics that mean nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "statistic: give at_least or at_most"),
        ({"at_least": 0, "at_most": 1}, "statistic: give at_least or at_most"),
        ({"metric": "last_top", "at_least": 0}, "statistic: unknown metric 'last_top'; did you mean 'last_top"),
        ({"metric": "contender", "at_least": 0}, "statistic: unknown metric 'contender'"),
        ({"minus_metric": "top1", "at_least": 0}, "statistic: unknown metric 'top1'"),
        ({"at_lest": 0}, "statistic: unknown key 'at_lest'; did you mean 'at_least'?"),
        ({"of": {"contendr": "a"}, "at_least": 0}, "statistic: of: unknown key 'contendr'; did you mean 'contender'?"),
        ({"agreement": True, "at_least": 0}, "statistic: agreement is between two sides; give minus"),
        ({"at_least": math.nan}, "at_least: Input should be a finite number"),
    ],
    ids=str,
)
def test_a_statistic_without_a_meaning_is_refused(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as error:
        statistic(**fields)
    assert line in str(error.value)


# -- exact claims, by arithmetic of their own --------------------------------------------------------------

WIDTHS = {"Ti": 192, "S": 384, "B": 768}


def layer(width: int) -> int:
    """Parameters of one layer: attention 4 D^2, MLP 8 D^2, their biases, two norms."""
    return 12 * width**2 + (3 + 1 + 4 + 1) * width + 4 * width


def stem(width: int) -> int:
    """Patch projection of 16 px and 196 positions."""
    return 16 * 16 * 3 * width + width + 196 * width


def head(width: int) -> int:
    """Final norm and 1000 classes."""
    return 2 * width + 1000 * width + 1000


def whole(width: int, depth: int) -> int:
    """A ViT with class token, its position and 1000 classes."""
    return depth * layer(width) + stem(width) + 2 * width + head(width)


EXACT = {
    "order_identity": (True, "of depths 7 to 12, the orders agree at 10, 11"),
    "sws_storage": (True, "37.0 M for the gene, 759.3 M for ten models, 20.5 times"),
    "tleg_storage": (True, "14.9 M for the gene, 287.2 M for five models, 19.3 times"),
    "tleg_fixed_set": (True, "19.9 M against 57.1 M, 2.9 times"),
    "tleg_costs": (True, "1.96 times for Des-S, 2.00 times for Des-B"),
    "sws_costs": (True, "6.67 times with the 5 epochs of the sum, 5.00 times with the 10 epochs of the set-up"),
    "sws_costs_over_tleg": (True, "2.50 times"),
    "pool_storage": (True, "47.83 M (59.6 % less) and 70.87 M (40.1 % less), against 118.40 M"),
    "pool_smallest": (True, "3.05 M and 4.38 M, against 5.7 M"),
    "pool_costs": (True, "6.75 times for 18 paths, 10.125 times for 27"),
    "lsamd_storage": (True, "36.11 M for the gene, 787.03 M for eleven models, 95.41 % less"),
    "lsamd_costs": (
        False, "750 epochs against 750, 1.00 times; 1.36 times if six data sets were searched instead of ten"
    ),
    "tal_sizes": (True, "21.40 M and 22.39 M"),
    "tal_all_sizes": (
        False,
        "80 sizes are trained, 2 of the six descendants among them: "
        "6 layers of width 192 and 3 layers of width 384",
    ),
    "tal_equal_counts": (
        True,
        "100, 101 and 102 classes (CIFAR-100 and Aircraft, UCF101, Flowers102): "
        "the same body and the same first 100 rows of the head",
    ),
    "lets_size": (True, "37.7 M, 15.0 M"),
    "any_size_storage": (True, "111,290 for the gene, 2,316,924 for six models, 20.8 times"),
    "lets_storage": (True, "37.7 M for the gene, 758 M as printed, 20.1 times"),
    # Three widths at three depths; DeiT-B's own width has three of them. Tiles of 128 fit into every other width.
    "wave_sizes": (True, "of 9 sizes wave makes 9, tleg makes 3, sws makes 3, vanilla-lg makes 3"),
    "sweet_core": (
        True,
        "1 core, 4 sets of templates; of 12 numbers of heads SWEET makes 12, WAVE with tiles of 128 makes 6",
    ),
    # As measured independently of this code; by chance 1 / 12 of 12 layers, 1 / 11 and 3 / 11 of their differences.
    "real_first_component": (False, "0.22, 0.09 by chance"),
    "real_matrices": (
        False,
        "0.10 of the differences, 0.09 by chance; four Chebyshev terms 0.30, 0.27 by chance; the mean layer has 0.08 "
        "of the sum of squares, 0.08 by chance; the largest cosine of two layers is 0.007",
    ),
    "real_norms": (
        True,
        "0.31 of the differences, 0.09 by chance; four Chebyshev terms 0.70, 0.27 by chance; the mean layer has 0.94 "
        "of the sum of squares, 0.08 by chance; the largest cosine of two layers is 0.997",
    ),
}  # fmt: skip


def test_every_exact_test_is_in_the_table() -> None:
    assert set(EXACT_TESTS) == set(EXACT)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_test_says_whether_it_holds_and_its_figures(name: str) -> None:
    assert EXACT_TESTS[name]() == EXACT[name]


def test_storage_by_hand() -> None:
    def as_printed(*counts: float) -> list[str]:
        return [f"{count / 1e6:.2f}" for count in counts]

    sws = 5 * layer(768) + stem(768) + head(768)
    singly = sum(depth * layer(768) + stem(768) + head(768) for depth in range(6, 16))
    assert (f"{sws / 1e6:.1f}", f"{singly / 1e6:.1f}", f"{singly / sws:.1f}") == ("37.0", "759.3", "20.5")

    tleg, singly = 2 * layer(768) + stem(768), sum(depth * layer(768) + stem(768) for depth in (4, 6, 8, 10, 12))
    assert (f"{tleg / 1e6:.1f}", f"{singly / 1e6:.1f}", f"{singly / tleg:.1f}") == ("14.9", "287.2", "19.3")
    genes, models = (sum(layers * layer(d) + stem(d) for d in WIDTHS.values()) for layers in (2, 6))
    assert (f"{genes / 1e6:.1f}", f"{models / 1e6:.1f}", f"{models / genes:.1f}") == ("19.9", "57.1", "2.9")

    pools = [sum(whole(d, depth) for d in (192, 768)) + (depth - 1) * (192 + 1) * 768 for depth in (6, 9)]
    sn_net = sum(whole(d, 12) for d in WIDTHS.values()) + 11 * ((192 + 1) * 384 + (384 + 1) * 768)
    assert as_printed(*pools, sn_net) == ["47.83", "70.87", "118.40"]
    assert [f"{1 - pool / sn_net:.1%}" for pool in pools] == ["59.6%", "40.1%"]
    assert as_printed(*(whole(192, depth) for depth in (6, 9, 12))) == ["3.05", "4.38", "5.72"]

    def lsamd(depth: int) -> int:
        return depth * layer(768) + stem(768) - 196 * 768 + 2 * 768 + 100 * 768 + 100  # no positions, 100 classes

    gene, singly = lsamd(5), sum(lsamd(depth) for depth in range(5, 16))
    assert [*as_printed(gene, singly), f"{1 - gene / singly:.2%}"] == ["36.11", "787.03", "95.41%"]


def test_costs_by_hand() -> None:
    """Epochs from scratch over those of gene and descendants."""
    assert [f"{1000 / epochs:.2f}" for epochs in (150 + 9 * 35 + 45, 500, 150, 200)] == ["1.96", "2.00", "6.67", "5.00"]
    assert (18 * 150 / 400, 27 * 150 / 400, 500 / 200) == (6.75, 10.125, 2.5)
    assert (50 * 10 + 50 * 5, f"{750 / (50 * 6 + 50 * 5):.2f}") == (150 * 5, "1.36")


def test_both_orders_lay_out_alike_where_the_extra_layers_are_the_same_stages() -> None:
    orders = [0, 1, 2, 3, 4], [0, 4, 1, 3, 2]  # front-mid-last, front-last-mid
    assert [depth for depth in range(7, 13) if len({frozenset(order[: depth % 5]) for order in orders}) == 1] == [
        10,
        11,
    ]


def test_sizes_of_tal_by_hand() -> None:
    """ViTs-1K: depth 3 at widths 384 to 512, depths 4 and 5 from 256, depths 6 to 9 at 128 to 256, in steps of 32."""

    def heads(width: int) -> int:
        return 3 if width % 12 == 0 else 2 if width % 6 == 0 else 1 if width % 3 == 0 else 2

    bands = ((1, range(384, 513, 32)), (2, range(256, 385, 32)), (4, range(128, 257, 32)))
    assert sum(depths * sum(map(heads, widths)) for depths, widths in bands) == 80
