"""The command that does everything: images and sizes in, models and a page out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from learngene.cli.app import Followed, Overrides, app, say_start
from learngene.system.errors import LearngeneError
from learngene.system.quantities import amount


@app.command(cls=Followed)
def ship(
    data: Annotated[str, typer.Argument(help="folder, tar or data set name; or a recipe that ship wrote")],
    overrides: Overrides = None,
    sizes: Annotated[str | None, typer.Option(help="most parameters of each model: 0.2M,0.6M,1.5M by default")] = None,
    max_latency: Annotated[str | None, typer.Option(help="most milliseconds per image here, of each: 2,5")] = None,
    max_size: Annotated[str | None, typer.Option(help="most megabytes of weights, of each: 1,4")] = None,
    runtime: Annotated[str | None, typer.Option(help="whose milliseconds; eager timm's by default")] = None,
    teacher: Annotated[str | None, typer.Option(help="timm name or folder; none by default")] = None,
    hours: Annotated[float | None, typer.Option(help="for everything, up to the exported files; 1 by default")] = None,
    budget_macs: Annotated[str | None, typer.Option(help="instead: multiply-adds of all training, such as 2T")] = None,
    method: Annotated[str | None, typer.Option(help="how models are made; what comparisons advise by default")] = None,
    seed: Annotated[int, typer.Option(help="of everything random", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder to write; `shipped` by default")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="plan only; write nothing")] = False,
) -> None:
    """Make models of several sizes for a data set: plan, train, judge, export, and write one page.

    For example: learngene ship pets.tar --sizes 0.2M,0.6M,1.5M --hours 1 --out pets-models

    The plan and every choice are in ship.yaml of that folder: change it, and run learngene ship pets-models/ship.yaml
    """
    start = time.perf_counter()
    given = {
        "sizes": _numbers(sizes, whole=True),
        "max_latency": _numbers(max_latency),
        "max_size": _numbers(max_size),
        "runtime": runtime,
        "teacher": teacher,
        "hours": hours,
        "budget_macs": None if budget_macs is None else amount(budget_macs),
        "method": method,
        "out": str(out) if out else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    from learngene.recipe.loading import build_recipe, merge
    from learngene.recipe.ship import ShipRecipe

    say_start("ship", f"reading {data}")
    if Path(data).suffix in (".yaml", ".yml"):
        if given.keys() - {"out"}:
            flag = min(given.keys() - {"out"}).replace("_", "-")
            raise LearngeneError(f"--{flag}: {data} says it; change it there, or as {flag.replace('-', '_')}=VALUE")
        from learngene.shipping.ship import load, run

        recipe = load(Path(data), [*(overrides or []), *([f"out={out}"] if out else [])])
    else:
        from learngene.recipe.loading import apply_overrides
        from learngene.shipping.ship import begun, run

        fields = merge({"kind": "ship", "data": {"source": data}, "seed": seed}, given)
        built = build_recipe(apply_overrides(fields, overrides or []), where="ship")
        assert isinstance(built, ShipRecipe)
        recipe = begun(built)
    run(recipe, dry_run=dry_run, start=start)


def _numbers(text: str | None, *, whole: bool = False) -> list[float] | None:
    """Numbers with commas between them, each with an optional K, M, G or T."""
    if text is None:
        return None
    found = [amount(part.strip()) for part in text.split(",")]
    return [int(value) for value in found] if whole else found
