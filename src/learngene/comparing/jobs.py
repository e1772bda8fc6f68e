"""The jobs of a comparison: ancestries to train, genes and their parts to make, cells to measure.

Each is known by its content: the name of its folder or file has a hash of everything that decides its result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from learngene.methods import Method
from learngene.recipe.compare import SOURCE, CompareRecipe, ContenderSpec, ModelSpec
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.search import SearchRecipe, TaskSearch
from learngene.recipe.sections import AncestrySpec, DataSpec, Train
from learngene.recipe.tune import TuneRecipe
from learngene.vits.segmenter_sizes import segmenter_macs, segmenter_params
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

Coordinates = tuple[str, str, str, str, int]
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

    def is_there(self) -> bool:
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
class GeneJob:
    """A gene: condensed by a recipe, searched, or extracted from its ancestry.

    Attributes:
        name: What to call it while it is made.
        method: The method with its settings.
        shape: The auxiliary shape; an extracted gene has its ancestry's.
        ancestry: Teacher or origin.
        recipe: How it is condensed, searched or tuned; None for one that is extracted.
        data: The home task, on which an extracted gene may rank neurons.
        path: The gene file.
        rows: Recipes of a pool's rows, which are distilled one by one before it, so that pools share them.
        anchors: Of an SN-Net.
        searches: Recipes of a searched gene's data sets, each searched by itself, so that searches share them.
        stage1: Of a tuned hypernetwork, the one it starts from.
    """

    name: str
    method: Method
    shape: ViTShape
    ancestry: AncestryJob | None
    recipe: CondenseRecipe | SearchRecipe | TuneRecipe | None
    data: DataSpec
    path: Path
    rows: tuple[CondenseRecipe, ...] = ()
    anchors: tuple[AncestryJob, ...] = ()
    searches: tuple[TaskSearch, ...] = ()
    stage1: GeneJob | None = None

    @property
    def origins(self) -> list[AncestryJob]:
        """The models it is made of or taught by."""
        return [*([self.ancestry] if self.ancestry else []), *self.anchors]


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
    def coordinates(self) -> Coordinates:
        """Where it stands in the comparison."""
        return self.contender, self.shape_name, self.task, self.budget, self.seed

    def __str__(self) -> str:
        return f"{self.contender} {self.shape_name} {self.task} {self.budget} seed {self.seed}"


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

    def task_data(self, task: str) -> DataSpec:
        """The data section of a task."""
        return self.recipe.data if task == SOURCE else self.recipe.tasks[task]
