"""Verdict files: what was found of a group of claims at a scale, one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.claims.groups import Claim
from learngene.comparing.claims.verdict import Outcome, Verdict, judge, overall
from learngene.comparing.results import ResultRow
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file

KIND: Literal["learngene verdict"] = "learngene verdict"
VERSION: Literal[1] = 1


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


class VerdictFile(BaseModel):
    """A group of claims at a scale; ``file`` is where it lies, to which its plots are relative."""

    kind: Literal["learngene verdict"] = KIND
    version: Literal[1] = VERSION
    id: str
    scale: Literal["laptop", "gpu", "paper"]
    paper: str
    source: str
    title: str
    seeds: list[int] = []
    seconds: float = 0
    environment: dict[str, Any] = {}
    commit: str | None = None
    run: dict[str, Any] | None = None
    claims: list[JudgedClaim]
    table: list[dict[str, str | int | float | list[float | None] | None]] = []
    plots: list[str] = []
    file: Path | None = None

    def write(self, path: Path) -> None:
        """Writes the file, in place of an older verdict if there is one."""
        text = json.dumps(self.model_dump(mode="json", exclude={"file"}), indent=1) + "\n"
        write_file(path, lambda temporary: temporary.write_text(text))


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
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text()).get("kind") == KIND
    except (ValueError, AttributeError, OSError):
        known = False
    if not known:
        raise LearngeneError(f"{path}: damaged or not a verdict; it was not overwritten: move it away")


def read_verdicts(folder: Path) -> tuple[list[VerdictFile], list[str]]:
    """All verdict files in ``claims`` folders below a folder, and a line for every file that was skipped."""
    verdicts: dict[tuple[str, str], VerdictFile] = {}
    complaints: list[str] = []
    for path in sorted(folder.glob("**/claims/*.json")):
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict) or content.get("kind") != KIND:
                raise ValueError("not a verdict")
            verdict = VerdictFile.model_validate({**content, "file": path})
            if other := verdicts.get((verdict.id, verdict.scale)):
                raise ValueError(f"{other.file} is of the same claims at the same scale")
            verdicts[verdict.id, verdict.scale] = verdict
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            complaints.append(f"{path}: damaged or of another version, '{where}': {first['msg'].lower()}; skipped")
        except (json.JSONDecodeError, UnicodeDecodeError):
            complaints.append(f"{path}: damaged, it is no JSON; skipped")
        except (OSError, ValueError) as error:
            complaints.append(f"{path}: {getattr(error, 'strerror', None) or error}; skipped")
    return list(verdicts.values()), complaints
