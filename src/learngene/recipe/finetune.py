"""The recipe of a fine-tuned descendant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from learngene.recipe.sections import DataSpec, Section, ShapeChanges, Train


class FinetuneRecipe(Section):
    """A gene, a descendant folder or a timm architecture to a fine-tuned descendant folder."""

    kind: Literal["finetune"] = "finetune"
    model: str = Field(
        description="gene file, descendant folder, timm model name, checkpoint file, or scratch, of random weights"
    )
    architecture: str | None = Field(None, description="timm architecture of a checkpoint file")
    state: str | None = Field(None, description="which of several states in a checkpoint file")
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model, for example img_size")
    pretrained: bool = Field(True, description="false: a timm model starts from random weights, by train.seed")
    shape: ShapeChanges | None = Field(
        None, description="of a gene's descendant: the fields that differ from the auxiliary shape, often just depth"
    )
    options: dict[str, Any] = Field({}, description="the method's choices at expansion, and layers and modules")
    data: DataSpec
    train: Train = Train()
    baseline: str | None = Field(
        None,
        description="descendant folder, checkpoint or timm name of a classifier, such as the teacher: at its end the "
        "model is compared with it on the validation images",
    )
    out: Path = Field(Path("runs/descendant"), description="run folder; the descendant is written to OUT/descendant")
