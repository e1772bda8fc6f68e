"""A picture of a search: layers by data sets, which base blocks each one takes, and which became the learngene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learngene.genes.gene_file import read_header
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png

KEPT, GREY = "#d55e00", "#555555"
CELL_WIDTH, CELL_HEIGHT = 0.46, 0.368
LABELS, COUNTS, ABOVE, BELOW = 1.2, 0.5, 0.5, 0.85
"""Inches for the names of the data sets, the counts, the title, and the axis with its key."""
MIN_WIDTH, LETTER = 5.6, 0.085
"""Inches: least width, which the caption needs, and width of a letter of a data set's name."""


def usage_picture(record: Mapping[str, Any], out: Path) -> None:
    """Draws the heat map of a search.

    Args:
        record: Of a search, see ``docs/format.md``.
        out: PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    tasks, counts = record["tasks"], record["usage"]
    depth, rows = len(counts), len(tasks) + 1
    labels = max(LABELS, LETTER * max(len(task["task"]) for task in tasks))
    width, height = max(MIN_WIDTH, labels + depth * CELL_WIDTH + COUNTS), ABOVE + rows * CELL_HEIGHT + BELOW
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((labels / width, BELOW / height, depth * CELL_WIDTH / width, rows * CELL_HEIGHT / height))
    shares = [task["share"] for task in tasks] + [[count / len(tasks) for count in counts]]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=(0.5, depth + 0.5, rows - 0.5, -0.5))
    for row, task in enumerate(tasks):
        for layer in task["layers"]:
            axes.plot(layer, row, "o", color="black", markeredgecolor="white", markersize=4.5)
        axes.text(depth + 0.65, row, f"{task['score']:.0f} %", va="center", fontsize=7, color=GREY)
    for layer, count in enumerate(counts, start=1):
        dark = count > len(tasks) / 2
        axes.text(layer, rows - 1, str(count), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    kept = record.get("layers", [])
    for layer in kept:
        corner = (layer - 0.5, -0.5)
        axes.add_patch(Rectangle(corner, 1, rows, fill=False, edgecolor=KEPT, linewidth=2, clip_on=False, zorder=5))
    axes.set_xticks(range(1, depth + 1))
    axes.set_yticks(range(rows), [*(task["task"] for task in tasks), "data sets"], fontsize=8)
    axes.set_xticks([layer + 0.5 for layer in range(1, depth)], minor=True)
    axes.set_yticks([row + 0.5 for row in range(rows - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.axhline(rows - 1.5, color=GREY, linewidth=1.5)
    axes.set_xlabel("layer of the ancestry", fontsize=8)
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
            f"{gene}: made without a search, so there is no map of the blocks that data sets took; make it with "
            "`learngene search`, or draw the layers of a descendant folder, see `learngene expand`"
        )
    usage_picture(record, out)
