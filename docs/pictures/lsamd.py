"""Draws ``docs/lsamd.png``: what a super net is, what is counted over data sets, and how the blocks are expanded.

The blocks are those the paper keeps, and their expansion is the library's own. Who takes which block is made up for the
drawing. Run it in the root of the repository: ``python docs/pictures/lsamd.py``.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from learngene.methods.lsamd import LSAMD
from learngene.system.png import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS, DEPTH = 9, 7
"""Of the ancestry that is drawn, and of the descendant."""

PATHS = ((1, 4, 5, 7, 8), (1, 2, 4, 5, 7), (1, 4, 5, 6, 8), (1, 5, 7, 8), (3, 4, 5, 7, 8, 9), (1, 2, 4, 7, 8))
"""The base blocks that each data set takes; the super net on the left is the first one's."""

BASE, OWN, KEPT = "#0072b2", "#e69f00", "#d55e00"
"""Okabe and Ito's blue, orange and vermilion."""
PALE, EDGE, TEXT, GREY = "#f1f1f1", "#9a9a9a", "#222222", "#666666"
WIDE, HIGH = 1.25, 0.62
"""Of a block; layers are 1 apart."""
BASE_X, OWN_X, GATE_X = 1.75, 3.55, 0.45
GRID_X, PITCH, COUNT_X = 5.6, 0.42, 8.35
GENE_X, CHILD_X = 10.1, 12.4


def draw(out: Path) -> None:
    """Draws the picture.

    Args:
        out: PNG file to write.
    """
    figure = Figure(figsize=(9, 6.0))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.55, 13.55)
    axes.set_ylim(LAYERS + 1.75, -1.4)  # the first layer on top
    axes.axis("off")
    for x, title in ((-0.4, "1. A super net for each data set"), (5.3, "2. Count"), (9.3, "3. Expand")):
        axes.text(x, -1.1, title, fontsize=11, weight="bold", va="center", color=TEXT)
    _super_net(axes)
    kept = _counts(axes)
    _descendant(axes, kept)
    save_png(figure, out)


def _block(axes: Axes, x: float, y: float, label: str, color: str, *, filled: bool) -> None:
    style = "round,pad=0,rounding_size=0.12"
    box = FancyBboxPatch((x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, style, zorder=3)
    box.set(facecolor=color if filled else PALE, edgecolor=color if filled else EDGE, linewidth=1.2)
    axes.add_patch(box)
    dark = filled and color == BASE
    axes.text(x, y, label, ha="center", va="center", fontsize=8.5, color="white" if dark else TEXT, zorder=4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float = 1.0) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0}, zorder=2)


def _super_net(axes: Axes) -> None:
    """Two blocks and an adapter in every layer, and the path of the first data set."""
    axes.text(BASE_X, -0.28, "base block,\nfrozen", ha="center", va="center", fontsize=8, color=BASE)
    axes.text(OWN_X, -0.28, "copy,\ntrained", ha="center", va="center", fontsize=8, color="#9c6c00")
    axes.text(GATE_X, -0.28, "adapter", ha="center", va="center", fontsize=8, color=GREY)
    chosen = [BASE_X if layer in PATHS[0] else OWN_X for layer in range(1, LAYERS + 1)]
    for layer, x in enumerate(chosen, start=1):
        _block(axes, BASE_X, layer, f"block {layer}", BASE, filled=x == BASE_X)
        _block(axes, OWN_X, layer, f"copy {layer}", OWN, filled=x == OWN_X)
        axes.plot(GATE_X, layer, "D", ms=8, mfc="white", mec=GREY, zorder=3)
        axes.plot([GATE_X + 0.2, BASE_X - WIDE / 2], [layer, layer], ":", color=EDGE, lw=1.2)
        axes.plot([BASE_X + WIDE / 2, OWN_X - WIDE / 2], [layer, layer], ":", color=EDGE, lw=1.2)
    for layer, (x, then) in enumerate(itertools.pairwise(chosen), start=1):
        _arrow(axes, (x, layer + HIGH / 2), (then, layer + 1 - HIGH / 2), TEXT, 1.8)
    axes.plot([chosen[-1]] * 2, [LAYERS + HIGH / 2, LAYERS + 0.62], color=TEXT, lw=1.8)
    axes.text(chosen[-1], LAYERS + 0.85, "head", ha="center", va="center", fontsize=8, color=GREY)
    note = "black: the path; a layer's adapter looks at\nits input and picks one of the two blocks"
    axes.text(-0.4, LAYERS + 1.0, note, fontsize=8, va="top", color=GREY, linespacing=1.3)


