"""The recipe of a gene that is trained: ancestry and data to a gene file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from learngene.methods import method
from learngene.methods.stitching import StitchedRows, rows_of
from learngene.methods.tal import hypernetwork_of
from learngene.recipe.hyper import Stage1Hyper, stage1_hyper
from learngene.recipe.one_line_faults import validated
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import AncestrySpec, AuxiliaryShape, DataSpec, Distill, Section, Train, merge
from learngene.system.errors import RecipeError

ROW_FIELDS = ("points", "terms", "transform_bias", "learn_equal_width", "rows", "kept")
"""Entries of a pool section that concern the training of rows."""


class CondenseRecipe(Section):
    """Ancestry and data to a gene file."""

    kind: Literal["condense"] = "condense"
    method: str = Field(description="a method whose gene is trained, see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings, see `learngene methods`")
    ancestry: AncestrySpec | None = Field(None, description="the teacher; not needed when distill.alpha is 0")
    shape: AuxiliaryShape = Field(description="the auxiliary shape: a name, or a mapping of ViTShape's fields")
    data: DataSpec
    train: Train = Train()
    distill: Distill = Distill()
    pool: PoolSpec | None = Field(None, description="methods pool and sn-net only: how rows and paths are trained")
    hyper: Stage1Hyper | None = Field(None, description="tal, logah and ghn3 only: how the hypernetwork is trained")
    anchors: list[AncestrySpec] | None = Field(None, description="sn-net only: the pretrained ViTs that become rows")
    out: Path = Field(Path("runs/gene"), description="run folder; the gene is written beside it as OUT.safetensors")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="storage type of the gene file")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            return given
        kind, given = method(given["method"]), dict(given)
        given.setdefault("distill", {"preset": kind.distillation})
        if kind.making == "pool" and given.get("pool") is None:
            given["pool"] = {}
        if kind.making == "hyper":
            given["hyper"] = stage1_hyper(given.get("hyper"), task_aware=kind.task_aware)
        return given

    @model_validator(mode="after")
    def _method_fits(self) -> CondenseRecipe:
        kind = method(self.method, self.settings)
        if "condense" not in kind.origins:
            raise RecipeError(f"method {self.method} is not trained: {kind.made_by}")
        kind.refuse_auxiliary(self.shape)
        if self.hyper is not None and kind.making != "hyper":
            raise RecipeError(f"hyper: method {self.method} is no hypernetwork; leave it out")
        if kind.making == "pool":
            self._pool_fits(rows_of(kind))
        elif kind.making == "hyper":
            hypernetwork_of(kind).refuse_trained(self.shape)
            self._hyper_fits()
        elif self.pool is not None or self.anchors:
            raise RecipeError(f"{'pool' if self.pool else 'anchors'}: method {self.method} has no rows; leave it out")
        elif self.ancestry is None and self.distill.alpha > 0:
            raise RecipeError(f"ancestry is missing: distill.alpha {self.distill.alpha:g} needs a teacher")
        if self.train.layer_decay is not None:
            raise RecipeError("train: layer_decay is for fine-tuning; what is condensed has no layers of its own")
        return self

    def _pool_fits(self, kind: StitchedRows) -> None:
        """Refuses a pool section that says too much or too little for the rows."""
        pool, rows = self.pool or PoolSpec(), len(kind.rows)
        self.row_train()
        self.path_train()
        if pool.guide != "none" and self.ancestry is None:
            raise RecipeError(f"ancestry is missing: pool.guide {pool.guide} needs a teacher")
        if kind.name == "sn-net":
            if len(self.anchors or ()) != rows:
                raise RecipeError(f"anchors: settings.rows has {rows} rows, so give {rows} pretrained ViTs as anchors")
            if unused := [name for name in ROW_FIELDS if getattr(pool, name) != getattr(PoolSpec(), name)]:
                raise RecipeError(
                    f"pool.{unused[0]}: means nothing for sn-net, whose rows are not trained; leave it out"
                )
            if pool.stitches == "tm":
                raise RecipeError(
                    "pool.stitches: tm needs rows that were distilled here, which anchors are not; use ls"
                )
            return
        if self.anchors:
            raise RecipeError("anchors: the rows of a pool are distilled from its ancestry; leave anchors out")
        if pool.points is not None and len(pool.points) != rows:
            raise RecipeError(f"pool.points: one number per row is needed, {rows} in all, not {len(pool.points)}")
        if self.ancestry is None and (pool.points is None or any(pool.points)):
            raise RecipeError("ancestry is missing: rows are distilled from it, unless pool.points are all 0")

    def _hyper_fits(self) -> None:
        """Refuses what stage 1 of a hypernetwork does not use, and a guide that is missing."""
        for name, given in (("pool", self.pool), ("anchors", self.anchors), ("distill", self.distill.alpha)):
            if given:
                raise RecipeError(f"{name}: means nothing for {self.method}, which hyper describes; leave it out")
        guided = self.hyper is not None and self.hyper.guidance.alpha > 0
        if guided and self.ancestry is None:
            raise RecipeError("ancestry is missing: it guides, unless hyper.guidance.preset is none")
        if not guided and self.ancestry is not None:
            raise RecipeError("ancestry: guides nothing with hyper.guidance.preset none; leave it out")

    def row_train(self) -> Train:
        """How the rows of a pool are trained."""
        return self._trained(self.pool.rows if self.pool else {}, "pool.rows")

    def path_train(self) -> Train | None:
        """How the paths of a pool are tuned; None leaves them untuned."""
        changes = self.pool.tune if self.pool else {}
        return None if changes is None else self._trained(changes, "pool.tune")

    def _trained(self, changes: Mapping[str, Any], where: str) -> Train:
        return validated(Train, merge(self.train.model_dump(exclude_unset=True), changes), where)
