"""A picture of a pool: its rows of blocks, the stitch layers between them, and how its paths scored.

Only the header of the gene file is read; like ``genefile.py``, this module imports no torch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.genes.gene_file import GeneHeader, read_header
from learngene.methods.stitching import Path as Route
from learngene.methods.stitching import StitchedRows
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png
from learngene.vits.shape import ViTShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN = "#0072b2"
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
LEAST, PLOT, PLOT_HEIGHT, TITLE, MARGIN = 5.6, 5.0, 3.1, 0.42, 0.12
"""Inches: least width of the drawing, width and least height of the plot, height of the title, margin of the text."""


@dataclass(frozen=True)
class _Layout:
    """Where everything of a pool lies; x runs along the blocks, y from narrow rows to wide ones."""

    rows: list[ViTShape]

    @property
    def length(self) -> int:
        """Blocks of the deepest row."""
        return max(row.depth for row in self.rows)

    @property
    def width(self) -> float:
        """Of the drawing, labels included."""
        return self.length + LEFT + RIGHT

    @property
    def height(self) -> float:
        """Of the drawing, caption included."""
        return (len(self.rows) - 1) * PITCH + BELOW + ABOVE

    def x(self, row: int, block: int) -> float:
        """Centre of a block; the blocks of a shallower row stand further apart."""
        return (block + 0.5) * self.length / self.rows[row].depth

    def half(self, row: int) -> float:
        """Half the height of a row's blocks, which grows with its width."""
        return 0.12 + 0.22 * self.rows[row].embed_dim / self.rows[-1].embed_dim

    def stitch(self, source: int, target: int, i: int, j: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Both ends of a stitch; the lines of a block are fanned out."""
        up = 1 if target > source else -1
        begin, end = self.x(source, i), self.x(target, j)
        lean = FAN * max(-1.0, min(1.0, end - begin))
        return (
            (begin + lean, source * PITCH + up * self.half(source)),
            (end - lean, target * PITCH - up * self.half(target)),
        )


def pool_picture(gene: GeneHeader | str | Path, out: Path, path: str | None = None) -> None:
    """Draws the rows of a pool with their stitch layers, and beside them top-1 over parameters if it was measured.

    Args:
        gene: The header of a gene of Learngene Pool or SN-Net, or the gene file.
        out: PNG file to write.
        path: Name of the path to highlight, such as ``4+2``; by default one that takes as much of every row.

    Raises:
        LearngeneError: If the gene has no rows, or the pool no such path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    header = gene if isinstance(gene, GeneHeader) else read_header(gene)
    kind, auxiliary = header.method, header.shape
    if not isinstance(kind, StitchedRows):
        raise LearngeneError(
            f"{header.path}: a gene of method {kind.name}, which has no rows to draw; pictures of layers need a "
            "descendant folder, see `learngene expand`"
        )
    paths = kind.paths(auxiliary)
    chosen = _example(kind, auxiliary) if path is None else kind.path_of(auxiliary, kind.named_shape(auxiliary, path))
    scores = {each["path"]: float(each["top1"]) for each in header.metadata.get("paths", [])}
    points = {each: _point(kind, auxiliary, each, scores) for each in paths}
    measured = {each: (params, top1) for each, (params, top1) in points.items() if top1 is not None}

    layout = _Layout(kind.row_shapes(auxiliary))
    wide, high = max(layout.width * INCH, LEAST), layout.height * INCH
    whole = wide + (PLOT if measured else 0.0), max(high, PLOT_HEIGHT if measured else 0.0) + TITLE
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)

    def place(x: float, y: float, width: float, height: float) -> Axes:
        return figure.add_axes((x / whole[0], y / whole[1], width / whole[0], height / whole[1]))

    left = place(0, whole[1] - TITLE - high, wide, high)
    _draw_rows(left, layout)
    _draw_stitches(left, layout, kind, auxiliary)
    _draw_path(left, layout, chosen)
    if measured:
        _draw_scores(place(wide + 0.65, 0.55, PLOT - 0.8, whole[1] - TITLE - 0.6), kind, measured, chosen)
    count = f"{len(paths)} paths through {len(layout.rows)} rows, {_size(header.stored_params)} stored"
    figure.text(MARGIN / whole[0], 1 - 0.12 / whole[1], f"{kind.title}: {count}", fontsize=11, va="top")
    params, top1 = points[chosen]
    scored = "" if top1 is None else f", top-1 {top1:.1f} %"
    full = kind.name_of(auxiliary, chosen).replace("+", " + ")
    caption = f"blue: path {kind.counts(chosen)} ({full}), {_size(params)}{scored}"
    caption += "\nneighbouring lines of one colour share a stitch layer"
    low = whole[1] - TITLE - high
    figure.text(MARGIN / whole[0], (low + 0.1) / whole[1], caption, fontsize=9, color="#333333", linespacing=1.4)
    save_png(figure, out)


def _example(kind: StitchedRows, auxiliary: ViTShape) -> Route:
    """A path through most rows, about as deep as the auxiliary shape, with an equal share of every row."""

    def rank(path: Route) -> tuple[int, int, int]:
        counts = [stop.last - stop.first + 1 for stop in path]
        return -len(path), abs(sum(counts) - auxiliary.depth), max(counts) - min(counts)

    return min(kind.paths(auxiliary), key=rank)


def _point(kind: StitchedRows, auxiliary: ViTShape, path: Route, scores: dict[str, float]) -> tuple[int, float | None]:
    """Parameters of a path, and its top-1 if it was measured."""
    shape = kind.shape_of(auxiliary, path)
    return shape.params(), scores.get(shape.path)


