"""``learngene reproduce``: runs what a group of claims needs and writes its verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from learngene.comparing.claims.exact import STRUCTURAL
from learngene.comparing.claims.groups import Claim, ClaimGroup
from learngene.comparing.claims.verdict import judge, overall
from learngene.comparing.results import ResultRow, group, mean_and_spread
from learngene.recipe.compare import CompareRecipe
from learngene.system.environment import commit, environment
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file

KIND, VERSION = "learngene verdict", 1


def reproduce(
    claims: ClaimGroup,
    recipe: CompareRecipe,
    scale: str,
    *,
    processes: int = 1,
    say: Callable[[str], None] = partial(print, flush=True),  # noqa: B008
) -> tuple[Path, list[str]]:
    """Runs what is missing of a group's comparison, judges its claims and writes the verdict file.

    Args:
        claims: The group.
        recipe: Its comparison at the scale; not used if all its claims are exact tests.
        scale: ``laptop``, ``gpu`` or ``paper``.
        processes: Started for the comparison.
        say: Told of every finished job.

    Returns:
        The verdict file, ``claims/ID.json`` in the recipe's output folder, and a line for everything that failed.

    Raises:
        LearngeneError: If a cell cannot be run, or a file stands where a result belongs.
    """
    rows: list[ResultRow] = []
    path = recipe.out / "claims" / f"{claims.id}.json"
    _refuse_foreign(path)
    plots: list[str] = []
    faults: list[str] = []
    if claims.needs_runs:
        from learngene.comparing.plots import save_plots
        from learngene.comparing.run import compare

        found = compare(recipe, processes=processes, say=say)
        faults = [*found.foreign, *(f"{title}: {reason}" for title, reason in found.failed.items())]
        rows = found.rows
        plots = [plot.name for plot in save_plots(rows, path.with_name(claims.id))]
    verdict = {
        "kind": KIND,
        "version": VERSION,
        "id": claims.id,
        "scale": scale,
        "paper": claims.paper,
        "source": claims.source,
        "title": claims.title,
        "seeds": sorted({row.seed for row in rows}),
        "seconds": round(_seconds(rows), 1),
        "environment": environment(),
        "commit": commit(),
        "run": recipe.run.model_dump(mode="json") if claims.needs_runs else None,
        "claims": [judged(claim, rows, scale) for claim in claims.claims],
        "table": table(rows),
        "plots": [f"{claims.id}/{plot}" for plot in plots],
    }
    text = json.dumps(verdict, indent=1) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text))
    return path, faults


def judged(claim: Claim, rows: Sequence[ResultRow], scale: str) -> dict[str, Any]:
    """A claim with its verdict."""
    out: dict[str, Any] = {"text": claim.text, "printed": claim.printed, "exact": claim.exact, "verdicts": []}
    out |= {"finding": claim.finding.get(scale, ""), "figures": "", "statistic": None}  # type: ignore[call-overload]
    if claim.exact is not None:
        true, out["figures"] = STRUCTURAL[claim.exact]()
        return out | {"outcome": "holds" if true else "does not hold"}
    assert claim.statistic is not None
    verdicts = judge(claim.statistic, rows)
    out["statistic"] = claim.statistic.model_dump(mode="json")
    out["verdicts"] = [asdict(verdict) for verdict in verdicts]
    return out | {"outcome": overall(verdict.outcome for verdict in verdicts)}


def table(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Means and spreads over seeds, one entry per task, budget, shape and contender."""
    out = []
    for (task, budget, shape, contender), some in group(rows, "task", "budget", "shape", "contender").items():
        one = some[0]
        entry: dict[str, Any] = {"task": task, "budget": budget, "shape": shape, "contender": contender}
        entry |= {"params": one.params, "stored_params": one.stored_params, "epochs": one.epochs}
        for name in ("gene_top1", "untuned_top1", "untuned_loss", "first_top1", "last_top1"):
            mean, spread = mean_and_spread(getattr(row, name) for row in some)
            entry[name] = [round(mean, 4), None if math.isnan(spread) else round(spread, 4)]
        if not one.gene_top1:
            entry["gene_top1"] = None
        entry |= {"total_macs": one.total_macs, "seconds": round(mean_and_spread(r.seconds for r in some)[0], 2)}
        out.append(entry | {"seeds": len(some)})
    return out


def _seconds(rows: Sequence[ResultRow]) -> float:
    """Training time behind all rows: every cell, and every gene once."""
    genes = {row.gene: row.gene_seconds for row in rows}
    return sum(row.seconds for row in rows) + sum(genes.values())


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text()).get("kind") == KIND
    except (ValueError, AttributeError, OSError):
        known = False
    if not known:
        raise LearngeneError(f"{path}: damaged or not a verdict; it was not overwritten: move it away")
