"""Commands that look after run folders: list them, and free the disk of what can be made again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from learngene.cli.app import Json, app
from learngene.system.errors import LearngeneError

Folder = Annotated[Path, typer.Argument(help="folder with runs, at any depth")]


@app.command()
def runs(folder: Folder = Path("runs"), as_json: Json = False) -> None:
    """List the runs in a folder: finished, stopped or running, what they scored, how much disk they take."""
    from learngene.system.quantities import size_in_words
    from learngene.training.kept_runs import kept_runs

    found = list(kept_runs(folder))
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=2, default=str))
        return
    wide = max((len(str(run.path)) for run in found), default=0)
    for run in found:
        epoch = "epoch {}/{}".format(*run.epoch) if run.epoch else ""
        columns = f"{run.state:9s}  {epoch:13s}  {run.score:15s}  {size_in_words(run.size):>9s}"
        print(f"{run.path!s:{wide}s}  {columns}  {run.what}")
    if not found:
        print(f"{folder}: no runs")


@app.command()
def clean(
    folder: Folder = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be deleted")] = False,
) -> None:
    """Delete what can be made again: the saved states of finished runs whose model is there, and stored targets.

    Models, genes, results and records stay, and so does all of runs that are stopped or running. Who runs the recipe of
    a finished run again after that trains it again.
    """
    import shutil

    from learngene.system.quantities import size_in_words
    from learngene.training.kept_runs import LOCK, disk_size, held, kept_runs, stored_targets

    found = list(kept_runs(folder))
    targets = [] if held(folder / LOCK) else stored_targets(folder, found)
    wanted = {path: run for run in found for path in run.states()}
    sizes = {path: disk_size(path) for path in [*wanted, *targets]}
    for path, size in sizes.items():
        print(f"{size_in_words(size):>9s}  {path}")
    whole = size_in_words(sum(sizes.values()))
    if not sizes:
        print(f"{folder}: nothing that can be made again")
    elif dry_run:
        print(f"{whole} would be deleted; leave out --dry-run to do it")
    elif not (yes or _agreed(f"delete {whole}?")):
        raise LearngeneError("clean: nothing was deleted; --yes does it without asking")
    else:
        for path in sizes:
            if path in wanted and held(wanted[path].path / LOCK):
                print(f"{path}: a run has begun in this folder; kept")
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        print(f"{whole} deleted")


def _agreed(question: str) -> bool:
    """Asks on the terminal; without one the answer is no."""
    import sys

    return sys.stdin.isatty() and typer.confirm(question)
