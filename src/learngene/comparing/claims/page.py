"""The ledger of claims as a page and as text, made from verdict files and nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from learngene.comparing.claims.groups import SCALES, Claim, ClaimGroup, Statistic, paper_order
from learngene.comparing.claims.reproduce import judged
from learngene.comparing.claims.verdict import Outcome
from learngene.system.files import write_file

NOT_RUN = "not run"
MARKS = {"holds": "✓", "does not hold": "✗", "inconclusive": "~", NOT_RUN: "·"}


class Found(BaseModel):
    """One comparison of a claim, as in a verdict file; see ``verdict.Verdict``."""

    outcome: Outcome
    against: str = ""
    values: list[float] = []
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = ""


class JudgedClaim(BaseModel):
    """A claim with its verdict, as in a verdict file."""

    text: str
    outcome: Outcome
    printed: str = ""
    exact: str | None = None
    figures: str = ""
    statistic: dict[str, Any] | None = None
    verdicts: list[Found] = []
    finding: str = ""


class VerdictFile(BaseModel):
    """A verdict file; ``file`` is where it lies, to which its plots are relative."""

    kind: Literal["learngene verdict"]
    version: Literal[1]
    id: str
    scale: Literal["laptop", "gpu", "paper"]
    paper: str
    source: str
    title: str
    claims: list[JudgedClaim]
    seeds: list[int] = []
    seconds: float = 0
    environment: dict[str, Any] = {}
    commit: str | None = None
    run: dict[str, Any] | None = None
    table: list[dict[str, str | int | float | list[float | None] | None]] = []
    plots: list[str] = []
    file: Path | None = None


@dataclass(frozen=True)
class Line:
    """A claim at all scales: ``found`` holds those where it was tested."""

    text: str
    printed: str
    statistic: Statistic | None
    found: dict[str, JudgedClaim]

    def outcome(self, scale: str) -> str:
        """The outcome at a scale, or that it was not run."""
        return self.found[scale].outcome if scale in self.found else NOT_RUN

    @property
    def exact(self) -> bool:
        """Whether it is tested without training."""
        return any(claim.exact for claim in self.found.values())

    def stale(self, scale: str) -> bool:
        """Whether the claims folder now has another rule than the one that gave this verdict."""
        old = self.found[scale].statistic if scale in self.found else None
        try:
            return bool(old and self.statistic and Statistic.model_validate(old) != self.statistic)
        except ValueError:
            return True


@dataclass(frozen=True)
class Section:
    """A table or figure of a paper with its claims, and the verdict files by scale."""

    id: str
    paper: str
    source: str
    title: str
    lines: list[Line]
    runs: dict[str, VerdictFile]


def read_verdicts(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads all verdict files in ``claims`` folders below a folder, such as ``results``.

    Returns:
        The verdicts, each with the path it came from as ``file``, and a line for every file that was skipped.
    """
    verdicts: dict[tuple[str, str], dict[str, Any]] = {}
    complaints: list[str] = []
    for path in sorted(folder.glob("**/claims/*.json")):
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict) or content.get("kind") != "learngene verdict":
                raise ValueError("not a verdict")
            verdict = VerdictFile.model_validate({**content, "file": path})
            other = verdicts.get((verdict.id, verdict.scale))
            if other:
                raise ValueError(f"{other['file']} is of the same claims at the same scale")
            verdicts[verdict.id, verdict.scale] = {**content, "file": path}
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            complaints.append(f"{path}: damaged or of another version, '{where}': {first['msg'].lower()}; skipped")
        except (json.JSONDecodeError, UnicodeDecodeError):
            complaints.append(f"{path}: damaged, it is no JSON; skipped")
        except (OSError, ValueError) as error:
            complaints.append(f"{path}: {getattr(error, 'strerror', None) or error}; skipped")
    return list(verdicts.values()), complaints


