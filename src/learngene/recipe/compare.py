"""The recipe of a comparison: named tasks, shapes, contenders and budgets, and which of them to run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from learngene.methods import method
from learngene.recipe.condense import refuse_foreign_parts
from learngene.recipe.one_line_faults import validated
from learngene.recipe.search import Routing, Selection
from learngene.recipe.sections import (
    Above0,
    AncestrySpec,
    ByName,
    DataSpec,
    Distill,
    Distinct,
    OwnWeights,
    Positive,
    Section,
    Seed,
    ShapeChanges,
    Train,
    merge,
)
from learngene.recipe.shapes import ShapesOrSizes
from learngene.system.errors import RecipeError, ShapeError, nearest
from learngene.vits.stitched_shape import shape_from

SOURCE = "home"
"""Name of the task on which genes are condensed and ancestries trained; every comparison has it."""


class ModelSpec(OwnWeights):
    """An ancestry model: loaded as it is, or trained on the home task before anything else."""

    source: str | None = Field(None, description="timm name with pretrained weights, folder or checkpoint file")
    architecture: str | None = Field(None, description="timm architecture: trained here, or that of a checkpoint file")
    model_args: dict[str, Any] = Field({}, description="arguments for timm.create_model")
    shape: ShapeChanges | None = Field(None, description="a plain ViT to train here: what differs from `shape`")
    train: dict[str, Any] = Field({}, description="how it is trained here: what differs from `condense`")
    trained_macs: Positive | None = Field(
        None,
        description="multiply-adds that training the source cost, for total costs; by default what the record in its "
        "run folder says",
    )
    per_seed: bool = Field(False, description="train one for every seed of the comparison, instead of one for all")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if self.source is None and (self.architecture is None) == (self.shape is None):
            raise RecipeError("ancestry: give source (a trained model), or architecture or shape (trained here)")
        if self.source is None and self.own_weights:
            raise RecipeError(f"ancestry: {next(iter(self.own_weights))} is for a source; leave it out")
        if self.source is None and self.trained_macs is not None:
            raise RecipeError("ancestry: trained_macs is for a source; what is trained here is counted")
        return self

    def loaded(self) -> AncestrySpec:
        """The section of an ancestry that is loaded as it is."""
        named = {"source": self.source, "architecture": self.architecture, "model_args": self.model_args}
        return AncestrySpec.model_validate(named | self.own_weights)


LearnedTasks = Annotated[
    list[str] | None, Field(min_length=1, description="names; by default all tasks but the home task")
]


class SearchSpec(Section):
    """Of a contender whose gene is searched (LSAMD): on which tasks, and how."""

    tasks: LearnedTasks = None
    routing: Routing = Routing()
    select: Selection = Selection()
    stem: bool = Field(True, description="whether the gene carries patch projection, positions and final norm")
    rates: dict[str, float] = Field({}, description="learning rates of tasks that need one of their own")


class Stage2Spec(Section):
    """Of a contender whose hypernetwork is tuned on tasks (TAL's stage 2): on which, and how."""

    tasks: LearnedTasks = None
    each: bool = Field(False, description="one hypernetwork per task of a cell, instead of one for all (LoGAH v1, v2)")
    fresh: bool = Field(False, description="without stage 1 on the home task (LoGAH v1, v3)")
    temperature: Above0 = Field(2.0, description="of drawing tasks")
    freeze_encoder: bool = Field(False, description="train the decoder and the task layers only")
    task_layers: bool | None = Field(None, description="true adds task layers to LoGAH's, false takes TAL's away")
    train: dict[str, Any] = Field({}, description="how it is tuned: what differs from the contender's `train`")
    augment: dict[str, dict[str, Any]] = Field({}, description="by task: what differs from `train.augment`")


class ContenderSpec(Section):
    """One way to initialise models, with what it needs."""

    method: str = Field(description="see `learngene methods`")
    settings: dict[str, Any] = Field({}, description="the method's settings")
    ancestry: str | None = Field(None, description="name of the teacher, or of the model a gene is extracted from")
    anchors: list[str] = Field([], description="names of the ancestries that become the rows of an sn-net")
    pool: dict[str, Any] | None = Field(None, description="a pool section, for methods pool and sn-net")
    search: SearchSpec | None = Field(None, description="for lsamd: searches the blocks, instead of settings.layers")
    hyper: dict[str, Any] | None = Field(None, description="a hyper section, for tal, logah and ghn3")
    stage2: Stage2Spec | None = Field(None, description="tunes the hypernetwork on tasks; without, stage 1 alone")
    auxiliary: ShapeChanges = Field({}, description="the auxiliary shape: what differs from `shape`")
    depths: Distinct[Positive] | None = Field(None, description="at which the gene is trained, as of a condense recipe")
    shapes: ShapesOrSizes | None = Field(None, description="at which the gene is trained, as of a condense recipe")
    each: bool = Field(False, description="one gene per shape, trained at that shape, as pre-fin and distilled are")
    train: dict[str, Any] = Field({}, description="how the gene is trained: what differs from `condense`")
    distill: dict[str, Any] | None = Field(None, description="a distill section; the method's own by default")
    features: dict[str, Any] | None = Field(None, description="a features section, with distill.target=features")
    options: dict[str, Any] = Field({}, description="the method's choices at expansion")
    layers: list[Positive] | None = Field(None, description="fill only these layers, counted from 1 (TLEG Table 5)")
    modules: list[str] | None = Field(None, description="fill only these of msa, mlp, ln (TLEG Table 4)")
    tune: dict[str, Any] = Field({}, description="how its descendants are tuned: what differs from `tune`")
    times: Above0 = Field(1.0, description="its epochs of tuning over those of the budget")

    @model_validator(mode="after")
    def _method_fits(self) -> ContenderSpec:
        kind = method(self.method, self.settings)
        if self.each and "condense" not in kind.origins:
            raise RecipeError(f"each: a gene per shape needs a method that is trained, which {self.method} is not")
        for name in ("depths", "shapes"):
            if self.each and getattr(self, name):
                raise RecipeError(f"{name}: a gene per shape is trained at its own shape; leave {name} or each out")
        refuse_foreign_parts(self, kind)
        if self.stage2 is not None and self.task_aware and self.ancestry is None:
            raise RecipeError("ancestry is missing: the task embeddings of tal are its features")
        if self.search is not None and "search" not in kind.origins:
            raise RecipeError(f"search: method {self.method} has no blocks to search; leave it out")
        if self.search is not None and "layers" in self.settings:
            raise RecipeError("search: finds the blocks that settings.layers names; give one of the two")
        if kind.origins and not self.trained and self.ancestry is None:
            raise RecipeError(f"ancestry is missing: {self.method} is taken from a trained model; name one")
        return self

    @property
    def task_aware(self) -> bool:
        """Whether its hypernetwork is tuned with task layers."""
        asked = self.stage2.task_layers if self.stage2 else None
        return asked if asked is not None else method(self.method, self.settings).task_aware

    @property
    def needs_labels(self) -> bool:
        """Whether its gene learns classes of the home task; one that learns features alone has none."""
        if (self.distill or {}).get("target") != "features":
            return True
        return Distill.model_validate(self.distill).alpha < 1

    @property
    def trained(self) -> bool:
        """Whether its gene is condensed here; one that can also be extracted is, if it has a shape of its own."""
        origins = method(self.method, self.settings).origins
        return "condense" in origins and bool(self.each or self.auxiliary or "extract" not in origins)


Names = Annotated[list[str] | None, Field(min_length=1)]


class BudgetSpec(Section):
    """How long descendants are tuned."""

    epochs: int = Field(ge=0, description="passes over the task's images; 0 scores descendants as they are")
    cost_of: str | None = Field(
        None,
        description="a contender: all others get the epochs that make their total cost equal to this one's, with gene "
        "and pretraining shared over the descendants",
    )
    judge: Literal["head", "knn", "linear"] = Field(
        "head",
        description="untuned descendants by frozen features instead of a head's accuracy: the vote of their 20 nearest "
        "training images, or a linear classifier, as `eval --knn` and `eval --linear`",
    )
    tune: dict[str, Any] = Field({}, description="how descendants are tuned: what differs from `tune`")
    tasks: Names = Field(None, description="tasks with this budget; by default all that are run")

    @model_validator(mode="after")
    def _frozen(self) -> BudgetSpec:
        if self.judge != "head" and (self.epochs or self.cost_of or self.tune):
            raise RecipeError(
                f"judge: {self.judge} is of frozen features; set epochs to 0, and leave cost_of and tune out"
            )
        return self


class Run(Section):
    """Which of the named entries to run; all of them by default."""

    tasks: Distinct[str] | None = None
    shapes: Distinct[str] | None = None
    contenders: Distinct[str] | None = None
    budgets: Distinct[str] | None = None
    seeds: Distinct[Seed] = Field([0, 1, 2], description="every cell is run with each")
    skip_impossible: bool = Field(
        False, description="leave out shapes that a contender cannot make, instead of refusing the comparison"
    )


class TaskSize(Section):
    """How large a task is, declared so that costs are known without its data."""

    images: Positive = Field(description="training images")
    classes: Positive
    masks: bool = Field(False, description="segmentation: the classes are those of pixels")


class CompareRecipe(Section):
    """Everything a comparison needs."""

    kind: Literal["compare"] = "compare"
    out: Path = Field(Path("results/compare"), description="results: one JSON per cell, tables and plots")
    store: Path = Field(Path("runs/store"), description="what is trained on the way: ancestries and genes")
    data: DataSpec = Field(description="the home task, on which genes are condensed and ancestries trained")
    tasks: ByName[DataSpec] = Field({}, description="other tasks, of images with masks too; null removes one")
    ancestries: dict[str, ModelSpec] = Field({}, description="teachers and models to extract from, by name")
    shape: ShapeChanges = Field({}, description="what all shapes have in common")
    shapes: dict[str, ShapeChanges] = Field(description="descendants by name: what differs from `shape`")
    contenders: dict[str, ContenderSpec]
    condense: dict[str, Any] = Field({}, description="train section of genes and ancestries")
    tune: dict[str, Any] = Field({}, description="train section of descendants; the budget says how long")
    budgets: dict[str, BudgetSpec]
    run: Run = Run()
    teacher_cost: Literal["all", "shared", "given"] = Field(
        "shared",
        description="how the training of teachers counts in total costs: all (each model bears all of it), shared (by "
        "the models of a contender, as with somebody who trains one for them), given (not at all: it was there anyway)",
    )
    sizes: dict[str, TaskSize] | None = Field(None, description="of every task, to know costs without the data")
    keep_runs: bool = Field(False, description="save the state of every cell each epoch; worth it if cells take hours")

    @model_validator(mode="before")
    @classmethod
    def _contenders_extend(cls, given: Any) -> Any:
        """Resolves ``extends: other``: a contender that differs from another in what it says."""
        if not isinstance(given, Mapping) or not isinstance(given.get("contenders"), Mapping):
            return given
        contenders = given["contenders"]
        return {**given, "contenders": {name: _extended(name, contenders, ()) for name in contenders}}

    @model_validator(mode="after")
    def _parts_fit(self) -> CompareRecipe:
        if SOURCE in self.tasks:
            raise RecipeError(f"tasks: '{SOURCE}' is the task of `data`; give this one another name")
        self._refuse_alike_tasks()
        for where, section, *changes in self._trained():
            self.train(section, *changes, where=where)
        shapes = {f"contenders.{name}.auxiliary": contender.auxiliary for name, contender in self.contenders.items()}
        for where, shape in (shapes | {f"shapes.{name}": shape for name, shape in self.shapes.items()}).items():
            try:
                shape_from({**self.shape, **shape})
            except ShapeError as error:
                raise RecipeError(f"{where}: {error}") from None
        for where, name, known in self._references():
            if name not in known:
                raise RecipeError(f"{where}: no '{name}' is defined{nearest(name, known)}")
        self._refuse_labels()
        for name, contender in self.contenders.items():
            stage2, search = contender.stage2, contender.search
            if stage2 and not stage2.each and not self.learned(stage2):
                raise RecipeError(f"contenders.{name}.stage2: needs tasks to tune on, and none are defined")
            if search and not self.tasks:
                raise RecipeError(f"contenders.{name}.search: needs tasks to search on, and none are defined")
        return self

    def _refuse_labels(self) -> None:
        """Raises ``RecipeError`` for whatever needs classes of a home task whose images have none."""
        if self.data.labels:
            return
        remedy = "data.labels is false; leave that out, or"
        spoken = "learns the home task's classes"
        for name, ancestry in self.ancestries.items():
            if ancestry.source is None:
                raise RecipeError(f"ancestries.{name}: {spoken}, but {remedy} give a source")
        for name, spec in self.contenders.items():
            if spec.trained and spec.search is None and spec.needs_labels and not (spec.stage2 and spec.stage2.fresh):
                raise RecipeError(f"contenders.{name}: {spoken}, but {remedy} set distill.target=features")
        if SOURCE in (self.run.tasks or ()) or not self.tasks:
            raise RecipeError(f"run.tasks: the images of '{SOURCE}' have no classes to judge by; name other tasks")

    def _refuse_alike_tasks(self) -> None:
        """Results are known by the file names of their images, so two sets must not have the same."""
        seen: dict[tuple[str, ...], tuple[str, list[str]]] = {}
        for task, data in {SOURCE: self.data, **self.tasks}.items():
            names = tuple(data.names)
            other, sources = seen.setdefault(names, (task, data.sources))
            if sources != data.sources:
                raise RecipeError(
                    f"tasks.{task}: its images have the same file name as those of '{other}' ({names[0]}), by which "
                    "results are known; rename one"
                )

    def _trained(self) -> Iterator[tuple[Any, ...]]:
        """For every train section that is made of changes: where the last changes stand, the section, all changes."""
        yield "condense", "condense"
        yield "tune", "tune"
        for name, ancestry in self.ancestries.items():
            yield f"ancestries.{name}.train", "condense", ancestry.train
        for name, budget in self.budgets.items():
            yield f"budgets.{name}.tune", "tune", budget.tune
        for name, contender in self.contenders.items():
            yield f"contenders.{name}.train", "condense", contender.train
            yield f"contenders.{name}.tune", "tune", contender.tune
            if contender.stage2:
                yield f"contenders.{name}.stage2.train", "condense", contender.train, contender.stage2.train

    def _references(self) -> Iterator[tuple[str, str, Collection[str]]]:
        """Every name that refers to an entry: where it stands, the name, and those that are defined."""
        tasks = {SOURCE, *self.tasks}
        for field in ("tasks", "shapes", "contenders", "budgets"):
            known = tasks if field == "tasks" else getattr(self, field)
            yield from ((f"run.{field}", name, known) for name in getattr(self.run, field) or ())
        for contender, spec in self.contenders.items():
            where = f"contenders.{contender}"
            if spec.ancestry is not None:
                yield f"{where}.ancestry", spec.ancestry, self.ancestries
            yield from ((f"{where}.anchors", name, self.ancestries) for name in spec.anchors)
            if spec.stage2:
                names = [*(spec.stage2.tasks or ()), *spec.stage2.augment]
                yield from ((f"{where}.stage2", name, tasks) for name in names)
            if spec.search:
                names = [*(spec.search.tasks or ()), *spec.search.rates]
                yield from ((f"{where}.search", name, tasks) for name in names)
        for name, budget in self.budgets.items():
            yield from ((f"budgets.{name}.tasks", task, tasks) for task in budget.tasks or ())
            if budget.cost_of is not None:
                yield f"budgets.{name}.cost_of", budget.cost_of, self.contenders

    def train(self, section: Literal["condense", "tune"], *changes: Mapping[str, Any], where: str = "") -> Train:
        """One of the train sections with changes applied in turn; ``where`` is what errors call the last of them."""
        fields: dict[str, Any] = getattr(self, section)
        for change in changes:
            fields = merge(fields, change)
        return validated(Train, fields, where or section)

    def chosen(self, field: Literal["tasks", "shapes", "contenders", "budgets"]) -> list[str]:
        """The names of one kind that are run, in the recipe's order."""
        known = list(getattr(self, field))
        if field == "tasks" and self.data.labels:
            known = [SOURCE, *known]
        return list(getattr(self.run, field) or known)

    def learned(self, part: SearchSpec | Stage2Spec) -> list[str]:
        """The tasks on which a contender's blocks are searched, or its hypernetwork is tuned."""
        return part.tasks or list(self.tasks)

    def needed(self) -> list[str]:
        """The tasks whose images are needed: the home task, those that are run, and those that genes learn from."""
        tasks = [SOURCE, *self.chosen("tasks")]
        for spec in (self.contenders[name] for name in self.chosen("contenders")):
            tasks += self.learned(spec.search) if spec.search else []
            tasks += self.learned(spec.stage2) if spec.stage2 and not spec.stage2.each else []
        return list(dict.fromkeys(tasks))


def _extended(name: str, contenders: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    spec = contenders[name]
    if not isinstance(spec, Mapping) or "extends" not in spec:
        return spec
    other = spec["extends"]
    if not isinstance(other, str) or other not in contenders:
        raise RecipeError(f"contenders.{name}.extends: no '{other}' is defined{nearest(str(other), contenders)}")
    if other in (*seen, name):
        raise RecipeError(f"contenders.{name}.extends: '{other}' extends itself")
    own = {key: value for key, value in spec.items() if key != "extends"}
    return merge(_extended(other, contenders, (*seen, name)), own)
