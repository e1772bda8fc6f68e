"""From the paths of all data sets to the learngene: how often every base block is used, and which are kept."""

from __future__ import annotations

from collections.abc import Sequence

from learngene.making.search.paths import TaskPath
from learngene.recipe.search import Selection
from learngene.system.errors import LearngeneError


def usage(paths: Sequence[TaskPath]) -> list[int]:
    """G_i of equation 3: by how many data sets every base block is used, first layer first."""
    return [sum(used) for used in zip(*(path.uses for path in paths), strict=True)]


def soft_usage(paths: Sequence[TaskPath]) -> list[float]:
    """The same with probabilities instead of choices: more than the paper looks at, and never all zero."""
    return [sum(soft) for soft in zip(*(path.soft for path in paths), strict=True)]


def selected(paths: Sequence[TaskPath], spec: Selection, tau: int) -> tuple[int, ...]:
    """The layers whose base blocks become the learngene, counted from 1 and in the ancestry's order.

    Args:
        paths: Of all data sets.
        spec: The rule.
        tau: Of the threshold rule: blocks used by more than so many data sets are kept.

    Raises:
        LearngeneError: If none is kept; the message says what other thresholds would keep.
    """
    counts, soft = usage(paths), soft_usage(paths)
    if spec.rule == "top_k":
        # Choices hide how close they were: over seeds, sums of probabilities rank the blocks far more alike.
        ranked = sorted(range(len(counts)), key=lambda i: (soft[i], counts[i]), reverse=True)
        return tuple(sorted(i + 1 for i in ranked[: spec.blocks]))
    kept = above(counts, tau)
    if not kept:
        lower = {low: above(counts, low) for low in range(tau - 1, -1, -1)}
        instead = "; ".join([f"tau={low} keeps {_listed(found)}" for low, found in lower.items() if found][:3])
        instead = instead or "no base block is used by any data set"
        raise LearngeneError(
            f"select: no base block is used by more than tau={tau} of {len(paths)} data sets (used by "
            f"{_listed(counts)}): {instead}; or use select.rule=top_k select.tau=null"
        )
    return kept


def above(counts: Sequence[int], tau: int) -> tuple[int, ...]:
    """The layers, counted from 1, that more than ``tau`` data sets use."""
    return tuple(layer for layer, count in enumerate(counts, start=1) if count > tau)


def _listed(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)
