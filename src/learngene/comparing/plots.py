"""Plots of a comparison, made from its rows and nothing else.

Lines are means over seeds, bands (bars if there are many lines) one standard deviation either way; with one seed
there is neither. A contender looks the same in every plot that is made from the same rows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.comparing.results import ResultRow
from learngene.comparing.tables import group, mean_and_deviation
from learngene.system.png import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN_COLORS = {"tleg": "#0072b2", "sws": "#d55e00", "scratch": "#5a5a5a"}
"""For the first contender of these methods, so that they look alike in all comparisons."""
COLORS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a", "#0072b2", "#d55e00", "#5a5a5a")
"""For all others: Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, and two more."""
MARKERS = "osD^vPX<>ph*d8"
BANDS = 5
"""With more lines than this, bands would hide each other and bars are drawn instead."""
UNITS = ((1e18, "10¹⁸"), (1e15, "10¹⁵"), (1e12, "10¹²"), (1e9, "10⁹"), (1e6, "10⁶"))
EPOCH_SHAPES = 3
"""Of more shapes than this, ``save_plots`` draws the epochs of the smallest, the middle and the largest."""


@dataclass(frozen=True)
class Style:
    """How a contender is drawn."""

    color: str  # of line, marker and band
    marker: str  # matplotlib's letter; no two contenders of up to 14 share one
    hollow: bool  # whether the marker is open: its colour is that of another contender


def save_plots(rows: Sequence[ResultRow], folder: Path) -> list[Path]:
    """Writes every plot that says something about these rows.

    Per task and budget: accuracy over parameters if there are several sizes, the cost of all sizes if they are
    tuned, and accuracy over epochs if there are two or more of them, for at most three shapes. Per task: the loss
    over depth, if a budget without tuning and several depths are there.

    Args:
        rows: Of the comparison.
        folder: Where the PNG files go, with names such as ``accuracy-params-home-short.png``.

    Returns:
        The files, in the order in which they are best read.
    """
    out: list[Path] = []
    look = styles(rows)

    def file(*parts: str) -> Path:
        out.append(folder / ("-".join(re.sub(r"[^\w.]+", "_", part) for part in parts) + ".png"))
        return out[-1]

    for (task,), here in group(rows, "task").items():
        for (budget,), some in group(here, "budget").items():
            sizes, tuned = _by_params(some), max(row.epochs for row in some)
            if len({size[0].params for size in sizes}) > 1:
                _accuracy_over_params(some, look, file("accuracy", "params", task, budget))
                costs = total_costs(rows, task, budget)
                if tuned and costs:
                    _cost_over_sizes(some, costs, look, file("cost", "sizes", task, budget))
            if tuned > 1:
                if len(sizes) > EPOCH_SHAPES:
                    sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
                for size in sizes:
                    _accuracy_over_epochs(size, look, file("accuracy", "epochs", task, budget, size[0].shape))
        if any(row.epochs == 0 for row in here) and len({row.depth for row in here}) > 1:
            _loss_over_depth(here, look, file("loss", "depth", task))
    return out


def styles(rows: Sequence[ResultRow]) -> dict[str, Style]:
    """A style for every contender, in the order in which they come."""
    out: dict[str, Style] = {}
    own, used = dict(OWN_COLORS), set()
    names = {row.contender: row.method for row in rows}
    taken = {own[method] for method in names.values() if method in own}
    others = itertools.cycle(color for color in COLORS if color not in taken)
    for (name, method), marker in zip(names.items(), itertools.cycle(MARKERS), strict=False):
        color = own.pop(method, None) or next(others)
        out[name] = Style(color, marker, color in used)
        used.add(color)
    return out


def _accuracy_over_params(rows: Sequence[ResultRow], look: Mapping[str, Style], path: Path) -> None:
    """Top-1, or mean IoU, over the parameters of the descendants; dotted as initialised, solid after tuning."""
    one, tuned = rows[0], any(row.epochs for row in rows)
    figure, axis = _canvas(f"{one.task}, {one.budget}: {_when(rows)}{_over_seeds(rows)}")
    lines = group(rows, "contender")
    for (contender,), mine in lines.items():
        sizes = _by_params(mine)
        untuned = [(size[0].params / 1e6, [row.untuned_top1 for row in size]) for size in sizes]
        _draw(axis, untuned, look[contender], ":", len(lines), deviation=not tuned)
        if any(row.epochs for row in mine):
            last = [(size[0].params / 1e6, [row.last_top1 for row in size]) for size in sizes]
            _draw(axis, last, look[contender], "-", len(lines))
    axis.set(xlabel="parameters of the descendant, M", ylabel=f"{one.metric}, %")
    _name_shapes(axis, {row.shape: row.params / 1e6 for row in rows})
    kinds = {"as initialised": ":", "after tuning": "-"} if tuned else {"as initialised": ":"}
    _finish(figure, path, _legend(rows, look), kinds)


def _accuracy_over_epochs(rows: Sequence[ResultRow], look: Mapping[str, Style], path: Path) -> None:
    """Top-1, or mean IoU, over the epochs of tuning, from the untuned model at 0 (SWS, Figures 4 and 5)."""
    one = rows[0]
    figure, axis = _canvas(f"{one.task}, {one.budget}, {one.shape}: {one.metric} over epochs{_over_seeds(rows)}")
    lines = group(rows, "contender")
    for (contender,), mine in lines.items():
        scores = [scores_by_epoch(row) for row in mine]
        epochs = sorted(set.intersection(*map(set, scores)))
        points = [(epoch, [score[epoch] for score in scores]) for epoch in epochs]
        _draw(axis, points, look[contender], "-", len(lines))
    axis.set(xlabel="epochs of tuning (0: as initialised)", ylabel=f"{one.metric}, %")
    _whole_numbers(axis)
    _finish(figure, path, _legend(rows, look))


def scores_by_epoch(row: ResultRow) -> dict[int, float]:
    """Top-1 by epoch. Where not every epoch was scored, only the first and the last score's epochs are known."""
    if len(row.curve) == row.epochs + 1:
        return dict(enumerate(row.curve))
    return {0: row.untuned_top1, row.epochs: row.last_top1}


