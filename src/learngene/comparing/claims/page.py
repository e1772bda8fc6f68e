"""The ledger of claims as one HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from learngene.comparing.claims.groups import SCALES, ClaimGroup
from learngene.comparing.claims.ledger import (
    MARKS,
    NOT_RUN,
    LedgerEntry,
    LedgerGroup,
    counts,
    ledger,
    limit,
    measured,
    rule,
)
from learngene.comparing.claims.verdict import Verdict
from learngene.comparing.claims.verdict_file import JudgedClaim, VerdictFile
from learngene.system.files import write_file

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
    every = list(chain(*papers.values()))
    out = ["<h1>Ledger of claims</h1><p>What the papers say, how it was tested here, and what was found.</p>"]
    out += [_table("counts", ["scale", *map(_badge, MARKS)], counts(every)), "<nav><ul>", *map(_link, every)]
    out.append("</ul></nav>")
    for paper, mine in papers.items():
        out += [f"<h2>{escape(paper)}</h2>", *map(_section, mine)]
    if complaints:
        out.append(f"<h2>Skipped files</h2><ul>{''.join(f'<li>{escape(line)}' for line in complaints)}</ul>")
    head = '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"\n<title>Ledger of claims</title>\n<style>{STYLE}</style>"
    text = "\n".join(["<!doctype html>", head, *out, "</html>\n"])
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _link(group: LedgerGroup) -> str:
    marks = [f"{scale} {''.join(MARKS[entry.outcome(scale)] for entry in group.entries)}" for scale in group.files]
    where = f"{escape(group.paper)}, {escape(group.source)}"
    return f'<li><a href="#{escape(group.id)}">{where}</a> <span class=soft>{", ".join(marks) or NOT_RUN}</span>'


def _section(group: LedgerGroup) -> str:
    head = f'<section id="{escape(group.id)}"><h3>{escape(group.source)}: {escape(group.title)}</h3>'
    return "".join([head, *map(_claim, group.entries), *map(_run, group.files.values()), "</section>"])


def _claim(entry: LedgerEntry) -> str:
    rules = [claim.statistic for claim in entry.judged.values() if claim.statistic]
    rules = rules or ([entry.statistic.model_dump(mode="json")] if entry.statistic else [])
    notes = [f"Printed: {entry.printed}"] if entry.printed else []
    notes += [f"Rule: {text}" for text in dict.fromkeys(map(rule, rules))]
    out = [f"<div class=claim><p><b>{escape(entry.text)}</b></p>"]
    out += [f"<p class=soft>{escape(note)}</p>" for note in notes]
    for scale, claim in entry.judged.items():
        results = _results(claim) + ("<span class=soft>by an older rule</span>" if entry.stale(scale) else "")
        out.append(f"<div class=run><div>{scale}</div><div>{_badge(claim.outcome)}</div><div>{results}</div></div>")
    if others := ", ".join(scale for scale in SCALES if scale not in entry.judged):
        out.append(f"<p class=soft>{_badge(NOT_RUN)} at {others} scale</p>")
    for scale, claim in entry.judged.items():
        if claim.finding:
            out.append(f"<p class=finding>{escape(f'{scale}: {claim.finding}')}</p>")
    return "".join([*out, "</div>"])


def _results(claim: JudgedClaim) -> str:
    bars = [_bar(verdict, claim.statistic or {}) for verdict in claim.verdicts] if claim.exact is None else [""]
    return "".join(f"<div>{escape(line)}{bar}</div>" for line, bar in zip(measured(claim), bars, strict=True))


def _bar(verdict: Verdict, statistic: Mapping[str, Any]) -> str:
    """A small drawing: the interval, its mean, the values of the seeds, and the threshold as an upright line."""
    at = limit(statistic)
    if at is None or verdict.mean is None or verdict.low is None or verdict.high is None:
        return ""
    numbers = [at, verdict.mean, verdict.low, verdict.high, *verdict.values]
    left, width = min(numbers), (max(numbers) - min(numbers)) or 1
    at, mean, low, high, *seeds = (round(6 + 188 * (number - left) / width, 1) for number in numbers)
    dots = "".join(f'<circle cx="{seed}" cy="8" r="2.5" opacity=".45"/>' for seed in seeds)
    return (
        f'<svg class="bar {_css(verdict.outcome)}" viewBox="0 0 200 16" fill="currentColor" role="img" aria-label='
        f'"interval and threshold"><path d="M{at} 0V16" style="stroke: var(--text); stroke-dasharray: 3 2"/>{dots}'
        f'<path d="M{low} 8H{high}M{low} 4V12M{high} 4V12" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{mean}" cy="8" r="4"/></svg>'
    )


def _run(run: VerdictFile) -> str:
    env = run.environment
    facts = [f"seeds {run.seeds}, {run.seconds / 60:.1f} minutes of training"] if run.seeds else []
    facts += [f"{name} {env[name]}" for name in ("processor", "threads") if env.get(name)]
    facts += [f"{name} {version}" for name, version in (env.get("versions") or {}).items()]
    facts += [f"commit {run.commit[:12]}"] if run.commit else []
    out = [f"<p class=soft>{run.scale}: {escape(', '.join(facts))}</p>"]
    if run.table:
        rows = [[_number(name, entry.get(name)) for name in run.table[0]] for entry in run.table]
        names = [escape(name.replace("_", " ").replace("top1", "top-1")) for name in run.table[0]]
        out.append(f"<details><summary>{run.scale}: results</summary>{_table('names', names, rows)}</details>")
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


def _table(kind: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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