def sections(verdicts: Iterable[Mapping[str, Any]], groups: Mapping[str, ClaimGroup] | None = None) -> list[Section]:
    """All groups in the order of the claims folder, then verdicts whose group is there no more; paper by paper."""
    files: dict[str, dict[str, VerdictFile]] = {}
    for file in map(VerdictFile.model_validate, verdicts):
        files.setdefault(file.id, {})[file.scale] = file
    out = [_section(group.id, group, files.pop(name, {})) for name, group in (groups or {}).items()]
    gone = sorted(files.items(), key=lambda item: (paper_order(next(iter(item[1].values())).paper), item[0]))
    out += [_section(name, None, runs) for name, runs in gone]
    order = list(dict.fromkeys(section.paper for section in out))
    return sorted(out, key=lambda section: order.index(section.paper))


def _section(name: str, group: ClaimGroup | None, runs: dict[str, VerdictFile]) -> Section:
    runs = {scale: runs[scale] for scale in SCALES if scale in runs}
    found: dict[str, dict[str, JudgedClaim]] = {}
    for scale, claim in ((scale, claim) for scale, run in runs.items() for claim in run.claims):
        found.setdefault(claim.text, {})[scale] = claim
    # Exact tests need no runs, so they are made here for every scale that has no verdict.
    exact = {c.text: _exact(c) for c in (group.claims if group else ()) if c.exact}
    lines = [
        Line(c.text, c.printed, c.statistic, exact.get(c.text, {}) | found.pop(c.text, {}))
        for c in (group.claims if group else ())
    ]
    lines += [Line(text, next(iter(old.values())).printed, None, old) for text, old in found.items()]
    head = group or next(iter(runs.values()))
    return Section(name, head.paper, head.source, head.title, lines, runs)


def _exact(claim: Claim) -> dict[str, JudgedClaim]:
    return {scale: JudgedClaim.model_validate(judged(claim, [], scale)) for scale in SCALES}


def rule(statistic: Mapping[str, Any]) -> str:
    """The rule that decides, in words."""
    metric = str(statistic.get("metric", "last_top1")).replace("_", " ").replace("top1", "top-1")
    over = {"params": "parameters (M)"}.get(str(statistic.get("over")), "depth")
    text = (
        f"slope over {over} of " * bool(statistic.get("slope"))
        + "best " * bool(statistic.get("best"))
        + metric
        + _words(" of ", statistic.get("of"))
    )
    text += ", less" * bool(statistic.get("minus"))
    text += " and".join(_words(" that of ", other) for other in statistic.get("minus") or ())
    text += ", as a share of what is subtracted" * bool(statistic.get("relative"))
    text += ", for each shape by itself" * bool(statistic.get("each"))
    return f"{text}: {_threshold(statistic, 'at least ', 'at most ')}"


def _words(before: str, some: Mapping[str, Any] | None) -> str:
    values = [[value] if isinstance(value, str) else value for value in (some or {}).values() if value]
    parts = ["/".join(value) if len(value) < 5 else f"{value[0]}–{value[-1]} ({len(value)})" for value in values]
    return before + " ".join(parts) if parts else ""


def _threshold(statistic: Mapping[str, Any], at_least: str = "≥ ", at_most: str = "≤ ") -> str:
    side = at_most if statistic.get("at_least") is None else at_least
    unit = " %" * bool(statistic.get("relative"))
    return f"{side}{(_limit(statistic) or 0.0) * (100 if unit else 1):.12g}{unit}".replace("-", "−")


def _limit(statistic: Mapping[str, Any]) -> float | None:
    limits = [statistic.get(name) for name in ("at_least", "at_most")]
    return next((limit for limit in limits if limit is not None), None)


def figures(found: Found, statistic: Mapping[str, Any] | None) -> str:
    """``+12.3 [10.1, 14.5]``: mean and interval, to two digits of the interval's half width."""
    statistic = statistic or {}
    if found.mean is None or found.low is None or found.high is None:
        return ""
    unit = " %" * bool(statistic.get("relative"))
    numbers = [number * (100 if unit else 1) for number in (found.mean, found.low, found.high)]
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
    for found in claim.verdicts:
        text = figures(found, claim.statistic)
        text = f"{text}, needed {_threshold(claim.statistic or {})}" if text else f"({found.reason or 'no figures'})"
        # With a single comparison, claim and rule say what was subtracted.
        out.append(f"against {found.against}: {text}" if found.against and len(claim.verdicts) > 1 else text)
    return out