def _cost_over_sizes(
    rows: Sequence[ResultRow], costs: Mapping[str, list[float]], look: Mapping[str, Style], path: Path
) -> None:
    """The cost of making the n smallest models; contenders of equal cost share a line."""
    highest = max(max(values) for values in costs.values())
    unit, name = next(((unit, name) for unit, name in UNITS if highest >= unit), (1.0, ""))
    figure, axis = _canvas(f"{rows[0].task}, {rows[0].budget}: cost of all models together")
    alike: dict[tuple[float, ...], list[str]] = {}
    for contender, values in costs.items():
        alike.setdefault(tuple(values), []).append(contender)
    for same, names in alike.items():
        points = [(number, [value / unit]) for number, value in enumerate(same, start=1)]
        _draw(axis, points, look[names[0]], "-", len(alike))
    left_out = [name for name in dict.fromkeys(row.contender for row in rows) if name not in costs]
    note = f"\nleft out, as results are missing: {', '.join(left_out)}" if left_out else ""
    axis.set(xlabel=f"models made, one of each size, the smallest first{note}")
    axis.set(ylabel=f"multiply-adds, {name}" if name else "multiply-adds")
    axis.set_ylim(bottom=0)
    _whole_numbers(axis)
    _finish(figure, path, {"\n".join(map(_short, names)): look[names[0]] for names in alike.values()})


def total_costs(rows: Sequence[ResultRow], task: str, budget: str) -> dict[str, list[float]]:
    """Multiply-adds of making the n smallest models, n = 1, 2, ..., for every contender with all sizes.

    Tuning is paid per model and the ancestry once. A gene is paid with the first size that needs it. How many sizes
    share a gene follows from ``shared_by``, which counts pairs of size and task: it is ``shared_by`` over the number
    of tasks in the rows, so 1 for a gene per shape (``each``), and the number of sizes for one gene for all. Genes
    are paid in full although other tasks may use them too: this is the bill of someone who has only this task. An
    ancestry counts as the recipe's ``teacher_cost`` says, but once.

    Args:
        rows: Of the comparison, all tasks included.
        task: Name of the task.
        budget: Name of the budget.
    """
    some = [row for row in rows if row.task == task and row.budget == budget]
    sizes = {row.shape for row in some}
    out: dict[str, list[float]] = {}
    for (contender,), mine in group(some, "contender").items():
        if {row.shape for row in mine} != sizes:
            continue
        tasks = len({row.task for row in rows if row.contender == contender})
        total: float = max(row.ancestry_macs for row in mine)
        needed: dict[int, int] = {}  # how many sizes so far need a gene of this cost
        out[contender] = []
        for size in _by_params(mine):
            gene, users = size[0].gene_macs, max(1, round(size[0].shared_by / tasks))
            if needed.get(gene, 0) % users == 0:
                total += gene
            needed[gene] = needed.get(gene, 0) + 1
            total += mean_and_deviation(row.tune_macs for row in size)[0]
            out[contender].append(total)
    return out


