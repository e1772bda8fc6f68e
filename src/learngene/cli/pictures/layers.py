"""A picture of a ViT's layers on a line over depth (TLEG, Figure 1)."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from learngene.system.errors import LearngeneError
from learngene.system.png import save_png
from learngene.vits.linearity import MATRICES, layer_lines, layer_state, linearity, random_limit, random_linearity

if TYPE_CHECKING:
    from torch import nn


def layer_picture(model: nn.Module, path: Path) -> None:
    """Draws the first principal component over the layers' position, one small plot per tensor.

    Raises:
        LearngeneError: If the model is not a Vision Transformer of timm, or has weights that are no numbers.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    state, depth = layer_state(model)
    if (name := next((name for name, value in state.items() if not value.isfinite().all()), None)) is not None:
        raise LearngeneError(f"{name} is not finite, so there is nothing to draw; make the model again")
    lines, positions = layer_lines(state, depth), range(1, depth + 1)
    rows = math.ceil(len(lines) / 4)
    figure = Figure(figsize=(11, 2.3 * rows + 0.7), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.08))
    axes = figure.subplots(rows, 4, squeeze=False, sharex=True).flatten()
    for axis in axes[len(lines) :]:
        axis.remove()
    for axis, (name, line) in zip(axes, lines.items(), strict=False):
        axis.set_title(name, fontsize=10, loc="left", fontweight="bold" if name in MATRICES else "normal")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axis.margins(y=0.12)
        if math.isnan(line.r_squared):
            axis.text(0.5, 0.5, "equal in all layers", transform=axis.transAxes, ha="center", fontsize=9)
            axis.set_yticks([])
            continue
        slope, intercept = statistics.linear_regression(positions, line.values)
        axis.plot(positions, [intercept + slope * position for position in positions], color="#d55e00", lw=1.6)
        axis.plot(positions, line.values, "o", color="#0072b2", ms=4.5)
        text = f"R² {line.r_squared:.2f}\nvariance {100 * line.explained:.0f} %"
        axis.text(0.04, 0.95, text, transform=axis.transAxes, va="top", fontsize=8.5, color="#333333")
    mean = ""
    if any(name in MATRICES for name in lines):
        mean = f", {linearity(state, depth):.2f} on average over weight matrices (bold)"
    chance = f"random weights: {random_linearity(depth):.2f} on average, {random_limit(depth):.2f} exceeded by 1 in 20"
    title = f"First principal component over {depth} layers, and the straight line of best fit\nR² of the line"
    figure.suptitle(f"{title}{mean}; {chance}", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("position of the layer", fontsize=10)
    save_png(figure, path)
