"""What a teacher says, shared by the genes of a comparison: the second gene of the same views does not run it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from learngene.comparing.jobs import Comparison, GeneJob
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.sections import Replay

FOLDER = "targets"
MOST_BYTES = 2 << 30
"""Of the outputs that one gene learns from, to be stored unasked; and at most a tenth of what the disk has left."""


def with_shared_targets(job: GeneJob, comparison: Comparison, images: int) -> GeneJob:
    """A gene that stores or reads its teacher's logits if other genes of the comparison learn from the same.

    They are stored as they are, so its result, its name and its key stay what they were.

    Args:
        job: The gene.
        comparison: All jobs.
        images: Training images of the home task.
    """
    views = _views(job)
    if views is None or not isinstance(job.recipe, CondenseRecipe):
        return job
    folder = comparison.recipe.store / FOLDER
    alike = {other.path for other in comparison.genes if _views(other) == views}
    waiting = [path for path in alike if not path.exists()]
    if len(alike) < 2 or (len(waiting) < 2 and not folder.exists()):
        return job
    needed = job.recipe.train.epochs * images * (4 * job.recipe.shape.num_classes + 8)
    there = comparison.recipe.store
    if needed > min(MOST_BYTES, shutil.disk_usage(there if there.exists() else ".").free // 10):
        return job
    # Nothing else made the files of a comparison's own store, so nothing is asked again.
    distill = job.recipe.distill.model_copy(update={"replay": Replay(folder=folder, check=0)})
    return replace(job, recipe=job.recipe.model_copy(update={"distill": distill}))


def _views(job: GeneJob) -> str | None:
    """What decides which logits a gene learns from, and of which images; None if it learns from none, or from more."""
    recipe = job.recipe
    if not isinstance(recipe, CondenseRecipe) or job.method.making != "stage" or job.ancestry is None:
        return None
    distill, train, shape = recipe.distill, recipe.train, recipe.shape
    if distill.alpha == 0 or distill.target != "logits" or distill.replay is not None:
        return None
    seen: list[Any] = [train.seed, train.batch_size, train.augment, train.precision, shape.img_size, shape.in_chans]
    return short_hash([job.ancestry.folder.name, recipe.data, seen])