def counts(shown: Sequence[Section]) -> list[list[str]]:
    """Claims by scale and outcome, as the rows of a table; exact tests once, for they are the same at every scale."""
    lines = [line for section in shown for line in section.lines]
    tested = [line for line in lines if not line.exact]
    rows = [[scale, *(str(sum(line.outcome(scale) == o for line in tested)) for o in MARKS)] for scale in SCALES]
    exact = [line.outcome(SCALES[0]) for line in lines if line.exact]
    return [["exact tests", *(str(exact.count(outcome)) for outcome in MARKS)], *rows]


def ledger_markdown(verdicts: Iterable[Mapping[str, Any]], groups: Mapping[str, ClaimGroup] | None = None) -> str:
    """The ledger as text: counts, then per paper a table of claims and what was found; see ``ledger_page``."""
    shown = sections(verdicts, groups)
    out = ["# Ledger of claims", "", *_markdown_table(["scale", *MARKS], counts(shown))]
    for paper in dict.fromkeys(section.paper for section in shown):
        mine = [section for section in shown if section.paper == paper]
        lines = [(section, line) for section in mine for line in section.lines]
        rows = [[s.source, line.text, line.printed, *(_cell(line, scale) for scale in SCALES)] for s, line in lines]
        out += ["", f"## {paper}", "", *_markdown_table(["source", "claim", "printed", *SCALES], rows)]
        for section in mine:
            found = [(line.text, *item) for line in section.lines for item in line.found.items() if item[1].finding]
            out += ["", f"**{_flat(section.source)}: {_flat(section.title)}**", ""] if found else []
            out += [f"- {_flat(text)} ({scale}): {_flat(claim.finding)}" for text, scale, claim in found]
    return "\n".join(out) + "\n"


def _cell(line: Line, scale: str) -> str:
    if scale not in line.found:
        return NOT_RUN
    old = " (by an older rule)" * line.stale(scale)
    return "\n".join([f"**{line.outcome(scale)}**{old}", *measured(line.found[scale])])


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    out = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return out + [f"| {' | '.join('<br>'.join(map(_flat, cell.splitlines())) for cell in row)} |" for row in rows]


def _flat(text: str) -> str:
    """Text on one line in which neither a bar nor an angle bracket means anything."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


STYLE = """
:root { --text: #1f2328; --soft: #59636e; --back: #fff; --card: #f6f8fa; --edge: #d1d9e0; --link: #0b5cad;
 --yes: #00694f; --no: #a03c00; --open: #4c5057; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --text: #e2e6eb; --soft: #9aa4af; --back: #14181d; --card: #1d232a;
 --edge: #39424d; --link: #6cb2f5; --yes: #3cc9a0; --no: #ff9a5c; --open: #b3bac4 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 68rem;
 margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word } a, summary { color: var(--link) } h3 { margin: 0 }
.soft { color: var(--soft); font-size: .88rem } section { border: 1px solid var(--edge); border-radius: 10px;
 padding: 1rem; margin: 1rem 0 }
.claim { background: var(--card); border-radius: 8px; padding: .6rem .8rem; margin: .7rem 0 } .claim p { margin: 0 }
.run { display: flex; flex-wrap: wrap; gap: 0 .6rem; margin: .4rem 0 } .run > :nth-child(1) { width: 3.5rem }
.run > :nth-child(2) { width: 9.5rem } .run > :nth-child(3) { flex: 1 1 15rem; min-width: 0 }
.badge { border: 1.5px solid; border-radius: 99px; padding: 0 .6rem; font-size: .85rem; font-weight: 600;
 white-space: nowrap } .holds { color: var(--yes) } .not-hold { color: var(--no) } .not-run { border-style: dotted }
