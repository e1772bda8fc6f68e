"""What ``learngene ship`` chooses by: every way measured at equal total time. Writes results/ship_evidence.json.

    python benchmarks/ship_evidence.py FOLDER [--sets ham10000-64px] [--budgets 300,900] [--sizes 1,3,6]
        [--methods scratch,any-size] [--seeds 0,1,2]

FOLDER has image sets as tars or folders of these names. A cell is one way on one set for one number of sizes, budget
and seed, planned and trained as ``ship`` does it; what has been measured is kept, so the command can be stopped and
given again. Budgets are CPU seconds of one thread for everything, judgement and export included. Seconds become epochs
by prices that are measured once for each set, so that all ways of a comparison have the same time, whatever else the
machine does. ``python benchmarks/pages.py`` makes docs/which-method.md of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import typer

from learngene.data.splits import Splits, open_splits
from learngene.recipe.ship import ShipRecipe
from learngene.shipping.evidence import mean_top1
from learngene.shipping.look import Look, look
from learngene.shipping.plan import make_plan
from learngene.shipping.prices import Prices
from learngene.shipping.run import train_all
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file
from learngene.training.record import read_result

OUT = Path(__file__).parents[1] / "results" / "ship_evidence.json"
SIZES = {
    1: [200_000],
    3: [50_000, 100_000, 200_000],
    6: [50_000, 75_000, 100_000, 150_000, 200_000, 300_000],
}
"""Most parameters of the models."""


def measured(recipe: ShipRecipe, splits: Splits, found: Look, prices: Prices) -> dict[str, Any]:
    """A cell: what was planned, what it took and what came out."""
    start = time.process_time()
    plan = make_plan(recipe, splits, found, prices=prices)
    trained = train_all(plan.recipe, splits, show=False, say=lambda text: None)
    models = plan.recipe.models or {}
    scores = {name: read_result(trained[name].run).final.top1 for name in models}  # type: ignore[union-attr]
    return {
        "images": found.train_images,
        "classes": found.classes,
        "img_size": plan.recipe.data.img_size,
        "teacher": "none",
        "epochs": round(plan.epochs, 3),
        "top1": {name: round(score, 2) for name, score in scores.items()},
        "mean": mean_top1(scores.values()),
        "params": {name: model.shape.params() for name, model in models.items()},
        "trained_epochs": {
            **{name: gene["train"]["epochs"] for name, gene in plan.recipe.genes.items()},
            **{name: model.train.epochs for name, model in models.items()},
        },
        "planned_seconds": round(plan.seconds, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def main(
    folder: Path,
    sets: Annotated[str, typer.Option(help="names of tars without .tar, or of folders")] = "ham10000-64px",
    budgets: Annotated[str, typer.Option(help="CPU seconds")] = "300",
    sizes: Annotated[str, typer.Option(help="numbers of models: 1, 3, 6")] = "3",
    methods: Annotated[str, typer.Option(help="ways, scratch first")] = "scratch,chebyshev,wave,any-size",
    seeds: str = "0",
) -> None:
    """Measures what is missing."""
    torch.set_num_threads(1)
    table = json.loads(OUT.read_text()) if OUT.exists() else {"prices": {}, "cells": []}
    for name in sets.split(","):
        source = next(path for path in (folder / name, folder / f"{name}.tar") if path.exists())
        splits = open_splits(ShipRecipe.model_validate({"data": {"source": str(source)}}).data)
        found = look(splits)
        known = table["prices"].get(name)
        prices = Prices(**known) if known else prices_of(source, splits, found)
        table["prices"][name] = asdict(prices)
        for count in map(int, sizes.split(",")):
            for budget in map(int, budgets.split(",")):
                for seed in map(int, seeds.split(",")):
                    for method in methods.split(","):
                        key = {"data": name, "sizes": count, "budget": budget, "seed": seed, "method": method}
                        if any(key.items() <= cell.items() for cell in table["cells"]):
                            continue
                        with tempfile.TemporaryDirectory() as out:
                            asked = {"data": {"source": str(source)}, "sizes": SIZES[count], "hours": budget / 3600}
                            asked |= {"method": method, "seed": seed, "out": out}
                            try:
                                cell = measured(ShipRecipe.model_validate(asked), splits, found, prices)
                            except LearngeneError as error:
                                print(key, error)
                                continue
                        table["cells"].append(key | cell)
                        table["environment"] = environment()
                        text = json.dumps(table, indent=1) + "\n"
                        write_file(OUT, lambda temporary, text=text: temporary.write_text(text))
                        print(key, cell["top1"], cell["mean"], f"{cell['cpu_seconds']:.0f} s", flush=True)


def prices_of(source: Path, splits: Splits, found: Look) -> Prices:
    """CPU seconds of training on a set, of which a plan is made that is not carried out."""
    from learngene.shipping import prices
    from learngene.shipping.plan import prepared, training
    from learngene.shipping.teachers import FoundTeacher
    from learngene.shipping.ways import WAYS, shapes_for

    recipe = prepared(ShipRecipe.model_validate({"data": {"source": str(source)}}), found, FoundTeacher())
    shapes = shapes_for(WAYS["scratch"], {"S": 50_000, "L": 300_000}, recipe.data.img_size or 0, found.classes)
    train = training(recipe, found, splits.train.class_names, 10, {})
    return prices.measured(splits.train, recipe.data, train, list(shapes.values()), time.process_time)


if __name__ == "__main__":
    typer.run(main)
