"""Demos: comparisons on scikit-learn's digits with a table, a picture and a page of their own; see ``recipes/demo``."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from learngene.comparing.cost import own_macs
from learngene.comparing.demo_page import show
from learngene.comparing.demo_tables import DEMOS, Demo, Table
from learngene.comparing.jobs import Cell, Comparison
from learngene.comparing.results import ResultRow
from learngene.comparing.run import compare, prepare
from learngene.genes.gene_file import read_header
from learngene.genes.plan import Budget, plan
from learngene.recipe.compare import SOURCE, CompareRecipe
from learngene.recipe.loading import build_recipe, read_fields
from learngene.recipe.search import SearchRecipe
from learngene.recipe.sections import merge
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError, nearest
from learngene.system.files import in_package, refuse_foreign, write_file
from learngene.system.speech import announce, speech
from learngene.vits.descendant_folder import PROVENANCE, copy_descendant

MARKER = "demo.json"


def run_demo(
    name: str, out: Path | None = None, seed: int = 0, *, overrides: Sequence[str] = (), processes: int | None = None
) -> dict[str, Any]:
    """Runs a demo and writes ``demo.json``, ``demo.png``, ``index.html`` and the genes.

    Args:
        name: One of ``DEMOS``.
        out: Folder to write, by default the recipe's; what an earlier run left there is used again.
        seed: Of everything that is random, but for the images.
        overrides: Of its recipe.
        processes: By default two, or this one on a machine with one core.

    Returns:
        What was written to ``demo.json``.

    Raises:
        LearngeneError: If there is no such demo, or ``out`` is not ours or cannot be written.
    """
    if name not in DEMOS:
        raise LearngeneError(f"--method {name}: there are demos of {', '.join(DEMOS)}{nearest(name, DEMOS)}")
    console, start, demo = Console(highlight=False, stderr=speech.json), time.perf_counter(), DEMOS[name]
    recipe = _recipe(name, out, seed, overrides)
    refuse_foreign(recipe.out, MARKER)
    if not (recipe.out / MARKER).exists():
        write_file(recipe.out / MARKER, lambda temporary: temporary.write_text("{}\n"))
    console.print(f"[bold]{demo.about}[/]")
    # On small models processes of one thread are faster than threads, and every machine adds alike.
    os.environ["OMP_NUM_THREADS"] = "1"
    found = compare(recipe, processes=min(2, os.cpu_count() or 1) if processes is None else processes, say=_tell)
    comparison, _, opened = prepare(recipe)
    if found.faults:
        raise LearngeneError("\n".join(found.faults))
    genes = _keep_models(comparison, recipe.out, seed)
    result = {
        "kind": "demo" if name == "genes" else f"{name} demo",
        "seed": seed,
        "data": {"source": "digits", "fingerprint": opened[SOURCE][0].fingerprint()},
        **_described(genes),
        "training_macs": _training_macs(comparison, {SOURCE: len(opened[SOURCE][0])}),
        "budgets": {text: _picked(demo, genes[demo.gene], budget) for text, budget in demo.budgets.items()},
        **{key: _lines(table, comparison, found.rows, genes) for key, table in demo.tables.items()},
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True, exclude={"out", "store"}),
        "environment": environment(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    ancestry = json.loads((recipe.out / f"ancestry-{seed}" / PROVENANCE).read_text())
    result["ancestry"]["top1"] = ancestry["finetuned"]["accuracy"]["top1"]
    result["ancestry"] |= {"depth": ancestry["shape"]["depth"]} if "shape" in ancestry else {}
    write_file(recipe.out / MARKER, lambda temporary: temporary.write_text(json.dumps(result, indent=2) + "\n"))
    epochs = max(budget.epochs for budget in recipe.budgets.values())
    show(name, result, genes[demo.gene], recipe.out, epochs, console)
    return result


def _recipe(name: str, out: Path | None, seed: int, overrides: Sequence[str]) -> CompareRecipe:
    """A demo's recipe: of the installed package, or of a checkout."""
    path = in_package(Path(__file__).with_name("recipes"), "recipes/demo") / f"{name}.yaml"
    fields = merge(read_fields(path, overrides), {"run": {"seeds": [seed]}})
    if out is not None:
        fields |= {"out": str(out), "store": str(out / "runs")}
    recipe = build_recipe(fields, where=str(path))
    assert isinstance(recipe, CompareRecipe)
    return recipe


