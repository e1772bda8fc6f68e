"""Commands that compare: the demo, comparisons, published claims, the report and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from learngene.cli.app import Overrides, RecipeFile, app
from learngene.system.errors import LearngeneError, RecipeError, nearest

DEMOS = ("genes", "pool", "lsamd", "tal")


@app.command()
def demo(
    method: Annotated[str, typer.Option(help="genes (TLEG and SWS), pool, lsamd or tal")] = "genes",
    out: Annotated[
        Path | None,
        typer.Option(help="where page, plot and results go; demo-output, or demo-output-METHOD, by default"),
    ] = None,
    seed: Annotated[int, typer.Option(help="same seed, same table", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Make two genes, a pool, a searched gene or a hypernetwork of digits and compare their ViTs, in two minutes."""
    if method == "genes":
        from learngene.demo import run_demo

        run_demo(out or Path("demo-output"), seed)
    elif method == "pool":
        from learngene.demo_pool import run_pool_demo

        run_pool_demo(out or Path("demo-output-pool"), seed)
    elif method == "lsamd":
        from learngene.demo_lsamd import run_lsamd_demo

        run_lsamd_demo(out or Path("demo-output-lsamd"), seed)
    elif method == "tal":
        from learngene.demo_tal import run_tal_demo

        run_tal_demo(out or Path("demo-output-tal"), seed)
    else:
        raise LearngeneError(
            f"--method {method}: there are demos of genes, pool, lsamd and tal{nearest(method, DEMOS)}"
        )


DataFolder = Annotated[Path | None, typer.Option(help="folder of image sets that the recipe calls $DATA")]
Processes = Annotated[int, typer.Option(help="processes to start; more may be started elsewhere", min=1, max=256)]


@app.command()
def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    data: DataFolder = None,
    processes: Processes = 1,
    collect: Annotated[bool, typer.Option("--collect", help="run nothing; only read what is there")] = False,
) -> None:
    """Compare methods at equal terms: run what is missing, then write tables and plots."""
    from learngene.recipe.compare import CompareRecipe
    from learngene.recipe.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [], data)
    if not isinstance(loaded, CompareRecipe):
        raise RecipeError(f"{recipe}: a {loaded.kind} recipe; run it with `learngene {loaded.kind}`")
    from learngene.comparing.plots import save_plots
    from learngene.comparing.results import as_markdown, save_tables
    from learngene.comparing.run import compare as run_all
    from learngene.comparing.run import read_results

    found = read_results(loaded) if collect else run_all(loaded, processes=processes)
    for line in [*found.foreign, *(f"{title}: {reason}" for title, reason in found.failed.items())]:
        print(f"learngene: {line}", file=sys.stderr)
    if found.rows:
        print(as_markdown(found.rows))
        written = [*save_tables(found, loaded.out), *save_plots(found.rows, loaded.out / "plots")]
        for stale in set(loaded.out.glob("plots/*.png")) - set(written):
            stale.unlink()  # of other cells than the tables now show
        print(f"{len(found.rows)} cells; written: {', '.join(str(path) for path in written)}")
    if found.missing or found.failed or found.foreign:
        faults = {
            "cells have no result yet": len(found.missing),
            "jobs failed": len(found.failed),
            "files stand where a result belongs; move them away": len(found.foreign),
        }
        counts = ", ".join(f"{count} {what}" for what, count in faults.items() if count)
        raise LearngeneError(f"{loaded.out}: {counts}")


@app.command()
def reproduce(
    claims: Annotated[str | None, typer.Argument(help="a group such as tleg.table2; none lists them")] = None,
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option(help="laptop, gpu or paper")] = "laptop",
    data: DataFolder = None,
    processes: Processes = 1,
    cost: Annotated[bool, typer.Option("--cost", help="run nothing; say what it would take")] = False,
) -> None:
    """Test a group of published claims and write its verdicts; stopped ones continue with the same command."""
    from learngene.comparing.claims.groups import comparison_of, find_group, load_claims

    if claims is None:
        for group in load_claims().values():
            print(f"{group.id:14s} {group.paper} {group.source}: {group.title} ({len(group.claims)} claims)")
        print("next: learngene reproduce GROUP --scale laptop --data FOLDER")
        return
    group = find_group(claims)
    recipe = comparison_of(group, scale, data, overrides or [], declared=cost or not group.needs_runs)
    if cost:
        from learngene.comparing.claims.estimate import estimate

        print(estimate(group, recipe))
        return
    from learngene.comparing.claims.reproduce import reproduce as run_group

    path, faults = run_group(group, recipe, scale, processes=processes)
    for claim in json.loads(path.read_text())["claims"]:
        print(f"{claim['outcome']:14s} {claim['text']}")
    print(f"{path}\nnext: learngene report")
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
    from learngene.comparing.claims.page import ledger_markdown, ledger_page, read_verdicts
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


@app.command()
def picture(
    model: Annotated[str, typer.Argument(help="descendant folder, timm name with pretrained weights, or gene file")],
    out: Annotated[Path, typer.Option(help="PNG to write")],
    pretrained: Annotated[bool, typer.Option(help="load a timm name's pretrained weights")] = True,
    path: Annotated[str | None, typer.Option(help="path of a pool to highlight, such as 4+2")] = None,
) -> None:
    """Draw a ViT's layers on a line: the first principal component of each weight over depth (TLEG, Figure 1).

    Of a pool's gene file, draw its rows, its stitches and what its paths scored; of a search's, who took which block;
    of a hypernetwork's, its graphs by task (TAL, Figure 5).
    """
    if out.suffix != ".png":
        raise LearngeneError(f"--out {out}: pictures are PNG files; end the name in .png")
    if Path(model).suffix == ".safetensors":
        from learngene.cli.pictures.pool import pool_picture
        from learngene.cli.pictures.tasks import task_picture
        from learngene.genes.gene_file import read_header
        from learngene.making.search.usage_map import search_picture
        from learngene.methods.stitching import StitchedRows
        from learngene.methods.tal import Hypernetwork

        header = read_header(model)
        if path is not None and not isinstance(header.method, StitchedRows):
            raise LearngeneError(f"--path {path}: {model} is of {header.method.name}, which has no paths; leave it out")
        if "search" in header.method.origins:
            search_picture(model, out)
        elif isinstance(header.method, Hypernetwork):
            task_picture(model, out)
        else:
            pool_picture(model, out, path)
    elif path is not None:
        raise LearngeneError(f"--path {path}: {model} is no gene file of a pool, which alone has paths")
    else:
        from learngene.cli.pictures.layers import picture as draw
        from learngene.genes.ancestry import Ancestry

        draw(Ancestry(model, pretrained=pretrained).model, out)
    print(out)
