"""Searches of pico models that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learngene.making.search.paths import TaskPath
from learngene.recipe.loading import build_recipe
from learngene.recipe.search import SearchRecipe
from learngene.recipe.sections import merge
from masked import make_masked
from pico import FAST, make_images

SHA, DATA = "a" * 64, "b" * 16


def make_sets(root: Path) -> dict[str, Path]:
    """Three data sets: three colours, two colours, and images with masks."""
    return {
        "colours": make_images(root / "colours"),
        "two": make_images(root / "two", train=10, classes=("red", "blue")),
        "blocks": make_masked(root / "blocks"),
    }


def search_fields(ancestry: Path | str, sets: dict[str, Path], out: Path, /, **changes: Any) -> dict[str, Any]:
    """A search recipe that runs in about a second; whatever paths it finds, two blocks are kept."""
    fields: dict[str, Any] = {
        "kind": "search",
        "ancestry": {"source": str(ancestry)},
        "tasks": {name: {"data": {"source": str(path), "workers": 0}} for name, path in sets.items()},
        "train": {**FAST, "epochs": 1},
        "select": {"rule": "top_k", "k": 2},
        "out": str(out),
    }
    return merge(fields, changes)


def search_recipe(fields: dict[str, Any]) -> SearchRecipe:
    recipe = build_recipe(fields)
    assert isinstance(recipe, SearchRecipe)
    return recipe


def path_of(name: str, share: list[float], soft: list[float] | None = None) -> TaskPath:
    """A path that was found somehow."""
    layers: dict[str, Any] = {"share": tuple(share), "soft": tuple(soft or share)}
    return TaskPath(task=name, ancestry=SHA, data=DATA, **layers, score=50.0, metric="top-1", epochs=1, seconds=1.0)