def _counts(axes: Axes) -> tuple[int, ...]:
    """Who takes the base block where, and how many; gives the layers that more than half of the data sets use."""
    counts = [sum(layer in path for path in PATHS) for layer in range(1, LAYERS + 1)]
    kept = tuple(layer for layer, count in enumerate(counts, start=1) if count > len(PATHS) / 2)
    middle = GRID_X + PITCH * (len(PATHS) - 1) / 2
    axes.text(middle, -0.28, "data sets that take\nthe base block", ha="center", va="center", fontsize=8, color=GREY)
    for layer, count in enumerate(counts, start=1):
        for column, path in enumerate(PATHS):
            taken = layer in path
            x = GRID_X + column * PITCH
            axes.plot(x, layer, "o", ms=9, mfc=BASE if taken else "white", mec=BASE if taken else EDGE, zorder=3)
        weight = "bold" if layer in kept else "normal"
        axes.text(COUNT_X, layer, f"{count}", ha="center", va="center", fontsize=9, weight=weight, color=TEXT)
        if layer in kept:
            style = "round,pad=0,rounding_size=0.2"
            left = GRID_X - 0.32
            box = FancyBboxPatch((left, layer - 0.38), COUNT_X + 0.3 - left, 0.76, style, fill=False)
            box.set(edgecolor=KEPT, linewidth=1.8)
            axes.add_patch(box)
    note = f"one column per data set; framed:\ntaken by more than half of the {len(PATHS)}"
    axes.text(GRID_X - 0.3, LAYERS + 1.0, note, fontsize=8, va="top", color=GREY, linespacing=1.3)
    return kept


def _descendant(axes: Axes, kept: tuple[int, ...]) -> None:
    """The gene's stages, and a descendant that is deeper."""
    kind = LSAMD(layers=kept)
    axes.text(GENE_X, -0.28, "gene: blocks\nas they were", ha="center", va="center", fontsize=8, color=BASE)
    axes.text(CHILD_X, -0.28, f"descendant\nof {DEPTH} layers", ha="center", va="center", fontsize=8, color=BASE)
    order = kind.block_of_layer(DEPTH)
    seen: set[int] = set()
    for number, stage in enumerate(kind.stages(), start=1):
        top, bottom = stage[0] - 0.45, stage[-1] + 0.45
        axes.plot([GENE_X - 0.88] * 2, [top, bottom], color=KEPT, lw=2)
        x, y = GENE_X - 1.02, (top + bottom) / 2
        axes.text(x, y, f"stage {number}", rotation=90, ha="center", va="center", fontsize=8, color=GREY)
        for block in stage:
            _block(axes, GENE_X, block, f"block {block}", BASE, filled=True)
    first = (LAYERS + 1 - DEPTH) / 2
    for place, block in enumerate(order):
        y = first + place
        axes.plot(
            [GENE_X + WIDE / 2, CHILD_X - WIDE / 2],
            [block, y],
            color=BASE,
            lw=1.4,
            ls=(0, (3, 2)) if block in seen else "-",
            zorder=1,
        )
        _block(axes, CHILD_X, y, f"block {block}", BASE, filled=True)
        if place:
            _arrow(axes, (CHILD_X, y - 1 + HIGH / 2), (CHILD_X, y - HIGH / 2), TEXT, 1.8)
        seen.add(block)
    note = "dashed: each stage in turn, the last first,\nrepeats its last block"
    axes.text(GENE_X - 1.1, LAYERS + 1.0, note, fontsize=8, va="top", color=GREY, linespacing=1.3)


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "lsamd.png")
