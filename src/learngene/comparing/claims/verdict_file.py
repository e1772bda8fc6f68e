"""Verdict files: what was found of a group of claims at a scale, one JSON file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.claims.groups import Claim
from learngene.comparing.claims.verdict import Outcome, Verdict, judge, overall
from learngene.comparing.results import ResultRow
from learngene.system.errors import LearngeneError
from learngene.system.records import Record, RecordError


class JudgedClaim(BaseModel):
    """A claim with its verdict."""

    text: str
    printed: str = ""
    exact: str | None = None
    verdicts: list[Verdict] = []
    finding: str = ""
    figures: str = ""
    statistic: dict[str, Any] | None = None
    outcome: Outcome


class VerdictFile(Record):
    """A group of claims at a scale; ``file`` is where it lies, to which its plots are relative."""

    kind: ClassVar = "learngene verdict"
    version: ClassVar = 1
    noun: ClassVar = "a verdict"

    id: str
    scale: Literal["laptop", "gpu", "paper"]
    paper: str
    source: str
    title: str
    seeds: list[int] = Field(default_factory=list)
    seconds: int | float = 0
    environment: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None
    run: dict[str, Any] | None = None
    claims: list[JudgedClaim]
    table: list[dict[str, str | int | float | list[float | None] | None]] = Field(default_factory=list)
    plots: list[str] = Field(default_factory=list)
    file: Path | None = Field(None, exclude=True)


def judge_claim(claim: Claim, rows: Sequence[ResultRow], scale: str) -> JudgedClaim:
    """A claim with its verdict from the rows of a comparison."""
    finding = claim.finding.get(scale, "")  # type: ignore[call-overload]
    told: dict[str, Any] = {"text": claim.text, "printed": claim.printed, "exact": claim.exact, "finding": finding}
    if claim.exact is not None:
        true, figures = EXACT_TESTS[claim.exact]()
        return JudgedClaim(**told, figures=figures, outcome="holds" if true else "does not hold")
    assert claim.statistic is not None
    verdicts = judge(claim.statistic, rows)
    outcome = overall(verdict.outcome for verdict in verdicts)
    return JudgedClaim(**told, verdicts=verdicts, statistic=claim.statistic.model_dump(mode="json"), outcome=outcome)


def refuse_no_verdict(path: Path) -> None:
    """Raises ``LearngeneError`` if there is a file that is not a verdict, which must not be overwritten."""
    try:
        if path.exists():
            VerdictFile.read(path)
    except RecordError:
        raise LearngeneError(f"{path}: damaged or not a verdict; it was not overwritten: move it away") from None


def read_verdicts(folder: Path) -> tuple[list[VerdictFile], list[str]]:
    """All verdict files in ``claims`` folders below a folder, and a line for every file that was skipped."""
    verdicts: dict[tuple[str, str], VerdictFile] = {}
    complaints: list[str] = []
    for path in sorted(folder.glob("**/claims/*.json")):
        try:
            verdict = VerdictFile.read(path).model_copy(update={"file": path})
            if other := verdicts.get((verdict.id, verdict.scale)):
                raise RecordError(f"{path}: {other.file} is of the same claims at the same scale")
            verdicts[verdict.id, verdict.scale] = verdict
        except RecordError as fault:
            complaints.append(f"{fault}; skipped")
    return list(verdicts.values()), complaints
