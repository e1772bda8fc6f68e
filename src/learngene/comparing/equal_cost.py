"""What a comparison comes to: who wins at equal cost, by how much, and after how many sizes a gene pays."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from learngene.comparing.plots import scores_by_epoch
from learngene.comparing.results import ResultRow, Results
from learngene.comparing.tables import group

ALIKE = 1.1
"""Costs that differ by less than this factor are equal: epochs are whole."""

POLICIES = {
    "all": "each model bears the whole training of its teachers",
    "shared": "the training of teachers is shared by a contender's models",
    "given": "teachers are there anyway and cost nothing",
}


def conclusions(results: Results) -> list[str]:
    """Lines to stand below the table of a comparison: how teachers are counted, then one or two per task and budget."""
    if not results.rows:
        return []
    known = "".join(f"; what training {name} cost is not known and counts as 0" for name in results.unknown_teachers)
    out = [f"teacher_cost {results.teacher_cost}: {POLICIES[results.teacher_cost]}{known}"]
    for (task, budget), rows in group(results.rows, "task", "budget").items():
        lines = _whole(rows)
        if len(lines) > 1 and all(row.total_macs for row in rows):
            out.append(f"{task}, {budget}: {_lead(lines)}")
        if len(lines) > 1 and any(row.epochs for row in rows):
            out += [f"{task}, {budget}: {line}" for line in _paying(lines, results.rows)]
    return out


def _whole(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """The rows of every contender that has all sizes and seeds."""
    wanted = {(row.shape, row.seed) for row in rows}
    some = {name: mine for (name,), mine in group(rows, "contender").items()}
    return {name: mine for name, mine in some.items() if {(row.shape, row.seed) for row in mine} == wanted}


def _lead(lines: Mapping[str, list[ResultRow]]) -> str:
    """Who is ahead of whom, by how much, and whether at equal cost."""
    scores = {name: statistics.fmean(row.last_top1 for row in rows) for name, rows in lines.items()}
    costs = {name: statistics.fmean(row.total_macs for row in rows) for name, rows in lines.items()}
    first, second = sorted(scores, key=lambda name: -scores[name])[:2]
    lead, half = scores[first] - scores[second], _half_width(lines[first], lines[second])
    sizes, seeds = (len({getattr(row, name) for row in lines[first]}) for name in ("shape", "seed"))
    over = f"{sizes} size{'s' * (sizes > 1)} and {seeds} seed{'s' * (seeds > 1)}"
    interval = f", 95 % interval {lead - half:+.2f} to {lead + half:+.2f}" if math.isfinite(half) else ""
    told = f"{lead:+.2f} points over {second}{interval}, over {over}"
    ratio = costs[first] / costs[second] if costs[second] else math.inf
    if not 1 / ALIKE <= ratio <= ALIKE:
        return f"{first} is ahead, {told}, but at {ratio:.2g} times its cost"
    return f"{first} wins at equal cost, {told}" if lead > half else f"nobody wins at equal cost: {first} {told}"


def _half_width(one: Sequence[ResultRow], other: Sequence[ResultRow]) -> float:
    """Half of the 95 % interval of a lead: what seeds and what images vary, the images as if no two runs shared them.

    NaN if nothing is known of either.
    """
    from scipy.stats import t

    by_seed = [{seed: _mean(rows) for (seed,), rows in group(some, "seed").items()} for some in (one, other)]
    leads, parts = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0]], []
    if len(leads) > 1:
        parts.append(float(t.ppf(0.975, len(leads) - 1)) * statistics.stdev(leads) / math.sqrt(len(leads)))
    if one[0].val_images and not one[0].masks:
        shares = [_mean(some) / 100 for some in (one, other)]
        parts.append(196 * math.sqrt(sum(share * (1 - share) for share in shares) / one[0].val_images))
    return math.hypot(*parts) if parts else math.nan


def _mean(rows: Sequence[ResultRow]) -> float:
    return statistics.fmean(row.last_top1 for row in rows)


def _paying(lines: Mapping[str, list[ResultRow]], everything: Sequence[ResultRow]) -> list[str]:
    """For every contender with a gene, after how many sizes it is cheaper than scratch at the scores it reaches."""
    out = []
    plain = next((name for name, rows in lines.items() if rows[0].method == "scratch"), None)
    for name, rows in lines.items():
        if plain is None or not any(row.gene_macs or row.ancestry_macs for row in rows):
            continue
        saved, reached = [], True
        for (shape,), mine in group(rows, "shape").items():
            alone = [row for row in everything if (row.contender, row.task, row.shape) == (plain, mine[0].task, shape)]
            cost, found = _cost_of_score(alone, _mean(mine))
            reached = reached and found
            saved.append(cost - statistics.fmean(row.tune_macs for row in mine))
        once, gene = max(row.ancestry_macs for row in rows), max(row.gene_macs for row in rows)
        tasks = len({row.task for row in everything if row.contender == name})
        each = len(saved) > 1 and round(rows[0].shared_by / tasks) <= 1  # a gene for every size
        gain = statistics.fmean(saved) - (statistics.fmean(row.gene_macs for row in rows) if each else 0)
        before = once + (0 if each else gene)
        if gain > 0:
            sizes = max(1, math.ceil(before / gain))
            told = f"pays after {'' if reached else 'at most '}{sizes} size{'s' * (sizes > 1)}"
            why = f"for its scores {plain} needs {'' if reached else 'more than '}{gain / 1e12:.3g} T more for each"
        elif reached:
            told, why = "pays after no number of sizes", f"{plain} reaches its scores for less than its tuning"
        else:
            told, why = "may pay or not", f"{plain} was not trained long enough to reach its scores"
        out.append(f"the gene of {name} {told}: {why}")
    return out


def _cost_of_score(rows: Sequence[ResultRow], score: float) -> tuple[float, bool]:
    """The least multiply-adds of tuning after which a model had a score, on the mean of seeds, at any budget.

    If it never had, the most that were spent, and False.
    """
    points: list[tuple[float, float]] = []
    for some in group(rows, "budget").values():
        curves = [scores_by_epoch(row) for row in some]
        spent = statistics.fmean(row.tune_macs / max(1, row.epochs) for row in some)
        for epoch in sorted(set.intersection(*map(set, curves))):
            points.append((epoch * spent, statistics.fmean(curve[epoch] for curve in curves)))
    enough = [cost for cost, reached in points if reached >= score]
    return (min(enough), True) if enough else (max((cost for cost, _ in points), default=0.0), False)