def _size(params: int) -> str:
    return f"{params / 1e6:.1f} M parameters" if params >= 1e6 else f"{params / 1e3:.1f} K parameters"


# -- rows and stitches -----------------------------------------------------------------------------------


def _draw_rows(axis: Axes, layout: _Layout) -> None:
    """Blocks with their numbers, stem and head, and the width of every row."""
    for row, shape in enumerate(layout.rows):
        y = row * PITCH
        axis.plot([-ENDS, layout.length + ENDS], [y, y], color=EDGE, lw=1.2, zorder=2)
        for block in range(shape.depth):
            _box(axis, layout, row, block, PALE, EDGE, "#333333")
        for x, text in ((-ENDS, "stem"), (layout.length + ENDS, "head")):
            _end(axis, x, y, text, "white", EDGE, GREY)
        label = f"{shape.num_heads} heads\n{_size(shape.params()).removesuffix(' parameters')}"
        axis.text(-ENDS - 0.42, y + 0.03, f"width {shape.embed_dim}", ha="right", va="bottom", fontsize=10.5)
        axis.text(-ENDS - 0.42, y - 0.03, label, ha="right", va="top", fontsize=8, color=GREY)
    axis.set_xlim(-LEFT, layout.length + RIGHT)
    axis.set_ylim(-BELOW, (len(layout.rows) - 1) * PITCH + ABOVE)
    axis.set_aspect("equal", anchor="W")
    axis.axis("off")


def _draw_stitches(axis: Axes, layout: _Layout, kind: StitchedRows, auxiliary: ViTShape) -> None:
    """A line for every stitch; those between rows that are no neighbours pass behind the row between, dashed."""
    for source, target in kind.row_pairs():
        far = abs(target - source) > 1
        for (i, j), layer in kind.stitches(auxiliary, source, target).items():
            (x0, y0), (x1, y1) = layout.stitch(source, target, i, j)
            color, line = LAYERS[layer % len(LAYERS)], (0, (4, 2)) if far else "-"
            axis.plot([x0, x1], [y0, y1], color=color, ls=line, lw=1.0 if far else 1.5, zorder=1, alpha=0.9)


def _draw_path(axis: Axes, layout: _Layout, path: Route) -> None:
    """The highlighted path from stem to head."""
    first, last = path[0], path[-1]
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": CHOSEN, "lw": 2.6, "shrinkA": 0, "shrinkB": 0}
    arrow["mutation_scale"] = 13
    for stop in path:
        begin = -ENDS if stop is first else layout.x(stop.row, stop.first)
        end = layout.length + ENDS if stop is last else layout.x(stop.row, stop.last)
        axis.plot([begin, end], [stop.row * PITCH] * 2, color=CHOSEN, lw=2.6, zorder=2.5, solid_capstyle="butt")
        for block in range(stop.first, stop.last + 1):
            _box(axis, layout, stop.row, block, CHOSEN, CHOSEN, "white")
    for a, b in itertools.pairwise(path):
        begins, ends = layout.stitch(a.row, b.row, a.last, b.first)
        # A white edge sets it off from the lines that it crosses.
        axis.annotate("", ends, begins, arrowprops=arrow | {"color": "white", "lw": 6.0, "arrowstyle": "-"}, zorder=2)
        axis.annotate("", ends, begins, arrowprops=arrow, zorder=5)
    _end(axis, -ENDS, first.row * PITCH, "stem", CHOSEN, CHOSEN, "white")
    _end(axis, layout.length + ENDS, last.row * PITCH, "head", CHOSEN, CHOSEN, "white")


def _box(axis: Axes, layout: _Layout, row: int, block: int, face: str, edge: str, text: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y, half = layout.x(row, block), row * PITCH, layout.half(row)
    style = "round,pad=0,rounding_size=0.07"
    box = FancyBboxPatch((x - BLOCK / 2, y - half), BLOCK, 2 * half, style, fc=face, ec=edge, lw=1, zorder=3)
    axis.add_patch(box)
    axis.text(x, y, str(block + 1), ha="center", va="center_baseline", fontsize=9, color=text, zorder=4)


def _end(axis: Axes, x: float, y: float, text: str, face: str, edge: str, color: str) -> None:
    box = {"boxstyle": "round,pad=0.25", "fc": face, "ec": edge, "lw": 1}
    axis.text(x, y, text, ha="center", va="center_baseline", fontsize=8, color=color, bbox=box, zorder=3)


# -- scores ----------------------------------------------------------------------------------------------


def _draw_scores(axis: Axes, kind: StitchedRows, points: dict[Route, tuple[int, float]], chosen: Route) -> None:
    """Top-1 over parameters, one point for every path."""
    whole = {path: point for path, point in points.items() if len(path) == 1}
    stitched = [point for path, point in points.items() if len(path) > 1]
    unit, name = (1e6, "M") if max(params for params, _ in points.values()) >= 1e6 else (1e3, "K")
    axis.plot(
        [params / unit for params, _ in stitched],
        [top1 for _, top1 in stitched],
        "o",
        ms=4.5,
        mfc="white",
        mec="#555555",
        label="stitched paths",
    )
    axis.plot(
        [params / unit for params, _ in whole.values()],
        [top1 for _, top1 in whole.values()],
        "s",
        ms=7,
        color="#333333",
        label="whole rows",
    )
    if chosen in points:
        params, top1 = points[chosen]
        axis.plot(params / unit, top1, "o", ms=8, color=CHOSEN, label=f"path {kind.counts(chosen)}")
    axis.set(xlabel=f"parameters, {name}", ylabel="top-1, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    axis.margins(0.08, 0.12)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
