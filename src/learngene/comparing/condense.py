"""Condensing the genes of a comparison: those of one ancestry that see the same views, in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from learngene.comparing.jobs import Comparison, GeneJob
from learngene.comparing.shared_targets import with_shared_targets
from learngene.data.splits import Splits
from learngene.making.condense import run
from learngene.making.steps import MadeGene, lock_path
from learngene.making.together import SomeGenesFailedError, run_together
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.genes import GenesRecipe, seen_views
from learngene.system.errors import LearngeneError, TrainingDivergedError
from learngene.system.files import take_lock
from learngene.training.record import diverged


def condense(job: GeneJob, comparison: Comparison, missing: Collection[Path], images: Splits) -> str:
    """Condenses a gene, and whatever else of a comparison can be condensed in the same pass; tells how it went.

    Args:
        job: The gene, whose lock is held.
        comparison: All jobs.
        missing: Paths of what has to be made.
        images: Of the home task.
    """
    jobs = {job.path.stem: job}
    with contextlib.ExitStack() as locks:
        for other in _alike(job, comparison):
            lock = (
                take_lock(lock_path(comparison.recipe.store / "locks", other.path)) if other.path in missing else None
            )
            if lock is not None:
                locks.enter_context(lock)
                jobs |= {} if other.path.exists() else {other.path.stem: other}
        return _condensed(jobs, comparison, images)


def _alike(job: GeneJob, comparison: Comparison) -> list[GeneJob]:
    """The other genes of a comparison that have the ancestry of a gene and see the same views."""
    mine = job.recipe
    if not isinstance(mine, CondenseRecipe) or mine.ancestry is None or mine.pool:
        return []
    views = seen_views(mine)
    genes = [*comparison.genes, *(gene.stage1 for gene in comparison.genes if gene.stage1)]
    others = {each.path: (each, each.recipe) for each in genes if each.path != job.path}
    return [
        other
        for other, theirs in others.values()
        if isinstance(theirs, CondenseRecipe)
        and (theirs.ancestry, theirs.pool) == (mine.ancestry, None)
        and seen_views(theirs) == views
        and not diverged(theirs.out)
    ]


def _condensed(jobs: Mapping[str, GeneJob], comparison: Comparison, images: Splits) -> str:
    """Condenses genes whose locks are held, the first of them in any case."""
    beside = [job.path for job in jobs.values()]
    recipes: dict[str, CondenseRecipe] = {}
    for name, job in jobs.items():
        shared = with_shared_targets(job, job.path, comparison, len(images.train), beside).recipe
        assert isinstance(shared, CondenseRecipe)
        recipes[name] = shared
    first, *others = recipes
    recipes = {name: each for name, each in recipes.items() if each.distill.replay == recipes[first].distill.replay}
    made: Mapping[str, MadeGene] = {}
    try:
        if len(recipes) > 1:
            made = run_together(GenesRecipe(genes=recipes), images=images, show=False)
    except SomeGenesFailedError as some:
        made = some.made
        if isinstance(fault := some.failed.get(first), TrainingDivergedError):
            raise fault from None
    except LearngeneError:
        pass  # one of them does not fit, or the machine gave out: alone each is told what concerns itself
    own = made[first] if first in made else run(recipes[first], images=images, show=False)
    told = [f"; beside it {jobs[name].name}: {_told(made[name])}" for name in others if name in made]
    return _told(own) + "".join(told)


def _told(made: MadeGene) -> str:
    return f"{made.result.final.label} {made.result.final.main:.2f} %"
