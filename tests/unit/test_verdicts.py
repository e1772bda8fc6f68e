"""Verdicts: the rule against intervals from printed t tables, and exact claims against arithmetic of their own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.claims.groups import Statistic
from learngene.comparing.claims.verdict import Verdict, half_width, judge, overall
from learngene.comparing.results import ResultRow
from learngene.recipe.one_line_faults import validated
from learngene.system.errors import RecipeError

T95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 9: 1.833}
"""95 % points of Student's t by degrees of freedom, as printed in tables."""


def row(contender: str, value: float, seed: int = 0, depth: int = 4, **changes: Any) -> ResultRow:
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(ResultRow)}
    fields |= {"contender": contender, "method": contender, "shape": f"d{depth}", "task": "home", "budget": "short"}
    fields |= {"seed": seed, "depth": depth, "last_top1": value, "hardware": "cpu", "curve": ()}
    return ResultRow(**{**fields, **changes})


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


def test_equal_values_have_no_interval_and_the_threshold_itself_is_enough() -> None:
    for field in ("at_least", "at_most"):
        found = verdict(seeds("a", 5, 5, 5), **{field: 5})
        assert (found.outcome, found.low, found.mean, found.high) == ("holds", 5, 5, 5)


def test_what_does_not_depend_on_the_seed_was_seen_once() -> None:
    for threshold in ({"at_least": 5.01}, {"at_least": 4.99}, {"at_most": 4.99}, {"at_most": 5.01}):
        found = verdict(seeds("a", 5, 5, 5), **threshold)
        assert (found.outcome, found.reason) == ("inconclusive", "nothing depends on the seed: seen once")


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_say_nothing(count: int) -> None:
    found = verdict(seeds("a", *[99.0] * count), at_least=0)
    assert (found.outcome, found.values) == ("inconclusive", (99.0,) * count)
    assert (found.mean, found.low, found.high) == (None, None, None)
    assert found.reason == f"fewer than 3 seeds: {count}"


def test_no_results_say_nothing() -> None:
    found = verdict([], at_least=0)
    assert (found.outcome, found.values, found.reason) == ("inconclusive", (), "no results")
    assert verdict(seeds("b", 1, 2, 3), at_least=0).outcome == "inconclusive"


# -- what is compared --------------------------------------------------------------------------------------


def test_seeds_are_paired() -> None:
    """Both sides vary by tens from seed to seed, their difference does not."""
    rows = seeds("a", 11, 41, 82) + seeds("b", 10, 40, 80)
    found = verdict(rows, minus=[{"contender": "b"}], at_least=0)
    assert found.values == (1, 1, 2)
    half = 2.920 * math.sqrt(1 / 3) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(4 / 3 - half, abs=1e-3), pytest.approx(4 / 3 + half, abs=1e-3))
    assert (found.outcome, found.against) == ("holds", "b")


def test_seeds_need_not_be_counted_from_zero_nor_in_order() -> None:
    rows = [row("a", 5 + seed, seed) for seed in (9, 3, 7)]
    assert verdict(rows, at_least=0).values == (8, 12, 14)


def test_rows_of_one_seed_are_averaged() -> None:
    rows = [row(name, value + depth, seed, depth) for seed in range(3) for depth in (2, 4)
            for name, value in (("a", 10 + seed), ("b", 0))]  # fmt: skip
    assert verdict(rows, minus=[{"contender": "b"}], at_least=0).values == (10, 11, 12)
    assert verdict(rows, of={"contender": "a", "shape": "d4"}, at_least=0).values == (14, 15, 16)
    both = verdict(rows, of={"contender": ["a", "b"], "shape": ["d2", "d4"]}, at_least=0)
    assert both.values == (8, 8.5, 9)


def test_filters_keep_what_agrees_in_every_field() -> None:
    rows = seeds("a", 1, 1, 1) + seeds("a", 2, 2, 2, task="two") + seeds("a", 4, 4, 4, budget="long")
    assert verdict(rows, of={"task": "two"}, at_least=0).values == (2, 2, 2)
    assert verdict(rows, of={"task": "home", "budget": "long"}, at_least=0).values == (4, 4, 4)
    found = verdict(rows, of={"task": "two"}, minus=[{"task": "home", "budget": ["short"]}], at_least=0)
    assert (found.values, found.against) == ((1, 1, 1), "home short")


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


