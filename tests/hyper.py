"""Pico hypernetworks, tasks and recipes that several test files share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from learngene.genes.gene import Learngene
from learngene.making.condense import run as run_condense
from learngene.making.hyper.tune import run as run_tune
from learngene.methods import method
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.recipe.tune import TuneRecipe
from learngene.vits.shape import ViTShape
from pico import FAST, pico_shape, random_tensors

PICO: dict[str, Any] = {"size": "pico", "architectures": ((2, 16, 2), (3, 24, 3))}
"""16 wide, one layer, rank 4; trained at two sizes."""

TASK = 6
"""Width of the tests' task embeddings."""

HYPER: dict[str, dict[str, Any]] = {
    "ghn3": PICO,
    "logah": PICO,
    "logah-transposed": {**PICO, "layout": "transposed"},
    "tal": {**PICO, "task_dim": TASK},
}
"""Settings by name; what is before the dash is the method."""


SHORT: dict[str, Any] = {**FAST, "epochs": 1}


def token_shape(**changes: Any) -> ViTShape:
    """The pico ViT with a class token and two layers."""
    return pico_shape(**{"class_token": True, "depth": 2, **changes})


def hyper_gene(name: str, changes: Mapping[str, Any] | None = None, *, seed: int = 0, **shape: Any) -> Learngene:
    """A hypernetwork as it starts, with some noise on every tensor, so that none is zero or one by accident."""
    gene = Learngene(
        method(name.partition("-")[0], {**HYPER[name], **(changes or {})}), token_shape(**shape), seed=seed
    )
    noise = random_tensors({key: tuple(value.shape) for key, value in gene.tensors().items()}, seed)
    with torch.no_grad():
        for key, value in gene.tensors().items():
            value.add_(noise[key] / 3)
    return gene.eval()


def task_vector(seed: int = 0, width: int = TASK) -> Tensor:
    """A task embedding's numbers."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def task_of(name: str = "birds", classes: int = 5, ancestry: str = "a" * 64, vector: Tensor | None = None) -> Any:
    """A task embedding as ``embed_task`` would give it."""
    numbers = (task_vector() if vector is None else vector).tolist()
    names = tuple(f"class{number}" for number in range(classes))
    return TaskEmbedding(name, tuple(numbers), ancestry, "d" * 16, 24, names, {"mean": [0.5], "std": [0.5]})


def train_fields(ancestry: Path | str | None, images: Path, out: Path | str, /, **changes: Any) -> dict[str, Any]:
    """A recipe of stage 1 that runs in about a second."""
    fields: dict[str, Any] = {
        "kind": "condense",
        "method": "tal",
        "settings": {**PICO, "task_dim": 16},
        "ancestry": {"source": str(ancestry)} if ancestry else None,
        "shape": token_shape().to_dict(),
        "data": {"source": str(images), "workers": 0},
        "train": FAST,
        "out": str(out),
    }
    return {**fields, **changes}


def tune_fields(
    gene: Path | str | None, ancestry: Path | str | None, tasks: Mapping[str, Path], out: Path | str, /, **changes: Any
) -> dict[str, Any]:
    """A recipe of stage 2 that runs in about a second."""
    fields: dict[str, Any] = {
        "kind": "tune",
        "gene": str(gene) if gene else None,
        "ancestry": {"source": str(ancestry)} if ancestry else None,
        "tasks": {name: {"data": {"source": str(folder), "workers": 0}} for name, folder in tasks.items()},
        "train": FAST,
        "out": str(out),
    }
    return {**fields, **changes}


def home(ancestry: Path | None, images: Path, out: Path | None, /, **changes: Any) -> Learngene:
    """Runs stage 1."""
    recipe = build_recipe(train_fields(ancestry, images, out or "unused", **changes))
    assert isinstance(recipe, CondenseRecipe)
    return run_condense(recipe, keep=out is not None, show=False).gene


def tuned(fields: dict[str, Any], keep: bool = True) -> Learngene:
    """Runs stage 2."""
    recipe = build_recipe(fields)
    assert isinstance(recipe, TuneRecipe)
    return run_tune(recipe, keep=keep, show=False).gene


def written(fields: dict[str, Any], path: Path) -> Path:
    """Writes a recipe's file."""
    path.write_text(yaml.safe_dump(json.loads(json.dumps(fields))))
    return path
