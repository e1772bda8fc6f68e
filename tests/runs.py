"""Short training runs that several test files share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene import finetune, scratch
from learngene.genes.gene import Learngene
from learngene.making.condense import run as run_condense
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.training.stage import TrainResult
from pico import FAST, MIXED, condense_fields, pico_shape

# Plain momentum: Adam turns gradients that are zero up to rounding (of the keys' biases) into steps of full size.
SGD: dict[str, Any] = {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.0}
HARD: dict[str, Any] = {**MIXED, "drop_path": 0.2, "ema_decay": 0.7, "clip_grad": 1.0, "epochs": 2}
"""Everything that draws random numbers or keeps a state."""


def tuned(images: Path, **train: Any) -> tuple[nn.Module, TrainResult]:
    model = scratch(pico_shape(depth=2), seed=1)
    result = finetune(model, data={"source": str(images), "workers": 0}, show=False, **{**FAST, **train})
    return model, result


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def losses(result: TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history]


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def condensed(out: Path | None, images: Path, ancestry: Any, **changes: Any) -> Learngene:
    fields = condense_fields("in memory", images, out or Path("unused"), **changes)
    recipe = build_recipe(fields)
    assert isinstance(recipe, CondenseRecipe)
    return run_condense(recipe, ancestry=ancestry, keep=out is not None, show=False).gene
