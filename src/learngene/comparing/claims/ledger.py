"""The ledger: all claims at all scales, what was measured for each, and the ledger as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from learngene.comparing.claims.groups import SCALES, Claim, ClaimGroup, Statistic, paper_order
from learngene.comparing.claims.verdict import Verdict
from learngene.comparing.claims.verdict_file import JudgedClaim, VerdictFile, judge_claim
from learngene.comparing.tables import flat, markdown_table

NOT_RUN = "not run"
MARKS = {"holds": "✓", "does not hold": "✗", "inconclusive": "~", NOT_RUN: "·"}


@dataclass(frozen=True)
class LedgerEntry:
    """A claim at all scales: ``judged`` holds those where it was tested, ``untested`` says why nothing can be."""

    text: str
    printed: str
    statistic: Statistic | None
    judged: dict[str, JudgedClaim]
    untested: str = ""

    def outcome(self, scale: str) -> str:
        """The outcome at a scale, or that it was not run."""
        return self.judged[scale].outcome if scale in self.judged else NOT_RUN

    @property
    def exact(self) -> bool:
        """Whether it is tested without training."""
        return any(claim.exact for claim in self.judged.values())

    def stale(self, scale: str) -> bool:
        """Whether the claims folder now has another rule than the one that gave this verdict."""
        old = self.judged[scale].statistic if scale in self.judged else None
        try:
            return bool(old and self.statistic and Statistic.model_validate(old) != self.statistic)
        except ValueError:
            return True


@dataclass(frozen=True)
class LedgerGroup:
    """A table or figure of a paper with its claims, and the verdict files by scale."""

    id: str
    paper: str
    source: str
    title: str
    entries: list[LedgerEntry]
    files: dict[str, VerdictFile]


def ledger(verdicts: Iterable[VerdictFile], groups: Mapping[str, ClaimGroup]) -> dict[str, list[LedgerGroup]]:
    """By paper, all groups in the order of the claims folder, then verdicts whose group is no longer there."""
    files: dict[str, dict[str, VerdictFile]] = {}
    for file in verdicts:
        files.setdefault(file.id, {})[file.scale] = file
    found = [_ledger_group(group, files.pop(group.id, {})) for group in groups.values()]
    gone = [_ledger_group(None, runs) for runs in files.values()]
    found += sorted(gone, key=lambda group: (paper_order(group.paper), group.id))
    return {name: [group for group in found if group.paper == name] for name in dict.fromkeys(g.paper for g in found)}


def _ledger_group(group: ClaimGroup | None, files: dict[str, VerdictFile]) -> LedgerGroup:
    files = {scale: files[scale] for scale in SCALES if scale in files}
    judged: dict[str, dict[str, JudgedClaim]] = {}
    for scale, file in files.items():
        for claim in file.claims:
            judged.setdefault(claim.text, {})[scale] = claim
    entries = [
        LedgerEntry(
            claim.text, claim.printed, claim.statistic, _exact(claim) | judged.pop(claim.text, {}), claim.untested
        )
        for claim in (group.claims if group else ())
    ]
    entries += [LedgerEntry(text, next(iter(old.values())).printed, None, old) for text, old in judged.items()]
    head = group or next(iter(files.values()))
    return LedgerGroup(head.id, head.paper, head.source, head.title, entries, files)


def _exact(claim: Claim) -> dict[str, JudgedClaim]:
    """Exact tests need no runs, so they are made here for every scale that has no verdict."""
    return {scale: judge_claim(claim, [], scale) for scale in SCALES} if claim.exact else {}


def rule(statistic: Mapping[str, Any]) -> str:
    """The rule that decides, in words."""
    parts = []
    if statistic.get("slope"):
        parts.append(f"slope over {'parameters (M)' if statistic.get('over') == 'params' else 'depth'} of ")
    if statistic.get("best"):
        parts.append("best ")
    parts.append(str(statistic.get("metric", "last_top1")).replace("_", " ").replace("top1", "top-1"))
    parts.append(_words(" of ", statistic.get("of")))
    if others := statistic.get("minus"):
        parts += [", less", " and".join(_words(" that of ", other) for other in others)]
    if statistic.get("relative"):
        parts.append(", as a share of what is subtracted")
    if statistic.get("each"):
        parts.append(", for each shape by itself")
    return f"{''.join(parts)}: {_threshold(statistic, 'at least ', 'at most ')}"


def _words(before: str, some: Mapping[str, Any] | None) -> str:
    values = [[value] if isinstance(value, str) else value for value in (some or {}).values() if value]
    parts = ["/".join(value) if len(value) < 5 else f"{value[0]}–{value[-1]} ({len(value)})" for value in values]
    return before + " ".join(parts) if parts else ""


def _threshold(statistic: Mapping[str, Any], at_least: str = "≥ ", at_most: str = "≤ ") -> str:
    side = at_most if statistic.get("at_least") is None else at_least
    value = limit(statistic) or 0.0
    return f"{side}{f'{100 * value:.12g} %' if statistic.get('relative') else f'{value:.12g}'}".replace("-", "−")


def limit(statistic: Mapping[str, Any]) -> float | None:
    """The threshold of a statistic as it stands in a verdict file."""
    limits = [statistic.get(name) for name in ("at_least", "at_most")]
    return next((limit for limit in limits if limit is not None), None)


def figures(verdict: Verdict, statistic: Mapping[str, Any]) -> str:
    """``+12.3 [10.1, 14.5]``: mean and interval, to two digits of the interval's half width."""
    if verdict.mean is None or verdict.low is None or verdict.high is None:
        return ""
    scale, unit = (100, " %") if statistic.get("relative") else (1, "")
    numbers = [number * scale for number in (verdict.mean, verdict.low, verdict.high)]
    sign = "+" if statistic.get("minus") or statistic.get("slope") else ""
    half = (numbers[2] - numbers[1]) / 2
    digits = min(5, max(0, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 2
    kind = f"{sign}.3g" if max(map(abs, numbers)) >= 1e6 else f"{sign}.{digits}f"
    mean, low, high = (format(number, kind) for number in numbers)
    return f"{mean}{unit} [{low.lstrip('+')}, {high.lstrip('+')}]".replace("-", "−")


def measured(claim: JudgedClaim) -> list[str]:
    """What was measured for a claim, one line per comparison."""
    if claim.exact is not None:
        return [claim.figures or "exact test"]
    out = []
    for verdict in claim.verdicts:
        text = figures(verdict, claim.statistic or {})
        text = f"{text}, needed {_threshold(claim.statistic or {})}" if text else f"({verdict.reason or 'no figures'})"
        # With a single comparison, claim and rule say what was subtracted.
        out.append(f"against {verdict.against}: {text}" if verdict.against and len(claim.verdicts) > 1 else text)
    return out


def counts(groups: Iterable[LedgerGroup]) -> list[list[str]]:
    """Claims by scale and outcome, as the rows of a table; exact tests once, for they are the same at every scale."""
    entries = [entry for group in groups for entry in group.entries]
    tested = [entry for entry in entries if not entry.exact]
    rows = [[scale, *(str(sum(entry.outcome(scale) == o for entry in tested)) for o in MARKS)] for scale in SCALES]
    exact = [entry.outcome(SCALES[0]) for entry in entries if entry.exact]
    return [["exact tests", *(str(exact.count(outcome)) for outcome in MARKS)], *rows]


def ledger_markdown(verdicts: Iterable[VerdictFile], groups: Mapping[str, ClaimGroup]) -> str:
    """The ledger as text: counts, then per paper a table of claims and what was found."""
    papers = ledger(verdicts, groups)
    out = ["# Ledger of claims", "", *markdown_table(["scale", *MARKS], counts(chain(*papers.values())))]
    for paper, mine in papers.items():
        entries = [(group, entry) for group in mine for entry in group.entries]
        rows = [
            [g.source, entry.text, entry.printed, *(_cell(entry, scale) for scale in SCALES)] for g, entry in entries
        ]
        out += ["", f"## {paper}", "", *markdown_table(["source", "claim", "printed", *SCALES], rows)]
        for group in mine:
            findings = [
                f"- {flat(entry.text)} ({scale}): {flat(claim.finding)}"
                for entry in group.entries
                for scale, claim in entry.judged.items()
                if claim.finding
            ]
            findings += [
                f"- {flat(one.text)} (not tested): {flat(one.untested)}" for one in group.entries if one.untested
            ]
            if findings:
                out += ["", f"**{flat(group.source)}: {flat(group.title)}**", "", *findings]
    return "\n".join(out) + "\n"


def _cell(entry: LedgerEntry, scale: str) -> str:
    if scale not in entry.judged:
        return NOT_RUN
    old = " (by an older rule)" if entry.stale(scale) else ""
    return "\n".join([f"**{entry.outcome(scale)}**{old}", *measured(entry.judged[scale])])
