"""What condensing and fine-tuning do around the loop: the folder, the record, the weights to keep, who writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from learngene.data.splits import Splits
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import TrainingRecipe
from learngene.training.loop import make_accelerator, train
from learngene.training.record import read_result, recorded
from learngene.training.run_folder import RunFolder
from learngene.training.stage import Stage, TrainResult


def run_stage(
    stage: Stage,
    recipe: TrainingRecipe,
    images: Splits,
    *,
    keep: bool,
    show: bool,
) -> TrainResult:
    """Trains a stage as a recipe says, or continues it.

    Args:
        stage: What to train; its module ends on the CPU with the weights that the recipe wants kept.
        recipe: The recipe, with mean and std resolved.
        images: The training and validation images.
        keep: Keep state, log and record in the run folder ``recipe.out``.
        show: Whether to print progress.
    """
    accelerator = make_accelerator(stage.uses_all)
    folder = RunFolder(recipe.out, recipe) if keep else None
    accelerator.wait_for_everyone()  # no process may look at the folder while the first one fills it
    with recorded(recipe.out if keep and accelerator.is_main_process else None, recipe, images) as results:
        data = None if stage.feed else getattr(recipe, "data", None)
        replay = recipe.distill.replay if isinstance(recipe, CondenseRecipe) else None
        kept: dict[str, Any] = {"folder": folder, "replay": replay}
        result = train(stage, *images, data, recipe.train, **kept, show=show, accelerator=accelerator)
        results.append(result)
    stage.module.to("cpu")
    if recipe.train.use_ema and result.averaged is not None:
        stage.module.load_state_dict(result.averaged.state_dict())
    return result


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


def run_bytes(module: nn.Module) -> int:
    """Disk space a run needs: weights and two moments in the last, the best and a new state, and the model itself."""
    return 4 * (3 * 3 + 2) * sum(parameter.numel() for parameter in module.parameters())