def test_a_slope_is_per_layer() -> None:
    rows = [row("a", (3 + seed / 100) * depth + (0.5 if depth == 4 else 0), seed, depth) for seed in range(3)
            for depth in (2, 4, 6)]  # fmt: skip
    found = verdict(rows, slope=True, at_least=2.9)
    assert found.values == pytest.approx((3, 3.01, 3.02))
    assert found.outcome == "holds"
    rows += [row("b", 5 * depth, seed, depth) for seed in range(3) for depth in (2, 4, 6)]
    found = verdict(rows, slope=True, minus=[{"contender": "b"}], at_most=0)
    assert found.values == pytest.approx((-2, -1.99, -1.98))
    assert found.outcome == "holds"


def test_a_slope_is_that_of_least_squares() -> None:
    # Depths 1, 2, 4 and values 1, 2, 9: sums 7, 12, 21, 41, so (3 x 41 - 7 x 12) / (3 x 21 - 49) = 39 / 14.
    rows = [row("a", value, seed, depth) for seed in range(3) for depth, value in ((1, 1), (2, 2), (4, 9))]
    assert verdict(rows, slope=True, at_least=0).mean == pytest.approx(39 / 14)


def test_a_relative_difference_is_a_share_of_what_is_subtracted() -> None:
    rows = seeds("a", 3, 4, 5) + seeds("b", 2, 2, 2)
    found = verdict(rows, relative=True, minus=[{"contender": "b"}], at_least=0.5)
    assert found.values == (0.5, 1.0, 1.5)
    rows = seeds("a", 3, 4, 5) + seeds("b", -2, -2, -2)
    assert verdict(rows, relative=True, minus=[{"contender": "b"}], at_least=0.5).values == (2.5, 3.0, 3.5)


def test_both_sides_may_have_their_own_metric() -> None:
    rows = seeds("a", 0, 0, 0, first_top1=30.0) + seeds("b", 20, 20, 20, first_top1=99.0)
    found = verdict(rows, metric="first_top1", minus_metric="last_top1", minus=[{"contender": "b"}], at_least=0)
    assert found.values == (10, 10, 10)
    assert verdict(rows, metric="first_top1", minus=[{"contender": "b"}], at_least=0).values == (-69, -69, -69)


# -- what is missing ---------------------------------------------------------------------------------------


# Twelve choices of two searches: both base 5, both specific 3, one alone 3 and 1. They agree on 8 of 12; by chance on
# 8/12 * 6/12 + 4/12 * 6/12 = 1/2 of them, so kappa is (2/3 - 1/2) / (1 - 1/2) = 1/3.
ONE = (1,) * 5 + (0,) * 3 + (1,) * 3 + (0,)
OTHER = (1,) * 5 + (0,) * 3 + (0,) * 3 + (1,)


def test_agreement_is_cohens_kappa_of_two_searches() -> None:
    rows = [*seeds("a", 1.0, 1.0, choices=ONE), *seeds("b", 2.0, 2.0, choices=OTHER)]
    rows += [row(name, 3.0, 2, choices=ONE) for name in ("a", "b")]
    found = verdict(rows, minus=[{"contender": "b"}], agreement=True, at_least=-1)
    assert found.values == pytest.approx([1 / 3, 1 / 3, 1])
    assert found.outcome == "holds"
    same = [*seeds("a", 1.0, 1.0, 1.0, choices=ONE), *seeds("b", 2.0, 2.0, 2.0, choices=ONE)]
    assert verdict(same, minus=[{"contender": "b"}], agreement=True, at_least=1).values == pytest.approx([1.0] * 3)
    against = [*seeds("a", 1.0, 1.0, 1.0, choices=(1, 0)), *seeds("b", 2.0, 2.0, 2.0, choices=(0, 1))]
    assert verdict(against, minus=[{"contender": "b"}], agreement=True, at_least=0).values == (-1.0,) * 3


