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
from learngene.system.processes import fair_share
from learngene.training.record import diverged


def condense(job: GeneJob, comparison: Comparison, missing: Collection[Path], images: Splits) -> str:
    """Condenses a gene, and whatever else of a comparison can be condensed in the same pass; tells how it went.

    Args:
        job: The gene, whose lock is held.
        comparison: All jobs.
        missing: Paths of what has to be made.
        images: Of the home task.
    """
    jobs, held = {job.path.stem: job}, {}
    others = [each for each in _alike(job, comparison) if each.path in missing]
    with contextlib.ExitStack() as locks:
        for other in others[: fair_share(len(others) + 1) - 1]:
            if (lock := take_lock(lock_path(comparison.recipe.store / "locks", other.path))) is not None:
                held[other.path.stem] = locks.enter_context(lock)
                jobs |= {} if other.path.exists() else {other.path.stem: other}
        recipes = _recipes(jobs, comparison, len(images.train))
        for name in held.keys() - recipes.keys():
            held[name].close()
        made = _made(recipes, images)
    own, *beside = [f"{jobs[name].name}: {_told(each)}" for name, each in made.items()]
    return "; beside it ".join([own.removeprefix(f"{job.name}: "), *beside])


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


def _recipes(jobs: Mapping[str, GeneJob], comparison: Comparison, images: int) -> dict[str, CondenseRecipe]:
    """The recipes of genes that can share a pass with the first of them: all store what their teacher says, or none."""
    paths = [job.path for job in jobs.values()]
    shared = {name: with_shared_targets(job, job.path, comparison, images, paths) for name, job in jobs.items()}
    recipes = {name: job.recipe for name, job in shared.items() if isinstance(job.recipe, CondenseRecipe)}
    first = next(iter(recipes.values()))
    return {name: recipe for name, recipe in recipes.items() if recipe.distill.replay == first.distill.replay}


def _made(recipes: Mapping[str, CondenseRecipe], images: Splits) -> dict[str, MadeGene]:
    """Genes whose locks are held, in one pass; the first of them in any case, or ``LearngeneError``."""
    first, own = next(iter(recipes.items()))
    made: dict[str, MadeGene] = {}
    try:
        if len(recipes) > 1:
            made = run_together(GenesRecipe(genes=dict(recipes)), images=images, show=False)
    except SomeGenesFailedError as some:
        made = some.made
        if isinstance(fault := some.failed.get(first), TrainingDivergedError):
            raise TrainingDivergedError(str(fault).removeprefix(f"gene {first}: ")) from None
    except LearngeneError:
        pass  # one of them does not fit, or the machine gave out: alone each is told what concerns itself
    return {first: made.pop(first, None) or run(own, images=images, show=False), **made}


def _told(made: MadeGene) -> str:
    return f"{made.result.final.label} {made.result.final.main:.2f} %"
