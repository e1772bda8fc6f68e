"""A picture of a search: layers by data sets, who takes the base block where, and which blocks became the learngene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learngene.genes.gene_file import read_header
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png

KEPT, EDGE, GREY = "#d55e00", "#ffffff", "#555555"
CELL = 0.46
"""Inches of a layer's cell."""
LABELS, COUNTS, ABOVE, BELOW = 1.2, 0.5, 0.5, 0.85
"""Inches for the names of the data sets, the counts, the title, and the axis with its key."""


LEAST, LETTER = 5.6, 0.085
"""Inches: least width, which the caption needs, and width of a letter of a data set's name."""


def usage_picture(record: Mapping[str, Any], out: Path) -> None:
    """Draws the heat map of a search.

    Args:
        record: Of a search, see ``docs/format.md``.
        out: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    tasks, counts = record["tasks"], record["usage"]
    depth, rows = len(counts), len(tasks) + 1
    labels = max(LABELS, LETTER * max(len(task["task"]) for task in tasks))
    width, height = max(LEAST, labels + depth * CELL + COUNTS), ABOVE + rows * CELL * 0.8 + BELOW
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((labels / width, BELOW / height, depth * CELL / width, rows * CELL * 0.8 / height))
    shares = [task["share"] for task in tasks] + [[count / len(tasks) for count in counts]]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=(0.5, depth + 0.5, rows - 0.5, -0.5))
    for row, task in enumerate(tasks):
        for layer in task["layers"]:
            axes.plot(layer, row, "o", color="black", markeredgecolor="white", markersize=4.5)
    for layer, count in enumerate(counts, start=1):
        dark = count > len(tasks) / 2
        axes.text(layer, rows - 1, str(count), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    kept = record.get("layers", [])
    for layer in kept:
        frame = Rectangle(
            (layer - 0.5, -0.5), 1, rows, fill=False, edgecolor=KEPT, linewidth=2, clip_on=False, zorder=5
        )
        axes.add_patch(frame)
    axes.set_xticks(range(1, depth + 1))
    axes.set_yticks(range(rows), [*(task["task"] for task in tasks), "data sets"], fontsize=8)
    axes.set_xticks([layer + 0.5 for layer in range(1, depth)], minor=True)
    axes.set_yticks([row + 0.5 for row in range(rows - 1)], minor=True)
    axes.grid(which="minor", color=EDGE, linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.axhline(rows - 1.5, color=GREY, linewidth=1.5)
    axes.set_xlabel("layer of the ancestry", fontsize=8)
    for row, task in enumerate(tasks):
        axes.text(depth + 0.65, row, f"{task['score']:.0f} %", va="center", fontsize=7, color=GREY)
    names = ", ".join(str(layer) for layer in kept) or "none"
    figure.suptitle(f"Base blocks that {len(tasks)} data sets take; learngene: {names}", fontsize=9, y=1 - 0.2 / height)
    figure.text(
        0.02,
        0.12 / height,
        "shade: share of images that prefer the base block; dot: the path takes it; last row: by how many data sets\n"
        "frame: selected; right: top-1 or mean IoU of the data set's super net",
        fontsize=6.5,
        color=GREY,
    )
    save_png(figure, out)


def search_picture(gene: str | Path, out: Path) -> None:
    """Draws the search behind a gene file, of which only the header is read.

    Raises:
        LearngeneError: If the gene holds no record of a search.
    """
    record = read_header(gene).metadata.get("search")
    if not record:
        raise LearngeneError(
            f"{gene}: made without a search, so there is no map of who took which block; make it with `learngene "
            "search`, or draw the layers of a descendant folder, see `learngene expand`"
        )
    usage_picture(record, out)
