"""Result files: one immutable JSON per cell, and the rows that tables, plots and verdicts are made of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from learngene.comparing.cost import cost_of, paid_macs
from learngene.comparing.jobs import Cell, Comparison
from learngene.data.preprocessing import crop_pct
from learngene.recipe.compare import SOURCE
from learngene.system.records import Record, RecordError


class CellResult(Record):
    """The result file of a cell; its entries are described in ``measure.py``, which writes them."""

    kind: ClassVar = "learngene cell"
    version: ClassVar = 1
    noun: ClassVar = "a result of a comparison"
    indent: ClassVar = None

    key: str
    contender: str = ""
    method: str = ""
    shape: dict[str, Any] = Field(default_factory=dict)
    task: str = ""
    seed: int = 0
    params: int
    macs: int
    gene: dict[str, Any] | None
    spec: dict[str, Any] = Field(default_factory=dict)
    layers: list[Any] = Field(default_factory=list)
    linearity: float | None = None
    fresh: int = 0
    train: dict[str, Any] | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    untuned: dict[str, Any]
    epochs: list[dict[str, Any]]
    last: dict[str, Any]
    steps: int
    error: str | None
    seconds: float
    environment: dict[str, Any]
    commit: str | None = None


def read_cell(cell: Cell) -> CellResult | None:
    """A cell's result, or None if there is none yet.

    Raises:
        RecordError: If the file is damaged, or holds something else.
    """
    if not cell.path.exists():
        return None
    try:
        result = CellResult.read(cell.path)
        if result.key != cell.key:
            raise RecordError(f"{cell.path}: the result of another cell or format (key {result.key})")
    except RecordError as fault:
        raise RecordError(f"{fault}; skipped, and not overwritten") from None
    return result


@dataclass(frozen=True)
class ResultRow:
    """One cell's result as a table's row; accuracies in percent, losses in nats.

    On a task of images with masks every ``top1`` is the mean IoU, and what has no counterpart there (five guesses, the
    multiple of chance) is 0.
    """

    contender: str
    method: str
    shape: str
    task: str
    budget: str
    seed: int  # seed of gene, fresh tensors and tuning
    depth: int
    embed_dim: int
    img_size: int  # side of the images it was scored on
    crop_pct: float  # share of the resized image that was looked at
    interpolation: str  # how images were resized
    params: int
    macs: int  # its multiply-adds per image
    gene: str  # its gene's file, empty if there is none
    stored_params: int  # parameters stored to initialise it (the papers' S-Params, every part counted)
    gene_top1: float  # accuracy of the gene itself at its auxiliary shape, 0 if there is none
    linearity: float  # R squared of the untuned weights' first component over depth (TLEG Figure 1), 0: not measured
    untuned_top1: float  # accuracy as initialised
    times_chance: float  # the same over what guessing scores
    untuned_top5: float  # the same, among five guesses
    untuned_loss: float  # loss as initialised
    first_top1: float  # after the first epoch of tuning
    last_top1: float  # after the last
    last_top5: float  # the same, among five guesses
    last_loss: float  # loss after the last epoch
    best_top1: float  # of any epoch
    epochs: int  # of tuning
    steps: int  # optimizer steps of tuning
    tune_macs: int  # multiply-adds of tuning
    gene_macs: int  # of making the gene, all of it
    ancestry_macs: int  # of training the ancestry, all of it
    shared_by: int  # descendants that use this gene in this comparison
    total_macs: float  # tuning and the shares of gene and ancestry
    seconds: float  # wall time of tuning
    gene_seconds: float  # wall time of making the gene
    hardware: str
    curve: tuple[float, ...]  # top-1 after every epoch, the untuned one first
    search_score: float = 0.0  # of a searched gene, the mean score of its super nets (top-1 or mean IoU)
    task_share: float = 0.0  # of a TAL, how much of its task graphs' variance is between tasks (TAL Figure 5)
    choices: tuple[int, ...] = ()  # of a searched gene, per task and layer whether the base block was taken
    masks: bool = False  # whether the task's images have masks
    judge: str = "head"  # knn or linear: top-1 is that of frozen features, without loss
    val_images: int = 0  # it was judged on

    @property
    def metric(self) -> str:
        """What its ``top1`` are."""
        return "mean IoU" if self.masks else {"head": "top-1", "knn": "kNN", "linear": "linear"}[self.judge]

    @property
    def guesses(self) -> bool:
        """Whether it has five best guesses."""
        return not self.masks and self.judge == "head"


@dataclass
class Results:
    """What the results folder holds of a comparison."""

    rows: list[ResultRow]
    missing: list[Cell]  # cells without a result
    failed: dict[str, str]  # cells whose training failed, with the reason
    foreign: list[str]  # files that stand where a result belongs, with what is wrong with each
    teacher_cost: str = "shared"  # how the training of teachers is counted, see the recipe
    unknown_teachers: list[str] = field(default_factory=list)  # those of which nobody recorded what they cost

    @property
    def faults(self) -> list[str]:
        """A line for every such file, and for everything that failed."""
        return [*self.foreign, *(f"{title}: {reason}" for title, reason in self.failed.items())]


def collect(comparison: Comparison, train_images: Mapping[str, int]) -> Results:
    """Reads the results of all cells of a comparison."""
    policy = comparison.recipe.teacher_cost
    jobs = {} if policy == "given" else comparison.ancestries
    unknown = [name for name, job in jobs.items() if paid_macs(job, train_images[SOURCE]) is None]
    out = Results([], [], {}, [], policy, unknown)
    for cell in comparison.cells:
        try:
            content = read_cell(cell)
        except RecordError as fault:
            out.foreign.append(str(fault))
            continue
        if content is None:
            out.missing.append(cell)
        elif content.error:
            out.failed[f"cell {cell}"] = content.error
        else:
            out.rows.append(_row(cell, content, comparison, train_images))
    return out


def _row(cell: Cell, content: CellResult, comparison: Comparison, train_images: Mapping[str, int]) -> ResultRow:
    untuned, last, epochs = content.untuned, content.last, content.epochs
    main = "miou" if cell.masked else "top1"
    curve = (untuned[main], *(entry[main] for entry in epochs if main in entry))
    cost = cost_of(cell, comparison, train_images)
    gene = content.gene or {}
    searched = gene.get("search", {}).get("tasks", [])
    environment = content.environment
    return ResultRow(
        contender=cell.contender,
        method=cell.spec.method,
        shape=cell.shape_name,
        task=cell.task,
        budget=cell.budget,
        seed=cell.seed,
        depth=cell.shape.depth,
        embed_dim=cell.shape.embed_dim,
        img_size=cell.shape.img_size,
        crop_pct=1.0 if cell.masked else crop_pct(cell.data, cell.shape.img_size),
        interpolation=cell.data.interpolation,
        params=content.params,
        macs=content.macs,
        gene=cell.gene.path.name if cell.gene else "",
        stored_params=gene.get("stored_params", 0),
        gene_top1=gene.get("top1") or 0.0,
        linearity=content.linearity or 0.0,
        untuned_top1=untuned[main],
        times_chance=0.0 if cell.masked else untuned[main] * max(1, cell.shape.num_classes) / 100,
        untuned_top5=0.0 if cell.masked else untuned["top5"],
        untuned_loss=untuned["loss"],
        first_top1=curve[min(1, len(curve) - 1)],
        last_top1=last[main],
        last_top5=0.0 if cell.masked else last["top5"],
        last_loss=last["loss"],
        best_top1=max(curve),
        epochs=len(epochs),
        steps=content.steps,
        tune_macs=cost.tune,
        gene_macs=cost.gene,
        ancestry_macs=cost.ancestry,
        shared_by=cost.gene_shared_by,
        total_macs=float(cost.total),
        seconds=content.seconds,
        gene_seconds=gene.get("seconds", 0.0),
        hardware=f"{environment.get('accelerator') or environment['processor']}, {environment['threads']} threads",
        curve=curve,
        search_score=statistics.fmean(task["score"] for task in searched) if searched else 0.0,
        task_share=gene.get("task_share", 0.0),
        choices=tuple(int(share >= 0.5) for task in searched for share in task["share"]),
        masks=cell.masked,
        judge=cell.judge,
        val_images=last.get("images", 0),
    )
