"""Comparisons of pico models that several test files share."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import yaml

from learngene.comparing.cells import lay_out
from learngene.comparing.jobs import Cell, Comparison
from learngene.comparing.results import ResultRow
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import merge
from pico import FAST, pico_shape

# 24 images at home in batches of 8: epochs of three steps.
IMAGES, CLASSES = {"home": 24, "two": 16, "zwei": 16}, {"home": 3, "two": 2, "zwei": 2}


def compare_fields(root: Path = Path("results"), images: Path | str = "images", **changes: Any) -> dict[str, Any]:
    """A comparison of scratch and TLEG at two depths, untuned and after an epoch; ``changes`` are merged into it."""
    fields: dict[str, Any] = {
        "kind": "compare",
        "out": str(root / "out"),
        "store": str(root / "store"),
        "data": {"source": str(images), "workers": 0},
        "shape": {**pico_shape().to_dict(), "num_classes": 0},
        "shapes": {"d2": {"depth": 2}, "d3": {"depth": 3}},
        "ancestries": {"vit": {"shape": {"depth": 4}}},
        "condense": {**FAST, "epochs": 1},
        "tune": FAST,
        "budgets": {"untuned": {"epochs": 0}, "one": {"epochs": 1}},
        "contenders": {"scratch": {"method": "scratch"}, "tleg": {"method": "tleg", "ancestry": "vit"}},
        "run": {"seeds": [0]},
    }
    return copy.deepcopy(merge(fields, changes))


def written(path: Path, fields: object) -> Path:
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def recipe_of(fields: dict[str, Any]) -> CompareRecipe:
    return validated(CompareRecipe, fields, "recipe")


def laid_out(recipe: dict[str, Any] | CompareRecipe) -> Comparison:
    """The jobs of a recipe or of its fields, for tasks of the sizes above."""
    return lay_out(recipe if isinstance(recipe, CompareRecipe) else recipe_of(recipe), CLASSES, IMAGES)


def cell(comparison: Comparison, contender: str, shape: str = "d2", task: str = "home", budget: str = "one",
         seed: int = 0) -> Cell:  # fmt: skip
    """One cell by its names."""
    (found,) = [
        c
        for c in comparison.cells
        if (c.contender, c.shape_name, c.task, c.budget, c.seed) == (contender, shape, task, budget, seed)
    ]
    return found


def result_row(contender: str, depth: int = 4, seed: int = 0, **values: Any) -> ResultRow:
    """A row made by hand, 0 where nothing is said."""
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(ResultRow)}
    fields |= {"contender": contender, "method": contender, "shape": f"d{depth}", "task": "home", "budget": "short"}
    fields["judge"] = "head"
    return ResultRow(**{**fields, "seed": seed, "depth": depth, "hardware": "cpu", "curve": (), **values})


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Every cell's result in an output folder, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder with its content and time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def counted_at_the_end(out: str, after: int) -> list[str]:
    """The data sets that a command's last lines count, two lines each, before so many lines ``after`` them."""
    pairs: list[str] = []
    for line in reversed(out.splitlines()[:-after]):
        found = re.fullmatch(r"(.+): (training|validation) \d+ images .*", line)
        if found is None:
            break
        pairs += [found[1]] if found[2] == "training" else []
    return pairs[::-1]
