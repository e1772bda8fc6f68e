"""The recipe of a gene that is trained: ancestry and data to a gene file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from learngene.methods import Method, method
from learngene.methods.stitching import rows_of
from learngene.methods.tal import hypernetwork_of
from learngene.recipe.hyper import Stage1Hyper, stage1_hyper
from learngene.recipe.one_line_faults import changed
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import (
    AncestrySpec,
    AuxiliaryShape,
    DataSpec,
    Distill,
    GeneRun,
    GeneTrain,
    GeneType,
    Section,
    Train,
)
from learngene.system.errors import RecipeError

FOREIGN_PARTS = {
    "pool": ("pool", "has no rows"),
    "anchors": ("pool", "has no rows"),
    "hyper": ("hyper", "is no hypernetwork"),
    "stage2": ("hyper", "is no hypernetwork"),
}
"""Parts of a recipe: the ``making`` of the methods that they are for, and what other methods are told."""


def refuse_foreign_parts(section: Section, kind: Method) -> None:
    """Raises ``RecipeError`` for the first part of a section that is for methods of another ``making``."""
    for name, (making, lack) in FOREIGN_PARTS.items():
        if getattr(section, name, None) not in (None, []) and kind.making != making:
            raise RecipeError(f"{name}: method {kind.name} {lack}; leave it out")


class CondenseRecipe(Section):
    """Ancestry and data to a gene file."""

    kind: Literal["condense"] = "condense"
    method: str = Field(description="a method whose gene is trained, see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings, see `learngene methods`")
    ancestry: AncestrySpec | None = Field(None, description="the teacher; not needed when distill.alpha is 0")
    shape: AuxiliaryShape = Field(description="the auxiliary shape: a name, or a mapping of ViTShape's fields")
    data: DataSpec
    train: GeneTrain = Train()
    distill: Distill = Distill()
    pool: PoolSpec | None = Field(None, description="methods pool and sn-net only: how rows and paths are trained")
    hyper: Stage1Hyper | None = Field(None, description="tal, logah and ghn3 only: how the hypernetwork is trained")
    anchors: list[AncestrySpec] | None = Field(None, description="sn-net only: the pretrained ViTs that become rows")
    out: GeneRun = Path("runs/gene")
    dtype: GeneType = "float32"

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
        kind, ancestry = method(self.method, self.settings), self.ancestry is not None
        if "condense" not in kind.origins:
            raise RecipeError(f"method {self.method} is not trained: {kind.made_by}")
        kind.refuse_auxiliary(self.shape)
        refuse_foreign_parts(self, kind)
        if self.pool is not None:
            self.row_train()
            self.path_train()
            self.pool.refuse(rows_of(kind), ancestry=ancestry, anchors=len(self.anchors or ()))
        elif self.hyper is not None:
            hypernetwork_of(kind).refuse_trained(self.shape)
            if self.distill.alpha:
                raise RecipeError(f"distill: means nothing for {self.method}, which hyper describes; leave it out")
            self.hyper.refuse(ancestry=ancestry)
        elif not ancestry and self.distill.alpha > 0:
            raise RecipeError(f"ancestry is missing: distill.alpha {self.distill.alpha:g} needs a teacher")
        return self

    def row_train(self) -> Train:
        """How the rows of a pool are trained."""
        return changed(self.train, self.pool.rows if self.pool else {}, "pool.rows")

    def path_train(self) -> Train | None:
        """How the paths of a pool are tuned; None leaves them untuned."""
        changes = self.pool.tune if self.pool else {}
        return None if changes is None else changed(self.train, changes, "pool.tune")
