"""The ledger of claims as one HTML page, by the template ``ledger.html``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from learngene.comparing.claims.groups import SCALES, ClaimGroup
from learngene.comparing.claims.ledger import MARKS, NOT_RUN, LedgerEntry, counts, ledger, limit, measured, rule
from learngene.comparing.claims.verdict import Verdict
from learngene.comparing.claims.verdict_file import VerdictFile
from learngene.comparing.html import write_page


def ledger_page(
    verdicts: Iterable[VerdictFile], path: Path, groups: Mapping[str, ClaimGroup], complaints: Sequence[str] = ()
) -> None:
    """Writes the ledger as one HTML page that needs no other file.

    Args:
        verdicts: Of ``read_verdicts``; plots are looked for beside each one's ``file``.
        path: HTML file to write.
        groups: Of ``load_claims``; those without a verdict are shown as not run.
        complaints: Of ``read_verdicts``; shown at the end.
    """
    papers = ledger(verdicts, groups)
    content = {"papers": papers, "counts": counts(chain(*papers.values())), "complaints": complaints}
    names = {"marks": MARKS, "scales": SCALES, "not_run": NOT_RUN}
    parts = {"rules": _rules, "measured": measured, "place": _place, "facts": _facts, "results": _results}
    write_page(path, "ledger.html", **content, **names, **parts, plot_of=_plot, dumps=json.dumps)


def _rules(entry: LedgerEntry) -> Iterable[str]:
    """The rules behind a claim's verdicts in words; without any, the rule that will be."""
    rules = [claim.statistic for claim in entry.judged.values() if claim.statistic]
    rules = rules or ([entry.statistic.model_dump(mode="json")] if entry.statistic else [])
    return dict.fromkeys(map(rule, rules))


def _place(verdict: Verdict, statistic: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where on a line of 200 the threshold, the mean, its interval and the seeds' values stand."""
    at = limit(statistic)
    if at is None or verdict.mean is None or verdict.low is None or verdict.high is None:
        return None
    numbers = [at, verdict.mean, verdict.low, verdict.high, *verdict.values]
    left, width = min(numbers), (max(numbers) - min(numbers)) or 1
    at, mean, low, high, *seeds = (round(6 + 188 * (number - left) / width, 1) for number in numbers)
    return {"limit": at, "mean": mean, "low": low, "high": high, "seeds": seeds}


def _facts(run: VerdictFile) -> Iterator[str]:
    """When, where and with what a verdict was found."""
    env = run.environment
    if run.seeds:
        yield f"seeds {run.seeds}, {run.seconds / 60:.1f} minutes of training"
    yield from (f"{name} {env[name]}" for name in ("processor", "threads") if env.get(name))
    yield from (f"{name} {version}" for name, version in (env.get("versions") or {}).items())
    if run.commit:
        yield f"commit {run.commit[:12]}"


def _plot(run: VerdictFile, plot: str) -> bytes | None:
    """A plot's content: of nothing but a PNG file below the verdict's folder."""
    folder = run.file.parent.resolve() if run.file else Path()
    path = (folder / plot).resolve()
    content = path.read_bytes() if run.file and path.is_relative_to(folder) and path.is_file() else b""
    return content if content.startswith(b"\x89PNG") else None


def _results(run: VerdictFile) -> list[list[str]]:
    """The table of results, in the columns of its first line."""
    return [[_number(name, entry.get(name)) for name in run.table[0]] for entry in run.table]


def _number(name: str, value: Any) -> str:
    """A cell of the table of results; pairs are a mean and its spread over seeds."""
    if isinstance(value, list):
        digits = 3 if "loss" in name else 2
        return " ± ".join(f"{number:.{digits}f}" for number in value if number is not None) or "–"
    if not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return f"{value / 1e6:.3f} M" if name.endswith("params") else f"{value:.4g}"
