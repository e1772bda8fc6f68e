"""The page of a comparison: one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from learngene.comparing.html import write_page
from learngene.comparing.results import Results
from learngene.comparing.tables import means

MAX_PICTURES = 1_400_000
"""Bytes of plots inside the page, which keep it below 2 MB; what is beyond is linked."""


def write_compare_page(path: Path, results: Results, remarks: Sequence[str], plots: Sequence[Path], again: str) -> Path:
    """Writes the page.

    Args:
        path: Of the page, in the folder of the results.
        results: With at least one row.
        remarks: What the comparison comes to, first how teachers are counted.
        plots: PNG files below the same folder, best first.
        again: The command that goes on with the comparison, or repeats it.

    Returns:
        The path.
    """
    headings, lines = means(results.rows)
    ends = accumulate(plot.stat().st_size for plot in plots)
    inside = [plot for plot, end in zip(plots, ends, strict=True) if end <= MAX_PICTURES]
    counts = {
        name: len({getattr(row, name) for row in results.rows}) for name in ("contender", "shape", "task", "seed")
    }
    policy, *verdicts = remarks
    alone = "there is nobody to compare with: no two contenders have results of all sizes and seeds"
    write_page(
        path,
        "compare.html",
        verdicts=verdicts or [alone],
        policy=policy,
        counts=counts,
        results=results,
        pictures=[(plot.stem, plot.read_bytes()) for plot in inside],
        linked=[plot.relative_to(path.parent).as_posix() for plot in plots[len(inside) :]],
        headings=headings,
        lines=lines,
        again=again,
    )
    return path
