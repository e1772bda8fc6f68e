"""A picture of a gene that was trained at several shapes: its score over width and depth, and over parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learngene.genes.gene_file import GeneHeader
from learngene.genes.shape_scores import score_of, shape_scores
from learngene.system.png import save_png

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette without the yellow: one for every width, in turn."""
GREY = "#666666"
SIZE = (10.2, 4.1)
"""Inches."""
POINT, BETWEEN = 130.0, 42.0
"""Areas of a measured shape and of one between these, in square points."""


def sizes_picture(header: GeneHeader, out: Path) -> None:
    """Draws what a gene scored, untuned, at the shapes that it was trained at, and what is expected between them.

    Left: a point for every width and depth that its method makes within the measured ones, coloured by score. Right:
    the same over parameters, a line for each width.

    Args:
        header: Of the file of a gene that was trained at several shapes.
        out: PNG file to write.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    gene, scores = header.shape, shape_scores(header.metadata, header.shape, header.shape)
    assert scores
    _, called = score_of(scores.entries)
    widths = {(each["embed_dim"], each["num_heads"]) for each in scores.entries} | set(header.method.widths(gene))
    depths = range(min(each["depth"] for each in scores.entries), max(each["depth"] for each in scores.entries) + 1)
    made = [gene.replace(embed_dim=w, num_heads=h, depth=depth) for w, h in sorted(widths) for depth in depths]
    known = [(shape, *found) for shape in made if (found := scores.at(shape)) is not None]
    figure = Figure(figsize=SIZE, layout="constrained")
    grid, curves = figure.subplots(1, 2)
    low, high = min(score for _, score, _ in known), max(score for _, score, _ in known)
    norm = Normalize(low, high if high > low else low + 1)  # of equal scores, which matplotlib would spread by itself
    for how, area, edge in (("between measured shapes", BETWEEN, "none"), ("measured", POINT, "black")):
        some = [(shape, score) for shape, score, kind in known if kind == how]
        if some:
            look: dict[str, Any] = {"s": area, "edgecolors": edge, "cmap": "viridis", "norm": norm}
            points = grid.scatter(
                [shape.embed_dim for shape, _ in some],
                [shape.depth for shape, _ in some],
                c=[score for _, score in some],
                label=how,
                **look,
            )
    bar = figure.colorbar(points, ax=grid, label=f"{called}, %")
    bar.ax.tick_params(labelsize=7)
    grid.set_xticks(sorted({shape.embed_dim for shape, _, _ in known}))
    grid.set_yticks(sorted({each["depth"] for each in scores.entries}))
    grid.set(xlabel="width", ylabel="layers")
    for number, width in enumerate(sorted({shape.embed_dim for shape, _, _ in known})):
        line = [(shape.params(), score, how) for shape, score, how in known if shape.embed_dim == width]
        colour = COLOURS[number % len(COLOURS)]
        curves.plot(
            [x for x, _, _ in line], [y for _, y, _ in line], color=colour, linewidth=1.2, label=f"width {width}"
        )
        seen = [(x, y) for x, y, how in line if how == "measured"]
        curves.plot([x for x, _ in seen], [y for _, y in seen], "o", color=colour, markersize=7)
    curves.set_xscale("log")
    plain = FuncFormatter(lambda value, _: f"{value / 1e6:.2g} M" if value >= 1e5 else f"{value / 1e3:.3g} k")
    curves.xaxis.set_major_formatter(plain)
    curves.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    curves.set(xlabel="parameters", ylabel=f"{called}, %")
    curves.legend(frameon=False, fontsize=7)
    for axes in (grid, curves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    stored = f"{header.stored_params / 1e3:.0f} k numbers"
    figure.suptitle(f"{header.method.title}: one gene of {stored}, untuned, over its sizes", fontsize=10)
    note = "framed and large: measured; small and lines: interpolated between measured shapes"
    figure.supxlabel(note, fontsize=7, color=GREY)
    save_png(figure, out)