@pytest.mark.parametrize(("one", "other"), [((1, 1), (1, 1)), ((), ()), ((), (1, 0)), ((1, 0, 1), (1, 0))])
def test_agreement_of_nothing_or_of_searches_that_differ_is_not_defined(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    rows = [*seeds("a", 1.0, 1.0, 1.0, choices=one), *seeds("b", 2.0, 2.0, 2.0, choices=other)]
    found = verdict(rows, minus=[{"contender": "b"}], agreement=True, at_least=0)
    assert (found.outcome, found.values) == ("inconclusive", ())
    assert found.reason.startswith("seed 0: the statistic is not defined")


def test_agreement_needs_two_sides() -> None:
    with pytest.raises(RecipeError, match="agreement is between two sides; give minus"):
        statistic(agreement=True, at_least=0)


def test_a_side_that_lacks_results_of_a_seed_is_named() -> None:
    rows = seeds("a", 9, 9, 9, 9) + seeds("b", 1, 1, 1)
    found = verdict(rows, minus=[{"contender": "b"}], at_least=0)
    assert (found.outcome, found.mean) == ("inconclusive", None)
    assert found.reason == "seed 3: 1 results of one side, 0 of the other, not the same cells"
    found = verdict(seeds("a", 9, 9) + seeds("b", 1, 1, 1), minus=[{"contender": "b"}], at_least=0)
    assert found.reason == "seed 2: 0 results of one side, 1 of the other, not the same cells"


def test_sides_that_lack_different_results_are_not_compared() -> None:
    rows = seeds("a", 9, 9, 9, depth=12) + seeds("b", 1, 1, 1, depth=4)
    shapes = ["d4", "d12"]
    found = verdict(rows, of={"contender": "a", "shape": shapes}, minus=[{"contender": "b", "shape": shapes}],
                    at_least=0)  # fmt: skip
    assert found.outcome == "inconclusive"


def test_a_seed_that_lacks_some_results_is_not_averaged_with_others() -> None:
    rows = seeds("a", 1, 1, 1, 1, depth=4) + seeds("a", 9, 9, 9, depth=12)
    assert verdict(rows, at_most=7).outcome == "inconclusive"


def test_a_slope_over_a_single_depth_says_nothing() -> None:
    assert verdict(seeds("a", 1, 2, 3), slope=True, at_least=0).outcome == "inconclusive"


def test_a_share_of_nothing_says_nothing() -> None:
    rows = seeds("a", 1, 1, 1) + seeds("b", 0, 0, 0)
    assert verdict(rows, relative=True, minus=[{"contender": "b"}], at_least=0).outcome == "inconclusive"


def test_numbers_that_are_none_say_nothing() -> None:
    assert verdict(seeds("a", 1, math.nan, 3), at_least=0).outcome == "inconclusive"


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


def test_every_exact_test_is_tested_here() -> None:
    assert set(EXACT_TESTS) == {
        "order_identity", "sws_storage", "tleg_storage", "tleg_fixed_set", "tleg_costs", "sws_costs",
        "sws_costs_over_tleg", "pool_storage", "pool_smallest", "pool_costs", "lsamd_storage", "lsamd_costs",
        "tal_sizes", "tal_all_sizes", "tal_equal_counts",
    }  # fmt: skip


def test_sws_storage() -> None:
    gene = 5 * layer(768) + stem(768) + head(768)
    singly = sum(depth * layer(768) + stem(768) + head(768) for depth in range(6, 16))
    assert (f"{gene / 1e6:.1f}", f"{singly / 1e6:.1f}") == ("37.0", "759.3")  # as printed
    assert EXACT_TESTS["sws_storage"]() == (True, "37.0 M for the gene, 759.3 M for ten models, 20.5 times")


def test_tleg_storage() -> None:
    gene, singly = 2 * layer(768) + stem(768), sum(depth * layer(768) + stem(768) for depth in (4, 6, 8, 10, 12))
    figures = f"{gene / 1e6:.1f} M for the gene, {singly / 1e6:.1f} M for five models, {singly / gene:.1f} times"
    assert 18.5 <= singly / gene < 19.5
    assert EXACT_TESTS["tleg_storage"]() == (True, figures)


def test_tleg_fixed_set() -> None:
    genes, models = (sum(layers * layer(d) + stem(d) for d in WIDTHS.values()) for layers in (2, 6))
    figures = f"{genes / 1e6:.1f} M against {models / 1e6:.1f} M, {models / genes:.1f} times"
    assert 2.85 <= models / genes < 2.95
    assert EXACT_TESTS["tleg_fixed_set"]() == (True, figures)


def test_costs_in_epochs() -> None:
    assert EXACT_TESTS["tleg_costs"]() == (True, "1.96 times for Des-S, 2.00 times for Des-B")
    assert (pytest.approx(1.96, abs=5e-3), 2) == (1000 / (150 + 9 * 35 + 45), 1000 / 500)
    true, figures = EXACT_TESTS["sws_costs"]()
    assert (true, 1000 / 150 >= 6.6) == (True, True)
    assert figures == "6.67 times with the 5 epochs of the sum, 5.00 times with the 10 epochs of the set-up"
    assert EXACT_TESTS["sws_costs_over_tleg"]() == (500 / 200 == 2.5, "2.50 times")


def test_a_pools_storage_and_costs() -> None:
    def whole(width: int, depth: int) -> int:
        return depth * layer(width) + stem(width) + 2 * width + head(width)  # class token and its position

    pools = [sum(whole(d, depth) for d in (192, 768)) + (depth - 1) * (192 + 1) * 768 for depth in (6, 9)]
    sn_net = sum(whole(d, 12) for d in WIDTHS.values()) + 11 * ((192 + 1) * 384 + (384 + 1) * 768)
    assert [f"{count / 1e6:.2f}" for count in (*pools, sn_net)] == ["47.83", "70.87", "118.40"]
    assert [f"{1 - pool / sn_net:.1%}" for pool in pools] == ["59.6%", "40.1%"]
    true, figures = EXACT_TESTS["pool_storage"]()
    assert (true, figures) == (True, "47.83 M (59.6 % less) and 70.87 M (40.1 % less), against 118.40 M")
    smallest = [f"{whole(192, depth) / 1e6:.2f}" for depth in (6, 9, 12)]
    assert smallest == ["3.05", "4.38", "5.72"]
    assert EXACT_TESTS["pool_smallest"]() == (True, "3.05 M and 4.38 M, against 5.7 M")
    assert (6.75, 10.125) == (18 * 150 / 400, 27 * 150 / 400)
    assert EXACT_TESTS["pool_costs"]() == (True, "6.75 times for 18 paths, 10.125 times for 27")


def test_lsamds_storage_and_costs() -> None:
    def whole(depth: int) -> int:
        return depth * layer(768) + stem(768) - 196 * 768 + 2 * 768 + 100 * 768 + 100  # no positions, 100 classes

    gene, singly = whole(5), sum(whole(depth) for depth in range(5, 16))
    assert (f"{gene / 1e6:.2f}", f"{singly / 1e6:.2f}", f"{1 - gene / singly:.2%}") == ("36.11", "787.03", "95.41%")
    assert EXACT_TESTS["lsamd_storage"]() == (True, "36.11 M for the gene, 787.03 M for eleven models, 95.41 % less")
    assert (50 * 10 + 50 * 5, f"{750 / (50 * 6 + 50 * 5):.2f}") == (150 * 5, "1.36")
    true, figures = EXACT_TESTS["lsamd_costs"]()
    assert not true
    assert figures == "750 epochs against 750, 1.00 times; 1.36 times if six data sets were searched instead of ten"


def test_both_orders_lay_out_alike_where_the_extra_layers_are_the_same_stages() -> None:
    def extra(depth: int, order: list[int]) -> set[int]:
        return set(order[: depth % 5])

    front_mid_last, front_last_mid = [0, 1, 2, 3, 4], [0, 4, 1, 3, 2]
    alike = [d for d in range(7, 13) if extra(d, front_mid_last) == extra(d, front_last_mid)]
    assert alike == [10, 11]
    assert EXACT_TESTS["order_identity"]() == (True, "of depths 7 to 12, the orders agree at 10, 11")


def test_tal_sizes() -> None:
    assert EXACT_TESTS["tal_sizes"]() == (True, "21.40 M and 22.39 M")


def test_tal_all_sizes() -> None:
    # ViTs-1K: depth 3 from width 384 to 512, depths 4 and 5 from 256, depths 6 to 9 from 128 to 256, in steps of 32.
    heads = {
        width: 3 if width % 12 == 0 else 2 if width % 6 == 0 else 1 if width % 3 == 0 else 2 for width in range(513)
    }
    bands = ((1, range(384, 513, 32)), (2, range(256, 385, 32)), (4, range(128, 257, 32)))
    count = sum(depths * sum(heads[width] for width in widths) for depths, widths in bands)
    holds, figures = EXACT_TESTS["tal_all_sizes"]()
    assert figures.startswith(f"{count} sizes are trained, ")
    assert not holds
    assert figures.endswith("2 of the six descendants among them: 6 layers of width 192 and 3 layers of width 384")


def test_tal_equal_counts() -> None:
    holds, figures = EXACT_TESTS["tal_equal_counts"]()
    assert holds
    assert figures.endswith("the same body and the same first 100 rows of the head")
