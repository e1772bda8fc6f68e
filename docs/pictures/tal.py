"""Draws ``docs/tal.png``: the graph of a shape and a task go in, the weights of a ViT of that shape come out.

The graph is the library's own, of a ViT with two layers. Run it in the root of the repository:
``python docs/pictures/tal.py``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from learngene.methods.tal import TAL
from learngene.methods.tal.graph import BIAS, CONV, INPUT, NORM, POSITION, SUM, graph
from learngene.system.png import save_png
from learngene.vits.shape import ViTShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEPTH = 2
"""Of the ViT whose graph is drawn."""
SIZES = ((3, 64), (6, 128), (12, 192))
"""Depth and width of the ViTs on the right."""
TASKS = ("#0072b2", "#d55e00", "#009e73")
"""Okabe and Ito's blue, vermilion and green."""

COLOURS = {INPUT: "white", CONV: "#56b4e9", BIAS: "#cfe8f7", NORM: "#cc79a7", POSITION: "#e69f00", SUM: "white"}
NAMES = {CONV: "matrix", BIAS: "bias", NORM: "norm", POSITION: "positions", SUM: "sum, input"}
TASK, PALE, EDGE, TEXT, GREY = "#d55e00", "#f1f1f1", "#9a9a9a", "#222222", "#666666"
SPINE, BULGE, TOP, HALF, STEP = 1.15, 0.85, 1.95, 1.05, 0.36
"""Of the graph: x of the sums, reach of a detour, y of the first sum, heights of a half block and of a node."""
BOX, TOWER = (3.55, 1.15, 2.75, 4.15), (10.75, 12.0, 13.25)
"""Place and size of the encoder; the middles of the columns of ViTs."""


def draw(out: Path) -> None:
    """Draws the picture.

    Args:
        out: PNG file to write.
    """
    figure = Figure(figsize=(9, 5.6))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.05, 14.05)
    axes.set_ylim(8.55, -0.15)
    axes.set_aspect("auto")
    axes.axis("off")
    titles = ((0.1, "1. Graph of a shape"), (3.55, "2. Encoder"), (7.1, "3. Decoder"), (10.0, "4. ViTs"))
    for x, title in titles:
        axes.text(x, 0.2, title, fontsize=11, weight="bold", va="center", color=TEXT)
    _graph(axes)
    _encoder(axes)
    _decoder(axes)
    _vits(axes)
    _arrow(axes, (2.35, 1.5), (BOX[0] - 0.03, 1.5))
    _arrow(axes, (BOX[0] + BOX[2] + 0.03, 2.35), (7.1, 2.35))
    _arrow(axes, (9.35, 2.35), (10.0, 2.35))
    save_png(figure, out)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = TEXT, width: float = 1.6
) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=5)


def _box(axes: Axes, x: float, y: float, wide: float, high: float, label: str, colour: str, face: str = PALE) -> None:
    box = FancyBboxPatch((x, y), wide, high, "round,pad=0,rounding_size=0.1", zorder=3)
    box.set(facecolor=face, edgecolor=colour, linewidth=1.2)
    axes.add_patch(box)
    axes.text(x + wide / 2, y + high / 2, label, ha="center", va="center", fontsize=8, color=TEXT, zorder=4)


def _note(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, fontsize=8, va="top", color=GREY, linespacing=1.35)


