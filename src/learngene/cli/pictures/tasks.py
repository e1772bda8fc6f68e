"""A picture of a hypernetwork's graphs: where the encoder puts ViTs of some depths for every task (TAL, Figure 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.making.hyper.task_graphs import task_graphs
from learngene.system.png import save_png

if TYPE_CHECKING:
    from learngene.genes.gene import Learngene

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a", "#7f7f7f", "#000000",
)  # fmt: skip
"""Okabe and Ito's palette without the yellow, and more."""
MARKERS = "os^Dv"
"""Of every ten tasks in turn."""
SMALL, LARGE = 18.0, 130.0
"""Areas of the shallowest and of the deepest ViT's point, in square points."""
GREY = "#666666"
WIDE, HIGH, LETTER, ROW = 6.6, 4.5, 0.085, 0.19
"""Inches: size of the plot, width of a letter of a task's name, and height of a line of the legend."""


def task_picture(gene: Learngene | str | Path, out: Path) -> None:
    """Draws the graphs of ViTs of several depths: one colour per task, larger points for deeper ViTs.

    Args:
        gene: Of TAL, tuned on some tasks, or its file.
        out: PNG file to write.

    Raises:
        LearngeneError: If it knows no tasks.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    graphs = task_graphs(gene)
    ends = sorted({graphs.depths[0], graphs.depths[-1]})
    legend = 0.35 + LETTER * max(len(name) for name in (*graphs.tasks, f"depth {ends[-1]}"))
    wide, high = WIDE + legend, max(HIGH, 1.0 + ROW * (len(graphs.tasks) + len(ends) + 1))
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((0.75 / wide, 0.8 / high, (WIDE - 0.85) / wide, (high - 1.25) / high))
    low, span = graphs.depths[0], max(graphs.depths[-1] - graphs.depths[0], 1)
    areas = [SMALL + (LARGE - SMALL) * (depth - low) / span for depth in graphs.depths]
    handles = []
    for number, name in enumerate(graphs.tasks):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        xs, ys = graphs.points[number].T
        axes.plot(xs, ys, color=colour, linewidth=0.8, zorder=2)
        look: dict[str, Any] = {"color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.5}
        axes.scatter(xs[::-1], ys[::-1], s=areas[::-1], zorder=3, **look)
        handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=8, label=name))
    for depth in ends:
        size = areas[graphs.depths.index(depth)] ** 0.5
        handles.append(Line2D([], [], linestyle="", marker="o", color=GREY, markersize=size, label=f"depth {depth}"))
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    axes.legend(handles=handles, frameon=False, fontsize=8, **beside)
    for axis, name, share in zip((axes.xaxis, axes.yaxis), ("first", "second"), graphs.shares, strict=True):
        axis.set_label_text(f"{name} principal component, {100 * share:.0f} % of the variance", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"Graphs of ViTs for {len(graphs.tasks)} tasks, as the decoder gets them"
    figure.text(0.02, 1 - 0.27 / high, title, fontsize=10, va="center")
    note = "a point: one ViT's graph for one task, mean over its nodes; lines join the depths of a task"
    figure.text(0.02, 0.16 / high, note, fontsize=7, color=GREY, va="center")
    save_png(figure, out)