def _loss_over_depth(rows: Sequence[ResultRow], look: Mapping[str, Style], path: Path) -> None:
    """The loss of the untuned descendants over their depth (SWS, Figure 1d), one line per width."""
    rows = list({(row.contender, row.shape, row.seed): row for row in rows}.values())  # budgets share descendants
    widths = sorted({row.embed_dim for row in rows})
    figure, axis = _canvas(f"{rows[0].task}: loss as initialised{_over_seeds(rows)}")
    kinds = {f"width {width}": ("-", "--", "-.", ":")[number % 4] for number, width in enumerate(widths)}
    lines = group(rows, "contender", "embed_dim")
    for (contender, width), mine in lines.items():
        depths = sorted(group(mine, "depth").items())
        points = [(depth, [row.untuned_loss for row in same]) for (depth,), same in depths]
        _draw(axis, points, look[contender], kinds[f"width {width}"], len(lines))
    axis.set(xlabel="depth of the descendant, layers", ylabel="cross-entropy, nats")
    _whole_numbers(axis)
    _finish(figure, path, _legend(rows, look), kinds if len(widths) > 1 else {})


def _by_params(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """The rows of each shape, the smallest first."""
    return sorted(group(rows, "shape").values(), key=lambda size: size[0].params)


def _when(rows: Sequence[ResultRow]) -> str:
    """What was scored, and after how much tuning."""
    epochs, metric = {row.epochs for row in rows}, rows[0].metric
    if epochs == {0}:
        return f"{metric} as initialised"
    if len(epochs) > 1:
        return f"{metric} after tuning"
    return f"{metric} after {max(epochs)} epoch{'s' if max(epochs) > 1 else ''}"


def _over_seeds(rows: Sequence[ResultRow]) -> str:
    seeds = len({row.seed for row in rows})
    return f", mean ± s.d. of {seeds} seeds" if seeds > 1 else ", one seed"


def _canvas(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axis = figure.subplots()
    figure.suptitle(title, fontsize=11, x=0.015, ha="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    return figure, axis


def _whole_numbers(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw(
    axis: Axes,
    points: Sequence[tuple[float, Sequence[float]]],
    look: Style,
    kind: str,
    lines: int,
    *,
    deviation: bool = True,
) -> None:
    """One of so many lines: the mean of all seeds' values at each position, with a band or bars of their deviation."""
    found = [(x, *mean_and_deviation(values)) for x, values in points]
    x, mean, _ = zip(*found, strict=True)
    axis.plot(x, mean, kind, **_marked(look), lw=1.7, markevery=max(1, len(x) // 15))
    known = [point for point in found if deviation and not math.isnan(point[2])]
    if not known:
        return
    x, mean, half = zip(*known, strict=True)
    if lines > BANDS or len(known) < 2:
        axis.errorbar(x, mean, half, fmt="none", ecolor=look.color, elinewidth=1, capsize=2.5, alpha=0.7)
    else:
        low, high = ([m + side * h for m, h in zip(mean, half, strict=True)] for side in (-1, 1))
        axis.fill_between(x, low, high, color=look.color, alpha=0.16, lw=0)


def _marked(look: Style) -> dict[str, Any]:
    face = "white" if look.hollow else look.color
    return {"color": look.color, "marker": look.marker, "ms": 5.5, "mfc": face, "mec": look.color}


def _name_shapes(axis: Axes, params: dict[str, float]) -> None:
    """Writes the shapes' names above their parameters, if there is room."""
    at = sorted(params.values())
    if at[-1] > 12 * at[0]:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        return
    gaps = [b - a for a, b in itertools.pairwise(at)]
    longest = max(map(len, params))
    # A letter takes up about a hundredth of the axis.
    if gaps and min(gaps) < (at[-1] - at[0]) * 0.013 * (longest + 1):
        return
    above = axis.secondary_xaxis("top")
    above.set_xticks(list(params.values()), labels=list(params), fontsize=8, color="#666666")
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def _legend(rows: Sequence[ResultRow], look: Mapping[str, Style]) -> dict[str, Style]:
    return {_short(name): look[name] for name in dict.fromkeys(row.contender for row in rows)}


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _finish(figure: Figure, path: Path, look: Mapping[str, Style], kinds: Mapping[str, str] | None = None) -> None:
    """Puts the legend beside the plot and writes the file."""
    from matplotlib.lines import Line2D

    handles = {name: Line2D([], [], ls="-", lw=1.7, **_marked(style)) for name, style in look.items()}
    handles |= {name: Line2D([], [], ls=kind, lw=1.7, color="black") for name, kind in (kinds or {}).items()}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=9, frameon=False)
    save_png(figure, path)