def _tell(text: str) -> None:
    """Says what was made; what was measured is in the table."""
    if not text.startswith("cell ") or ": failed" in text:
        announce(f"   {text}")


def _keep_models(comparison: Comparison, out: Path, seed: int) -> dict[str, Path]:
    """Copies ancestry and genes to names that are easy to find; returns the genes by contender."""
    source = next(job.path for name, job in comparison.ancestries.items() if name == f"ancestry-s{seed}")
    copy_descendant(source, out / f"ancestry-{seed}")
    genes: dict[str, Path] = {}
    for cell in comparison.cells:
        each = comparison.recipe.contenders[cell.contender].each
        if cell.gene is not None and cell.contender not in genes and not each:
            made, kept = cell.gene.path, out / f"{cell.contender}-{seed}.safetensors"
            shutil.copyfile(made, kept.with_suffix(".tmp"))
            genes[cell.contender] = kept.with_suffix(".tmp").rename(kept)
    return genes


def _described(genes: Mapping[str, Path]) -> dict[str, Any]:
    """What ``demo.json`` says about the genes, their ancestry and the search behind them."""
    out: dict[str, Any] = {"ancestry": {}, "genes": {}}
    for name, path in genes.items():
        header = read_header(path)
        out["genes"][name] = {"params": header.stored_params, "bytes": path.stat().st_size}
        out["genes"][name]["top1"] = header.metadata.get("accuracy", {}).get("top1")
        if header.metadata.get("ancestry", {}).get("sha256"):  # an SN-Net and a LoGAH have none
            out["ancestry"] = dict(header.metadata["ancestry"])
        if "search" in header.metadata:
            out["search"] = header.metadata["search"]
    return out


def _training_macs(comparison: Comparison, train_images: Mapping[str, int]) -> dict[str, int]:
    """Multiply-adds of condensing all genes of a contender, where some contender has a gene for every shape."""
    if not any(spec.each for spec in comparison.recipe.contenders.values()):
        return {}
    genes = {(cell.contender, cell.gene.path): cell.gene for cell in comparison.cells if cell.gene}
    out: dict[str, int] = {}
    for (contender, _), gene in genes.items():
        out[contender] = out.get(contender, 0) + own_macs(gene, train_images)
    return out


def _picked(demo: Demo, gene: Path, budget: Budget) -> Any:
    shape = plan(gene, budget)[0].shape
    return shape.path if "path" in demo.tables["rows"].facts else shape.depth


def _lines(
    table: Table, comparison: Comparison, rows: Sequence[ResultRow], genes: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """The lines of a table, task by task."""
    recipe = comparison.recipe
    stages = [spec.stage2 for spec in recipe.contenders.values() if spec.stage2]
    seen = {task for stage in stages for task in recipe.learned(stage)}
    found = {(row.contender, row.task, row.shape): row for row in rows if row.budget == table.budget}
    cells = {
        (cell.contender, cell.task, cell.shape_name): cell for cell in comparison.cells if cell.budget == table.budget
    }
    first = next(iter(table.scores.values()))[1]
    out = []
    for task in recipe.chosen("tasks"):
        for shape in recipe.chosen("shapes"):
            if (cell := cells.get((first, task, shape))) is not None:
                row = found[first, task, shape]
                facts = {"task": task, "unseen": bool(seen) and task not in seen, "metric": row.metric}
                facts |= {"classes": cell.shape.num_classes, "depth": row.depth, **_blocks(cell, genes)}
                facts |= {"params": row.params, "macs": row.macs}
                scores = {key: getattr(found[name, task, shape], of) for key, (_, name, of) in table.scores.items()}
                out.append(facts | scores)
    return out


def _blocks(cell: Cell, genes: Mapping[str, Path]) -> dict[str, Any]:
    """Which blocks a descendant has: how many of every row of a pool and its path, or those of a search by layer."""
    if isinstance(cell.gene and cell.gene.recipe, SearchRecipe):
        header = read_header(genes[cell.contender])
        return {"blocks": [int(text.split()[-1]) for text in header.method.describe(header.shape, cell.shape)]}
    return {"blocks": cell.shape_name, "path": cell.shape.path} if "+" in cell.shape_name else {}
