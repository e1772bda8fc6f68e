"""What a teacher says, shared by all that a comparison trains: the second of the same views does not run it."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learngene.comparing.jobs import Comparison, GeneJob
from learngene.genes.absent_weights import without_weights
from learngene.genes.ancestry import Ancestry
from learngene.making.pool.rows import LABELS, path_recipe, pool_of
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.sections import Replay
from learngene.training.record import NAME as RESULT_FILE
from learngene.training.target_shards import Form

FOLDER = "targets"
MOST_BYTES = 2 << 30
"""Of the outputs that one of them learns from, to be stored unasked; and at most a tenth of what the disk has left."""


@dataclass(frozen=True)
class _Learner:
    """A gene, a row of a pool or a pool's paths, if it learns no more of a view than one vector of every teacher.

    Attributes:
        recipe: Its own.
        names: Of the teachers' outputs.
        views: Hash of what decides which outputs they are, and of which images.
        made: Is there when it is trained.
    """

    recipe: CondenseRecipe
    names: list[str]
    views: str
    made: Path


def with_shared_targets(
    job: GeneJob, made: Path, comparison: Comparison, images: int, beside: Collection[Path] = ()
) -> GeneJob:
    """A gene that stores or reads what its teacher says if something else of the comparison learns from the same.

    That is stored as it is, so results, names and keys stay what they were.

    Args:
        job: The gene.
        made: What is going to be trained of it: the gene's file, or the result of one of its rows.
        comparison: All jobs.
        images: Training images of the home task.
        beside: What is trained in the same pass, for which nothing need be stored.
    """
    mine = next((each for each in _learners(job) if each.made == made), None)
    if mine is None or not isinstance(job.recipe, CondenseRecipe):
        return job
    jobs = [*comparison.genes, *(gene.stage1 for gene in comparison.genes if gene.stage1)]
    alike = {each.made for other in jobs for each in _learners(other) if each.views == mine.views}
    others = any(not path.exists() for path in alike - {made, *beside})
    there = comparison.recipe.store
    if len(alike) < 2 or not (others or (there / FOLDER).exists()):
        return job
    # Nothing else made the files of a comparison's own store, so nothing is asked again.
    stored = Replay(folder=there / FOLDER, check=0)
    view_bytes = sum(Form.of(name, stored).view_bytes((_width(name, job, stored.folder),)) for name in mine.names)
    free = shutil.disk_usage(there if there.exists() else ".").free
    if mine.recipe.train.epochs * images * view_bytes > min(MOST_BYTES, free // 10):
        return job
    distill = job.recipe.distill.model_copy(update={"replay": stored})
    return replace(job, recipe=job.recipe.model_copy(update={"distill": distill}))


def _width(name: str, job: GeneJob, folder: Path) -> int:
    """Numbers of an output of a gene's teacher."""
    if name == "logits":
        return job.shape.num_classes
    assert job.ancestry is not None
    if job.ancestry.shape is not None:
        return job.ancestry.shape.embed_dim
    spec = job.ancestry.source()
    return (without_weights(folder, spec) or Ancestry.from_spec(spec)).width


def _learners(job: GeneJob) -> Iterator[_Learner]:
    """All that is trained for a gene, and learns from its teacher what is not stored elsewhere."""
    recipe = job.recipe
    if not isinstance(recipe, CondenseRecipe) or not (job.ancestry and recipe.ancestry) or recipe.distill.replay:
        return
    for part, made, names in _parts(job, recipe):
        train, shape = part.train, part.shape
        seen: list[Any] = [train.seed, train.batch_size, train.augment, train.precision, part.data]
        read = [] if names == ["logits"] else [[each.img_size, each.resize] for each in part.feature_targets()]
        size, target = [shape.img_size, shape.in_chans], part.distill.target
        views = short_hash([job.ancestry.folder.name, target, names, read, seen, size])
        yield from [_Learner(part, names, views, made)] if names else []


def _parts(job: GeneJob, recipe: CondenseRecipe) -> Iterator[tuple[CondenseRecipe, Path, list[str]]]:
    """All that is trained for a gene: its recipe, what is there once it is trained, and what its teacher is asked."""
    if recipe.pool is None:
        yield recipe, job.path, _names(recipe, recipe.distill.alpha > 0)
        return
    for row in job.rows:
        pool = pool_of(row)
        yield row, row.out / RESULT_FILE, _names(row, pool.terms == ["pred"] and pool.points != [LABELS])
    paths, features = path_recipe(recipe), recipe.distill.target == "features"
    if paths and not (features and recipe.needs_labels):
        yield paths, job.path, _names(paths, recipe.pool.guide != "none")


def _names(recipe: CondenseRecipe, logits: bool) -> list[str]:
    """What a teacher is asked of a view; nothing if that are vectors of patches, which take much space."""
    if recipe.distill.target == "features":
        targets = recipe.feature_targets()
        return [] if any(each.grids for each in targets) else [name for each in targets for name in each.tokens]
    if recipe.hyper is not None:
        return ["pooled"] if recipe.hyper.guidance.features == "pooled" else []
    return ["logits"] if logits else []
