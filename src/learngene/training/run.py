"""What condensing and fine-tuning do around the loop: the folder, the record, the weights to keep, who writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from learngene.data.splits import Splits
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import TrainingRecipe
from learngene.recipe.search import SearchRecipe
from learngene.system.errors import LearngeneError
from learngene.training.loop import make_accelerator, train
from learngene.training.record import read_result, record
from learngene.training.run_folder import RunFolder, mark
from learngene.training.stage import Stage, TrainResult
from learngene.training.student import Student
from learngene.training.trackers import refuse_missing


def run_stage(
    stage: Stage,
    recipe: TrainingRecipe,
    images: Splits,
    *,
    keep: bool,
    show: bool,
) -> TrainResult:
    """Trains a stage as a recipe says, or continues it; see ``run_stages``.

    Raises:
        LearngeneError: Why it failed, if it did.
    """
    (outcome,) = run_stages([(stage, recipe)], images, keep=keep, show=show)
    if isinstance(outcome, LearngeneError):
        raise outcome
    return outcome


def run_stages(
    stages: Sequence[tuple[Stage, TrainingRecipe]], images: Splits, *, keep: bool, show: bool
) -> list[TrainResult | LearngeneError]:
    """Trains stages in one pass, or continues them, each as if it were alone; one that fails takes no other down.

    Args:
        stages: What to train, and its recipe, with mean and std resolved; all have the same views. A module ends on the
            CPU with the weights that the recipe wants kept.
        images: The training and validation images.
        keep: Keep state, log and record in the run folder ``recipe.out``.
        show: Whether to print progress.

    Returns:
        How each went, or why it failed.
    """
    for _, recipe in stages:
        refuse_missing(recipe.train.track)
    accelerator = make_accelerator(all(stage.uses_all for stage, _ in stages))
    students = [
        Student(stage, recipe.train, RunFolder(recipe.out, recipe) if keep else None) for stage, recipe in stages
    ]
    accelerator.wait_for_everyone()  # no process may look at a folder while the first one fills it
    first, recipe = stages[0]
    data = None if first.feed else getattr(recipe, "data", None)
    replay = recipe.distill.replay if isinstance(recipe, CondenseRecipe) else None
    outcomes = train(students, *images, data, show=show, accelerator=accelerator, replay=replay)
    for (stage, recipe), outcome in zip(stages, outcomes, strict=True):
        if keep and accelerator.is_main_process:
            record(recipe, images, outcome)
        if isinstance(outcome, TrainResult):
            stage.module.to("cpu")
            if recipe.train.use_ema and outcome.averaged is not None:
                stage.module.load_state_dict(outcome.averaged.state_dict())
    return outcomes


def finished(recipe: TrainingRecipe, module: nn.Module) -> TrainResult | None:
    """Fills a module from the run folder of a finished run, which several processes may do at once.

    Args:
        recipe: The recipe, with mean and std resolved.
        module: Of the same stage; filled with the weights that the recipe wants kept.

    Returns:
        How the training went; None if the folder holds no finished run, and the module is as it was.
    """
    result = read_result(recipe.out)
    saved = RunFolder(recipe.out, recipe).load() if result else None
    if result is None or saved is None:
        return None
    module.load_state_dict(saved[0]["ema" if recipe.train.use_ema else "module"])
    return result


def write_once(write: Callable[[], object]) -> None:
    """Lets the main process write and every other one wait until it has."""
    accelerator = make_accelerator()
    if accelerator.is_main_process:
        write()
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def owned(recipe: CondenseRecipe | SearchRecipe, *, keep: bool) -> Iterator[None]:
    """Says whose the folder is that has the runs of several stages, and says it again behind them, however they end.

    Somebody may have removed the folder meanwhile. Its stages make folders of their own again, and without this the
    next run would take what is around them for somebody else's.
    """
    if keep:
        write_once(lambda: mark(recipe.out, recipe))
    try:
        yield
    finally:
        if keep and make_accelerator().is_main_process:
            with contextlib.suppress(LearngeneError):  # a full disk, of which the stages have told
                mark(recipe.out, recipe)
