"""A picture of a pool: its rows of blocks, the stitch layers between them, and how its paths scored.

Only the header of the gene file is read; no torch is imported.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.genes.gene_file import read_header
from learngene.methods.stitching import StitchedRows, rows_of
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN = "#0072b2"
NEIGHBOURS = "neighbours in common"
"""The highlighted path."""
LAYERS = ("#009e73", "#cc79a7", "#e69f00", "#7b3294", "#d55e00", "#8c510a")
"""Stitch layers in turn: Okabe and Ito's palette without the blues, and two more."""
EDGE, PALE, GREY = "#9a9a9a", "#f1f1f1", "#666666"
BLOCK, PITCH, FAN = 0.6, 1.55, 0.13
"""Width of a block, distance of rows, and distance of the lines that leave a block; blocks are 1 apart."""
ENDS = 0.62
"""Distance of stem and head from the row's ends."""
LEFT, RIGHT, BELOW, ABOVE = 2.3, 1.05, 1.15, 0.5
"""Room around the centres of the blocks, the caption's included."""
INCH = 0.78
"""Inches between two blocks of the deepest row."""
MIN_WIDTH, PLOT, PLOT_HEIGHT, TITLE, MARGIN = 5.6, 5.0, 3.1, 0.42, 0.12
"""Inches: least width of the drawing, width and least height of the plot, height of the title, margin of the text."""


def pool_picture(gene: str | Path, out: Path, path: str | None = None) -> None:
    """Draws the rows of a pool with their stitch layers, and beside them top-1 over parameters if it was measured.

    Args:
        gene: The gene file of a Learngene Pool or SN-Net.
        out: PNG file to write.
        path: Name of the path to highlight, such as ``4+2``; by default one that takes as much of every row.

    Raises:
        LearngeneError: If the gene has no rows, or the pool no such path.
    """
    from matplotlib.figure import Figure

    header = read_header(gene)
    if header.method.making != "pool":
        raise LearngeneError(
            f"{header.path}: a gene of method {header.method.name}, trained at one shape, which has nothing to "
            "draw; pictures of layers need a descendant folder, see `learngene expand`"
        )
    pool, auxiliary = rows_of(header.method), header.shape
    paths = pool.paths(auxiliary)
    chosen = _example(pool, auxiliary) if path is None else pool.named_shape(auxiliary, path)
    listed = header.metadata.get("paths", [])
    name, label = ("neighbours", NEIGHBOURS) if any("neighbours" in each for each in listed) else ("top1", "top-1")
    scores = {each["path"]: float(each[name]) for each in listed}
    measured = {each: (each.params(), scores[each.path]) for each in paths if each.path in scores}

    rows = _Rows(pool.row_shapes(auxiliary))
    drawing, high = max((rows.length + LEFT + RIGHT) * INCH, MIN_WIDTH), rows.height * INCH
    width = drawing + (PLOT if measured else 0.0)
    height = max(high, PLOT_HEIGHT if measured else 0.0) + TITLE
    low = height - TITLE - high
    figure = Figure(figsize=(width, height))
    left = figure.add_axes((0, low / height, drawing / width, high / height))
    rows.draw(left)
    rows.draw_stitches(left, pool, auxiliary)
    rows.draw_path(left, pool, chosen)
    if measured:
        place = (drawing + 0.65) / width, 0.55 / height, (PLOT - 0.8) / width, (height - TITLE - 0.6) / height
        _draw_scores(figure.add_axes(place), pool, measured, chosen, label)
    title = f"{pool.title}: {len(paths)} paths through {len(rows.shapes)} rows, {_size(header.stored_params)} stored"
    figure.text(MARGIN / width, 1 - 0.12 / height, title, fontsize=11, va="top")
    scored = f", {label} {measured[chosen][1]:.1f} %" if chosen in measured else ""
    full = chosen.path.replace("+", " + ")
    caption = f"blue: path {pool.counts(chosen)} ({full}), {_size(chosen.params())}{scored}"
    caption += "\nneighbouring lines of one colour share a stitch layer"
    figure.text(MARGIN / width, (low + 0.1) / height, caption, fontsize=9, color="#333333", linespacing=1.4)
    save_png(figure, out)


def _example(pool: StitchedRows, auxiliary: ViTShape) -> Shape:
    """A path through most rows, about as deep as the auxiliary shape, with an equal share of every row."""

    def rank(path: Shape) -> tuple[int, int, int]:
        counts = [segment.depth for segment in path.segments]
        return -len(counts), abs(path.depth - auxiliary.depth), max(counts) - min(counts)

    return min(pool.paths(auxiliary), key=rank)


def _size(params: int) -> str:
    return f"{params / 1e6:.1f} M parameters" if params >= 1e6 else f"{params / 1e3:.1f} K parameters"


