"""The recipe of a gene that is trained: ancestry and data to a gene file."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from learngene.methods import Method, method
from learngene.methods.stitching import rows_of
from learngene.methods.tal import hypernetwork_of
from learngene.recipe.features import FeatureTarget, TeacherSpec
from learngene.recipe.gene_run import GeneRun, GeneTrain, GeneType
from learngene.recipe.hyper import Stage1Hyper, stage1_hyper
from learngene.recipe.one_line_faults import changed
from learngene.recipe.pool import PoolSpec
from learngene.recipe.sections import (
    AncestrySpec,
    AuxiliaryShape,
    DataSpec,
    Distill,
    Distinct,
    Positive,
    Section,
    Train,
)
from learngene.recipe.shapes import ShapesOrSizes, TrainedShapes, Turn, depths_alone
from learngene.system.errors import RecipeError, told_of
from learngene.vits.shape import ViTShape

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


class Start(Section):
    """A gene whose templates are taken for another auxiliary shape."""

    gene: Path = Field(description="file of a gene of the same method, with the same classes and image size")
    scalers: Literal["made", "fresh"] = Field(
        "made", description="what scalers start at: made of the gene's own, as for any shape, or fresh, as in the paper"
    )


class CondenseRecipe(Section):
    """Ancestry and data to a gene file."""

    kind: Literal["condense"] = "condense"
    method: str = Field(description="a method whose gene is trained, see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings, see `learngene methods`")
    ancestry: AncestrySpec | None = Field(None, description="the teacher; not needed when distill.alpha is 0")
    shape: AuxiliaryShape = Field(description="the auxiliary shape: a name, or a mapping of ViTShape's fields")
    depths: Distinct[Positive] | None = Field(
        None,
        description="every step trains the gene at one of these depths, all as often, so that it serves at each of "
        "them untuned; short for shapes; by default at the auxiliary depth alone, as the papers do",
    )
    shapes: ShapesOrSizes | None = Field(
        None,
        description="every step trains the gene at one of these shapes, or at a few of them: a list of sizes such as "
        "{embed_dim: 64, depth: 6} or {embed_dim: [32, 96], depth: [3, 9]}, or more about it",
    )
    start: Start | None = Field(
        None, description="wave and any-size only: a gene whose templates are taken and stay; scalers alone are trained"
    )
    data: DataSpec
    train: GeneTrain = Train()
    distill: Distill = Distill()
    features: FeatureTarget | None = Field(None, description="distill.target=features only: which, and how compared")
    teachers: list[TeacherSpec] | None = Field(
        None, description="distill.target=features only: further teachers, beside the ancestry"
    )
    knn: DataSpec | None = Field(
        None,
        description="distill.target=features only: labelled images, on which every evaluation tells kNN's accuracy",
    )
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
        if isinstance(given["distill"], Mapping) and given["distill"].keys() == {"replay"}:
            given["distill"] = {"preset": kind.distillation, **given["distill"]}
        if kind.making == "pool" and given.get("pool") is None:
            given["pool"] = {}
        if kind.making == "hyper":
            given["hyper"] = stage1_hyper(given.get("hyper"), task_aware=kind.task_aware)
        return _without_classes(given)

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
        self._refuse_shapes(kind)
        if self.start is not None:
            self._refuse_start(kind, self.start.gene)
        self._refuse_features(kind)
        self._refuse_replay()
        self._refuse_sharing(kind)
        return self

    def _refuse_start(self, kind: Method, gene: Path) -> None:
        """Raises ``RecipeError`` if nothing can be started from that gene, or it would be overwritten."""
        if not any(map(kind.shared, kind.gene_tensors(self.shape))):
            raise RecipeError(f"start: a gene of {self.method} has no templates; leave it out")
        if self.trained_shapes is not None:
            raise RecipeError("start: trains scalers for shape alone; leave out shapes and depths (shapes: null)")
        if gene.resolve() == (written := self.out.with_name(f"{self.out.name}.safetensors")).resolve():
            raise RecipeError(f"out: {written} is the gene that is started from and would be lost; choose another out")

    def _refuse_replay(self) -> None:
        """Raises ``RecipeError`` if outputs of a teacher are to be stored that there are none of, or that are large."""
        replay = self.distill.replay
        if replay is None:
            return
        if self.ancestry is None:
            raise RecipeError("distill.replay: stores what a teacher says, and this recipe has none; leave it out")
        if replay.top_k is not None and self._teaches() != "logits":
            raise RecipeError("distill.replay.top_k: is of logits, and this recipe learns features; leave it out")
        if self._teaches() == "patches" and not replay.patches:
            raise RecipeError(
                "distill.replay: this recipe learns vectors of patches, which take much space; set "
                "distill.replay.patches=true, or learn none (features.tokens=[pooled], pool.terms=[pred], "
                "hyper.guidance.features=pooled)"
            )

    def _refuse_sharing(self, kind: Method) -> None:
        """Raises ``RecipeError`` if processes would have to call a shared teacher who do not do so together."""
        if not self.train.shard_teachers:
            return
        if self.ancestry is None:
            raise RecipeError("train.shard_teachers: this recipe has no teacher; leave it out")
        apart = {"distill.target=features": self.distill.target == "features", "a pool": kind.making == "pool"}
        apart["distill.replay"] = self.distill.replay is not None
        for what, there in apart.items():
            if there:
                raise RecipeError(f"train.shard_teachers: not with {what}, whose teacher each process asks by itself")

    def _teaches(self) -> Literal["logits", "pooled", "patches"]:
        """The largest of what a teacher teaches."""
        if self.distill.target == "features":
            return "patches" if any(target.grids for target in self.feature_targets()) else "pooled"
        if self.hyper is not None:
            return "patches" if self.hyper.guidance.features == "channel-wise" else "pooled"
        blocks = self.pool is not None and not self.anchors and {"blk", "att"} & set(self.pool.terms)
        return "patches" if blocks and self.pool and any(self.pool.points or [1]) else "logits"

    def _refuse_shapes(self, kind: Method) -> None:
        """Raises ``RecipeError`` unless the method makes every shape, with a model that is trained as it is used."""
        if self.trained_shapes is None:
            return
        key = "shapes" if self.depths is None else "depths"
        if self.depths is not None and self.shapes is not None:
            raise RecipeError("depths: is short for shapes, which is there, too; give one of the two")
        if kind.making != "stage":
            raise RecipeError(f"{key}: {self.method} is not trained at an auxiliary {key[:-1]}; leave it out")
        with told_of(key):
            self.turns()

    def _refuse_features(self, kind: Method) -> None:
        """Raises ``RecipeError`` if features are a target where they cannot be, or are described where they are not."""
        alpha, classes = self.distill.alpha, self.shape.num_classes
        if self.distill.target == "logits":
            for name in ("features", "teachers", "knn"):
                if getattr(self, name) is not None:
                    raise RecipeError(f"{name}: only for distill.target=features; set that, or leave {name} out")
        elif kind.making not in ("stage", "pool"):
            raise RecipeError(
                f"distill.target: {self.method} learns no features, only methods that are trained at one auxiliary "
                "shape do, such as tleg and sws; use distill.target=logits"
            )
        elif alpha == 0:
            raise RecipeError(
                "distill.target: features mean nothing with distill.alpha 0; raise it, or leave target out"
            )
        elif alpha == 1 and classes:
            raise RecipeError(
                f"shape.num_classes {classes}: features train no head; use 0, and expand with the classes of a task, "
                "or give labels a weight with distill.alpha below 1"
            )
        elif alpha < 1 and not classes:
            raise RecipeError(
                f"distill.alpha {alpha:g}: labels need a head; set shape.num_classes to that of the data, or alpha to 1"
            )
        elif alpha < 1 and not self.data.labels:
            raise RecipeError(
                f"data.labels is false, but distill.alpha {alpha:g} gives labels a weight; set one of them"
            )
        elif kind.making == "pool":
            self._refuse_rows_features()
        elif sum(target.keep_bridge for target in self.feature_targets()) > 1:
            raise RecipeError("features.keep_bridge: a gene keeps the bridge to one teacher; set it for one")

    def _refuse_rows_features(self) -> None:
        """Raises ``RecipeError`` unless a pool's rows can learn features."""
        pool = self.pool or PoolSpec()
        if self.anchors:
            raise RecipeError("distill.target: anchors are trained already and learn no features; use logits")
        for name in ("points", "terms", "transform_bias", "learn_equal_width", "guide"):
            if getattr(pool, name) != getattr(PoolSpec(), name):
                raise RecipeError(f"pool.{name} means nothing for distill.target=features; leave it out")
        if pool.stitches == "tm":
            raise RecipeError("pool.stitches: tm needs the matrices of distill.target=logits; use ls")
        if self.knn is not None and self.needs_labels:
            raise RecipeError("knn: a pool that learns labels, too, is judged on them; leave it out")
        if any(target.keep_bridge for target in self.feature_targets()):
            raise RecipeError("features.keep_bridge: every row of a pool has a bridge of its own; leave it out")

    @property
    def trained_shapes(self) -> TrainedShapes | None:
        """At which shapes the gene is trained; None at the auxiliary one alone."""
        return self.shapes if self.depths is None else depths_alone(self.depths)

    def turns(self) -> list[Turn]:
        """What a step can be trained at; nothing if that is the auxiliary shape alone."""
        spec = self.trained_shapes
        return spec.turns(method(self.method, self.settings), self.shape) if spec else []

    @property
    def macs(self) -> Fraction:
        """Multiply-adds of an image in a forward pass of what a step trains, on average."""
        spec = self.trained_shapes
        return spec.macs(self.turns()) if spec else Fraction(self.shape.macs())

    @property
    def needs_labels(self) -> bool:
        """Whether the classes of the images are looked at."""
        return self.distill.target == "logits" or self.distill.alpha < 1

    @property
    def images(self) -> DataSpec:
        """The data section: without classes where nobody looks at them."""
        return self.data if self.needs_labels else self.data.model_copy(update={"labels": False})

    def feature_targets(self) -> list[FeatureTarget]:
        """How the features of every teacher are matched: of the ancestry first, from whose others differ."""
        first = self.features or FeatureTarget()
        shared = first.model_copy(update={"keep_bridge": False})
        return [first] + [changed(shared, teacher.features, "teachers.features") for teacher in self.teachers or ()]

    def row_train(self) -> Train:
        """How the rows of a pool are trained."""
        return changed(self.train, self.pool.rows if self.pool else {}, "pool.rows")

    def path_train(self) -> Train | None:
        """How the paths of a pool are tuned; None leaves them untuned."""
        changes = self.pool.tune if self.pool else {}
        return None if changes is None else changed(self.train, changes, "pool.tune")


def _without_classes(given: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a gene that learns features alone: of no classes, unless its shape says how many."""
    distill, shape = given.get("distill"), given.get("shape")
    if not isinstance(distill, Mapping) or distill.get("target") != "features":
        return given
    preset = Distill.presets.get(str(distill.get("preset")), {})
    if distill.get("alpha", preset.get("alpha", 1.0)) != 1:
        return given
    if isinstance(shape, str):
        given["shape"] = {"named": shape, "num_classes": 0}
    elif isinstance(shape, ViTShape) and shape.num_classes == ViTShape.__dataclass_fields__["num_classes"].default:
        given["shape"] = shape.replace(num_classes=0)
    elif isinstance(shape, Mapping) and "num_classes" not in shape:
        given["shape"] = {**shape, "num_classes": 0}
    return given
