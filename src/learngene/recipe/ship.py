"""The recipe of ``ship``: what was asked for, and every choice that was made for it, to be read, changed and rerun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from learngene.methods import method
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import Above0, AuxiliaryShape, DataSpec, Distinct, Positive, Section, Seed, Train
from learngene.system.errors import RecipeError, nearest
from learngene.system.quantities import short

FRESH = "scratch"
"""What a model starts from that starts from random weights."""
SIZES = (200_000, 600_000, 1_500_000)


class ShippedModel(Section):
    """A model that is shipped: its shape, what it starts from, and how it is trained."""

    shape: AuxiliaryShape
    start: str = Field(FRESH, description="name of one of the genes, or scratch")
    train: Train


class TaskTeacher(Section):
    """The teacher, and how it is trained on the task first."""

    source: str = Field(description="timm name, or folder with a model")
    pretrained: bool = Field(True, description="false: a timm model starts from random weights")
    train: Train | None = Field(None, description="how it is trained on the task; null: it teaches as it is")


class ShipRecipe(Section):
    """Images and sizes to shipped models."""

    kind: Literal["ship"] = "ship"
    data: DataSpec
    sizes: Distinct[Positive] | None = Field(None, description="models by their most parameters")
    max_latency: Distinct[Above0] | None = Field(None, description="models by their most milliseconds per image here")
    max_size: Distinct[Above0] | None = Field(None, description="models by their most megabytes on disk")
    runtime: str | None = Field(None, description="whose milliseconds count, as plan's; eager timm by default")
    teacher: str = Field(
        "none",
        description="none; a folder with a model, which teaches as it is; or a timm name, trained on the task first",
    )
    hours: Above0 | None = Field(None, description="for everything, from the command to the exported files")
    budget_macs: Above0 | None = Field(None, description="instead: multiply-adds of all training")
    seed: Seed = 0
    method: str | None = Field(None, description="how the models are made; chosen by measured comparisons by default")
    why: str | None = Field(None, description="said: why models are made so")
    ancestry: TaskTeacher | None = Field(None, description="chosen: the teacher")
    genes: dict[str, dict[str, Any]] = Field({}, description="chosen: condense recipes without data and out, by name")
    models: dict[str, ShippedModel] | None = Field(None, description="chosen: what is shipped, by name")
    out: Path = Field(Path("shipped"), description="folder of recipe, models, runs, result and page")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        if not {"sizes", "max_latency", "max_size"} & given.keys():
            given["sizes"] = list(SIZES)
        if not {"hours", "budget_macs"} & given.keys():
            given["hours"] = 1.0
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hours is not None and self.budget_macs is not None:
            raise RecipeError("hours and budget_macs are two budgets; give one of them")
        if self.method is not None:
            method(self.method)
        for name in self.genes:
            self.gene_recipe(name, Path(name))
        for name, model in (self.models or {}).items():
            if Path(name).name != name or name in ("", ".", ".."):
                raise RecipeError(f"models.{name}: its folder is named so; use a name without /")
            if model.start not in (FRESH, *self.genes):
                raise RecipeError(f"models.{name}.start: no gene '{model.start}'{nearest(model.start, self.genes)}")
        return self

    def gene_recipe(self, name: str, out: Path, ancestry: Path | None = None) -> CondenseRecipe:
        """How one of the genes is condensed.

        Args:
            name: Of the gene.
            out: Its run folder.
            ancestry: The teacher's folder, if it was trained or copied; by default as the recipe names it.
        """
        given: dict[str, Any] = {**self.genes[name], "data": self.data, "out": out}
        if self.ancestry is not None:
            teacher = {"source": str(ancestry or self.ancestry.source)}
            given["ancestry"] = teacher if ancestry else {**teacher, "pretrained": self.ancestry.pretrained}
        return validated(CondenseRecipe, given, f"genes.{name}")

    @property
    def wanted(self) -> dict[str, tuple[str, float]]:
        """What is asked for: by name of the model, a kind of limit and its value."""
        out: dict[str, tuple[str, float]] = {}
        for size in self.sizes or ():
            out[short(size)] = ("params", size)
        for megabytes in self.max_size or ():
            out[f"{megabytes:g}MB"] = ("params", megabytes * 1e6 / 4)
        for milliseconds in self.max_latency or ():
            out[f"{milliseconds:g}ms"] = ("latency", milliseconds)
        return out

    def plain(self) -> dict[str, Any]:
        """What it says, as plain values; not where its folder is."""
        return {"kind": self.kind, **self.model_dump(mode="json", exclude_unset=True, exclude={"kind", "out"})}

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, and not chosen."""
        names = ("data", "sizes", "max_latency", "max_size", "runtime", "teacher", "hours", "budget_macs", "seed")
        return self.model_dump(mode="json", include=set(names))
