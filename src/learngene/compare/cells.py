"""What a comparison consists of: ancestries to train, genes to make, cells to measure, each known by its content.

Nothing here trains. A job's key is a hash of everything that decides its result, so that two comparisons which
need the same gene, or the same cell, share one file, and a cell that is there is never run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learngene.compare.recipe import HOME, CompareRecipe, ContenderSpec, ModelSpec, SearchSpec
from learngene.errors import ShapeError
from learngene.keys import FREE_TO_CHANGE, hashed
from learngene.keys import content as content_of
from learngene.methods import Method, method
from learngene.methods.rows import Rows
from learngene.pooling.rows import row_recipe
from learngene.recipe import CondenseRecipe, build_recipe
from learngene.searching.paths import NAME as PATH_FILE
from learngene.searching.recipe import SearchRecipe, TaskSearch
from learngene.sections import AncestrySpec, DataSpec, Train
from learngene.segmentation import segmenter_macs, segmenter_params
from learngene.shape import ViTShape
from learngene.stitched import Shape, StitchedShape, shape_from

Place = tuple[str, str, str, str, int]
"""Contender, shape, task, budget and seed of a cell."""


@dataclass(frozen=True)
class AncestryJob:
    """An ancestry model: trained on the home task if its source is not there already.

    Attributes:
        name: What the recipe calls it.
        spec: Its entry.
        shape: Of a plain ViT that is trained here.
        train: How it is trained.
        data: The home task.
        folder: Where it is kept.
    """

    name: str
    spec: ModelSpec
    shape: ViTShape | None
    train: Train
    data: DataSpec
    folder: Path

    @property
    def path(self) -> Path:
        """The trained model's folder."""
        return self.folder / "descendant"

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.spec.source is not None or (self.path / "learngene.json").exists()

    def source(self) -> AncestrySpec:
        """How to load it once it is there."""
        if self.spec.source is None:
            return AncestrySpec(source=str(self.path))
        return AncestrySpec(
            source=self.spec.source, architecture=self.spec.architecture, model_args=self.spec.model_args
        )


@dataclass(frozen=True)
class RowJob:
    """A row of a pool, distilled by itself, so that pools share it and processes work side by side.

    Attributes:
        name: What to call it while it is trained.
        pool: The recipe of a pool it belongs to.
        index: Which row of that pool.
        ancestry: The teacher.
        recipe: The part of the recipe that decides the row.
    """

    name: str
    pool: CondenseRecipe
    index: int
    ancestry: AncestryJob | None
    recipe: CondenseRecipe

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.recipe.out

    @property
    def done(self) -> bool:
        """Whether it is trained."""
        return (self.path / "result.json").exists()


@dataclass(frozen=True)
class SearchJob:
    """The super net of one data set of a search, trained by itself, so that searches share it.

    Attributes:
        name: What to call it while it is trained.
        search: The recipe of a search it belongs to.
        task: Which data set of that search.
        ancestry: Whose blocks are searched.
        recipe: The part of the recipe that decides its path.
    """

    name: str
    search: SearchRecipe
    task: str
    ancestry: AncestryJob
    recipe: TaskSearch

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.recipe.out

    @property
    def done(self) -> bool:
        """Whether its path is there."""
        return (self.path / PATH_FILE).exists()


@dataclass(frozen=True)
class GeneJob:
    """A gene: condensed by a recipe, searched, or extracted from its ancestry.

    Attributes:
        name: What to call it while it is made.
        method: The method with its settings.
        shape: The auxiliary shape; an extracted gene has its ancestry's.
        ancestry: Teacher or origin.
        recipe: How it is condensed or searched; None for one that is extracted.
        data: The home task, on which an extracted gene may rank neurons.
        path: The gene file.
        rows: Of a pool, trained before it.
        anchors: Of an SN-Net.
        searches: Of a searched gene, its data sets.
    """

    name: str
    method: Method
    shape: ViTShape
    ancestry: AncestryJob | None
    recipe: CondenseRecipe | SearchRecipe | None
    data: DataSpec
    path: Path
    rows: tuple[RowJob, ...] = ()
    anchors: tuple[AncestryJob, ...] = ()
    searches: tuple[SearchJob, ...] = ()

    @property
    def parts(self) -> list[RowJob | SearchJob]:
        """What is trained before it and may be shared by other genes."""
        return [*self.rows, *self.searches]

    @property
    def done(self) -> bool:
        """Whether the gene file is there."""
        return self.path.exists()


