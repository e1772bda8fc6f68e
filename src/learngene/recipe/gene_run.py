"""What recipes that make a gene have in common: where and in what type it is written, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from learngene.recipe.sections import Train
from learngene.system.errors import RecipeError

LAYERED = ("layer_decay", "quantize")
"""Entries of a train section that only a model with layers of its own can have."""

GeneType = Annotated[Literal["float32", "bfloat16", "float16"], Field(description="storage type of the gene file")]
GeneRun = Annotated[Path, Field(description="run folder; the gene is written beside it as OUT.safetensors")]


def _refuse_tuning(train: Train) -> Train:
    for name in LAYERED:
        if getattr(train, name) is not None:
            raise RecipeError(f"{name} is for fine-tuning; a gene has no layers of its own")
    if train.shard:
        raise RecipeError("shard is for fine-tuning; a gene is small, and shard_teachers is for its teacher")
    return train


GeneTrain = Annotated[Train, AfterValidator(_refuse_tuning)]
"""How a gene is trained."""