def _graph(axes: Axes) -> None:
    """Nodes where they stand in the chain: sums on a line, the detours of half blocks beside it."""
    found = graph(ViTShape(depth=DEPTH, class_token=True), TAL().channels)
    places: list[tuple[float, float]] = [(SPINE, TOP - STEP * left) for left in (3, 2, 1)]
    places += [(SPINE - 0.6, TOP - STEP * 1.3), (SPINE, TOP)]
    for half in range(2 * DEPTH):
        y = TOP + half * HALF
        places += [
            (SPINE + BULGE * math.sin(math.pi * step / 6), y + HALF * (0.5 - 0.45 * math.cos(math.pi * step / 6)))
            for step in range(1, 6)
        ]
        places.append((SPINE, y + HALF))
        name = "MLP" if half % 2 else "attention"
        axes.text(SPINE - 0.25, y + HALF / 2, name, rotation=90, ha="center", va="center", fontsize=7, color=GREY)
    places += [(SPINE, places[-1][1] + STEP * step) for step in (1, 2, 3)]
    for source, target in (found.distances == 1).nonzero().tolist():
        (x1, y1), (x2, y2) = places[source], places[target]
        axes.plot([x1, x2], [y1, y2], color=EDGE, lw=1.1, zorder=1)
    for (x, y), kind in zip(places, found.types.tolist(), strict=True):
        axes.plot(x, y, "o", ms=7, mfc=COLOURS[kind], mec="#555555", mew=0.8, zorder=3)
    ends = ((places[0], "input"), (places[1], "patch projection"), (places[-2], "head"))
    for (x, y), label in ends:
        axes.text(x + 0.2, y, label, fontsize=7, va="center", color=GREY)
    for number, (kind, label) in enumerate(NAMES.items()):
        x, y = 0.15 + 1.15 * (number % 3), 7.85 + 0.37 * (number // 3)
        axes.plot(x, y, "o", ms=7, mfc=COLOURS[kind], mec="#555555", mew=0.8)
        axes.text(x + 0.17, y, label, fontsize=7.5, va="center", color=GREY)


def _encoder(axes: Axes) -> None:
    """A layer, and where the task comes from."""
    x, y, wide, high = BOX
    _box(axes, x, y, wide, high, "", EDGE, "white")
    inner, left = wide - 0.5, x + 0.25
    rows = ("norm", "task layer\n$(1 + \\gamma)\\,x + \\beta$", "attention,\nbiased by distances", "norm, MLP")
    heights = (0.45, 0.8, 0.8, 0.45)
    top = y + 0.3
    task = 0.0
    for label, size in zip(rows, heights, strict=True):
        mine = label.startswith("task")
        _box(axes, left, top, inner, size, label, TASK if mine else EDGE, "#fbe5d6" if mine else PALE)
        if mine:
            task = top + size / 2
        if label != rows[-1]:
            _arrow(axes, (left + inner / 2, top + size), (left + inner / 2, top + size + 0.3), width=1.2)
        top += size + 0.3
    axes.text(x + wide / 2, y + high - 0.21, "all layers alike", ha="center", va="center", fontsize=7.5, color=GREY)
    chain = ((5.75, "mean of its features"), (6.55, "ancestry, frozen"), (7.35, "images of a task"))
    for place, label in chain:
        last = place == chain[0][0]
        _box(axes, left, place, inner, 0.5, label, TASK if last else EDGE, "#fbe5d6" if last else PALE)
    for place in (6.55, 7.35):
        _arrow(axes, (left + inner / 2, place), (left + inner / 2, place - 0.3), width=1.2)
    rail = x - 0.25
    axes.plot([left, rail, rail], [6.0, 6.0, task], color=TASK, lw=1.4, zorder=4)
    _arrow(axes, (rail, task), (left, task), TASK, 1.4)
    axes.text(rail - 0.13, 4.1, "task embedding", rotation=90, ha="center", va="center", fontsize=8, color=TASK)


def _matrix(axes: Axes, x: float, y: float, wide: float, high: float, face: str, parts: int = 1) -> None:
    for row in range(parts):
        for column in range(parts):
            place = (x + column * wide / parts, y + row * high / parts)
            axes.add_patch(Rectangle(place, wide / parts, high / parts, fc=face, ec="white", lw=0.8, zorder=3))
    axes.add_patch(Rectangle((x, y), wide, high, fill=False, ec="#555555", lw=1.0, zorder=4))


def _decoder(axes: Axes) -> None:
    """Both decoders, for one node."""
    axes.text(7.15, 1.05, "for every node, its weight", fontsize=8, color=GREY, va="center")
    y, side, blue = 1.75, 1.15, COLOURS[CONV]
    _matrix(axes, 7.2, y, 0.24, side, blue)
    axes.text(7.6, y + side / 2, "·", ha="center", va="center", fontsize=12, color=TEXT)
    _matrix(axes, 7.76, y + side / 2 - 0.12, 0.6, 0.24, blue)
    axes.text(8.53, y + side / 2, "=", ha="center", va="center", fontsize=10, color=TEXT)
    axes.text(7.32, y - 0.2, "$A$", ha="center", va="center", fontsize=8, color=TEXT)
    axes.text(8.06, y + side / 2 - 0.35, "$B^T$", ha="center", va="center", fontsize=8, color=TEXT)
    _matrix(axes, 8.7, y, 0.6, side, blue)
    _note(axes, 7.15, y + side + 0.15, "LoGAH, TAL:\ntwo low-rank factors,\ncut to the weight's size")
    y = 5.0
    _matrix(axes, 7.2, y, 0.4, 0.4, blue)
    _arrow(axes, (7.75, y + 0.2), (8.3, y + 0.2), width=1.2)
    _matrix(axes, 8.4, y - 0.25, 0.9, 0.9, blue, 2)
    _note(axes, 7.15, y + 0.85, "GHN-3:\none block, repeated")


def _vits(axes: Axes) -> None:
    """A tower per size and task."""
    for x, colour, name in zip(TOWER, TASKS, "ABC", strict=True):
        axes.text(x, 0.85, f"task {name}", ha="center", va="center", fontsize=8, color=colour)
    y = 1.25
    for depth, width in SIZES:
        thick, wide = 0.19, 1.05 * width / SIZES[-1][1]
        for x, colour in zip(TOWER, TASKS, strict=True):
            for layer in range(depth):
                place = (x - wide / 2, y + layer * thick)
                axes.add_patch(Rectangle(place, wide, thick * 0.78, fc=colour, ec="none", zorder=3))
        middle = y + depth * thick / 2
        axes.text(13.95, middle, f"{depth} x {width}", rotation=90, ha="center", va="center", fontsize=7, color=GREY)
        y += depth * thick + 0.5
    _note(axes, 10.15, y + 0.05, "any depth and width; the head has\nas many classes as the task")


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "tal.png")