@dataclass(frozen=True)
class Cell:
    """One descendant, measured: a contender at a shape on a task, with a budget and a seed.

    Attributes:
        contender: Name of the contender.
        shape_name: Name of the shape.
        task: Name of the task.
        budget: Name of the budget.
        seed: Of the gene, of what starts fresh and of the tuning.
        spec: The contender.
        method: Its method with its settings.
        gene: What it starts from; None for scratch.
        shape: The descendant's shape.
        data: The task.
        train: The tuning; None scores the descendant as it is.
        key: Hash of everything that decides the result.
        path: The result file.
        masked: Whether the task's images have masks, so that the descendant gets a segmentation head.
    """

    contender: str
    shape_name: str
    task: str
    budget: str
    seed: int
    spec: ContenderSpec
    method: Method
    gene: GeneJob | None
    shape: Shape
    data: DataSpec
    train: Train | None
    key: str
    path: Path
    masked: bool = False

    @property
    def params(self) -> int:
        """Parameters of the descendant with its head."""
        return segmenter_params(self.shape) if self.masked else self.shape.params()

    @property
    def macs(self) -> int:
        """Multiply-adds of one image through the descendant with its head."""
        return segmenter_macs(self.shape) if self.masked else self.shape.macs()

    @property
    def place(self) -> Place:
        """Where it stands in the comparison."""
        return self.contender, self.shape_name, self.task, self.budget, self.seed

    @property
    def done(self) -> bool:
        """Whether a result is there; ``results.read_cell`` says whether it is a good one."""
        return self.path.exists()

    def __str__(self) -> str:
        return f"{self.contender} {self.shape_name} {self.task} {self.budget} seed {self.seed}"


Job = AncestryJob | RowJob | SearchJob | GeneJob | Cell


@dataclass
class Comparison:
    """All jobs of a recipe.

    Attributes:
        recipe: The recipe.
        ancestries: By name, those that any cell needs.
        genes: In the order they are needed.
        cells: Every combination of contender, shape, task, budget and seed.
        num_classes: Classes of every task that is run, and of the home task.
        loaded: Shapes of the plain ViTs that are loaded as they are, by name of the ancestry.
        masked: Tasks whose images have masks.
    """

    recipe: CompareRecipe
    num_classes: Mapping[str, int]
    loaded: Mapping[str, ViTShape] = field(default_factory=dict)
    masked: Collection[str] = ()
    ancestries: dict[str, AncestryJob] = field(default_factory=dict)
    genes: list[GeneJob] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        """Everything there is to do, what others need first."""
        parts = {part.path: part for gene in self.genes for part in gene.parts}
        return [*self.ancestries.values(), *parts.values(), *self.genes, *self.cells]

    def task_data(self, task: str) -> DataSpec:
        """The data section of a task."""
        return self.recipe.data if task == HOME else self.recipe.tasks[task]


def lay_out(
    recipe: CompareRecipe,
    num_classes: Mapping[str, int],
    train_images: Mapping[str, int],
    loaded: Mapping[str, ViTShape] | None = None,
    masked: Collection[str] = (),
) -> Comparison:
    """Makes all jobs of a recipe, with their keys.

    Args:
        recipe: The recipe.
        num_classes: Classes of every task.
        train_images: Training images of every task, from which equal costs are computed.
        loaded: Shapes of the plain ViTs that are loaded as they are, by name of the ancestry.
        masked: Tasks whose images have masks.

    Raises:
        LearngeneError: If a contender's gene cannot be described: the first fault.
    """
    from learngene.compare.cost import equal_epochs

    out = Comparison(recipe, num_classes, loaded or {}, masked)
    genes: dict[Path, GeneJob] = {}
    for name in recipe.chosen("contenders"):
        spec = recipe.contenders[name]
        for shape_name in recipe.chosen("shapes"):
            for seed in recipe.run.seeds:
                gene = _gene(out, name, spec, shape_name, seed)
                if gene is not None:
                    if recipe.run.skip_impossible and not _possible(out, spec, shape_name, gene):
                        continue
                    gene = genes.setdefault(gene.path, gene)
                for task in recipe.chosen("tasks"):
                    for budget in recipe.chosen("budgets"):
                        out.cells.append(_cell(out, name, shape_name, task, budget, seed, gene, None))
    out.genes = list(genes.values())
    equal = [budget for budget in recipe.chosen("budgets") if recipe.budgets[budget].cost_of]
    if equal:
        epochs = equal_epochs(out, train_images)
        out.cells = [
            _cell(out, c.contender, c.shape_name, c.task, c.budget, c.seed, c.gene, epochs[c.place])
            if c.budget in equal
            else c
            for c in out.cells
        ]
    return out


