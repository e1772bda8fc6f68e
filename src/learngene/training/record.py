"""The record of a run: one JSON file with everything needed to judge its numbers, written once at its end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from learngene.data.splits import Splits
from learngene.recipe.loading import TrainingRecipe
from learngene.system.environment import commit, environment
from learngene.system.errors import LearngeneError, TrainingDivergedError
from learngene.system.records import Record
from learngene.training.kept_runs import RESULT as NAME
from learngene.training.run_folder import mark
from learngene.training.scores import Accuracy, FeatureScore, Score, score_from
from learngene.training.stage import TrainResult


class RunRecord(Record):
    """The content of ``result.json``; cost and metrics are missing if the run diverged."""

    noun: ClassVar = "the record of a run"
    indent: ClassVar = 2

    recipe: dict[str, Any]
    seed: int
    commit: str | None
    environment: dict[str, Any]
    data: dict[str, Any]
    error: str | None
    cost: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """Without the entries that a diverged run has not."""
        return self.model_dump(mode="json", exclude_unset=True)


def record(recipe: TrainingRecipe, images: Splits, outcome: TrainResult | LearngeneError) -> None:
    """Writes ``result.json`` of a run that ended well, or whose training diverged; one that is there already stays.

    Args:
        recipe: The resolved recipe.
        images: The training and validation images.
        outcome: How it went, or why it ended. Whatever else the machine refused says nothing of the recipe.
    """
    result = outcome if isinstance(outcome, TrainResult) else None
    error = str(outcome) if isinstance(outcome, TrainingDivergedError) else None
    if (result or error) and not _succeeded(recipe.out / NAME):
        mark(recipe.out, recipe)  # without which the folder would be nobody's, if somebody removed it a moment ago
        _record(recipe, images, result, error).write(recipe.out / NAME)


def read_result(folder: Path) -> TrainResult | None:
    """What a run folder's record says of a run that ended well; None if there is no such record."""
    if not (folder / NAME).exists():
        return None
    record = RunRecord.read(folder / NAME)
    if record.error is not None or record.metrics is None or record.cost is None:
        return None
    final = score_from(record.metrics["final"])
    return TrainResult(record.metrics["history"], final, record.metrics[_best_key(final)], **record.cost)


def diverged(folder: Path) -> bool:
    """Whether the run in a folder ended with a loss that was no number."""
    return (folder / NAME).exists() and not _succeeded(folder / NAME)


def _best_key(score: Score) -> str:
    """What the record calls the best epoch's score."""
    if isinstance(score, FeatureScore):
        return "best_knn" if score.knn is not None else "best_neighbours"
    return "best_top1" if isinstance(score, Accuracy) else "best_miou"


def _succeeded(path: Path) -> bool:
    return path.exists() and RunRecord.read(path).error is None


def _record(
    recipe: TrainingRecipe,
    images: Splits,
    result: TrainResult | None,
    error: str | None,
) -> RunRecord:
    entries: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.train.seed,
        "commit": commit(),
        "environment": environment(),
        "data": {
            "train_images": len(images[0]),
            "val_images": len(images[1]),
            "corrupt": len(images[0].corrupt) + len(images[1].corrupt),
            "fingerprint": images[0].fingerprint(),
        },
        "error": error,
    }
    if result:
        entries["cost"] = {"seconds": result.seconds, "updates": result.updates, "images": result.images}
        best = _best_key(result.final)
        entries["metrics"] = {"final": asdict(result.final), best: result.best, "history": result.history}
    return RunRecord(**entries)
