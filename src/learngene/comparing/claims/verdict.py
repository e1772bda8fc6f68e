"""The rule that turns results into a verdict, fixed before anything is run.

Every statistic is computed once per seed, so that the seed, with its own gene, its own fresh tensors and its own
order of images, is what is repeated. The verdict is a one-sided t-test at 95 % in both directions:

* ``holds``: the whole of the two-sided 90 % interval of the mean lies on the claimed side of the threshold;
* ``does not hold``: all of it lies on the other side;
* ``inconclusive``: the threshold lies within it, or there are fewer than three seeds, or results are missing, or all
  seeds agree to the last digit without being the threshold itself: then nothing depends on the seed (a gene extracted
  from a single ancestry, say), and what looks like three observations is one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from learngene.comparing.claims.groups import Filter, Statistic
from learngene.comparing.results import ResultRow

Outcome = Literal["holds", "does not hold", "inconclusive"]
FEWEST_SEEDS = 3
CONFIDENCE = 0.95


class Verdict(BaseModel):
    """What one comparison of a claim came to."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    against: str = ""  # what was subtracted, in words
    values: tuple[float, ...] = ()  # the statistic per seed
    mean: float | None = None
    low: float | None = None  # lower end of the interval of the mean
    high: float | None = None
    reason: str | None = ""  # why it is inconclusive


def judge(statistic: Statistic, rows: Sequence[ResultRow]) -> list[Verdict]:
    """One verdict per comparison of a statistic (one in all if nothing is subtracted), or per shape of each."""
    others: Iterable[Filter | None] = statistic.minus or [None]
    if not statistic.each:
        return [_judge(statistic, other, rows) for other in others]
    shapes = dict.fromkeys(row.shape for row in rows if statistic.of.keeps(row))
    return [
        _judge(
            statistic.model_copy(update={"of": statistic.of.model_copy(update={"shape": shape})}),
            other.model_copy(update={"shape": shape}) if other else None,
            rows,
        )
        for other in others
        for shape in shapes
    ]


def overall(outcomes: Iterable[Outcome]) -> Outcome:
    """A claim of several comparisons holds if all do, and does not if any does not."""
    found = set(outcomes)
    if "does not hold" in found:
        return "does not hold"
    return "holds" if found == {"holds"} else "inconclusive"


def _judge(statistic: Statistic, other: Filter | None, rows: Sequence[ResultRow]) -> Verdict:
    values, reason = _per_seed(statistic, other, rows)
    if not reason and len(values) < FEWEST_SEEDS:
        reason = f"fewer than {FEWEST_SEEDS} seeds: {len(values)}"
    verdict = Verdict(outcome="inconclusive", against=_in_words(other) if other else "", values=values, reason=reason)
    if reason:
        return verdict
    mean, half = statistics.fmean(values), half_width(values)
    low, high, limit = mean - half, mean + half, statistic.limit
    holds, fails = (high <= limit, low > limit) if statistic.at_least is None else (low >= limit, high < limit)
    outcome: Outcome = "holds" if holds else "does not hold" if fails else "inconclusive"
    if half == 0 and mean != limit:
        outcome, reason = "inconclusive", "nothing depends on the seed: seen once"
    elif outcome == "inconclusive":
        reason = "the threshold lies within the interval"
    found = {"outcome": outcome, "mean": mean, "low": low, "high": high, "reason": reason}
    return verdict.model_copy(update=found)


def half_width(values: Sequence[float]) -> float:
    """Half the two-sided 90 % interval of a mean, by Student's t."""
    from scipy.stats import t

    deviation = statistics.stdev(values)
    return float(t.ppf(CONFIDENCE, len(values) - 1)) * deviation / len(values) ** 0.5


def _per_seed(statistic: Statistic, other: Filter | None, rows: Sequence[ResultRow]) -> tuple[tuple[float, ...], str]:
    """The statistic per seed, and what is missing if something is."""
    out: tuple[float, ...] = ()
    first: list[tuple[str, ...]] | None = None
    for seed in sorted({row.seed for row in rows}):
        mine = [row for row in rows if row.seed == seed and statistic.of.keeps(row)]
        theirs = [row for row in rows if row.seed == seed and other is not None and other.keeps(row)]
        cells = _compared_cells(mine, statistic.of, other)
        first = cells if first is None else first
        if other is not None and (not mine or _compared_cells(theirs, other, statistic.of) != cells):
            return out, f"seed {seed}: {len(mine)} results of one side, {len(theirs)} of the other, not the same cells"
        if not mine or cells != first:
            return out, f"seed {seed}: {len(mine)} results, not those of the first seed"
        try:
            value = _agreement(mine, theirs) if statistic.agreement else _summary(statistic, mine)
            if other is not None and not statistic.agreement:
                base = _summary(statistic, theirs, statistic.minus_metric)
                value = (value - base) / abs(base) if statistic.relative else value - base
        except (statistics.StatisticsError, ZeroDivisionError):
            why = "one size only, a share of 0, or searches of other tasks"
            return out, f"seed {seed}: the statistic is not defined ({why})"
        if not math.isfinite(value):
            return out, f"seed {seed}: a result is not a number"
        out += (value,)
    return out, "" if out else "no results"


def _compared_cells(rows: Sequence[ResultRow], own: Filter, other: Filter | None) -> list[tuple[str, ...]]:
    """The cells of a side, by what the two sides do not differ in on purpose."""
    fields = [name for name in ("shape", "task", "budget") if _alike(own, other, name)]
    return sorted(tuple(str(getattr(row, name)) for name in fields) for row in rows)


def _alike(own: Filter, other: Filter | None, name: str) -> bool:
    mine, theirs = getattr(own, name), getattr(other, name, None)
    return mine is None or theirs is None or mine == theirs


def _summary(statistic: Statistic, rows: Sequence[ResultRow], metric: str | None = None) -> float:
    values = [float(getattr(row, metric or statistic.metric)) for row in rows]
    if statistic.best:
        return max(values)
    if not statistic.slope:
        return statistics.fmean(values)
    over = [row.params / 1e6 if statistic.over == "params" else row.depth for row in rows]
    return statistics.linear_regression(over, values).slope


def _agreement(mine: Sequence[ResultRow], theirs: Sequence[ResultRow]) -> float:
    """Cohen's kappa of whether the base block is taken, over all tasks and layers of two searches."""
    one, two = mine[0].choices, theirs[0].choices
    if len(one) != len(two):
        raise statistics.StatisticsError("searches of other tasks")
    same = statistics.fmean(a == b for a, b in zip(one, two, strict=True))
    first, second = statistics.fmean(one), statistics.fmean(two)
    by_chance = first * second + (1 - first) * (1 - second)
    return (same - by_chance) / (1 - by_chance)


def _in_words(some: Filter) -> str:
    parts = [value if isinstance(value, str) else "/".join(value) for value in some.model_dump().values() if value]
    return " ".join(parts)