def _ancestry(out: Comparison, name: str, seed: int) -> AncestryJob:
    recipe = out.recipe
    spec = recipe.ancestries[name]
    label = f"{name}-s{seed}" if spec.per_seed else name
    if label not in out.ancestries:
        shape = None
        if spec.shape is not None:
            shape = ViTShape.from_dict({**recipe.shape, **spec.shape, "num_classes": out.num_classes[HOME]})
        train = recipe.train("condense", spec.train, {"seed": seed} if spec.per_seed else {})
        content = [_identity(spec), shape.to_dict() if shape else None, content_of(train), content_of(recipe.data)]
        folder = recipe.store / f"ancestry-{label}-{hashed(content)}"
        out.ancestries[label] = AncestryJob(label, spec, shape, train, recipe.data, folder)
    return out.ancestries[label]


def _gene(out: Comparison, name: str, spec: ContenderSpec, shape_name: str, seed: int) -> GeneJob | None:
    recipe, kind = out.recipe, method(spec.method, spec.settings)
    ancestry = _ancestry(out, spec.ancestry, seed) if spec.ancestry else None
    if not kind.origins:
        return None
    fields = {**recipe.shape, **spec.auxiliary, "num_classes": out.num_classes[HOME]}
    if spec.each:
        fields |= recipe.shapes[shape_name]
    if spec.search is not None:
        assert ancestry is not None
        return _searched_gene(out, name, spec, spec.search, ancestry, seed)
    if not spec.trained:
        assert ancestry is not None
        shape = ancestry.shape or out.loaded.get(ancestry.name) or ViTShape.from_dict(fields)
        key = hashed([spec.method, spec.settings, ancestry.folder.name])
        path = recipe.store / f"{spec.method}-{key}.safetensors"
        return GeneJob(spec.method, kind, shape, ancestry, None, recipe.data, path)
    shape = ViTShape.from_dict(fields)
    train = recipe.train("condense", spec.train, {"seed": seed})
    given: dict[str, Any] = {
        "kind": "condense",
        "method": spec.method,
        "settings": spec.settings,
        "shape": shape,
        "data": recipe.data,
        "train": train,
    }
    if spec.distill is not None:
        given["distill"] = spec.distill
    if ancestry is not None:
        given["ancestry"] = ancestry.source()
    anchors = tuple(_ancestry(out, anchor, seed) for anchor in spec.anchors)
    if anchors:
        given["anchors"] = [anchor.source() for anchor in anchors]
    if isinstance(kind, Rows):
        given["pool"] = {**(spec.pool or {}), **({} if anchors else {"kept": recipe.store})}
    condense = build_recipe(given, where=f"contenders.{name}")
    assert isinstance(condense, CondenseRecipe)
    needs_teacher = isinstance(kind, Rows) or condense.distill.alpha > 0
    teacher = ancestry.folder.name if ancestry and needs_teacher else None
    content = [spec.method, spec.settings, shape.to_dict(), content_of(recipe.data), content_of(train)]
    if condense.pool:
        content += [content_of(condense.pool.model_copy(update={"kept": None})), [job.folder.name for job in anchors]]
    label = f"{spec.method}-d{shape.depth}-s{seed}-{hashed([*content, content_of(condense.distill), teacher])}"
    condense = condense.model_copy(update={"out": recipe.store / label})
    if teacher is None:
        condense, ancestry = condense.model_copy(update={"ancestry": None}), None
    title, path = f"{spec.method} d{shape.depth} seed {seed}", recipe.store / f"{label}.safetensors"
    rows = () if anchors or not isinstance(kind, Rows) else _rows(condense, ancestry, kind, seed)
    return GeneJob(title, kind, shape, ancestry, condense, recipe.data, path, rows, anchors)