@dataclass(frozen=True)
class _Rows:
    """Where everything of a pool lies; x runs along the blocks, y from narrow rows to wide ones."""

    shapes: list[ViTShape]

    @property
    def length(self) -> int:
        """Blocks of the deepest row."""
        return max(row.depth for row in self.shapes)

    @property
    def height(self) -> float:
        """Of the drawing, caption included."""
        return (len(self.shapes) - 1) * PITCH + BELOW + ABOVE

    def x(self, row: int, block: int) -> float:
        """Centre of a block; the blocks of a shallower row stand further apart."""
        return (block + 0.5) * self.length / self.shapes[row].depth

    def half(self, row: int) -> float:
        """Half the height of a row's blocks, which grows with its width."""
        return 0.12 + 0.22 * self.shapes[row].embed_dim / self.shapes[-1].embed_dim

    def stitch(self, source: int, target: int, i: int, j: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Both ends of a stitch; the lines of a block are fanned out."""
        up = 1 if target > source else -1
        begin, end = self.x(source, i), self.x(target, j)
        lean = FAN * max(-1.0, min(1.0, end - begin))
        return (
            (begin + lean, source * PITCH + up * self.half(source)),
            (end - lean, target * PITCH - up * self.half(target)),
        )

    def draw(self, axis: Axes) -> None:
        """Blocks with their numbers, stem and head, and the width of every row."""
        for row, shape in enumerate(self.shapes):
            y = row * PITCH
            axis.plot([-ENDS, self.length + ENDS], [y, y], color=EDGE, lw=1.2, zorder=2)
            for block in range(shape.depth):
                self._block(axis, row, block, PALE, EDGE, "#333333")
            self._ends(axis, row, row, "white", EDGE, GREY)
            label = f"{shape.num_heads} heads\n{_size(shape.params()).removesuffix(' parameters')}"
            axis.text(-ENDS - 0.42, y + 0.03, f"width {shape.embed_dim}", ha="right", va="bottom", fontsize=10.5)
            axis.text(-ENDS - 0.42, y - 0.03, label, ha="right", va="top", fontsize=8, color=GREY)
        axis.set_xlim(-LEFT, self.length + RIGHT)
        axis.set_ylim(-BELOW, self.height - BELOW)
        axis.set_aspect("equal", anchor="W")
        axis.axis("off")

    def draw_stitches(self, axis: Axes, pool: StitchedRows, auxiliary: ViTShape) -> None:
        """A line for every stitch; those that skip a row pass behind it, dashed."""
        for source, target in pool.row_pairs():
            far = abs(target - source) > 1
            for (i, j), layer in pool.stitches(auxiliary, source, target).items():
                (x0, y0), (x1, y1) = self.stitch(source, target, i, j)
                color, line = LAYERS[layer % len(LAYERS)], (0, (4, 2)) if far else "-"
                axis.plot([x0, x1], [y0, y1], color=color, ls=line, lw=1.0 if far else 1.5, zorder=1, alpha=0.9)

    def draw_path(self, axis: Axes, pool: StitchedRows, path: Shape) -> None:
        """The highlighted path from stem to head."""
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": CHOSEN, "lw": 2.6, "shrinkA": 0, "shrinkB": 0}
        arrow["mutation_scale"] = 13
        segments = [(pool.row_of(each), each.first - 1, each.last - 1) for each in path.segments]
        first, last = segments[0][0], segments[-1][0]
        for row, begin, end in segments:
            start = -ENDS if row == first else self.x(row, begin)
            stop = self.length + ENDS if row == last else self.x(row, end)
            axis.plot([start, stop], [row * PITCH] * 2, color=CHOSEN, lw=2.6, zorder=2.5, solid_capstyle="butt")
            for block in range(begin, end + 1):
                self._block(axis, row, block, CHOSEN, CHOSEN, "white")
        for (row, _, out), (entered, into, _) in itertools.pairwise(segments):
            begins, ends = self.stitch(row, entered, out, into)
            # A white edge sets it off from the lines that it crosses.
            edge = arrow | {"color": "white", "lw": 6.0, "arrowstyle": "-"}
            axis.annotate("", ends, begins, arrowprops=edge, zorder=2)
            axis.annotate("", ends, begins, arrowprops=arrow, zorder=5)
        self._ends(axis, first, last, CHOSEN, CHOSEN, "white")

    def _block(self, axis: Axes, row: int, block: int, face: str, edge: str, text: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        x, y, half = self.x(row, block), row * PITCH, self.half(row)
        style = "round,pad=0,rounding_size=0.07"
        box = FancyBboxPatch((x - BLOCK / 2, y - half), BLOCK, 2 * half, style, fc=face, ec=edge, lw=1, zorder=3)
        axis.add_patch(box)
        axis.text(x, y, str(block + 1), ha="center", va="center_baseline", fontsize=9, color=text, zorder=4)

    def _ends(self, axis: Axes, first: int, last: int, face: str, edge: str, color: str) -> None:
        """The stem before one row and the head behind another."""
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 8, "color": color, "zorder": 3}
        box = {"boxstyle": "round,pad=0.25", "fc": face, "ec": edge, "lw": 1}
        axis.text(-ENDS, first * PITCH, "stem", bbox=box, **style)
        axis.text(self.length + ENDS, last * PITCH, "head", bbox=box, **style)


def _draw_scores(
    axis: Axes, pool: StitchedRows, points: dict[Shape, tuple[int, float]], chosen: Shape, score: str
) -> None:
    """What paths scored over parameters, one point for every path."""
    unit, name = (1e6, "M") if max(params for params, _ in points.values()) >= 1e6 else (1e3, "K")
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "stitched paths": ("o", {"ms": 4.5, "mfc": "white", "mec": "#555555"}),
        "whole rows": ("s", {"ms": 7, "color": "#333333"}),
    }
    for label, (marker, look) in kinds.items():
        some = [point for path, point in points.items() if (len(path.segments) == 1) == (label == "whole rows")]
        axis.plot([params / unit for params, _ in some], [top1 for _, top1 in some], marker, label=label, **look)
    if chosen in points:
        params, top1 = points[chosen]
        axis.plot(params / unit, top1, "o", ms=8, color=CHOSEN, label=f"path {pool.counts(chosen)}")
    axis.set(xlabel=f"parameters, {name}", ylabel=f"{score}, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    axis.margins(0.08, 0.12)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
