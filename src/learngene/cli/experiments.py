"""Commands that compare: the demo, comparisons, published claims and their report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from learngene.cli.app import (
    DataFolder,
    Executor,
    Followed,
    Overrides,
    Processes,
    RecipeFile,
    app,
    call_of,
    read_recipe,
    suggest,
)
from learngene.system.errors import LearngeneError
from learngene.system.speech import say


@app.command(cls=Followed)
def demo(
    method: Annotated[str, typer.Option(help="genes (TLEG and SWS), pool, lsamd, tal or foundation")] = "genes",
    out: Annotated[
        Path | None,
        typer.Option(help="where page, plot and results go; demo-output, or demo-output-METHOD, by default"),
    ] = None,
    seed: Annotated[int, typer.Option(help="same seed, same table", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Make two genes, a pool, a searched gene or a hypernetwork of digits and compare their ViTs, in some minutes.

    After the genes it ships models of digits, as `learngene ship` does, on a small budget.
    """
    from learngene.comparing.demo import run_demo

    run_demo(method, out, seed)
    if method == "genes":
        from learngene.shipping.demo import ship_demo

        ship_demo(out or Path("demo-output"), seed)


@app.command(cls=Followed)
def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    data: DataFolder = None,
    processes: Processes = 1,
    executor: Executor = "local",
    collect: Annotated[bool, typer.Option("--collect", help="run nothing; only read what is there")] = False,
) -> None:
    """Compare methods at equal terms: run what is missing, then write tables and plots."""
    from learngene.recipe.compare import CompareRecipe

    loaded = read_recipe(CompareRecipe, recipe, overrides, data)
    from learngene.comparing.compare_page import write_compare_page
    from learngene.comparing.equal_cost import conclusions
    from learngene.comparing.plots import save_plots
    from learngene.comparing.run import compare as run_all
    from learngene.comparing.run import read_results
    from learngene.comparing.tables import as_markdown, save_tables

    found = read_results(loaded) if collect else run_all(loaded, processes=processes, executor=executor)
    if found.rows:
        say(as_markdown(found.rows))
        remarks = conclusions(found)
        say("\n".join(remarks))
        plots = save_plots(found.rows, loaded.out / "plots")
        again = shlex.join(map(str, ["learngene", *call_of("compare", recipe, overrides, data)]))
        page = write_compare_page(loaded.out / "index.html", found, remarks, plots, again)
        written = [*save_tables(found, loaded.out, remarks), page, *plots]
        for stale in set(loaded.out.glob("plots/*.png")) - set(written):
            stale.unlink()  # of other cells than the tables now show
        text = f"{len(found.rows)} cells; written: {', '.join(map(str, written))}"
        say(text, path=page, files=list(map(str, written)), cells=len(found.rows), missing=len(found.missing))
    faults = {
        "cells have no result yet": found.missing,
        "jobs failed": found.failed,
        "files stand where a result belongs; move them away": found.foreign,
    }
    if any(faults.values()):
        counts = ", ".join(f"{len(which)} {what}" for what, which in faults.items() if which)
        raise LearngeneError("\n".join([*found.faults, f"{loaded.out}: {counts}"]))


@app.command(cls=Followed)
def reproduce(
    claims: Annotated[str | None, typer.Argument(help="a group such as tleg.table2; none lists them")] = None,
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option(help="laptop, gpu or paper")] = "laptop",
    data: DataFolder = None,
    processes: Processes = 1,
    executor: Executor = "local",
    cost: Annotated[bool, typer.Option("--cost", help="run nothing; say what it would take")] = False,
) -> None:
    """Test a group of published claims and write its verdicts. The same command continues a stopped run."""
    from learngene.comparing.claims.groups import comparison_of, find_group, load_claims

    if claims is None:
        for group in load_claims().values():
            say(f"{group.id:14s} {group.paper} {group.source}: {group.title} ({len(group.claims)} claims)")
        suggest("reproduce", "GROUP", "--scale", "laptop", "--data", "FOLDER")
        return
    group = find_group(claims)
    recipe = comparison_of(group, scale, data, overrides or [], declared=cost or not group.needs_runs)
    if cost:
        from learngene.comparing.claims.estimate import estimate

        say(estimate(group, recipe))
        return
    from learngene.comparing.claims.reproduce import reproduce as run_group

    path, faults = run_group(group, recipe, scale, processes=processes, executor=executor)
    for claim in json.loads(path.read_text())["claims"]:
        say(f"{claim['outcome']:14s} {claim['text']}", claim=claim["text"], verdict=claim["outcome"])
    say(str(path), path=path)
    suggest("report")
    if faults:
        raise LearngeneError("\n".join(faults))


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="folder with results/SCALE/claims/*.json")] = Path("results"),
    out: Annotated[Path, typer.Option(help="HTML page to write")] = Path("report/index.html"),
    markdown: Annotated[Path, typer.Option(help="Markdown ledger to write")] = Path("docs/ledger-results.md"),
) -> None:
    """Build the HTML page and the Markdown ledger of all verdicts."""
    from learngene.comparing.claims.groups import load_claims
    from learngene.comparing.claims.ledger import ledger_markdown
    from learngene.comparing.claims.page import ledger_page
    from learngene.comparing.claims.verdict_file import read_verdicts
    from learngene.system.files import write_file

    if not results.is_dir():
        raise LearngeneError(f"--results {results}: no such folder")
    verdicts, complaints = read_verdicts(results)
    groups = load_claims()
    ledger_page(verdicts, out, groups, complaints)
    text = ledger_markdown(verdicts, groups)
    write_file(markdown, lambda temporary: temporary.write_text(text))
    print(f"{len(verdicts)} verdict files of {len(groups)} groups: {out}, {markdown}")
    if complaints:
        raise LearngeneError("\n".join(complaints))