def _searched_gene(
    out: Comparison, name: str, spec: ContenderSpec, search: SearchSpec, ancestry: AncestryJob, seed: int
) -> GeneJob:
    recipe = out.recipe
    tasks = recipe.searched(search)
    train = recipe.train("condense", spec.train, {"seed": seed})
    rates = {task: {"lr": search.rates[task]} for task in tasks if task in search.rates}
    given: dict[str, Any] = {
        "kind": "search",
        "ancestry": ancestry.source(),
        "tasks": {task: {"data": out.task_data(task), "train": rates.get(task, {})} for task in tasks},
        "train": train,
        "routing": search.routing,
        "select": search.select,
        "stem": search.stem,
        "kept": recipe.store,
    }
    built = build_recipe(given, where=f"contenders.{name}.search")
    assert isinstance(built, SearchRecipe)
    parts = [built.task(task) for task in tasks]
    key = hashed([sorted(part.out.name for part in parts), content_of(search.select), built.tau, search.stem])
    label = f"{spec.method}-s{seed}-{key}"
    built = built.model_copy(update={"out": recipe.store / label})
    shape = ancestry.shape or out.loaded.get(ancestry.name)
    if shape is None:
        shape = ViTShape.from_dict({**recipe.shape, **spec.auxiliary, "num_classes": out.num_classes[HOME]})
    searches = tuple(
        SearchJob(f"{task} seed {seed}", built, task, ancestry, part) for task, part in zip(tasks, parts, strict=True)
    )
    # Which blocks will be kept is not known yet; how many, only if the rule says so.
    kind, path = (
        built.method(tuple(range(1, (search.select.blocks if search.select.rule == "top_k" else 1) + 1))),
        recipe.store / f"{label}.safetensors",
    )
    return GeneJob(f"{spec.method} seed {seed}", kind, shape, ancestry, built, recipe.data, path, searches=searches)


def _rows(condense: CondenseRecipe, ancestry: AncestryJob | None, kind: Rows, seed: int) -> tuple[RowJob, ...]:
    parts = [row_recipe(condense, index) for index in range(len(kind.rows))]
    return tuple(
        RowJob(f"w{part.shape.embed_dim} d{part.shape.depth} seed {seed}", condense, index, ancestry, part)
        for index, part in enumerate(parts)
    )


def _possible(out: Comparison, spec: ContenderSpec, shape_name: str, gene: GeneJob) -> bool:
    try:
        gene.method.refuse(gene.shape, _shape(out, shape_name, HOME), **spec.options)
    except ShapeError:
        return False
    return True


def _shape(out: Comparison, shape_name: str, task: str) -> Shape:
    """A named shape with the classes of a task, and with the size of its images if the task says one."""
    recipe = out.recipe
    size = out.task_data(task).img_size
    own = {"num_classes": out.num_classes[task], **({"img_size": size} if size else {})}
    return shape_from({**recipe.shape, **recipe.shapes[shape_name], **own})


def _cell(
    out: Comparison,
    contender: str,
    shape_name: str,
    task: str,
    budget: str,
    seed: int,
    gene: GeneJob | None,
    epochs: int | None,
) -> Cell:
    recipe = out.recipe
    spec, data = recipe.contenders[contender], out.task_data(task)
    shape = _shape(out, shape_name, task)
    if epochs is None:
        epochs = round(recipe.budgets[budget].epochs * spec.times)
    tuning = (recipe.budgets[budget].tune, spec.tune, {"epochs": epochs, "seed": seed})
    train = recipe.train("tune", *tuning) if epochs else None
    content = [
        [spec.method, spec.settings, spec.options, spec.layers, spec.modules],
        gene.path.name.rpartition("-")[2] if gene else None,
        [shape.to_dict(), seed, content_of(data), content_of(train) if train else None],
    ]
    key = hashed(content)
    widths = [part.embed_dim for part in shape.parts] if isinstance(shape, StitchedShape) else [shape.embed_dim]
    width = f"d{shape.depth}w{'-'.join(str(each) for each in widths)}"
    path = recipe.out / "cells" / f"{spec.method}-{width}-{data_name(data)}-e{epochs}-s{seed}-{key}.json"
    kind = method(spec.method, spec.settings)
    masked = task in out.masked
    return Cell(contender, shape_name, task, budget, seed, spec, kind, gene, shape, data, train, key, path, masked)


def data_name(data: DataSpec) -> str:
    """A short name of a data section: its source's file name."""
    return Path(data.sources[0]).name.split(".")[0]


def _identity(spec: ModelSpec) -> dict[str, Any]:
    """What an entry says about its model; its training is hashed as a whole."""
    values = content_of(spec)
    values.pop("per_seed")  # the seed is part of how it is trained
    values["train"] = {name: value for name, value in spec.train.items() if name not in FREE_TO_CHANGE}
    if spec.source and ":" not in spec.source:  # a path; timm has names with a colon, and then with a slash
        values["source"] = Path(spec.source).name
    return values
