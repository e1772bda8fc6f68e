"""Draws ``docs/templates.png``: templates becoming one matrix of two layers, in models of two widths.

Templates and scalers are made up so that tiles can be told apart; tiles are mixed, cut and repeated by the library's
own code. Run it in the root of the repository: ``python docs/pictures/templates.py``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from learngene.methods.interpolation import interpolated
from learngene.methods.tiles import grid_of, mixed_tiles, resized
from learngene.system.png import save_png

SIDE, COUNT = 16, 4
"""Of a tile, and templates."""
HAVE, DEPTH, WIDTHS = 48, 2, (48, 64)
"""The gene's width, the layers that it has scalers of, and the widths that are drawn."""
LAYERS = 3
"""Of the models that are drawn."""
NAME = "attn.proj.weight"
GREY = "#666666"


def templates() -> torch.Tensor:
    """Four patterns: stripes both ways, a slope and a ring, [N, side, side]."""
    at = torch.linspace(-1, 1, SIDE)
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    stripes = [torch.sin(7 * rows), torch.sin(7 * columns)]
    return torch.stack([*stripes, rows + columns, torch.cos(4 * (rows**2 + columns**2).sqrt())])


def draw(out: Path) -> None:
    """Draws the picture.

    Args:
        out: PNG file to write.
    """
    generator = torch.Generator().manual_seed(5)
    tiles = HAVE // SIDE
    scalers = torch.randn(DEPTH, tiles, tiles, COUNT, generator=generator)
    figure = Figure(figsize=(9, 5.2))
    FigureCanvasAgg(figure)
    figure.text(0.03, 0.94, "1. The gene: templates and scalers", fontsize=11, weight="bold")
    figure.text(0.47, 0.94, "2. A matrix of three layers, at two widths", fontsize=11, weight="bold")
    for number, template in enumerate(templates()):
        axes = figure.add_axes((0.03 + 0.095 * number, 0.70, 0.085, 0.147))
        axes.imshow(template, cmap="RdBu", vmin=-2, vmax=2)
        axes.set_title(f"T{number + 1}", fontsize=9)
        axes.set_axis_off()
    figure.text(0.03, 0.63, f"S: {DEPTH} layers x {tiles} x {tiles} tiles x {COUNT} numbers", fontsize=9)
    for layer in range(DEPTH):
        for number in range(COUNT):
            axes = figure.add_axes((0.03 + 0.095 * number, 0.42 - 0.19 * layer, 0.085, 0.147))
            axes.imshow(scalers[layer, :, :, number], cmap="PuOr", vmin=-2, vmax=2)
            axes.set_xticks([])
            axes.set_yticks([])
            if not number:
                axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
    for row, width in enumerate(WIDTHS):
        have, want = grid_of(NAME, (HAVE, HAVE), SIDE), grid_of(NAME, (width, width), SIDE)
        wide = resized(interpolated(scalers, LAYERS), have, want, reads=True)
        matrices = mixed_tiles(wide, templates(), want, "tile")
        size = 0.19 * width / max(WIDTHS)
        for layer, matrix in enumerate(matrices):
            axes = figure.add_axes((0.47 + 0.175 * layer, 0.56 - 0.42 * row, size * 0.82, size * 0.82 * 9 / 5.2))
            axes.imshow(matrix, cmap="RdBu", vmin=-3, vmax=3, interpolation="nearest")
            edges = [SIDE * k - 0.5 for k in range(width // SIDE + 1)]
            axes.set_xticks(edges, labels=[])
            axes.set_yticks(edges, labels=[])
            axes.grid(color="white", linewidth=1.2)
            axes.tick_params(length=0)
            axes.set_title(f"layer {layer + 1}" if layer != 1 else "layer 2: halfway", fontsize=8)
            if not layer:
                axes.set_ylabel(f"width {width}", fontsize=9)
    note = (
        "every tile: the templates, weighted by its own numbers; wider than the gene: tiles begin again, "
        "and what reads the width is divided by its growth"
    )
    figure.text(0.03, 0.03, note, fontsize=8, color=GREY)
    save_png(figure, out)


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "templates.png")