.inconclusive, .not-run { color: var(--open) } .finding { border-left: 3px solid var(--link); padding-left: .6rem }
.bar { display: block; width: 13rem; max-width: 100% } .wide { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--edge); text-align: right }
.names :is(th, td):nth-child(-n+4), th:first-child, td:first-child { text-align: left }
img { max-width: 100%; background: #fff; border-radius: 6px; margin: .5rem 0; display: block }
nav ul { columns: 20rem; padding-left: 1.2rem } @media (max-width: 36rem) { section { padding: .6rem } }
"""


def ledger_page(
    verdicts: Iterable[Mapping[str, Any]],
    path: Path,
    groups: Mapping[str, ClaimGroup] | None = None,
    complaints: Sequence[str] = (),
) -> None:
    """Writes the ledger as one HTML page that needs no other file.

    Args:
        verdicts: Of ``read_verdicts``; plots are looked for beside each one's ``file``.
        path: HTML file to write.
        groups: Of ``load_claims``; those without a verdict are shown as not run.
        complaints: Of ``read_verdicts``; shown at the end.
    """
    shown = sections(verdicts, groups)
    out = ["<h1>Ledger of claims</h1><p>What the papers say, how it was tested here, and what was found.</p>"]
    out += [_html_table("counts", ["scale", *map(_badge, MARKS)], counts(shown)), "<nav><ul>", *map(_link, shown)]
    out.append("</ul></nav>")
    for paper in dict.fromkeys(section.paper for section in shown):
        out += [f"<h2>{escape(paper)}</h2>", *(_html_section(some) for some in shown if some.paper == paper)]
    if complaints:
        out.append(f"<h2>Skipped files</h2><ul>{''.join(f'<li>{escape(line)}' for line in complaints)}</ul>")
    head = '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"\n<title>Ledger of claims</title>\n<style>{STYLE}</style>"
    text = "\n".join(["<!doctype html>", head, *out, "</html>\n"])
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _link(section: Section) -> str:
    marks = [f"{scale} {''.join(MARKS[line.outcome(scale)] for line in section.lines)}" for scale in section.runs]
    where = f"{escape(section.paper)}, {escape(section.source)}"
    return f'<li><a href="#{escape(section.id)}">{where}</a> <span class=soft>{", ".join(marks) or NOT_RUN}</span>'


def _html_section(section: Section) -> str:
    out = [f'<section id="{escape(section.id)}"><h3>{escape(section.source)}: {escape(section.title)}</h3>']
    for line in section.lines:
        rules = [claim.statistic for claim in line.found.values() if claim.statistic]
        rules = rules or ([line.statistic.model_dump(mode="json")] if line.statistic else [])
        notes = [f"Printed: {line.printed}"] * bool(line.printed)
        notes += [f"Rule: {text}" for text in dict.fromkeys(map(rule, rules))]
        out.append(f"<div class=claim><p><b>{escape(line.text)}</b></p>")
        out += [f"<p class=soft>{escape(note)}</p>" for note in notes]
        for scale, claim in line.found.items():
            results = _results(claim) + "<span class=soft>by an older rule</span>" * line.stale(scale)
            out.append(f"<div class=run><div>{scale}</div><div>{_badge(claim.outcome)}</div><div>{results}</div></div>")
        others = ", ".join(scale for scale in SCALES if scale not in line.found)
        out += [f"<p class=soft>{_badge(NOT_RUN)} at {others} scale</p>"] * bool(others)
        findings = [f"{scale}: {claim.finding}" for scale, claim in line.found.items() if claim.finding]
        out += [*(f"<p class=finding>{escape(text)}</p>" for text in findings), "</div>"]
    return "".join([*out, *map(_html_run, section.runs.values()), "</section>"])


def _results(claim: JudgedClaim) -> str:
    bars = [_bar(found, claim.statistic or {}) for found in claim.verdicts] if claim.exact is None else [""]
    return "".join(f"<div>{escape(line)}{bar}</div>" for line, bar in zip(measured(claim), bars, strict=True))


def _bar(found: Found, statistic: Mapping[str, Any]) -> str:
    """A small drawing: the interval, its mean, the values of the seeds, and the threshold as an upright line."""
    at = _limit(statistic)
    if at is None or found.mean is None or found.low is None or found.high is None:
        return ""
    numbers = [at, found.mean, found.low, found.high, *found.values]
    left, width = min(numbers), (max(numbers) - min(numbers)) or 1
    limit, mean, low, high, *seeds = (round(6 + 188 * (number - left) / width, 1) for number in numbers)
    dots = "".join(f'<circle cx="{seed}" cy="8" r="2.5" opacity=".45"/>' for seed in seeds)
    return (
        f'<svg class="bar {_css(found.outcome)}" viewBox="0 0 200 16" fill="currentColor" role="img" aria-label='
        f'"interval and threshold"><path d="M{limit} 0V16" style="stroke: var(--text); stroke-dasharray: 3 2"/>{dots}'
        f'<path d="M{low} 8H{high}M{low} 4V12M{high} 4V12" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{mean}" cy="8" r="4"/></svg>'
    )


def _html_run(run: VerdictFile) -> str:
    env = run.environment
    facts = [f"seeds {run.seeds}, {run.seconds / 60:.1f} minutes of training"] * bool(run.seeds)
    facts += [f"{name} {env[name]}" for name in ("processor", "threads") if env.get(name)]
    facts += [f"{name} {version}" for name, version in (env.get("versions") or {}).items()]
    facts += [f"commit {run.commit[:12]}"] if run.commit else []
    out = [f"<p class=soft>{run.scale}: {escape(', '.join(facts))}</p>"]
    if run.table:
        rows = [[_number(name, entry.get(name)) for name in run.table[0]] for entry in run.table]
        names = [escape(name.replace("_", " ").replace("top1", "top-1")) for name in run.table[0]]
        out.append(f"<details><summary>{run.scale}: results</summary>{_html_table('names', names, rows)}</details>")
    if run.plots:
        images = "".join(_image(run, plot) for plot in run.plots)
        out.append(f"<details><summary>{run.scale}: {len(run.plots)} plots</summary>{images}</details>")
    if run.run:
        what = f"<pre class=wide>{escape(json.dumps(run.run, indent=1))}</pre>"
        out.append(f"<details><summary>{run.scale}: what was run</summary>{what}</details>")
    return "".join(out)


def _image(run: VerdictFile, plot: str) -> str:
    """A plot as part of the page: nothing but a PNG file below the verdict's folder."""
    folder = run.file.parent.resolve() if run.file else Path()
    path = (folder / plot).resolve()
    content = path.read_bytes() if run.file and path.is_relative_to(folder) and path.is_file() else b""
    if not content.startswith(b"\x89PNG"):
        return f"<p class=soft>{escape(plot)} is not there, or is no PNG file below the verdict's folder</p>"
    return f'<img loading="lazy" alt="{escape(plot)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _html_table(kind: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f"<div class=wide><table class={kind}><tr><th>{'<th>'.join(headings)}{body}</table></div>"


def _number(name: str, value: Any) -> str:
    """A cell of the table of results; pairs are a mean and its spread over seeds."""
    if isinstance(value, list):
        digits = 3 if "loss" in name else 2
        return " ± ".join(f"{number:.{digits}f}" for number in value if number is not None) or "–"
    if not isinstance(value, (int, float)):
        return "–" if value is None else escape(value)
    return f"{value / 1e6:.3f} M" if name.endswith("params") else f"{value:.4g}"


def _badge(outcome: str) -> str:
    return f'<span class="badge {_css(outcome)}">{MARKS[outcome]} {outcome}</span>'


def _css(outcome: str) -> str:
    return outcome.removeprefix("does ").replace(" ", "-")
