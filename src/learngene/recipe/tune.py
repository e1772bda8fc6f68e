"""The recipe of stage 2: a hypernetwork, several tasks, and how it is tuned on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from learngene.methods import method
from learngene.recipe.gene_run import GeneRun, GeneTrain, GeneType
from learngene.recipe.hyper import Hyper
from learngene.recipe.one_line_faults import changed
from learngene.recipe.sections import (
    Above0,
    AncestrySpec,
    AuxiliaryShape,
    ByName,
    DataSpec,
    Section,
    Train,
)
from learngene.system.errors import RecipeError


class TuneTask(Section):
    """One task."""

    data: DataSpec
    augment: dict[str, Any] = Field({}, description="what differs from `train.augment`: no flips of digits, say")


class TuneRecipe(Section):
    """A hypernetwork and several tasks to a gene file."""

    kind: Literal["tune"] = "tune"
    gene: Path | None = Field(None, description="of stage 1; without it a fresh hypernetwork is trained (LoGAH v3)")
    method: str | None = Field(None, description="without `gene`: tal, logah or ghn3")
    settings: dict[str, Any] = Field({}, description="without `gene`: the method's settings")
    shape: AuxiliaryShape | None = Field(None, description="without `gene`: the auxiliary shape")
    ancestry: AncestrySpec | None = Field(None, description="whose features are the task embeddings; tal only")
    tasks: ByName[TuneTask] = Field(description="by name; null removes one; the paper takes nine", min_length=1)
    temperature: Above0 = Field(2.0, description="of drawing tasks: 1 by size, large values evenly; the paper's 2")
    task_layers: bool | None = Field(
        None,
        description="true gives a gene without task layers some, which start at zero as in the authors' code; false "
        "takes them from a gene that has some; by default the gene keeps what it has",
    )
    freeze_encoder: bool = Field(False, description="train the decoder and the task layers only")
    hyper: Hyper = Hyper()
    train: GeneTrain = Train()
    out: GeneRun = Path("runs/tuned")
    dtype: GeneType = "float32"

    @model_validator(mode="after")
    def _fits(self) -> TuneRecipe:
        if self.gene is not None:
            for name in ("method", "settings", "shape"):
                if getattr(self, name):
                    raise RecipeError(f"{name}: the gene has one already; leave it out, or leave out gene")
        elif self.method is None or self.shape is None:
            raise RecipeError("gene is missing: name the file of stage 1, or give method and shape for a fresh one")
        else:
            kind = method(self.method, self.settings)
            if kind.making != "hyper":
                raise RecipeError(f"method {self.method} is no hypernetwork; use tal, logah or ghn3")
            kind.refuse_auxiliary(self.shape)
            if self.task_layers is not None:
                raise RecipeError("task_layers: is for a gene of stage 1; a fresh network has what its method says")
            self.refuse_ancestry(kind.task_aware)
        written = self.out.with_name(f"{self.out.name}.safetensors")
        if self.gene is not None and self.gene.resolve() == written.resolve():
            raise RecipeError(f"out: {written} is the gene that is tuned and would be lost; choose another out")
        for name in self.tasks:
            if name != name.strip() or not name or not name.isprintable():
                raise RecipeError(f"tasks: {name!r} is no name for a task; use letters, digits and the like")
            self.task_train(name)
        return self

    def refuse_ancestry(self, task_aware: bool) -> None:
        """Raises ``RecipeError`` if an ancestry is needed and missing, or given and of no use."""
        if task_aware and self.ancestry is None:
            raise RecipeError("ancestry is missing: the task embeddings of tal are its features")
        if not task_aware and self.ancestry is not None:
            raise RecipeError("ancestry: without task layers no embeddings are needed; leave it out")

    def task_train(self, name: str) -> Train:
        """The train section of a task, with its own augmentation."""
        return changed(self.train, {"augment": self.tasks[name].augment}, f"tasks.{name}.augment")
