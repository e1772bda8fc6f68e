"""``learngene reproduce``: runs what a group of claims needs and writes its verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learngene.comparing.claims.groups import ClaimGroup
from learngene.comparing.claims.verdict_file import VerdictFile, judge_claim, refuse_no_verdict
from learngene.comparing.results import ResultRow
from learngene.comparing.tables import group, mean_and_deviation
from learngene.recipe.compare import CompareRecipe
from learngene.system.environment import commit, environment
from learngene.system.speech import announce


def reproduce(
    claims: ClaimGroup,
    recipe: CompareRecipe,
    scale: str,
    *,
    processes: int = 1,
    executor: str = "local",
    say: Callable[[str], None] = announce,
) -> tuple[Path, list[str]]:
    """Runs what is missing of a group's comparison, judges its claims and writes the verdict file.

    Args:
        claims: The group.
        recipe: Its comparison at the scale; not used if all its claims are exact tests.
        scale: ``laptop``, ``gpu`` or ``paper``.
        processes: Of the comparison.
        executor: Whose workers do it, see ``compare``.
        say: Told of every finished job.

    Returns:
        The verdict file, ``claims/ID.json`` in the recipe's output folder, and a line for everything that failed.

    Raises:
        LearngeneError: If a cell cannot be run, or a file stands where a result belongs.
    """
    path = recipe.out / "claims" / f"{claims.id}.json"
    refuse_no_verdict(path)
    rows: list[ResultRow] = []
    plots: list[str] = []
    faults: list[str] = []
    if claims.needs_runs:
        from learngene.comparing.plots import save_plots
        from learngene.comparing.run import compare

        found = compare(recipe, processes=processes, executor=executor, say=say)
        faults, rows = found.faults, found.rows
        plots = [f"{claims.id}/{plot.name}" for plot in save_plots(rows, path.with_name(claims.id))]
    verdict = {
        **claims.model_dump(include={"id", "paper", "source", "title"}),
        "scale": scale,
        "seeds": sorted({row.seed for row in rows}),
        "seconds": round(_seconds(rows), 1),
        "environment": environment(),
        "commit": commit(),
        "run": recipe.run.model_dump(mode="json") if claims.needs_runs else None,
        "claims": [judge_claim(claim, rows, scale) for claim in claims.claims if not claim.untested],
        "table": table(rows),
        "plots": plots,
    }
    VerdictFile.model_validate(verdict).write(path)
    return path, faults


def table(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds, one entry per task, budget, shape and contender."""
    out = []
    for names, some in group(rows, "task", "budget", "shape", "contender").items():
        one = some[0]
        entry: dict[str, Any] = dict(zip(("task", "budget", "shape", "contender"), names, strict=True))
        entry |= {"params": one.params, "stored_params": one.stored_params, "epochs": one.epochs}
        for name in ("gene_top1", "untuned_top1", "untuned_loss", "first_top1", "last_top1"):
            mean, deviation = mean_and_deviation(getattr(row, name) for row in some)
            entry[name] = [round(mean, 4), None if math.isnan(deviation) else round(deviation, 4)]
        if not one.gene_top1:
            entry["gene_top1"] = None
        seconds = mean_and_deviation(row.seconds for row in some)[0]
        out.append({**entry, "total_macs": one.total_macs, "seconds": round(seconds, 2), "seeds": len(some)})
    return out


def _seconds(rows: Sequence[ResultRow]) -> float:
    """Training time behind all rows: every cell, and every gene once."""
    genes = {row.gene: row.gene_seconds for row in rows}
    return sum(row.seconds for row in rows) + sum(genes.values())
