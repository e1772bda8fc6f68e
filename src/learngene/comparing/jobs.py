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
    """An ancestry model: trained on the home task if its source is not there already."""

    name: str
    spec: ModelSpec
    shape: ViTShape | None  # of a plain ViT that is trained here
    train: Train
    data: DataSpec  # the home task
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
        return self.spec.loaded()


@dataclass(frozen=True)
class GeneJob:
    """A gene: condensed by a recipe, searched, or extracted from its ancestry."""

    name: str  # what to call it while it is made
    method: Method
    shape: ViTShape  # the auxiliary shape; an extracted gene has its ancestry's
    ancestry: AncestryJob | None  # teacher or origin
    recipe: CondenseRecipe | SearchRecipe | TuneRecipe | None  # None for one that is extracted
    path: Path
    rows: tuple[CondenseRecipe, ...] = ()  # of a pool, distilled one by one before it, so that pools share them
    anchors: tuple[AncestryJob, ...] = ()  # of an SN-Net
    searches: tuple[TaskSearch, ...] = ()  # of a searched gene, a data set each, so that searches share them
    stage1: GeneJob | None = None  # of a tuned hypernetwork, the one it starts from

    @property
    def origins(self) -> list[AncestryJob]:
        """The models it is made of or taught by."""
        return [*([self.ancestry] if self.ancestry else []), *self.anchors]


@dataclass(frozen=True)
class Cell:
    """One descendant, measured: a contender at a shape on a task, with a budget and a seed."""

    contender: str
    shape_name: str
    task: str
    budget: str
    seed: int  # of the gene, of what starts fresh and of the tuning
    spec: ContenderSpec
    method: Method
    gene: GeneJob | None  # what it starts from; None for scratch
    shape: Shape
    data: DataSpec  # the task
    train: Train | None  # the tuning; None scores the descendant as it is
    key: str  # hash of everything that decides the result
    path: Path
    masked: bool = False  # whether the task's images have masks, so that the descendant gets a segmentation head
    judge: str = "head"  # or knn, or linear: what its frozen features score

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
    """All jobs of a recipe."""

    recipe: CompareRecipe
    num_classes: Mapping[str, int]  # classes of every task that is run, and of the home task
    loaded: Mapping[str, ViTShape] = field(default_factory=dict)  # plain ViTs loaded as they are, by ancestry
    masked: Collection[str] = ()  # tasks whose images have masks
    ancestries: dict[str, AncestryJob] = field(default_factory=dict)  # by name, those that any cell needs
    genes: list[GeneJob] = field(default_factory=list)  # in the order they are needed
    cells: list[Cell] = field(default_factory=list)  # every combination of contender, shape, task, budget and seed

    def task_data(self, task: str) -> DataSpec:
        """The data section of a task."""
        return self.recipe.data if task == SOURCE else self.recipe.tasks[task]
