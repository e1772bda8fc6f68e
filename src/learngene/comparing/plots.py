"""Plots of a comparison, made from its rows and nothing else.

Lines are means over seeds, bands (bars if there are many lines) one standard deviation either way; with one seed
there is neither. A contender looks the same in every plot that is made from the same rows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.comparing.results import ResultRow
from learngene.comparing.tables import group, mean_and_deviation
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

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
    """How a contender is drawn.

    Attributes:
        color: Of line, marker and spread.
        marker: Matplotlib's letter; no two contenders of up to 14 share one.
        hollow: Whether the marker is open: its colour is that of another contender.
    """

    color: str
    marker: str
    hollow: bool


@dataclass(frozen=True)
class Line:
    """Points of one contender.

    Attributes:
        x: Positions.
        mean: Means over seeds.
        spread: Standard deviations over seeds; NaN with one seed.
    """

    x: list[float]
    mean: list[float]
    spread: list[float]


def styles(rows: Sequence[ResultRow]) -> dict[str, Style]:
    """A style for every contender, in the order in which they come."""
    out: dict[str, Style] = {}
    own, used = dict(OWN_COLORS), set()
    names = {row.contender: row.method for row in rows}
    taken = {own[method] for method in names.values() if method in own}
    others = [color for color in COLORS if color not in taken] or list(COLORS)
    count = 0
    for number, (name, method) in enumerate(names.items()):
        color = own.pop(method, None)
        if color is None:
            color, count = others[count % len(others)], count + 1
        out[name] = Style(color, MARKERS[number % len(MARKERS)], color in used)
        used.add(color)
    return out


def accuracy_over_params(rows: Sequence[ResultRow], path: Path, task: str, budget: str) -> None:
    """Draws top-1, or mean IoU, over the parameters of the descendants; dotted as initialised, solid after tuning.

    Args:
        rows: Of the comparison.
        path: PNG file to write.
        task: Name of the task.
        budget: Name of the budget.

    Raises:
        LearngeneError: If there are no rows of this task and budget.
    """
    some = _chosen(rows, task=task, budget=budget)
    look, tuned = styles(rows), any(row.epochs for row in some)
    figure, axis = _canvas(f"{task}, {budget}: {_after(some)}{_over_seeds(some)}")
    bars = len({row.contender for row in some}) > BANDS
    for (contender,), mine in group(some, "contender").items():
        sizes = _by_params(mine)
        untuned = _line((size[0].params / 1e6, [row.untuned_top1 for row in size]) for size in sizes)
        _draw(axis, untuned, look[contender], ":", bars, spread=not tuned)
        if any(row.epochs for row in mine):
            last = _line((size[0].params / 1e6, [row.last_top1 for row in size]) for size in sizes)
            _draw(axis, last, look[contender], "-", bars)
    axis.set(xlabel="parameters of the descendant, M", ylabel=f"{some[0].metric}, %")
    _name_shapes(axis, {row.shape: row.params / 1e6 for row in some})
    kinds = {"as initialised": ":", "after tuning": "-"} if tuned else {"as initialised": ":"}
    _finish(figure, path, _shown(some, look), kinds)


def accuracy_over_epochs(rows: Sequence[ResultRow], path: Path, task: str, budget: str, shape: str) -> None:
    """Draws top-1, or mean IoU, over the epochs of tuning, from the untuned model at 0 (SWS, Figures 4 and 5).

    Where not every epoch was scored, the row does not say which ones were, and only the first and the last score,
    whose epochs are known, are drawn.

    Args:
        rows: Of the comparison.
        path: PNG file to write.
        task: Name of the task.
        budget: Name of the budget.
        shape: Name of the shape.

    Raises:
        LearngeneError: If there are no rows of these.
    """
    from matplotlib.ticker import MaxNLocator

    some = _chosen(rows, task=task, budget=budget, shape=shape)
    look = styles(rows)
    figure, axis = _canvas(f"{task}, {budget}, {shape}: {some[0].metric} over epochs{_over_seeds(some)}")
    bars = len({row.contender for row in some}) > BANDS
    for (contender,), mine in group(some, "contender").items():
        scores = [_scores(row) for row in mine]
        epochs = sorted(set.intersection(*(set(score) for score in scores)))
        line = _line((epoch, [score[epoch] for score in scores]) for epoch in epochs)
        _draw(axis, line, look[contender], "-", bars)
    axis.set(xlabel="epochs of tuning (0: as initialised)", ylabel=f"{some[0].metric}, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, path, _shown(some, look))


def cost_over_sizes(rows: Sequence[ResultRow], path: Path, task: str, budget: str) -> None:
    """Draws what making n models of different sizes costs in all, the smallest size first; see ``total_costs``.

    Contenders that cost the same share a line. Those without a result at every size have no such total; they are
    left out and named.

    Args:
        rows: Of the comparison, all tasks included: how genes are shared follows from all of them.
        path: PNG file to write.
        task: Name of the task.
        budget: Name of the budget.

    Raises:
        LearngeneError: If there are no rows of this task and budget, or no contender has all sizes.
    """
    from matplotlib.ticker import MaxNLocator

    some = _chosen(rows, task=task, budget=budget)
    look, costs = styles(rows), total_costs(rows, task, budget)
    if not costs:
        raise LearngeneError(f"no contender has results at every size on {task} with {budget}")
    highest = max(max(values) for values in costs.values())
    unit, name = next(((unit, name) for unit, name in UNITS if highest >= unit), (1.0, ""))
    figure, axis = _canvas(f"{task}, {budget}: cost of all models together")
    alike: dict[tuple[float, ...], list[str]] = {}
    for contender, values in costs.items():
        alike.setdefault(tuple(values), []).append(contender)
    for same, names in alike.items():
        numbers: list[float] = [number + 1 for number in range(len(same))]
        line = Line(numbers, [value / unit for value in same], [math.nan] * len(same))
        _draw(axis, line, look[names[0]], "-", bars=True)
    left_out = [name for name in dict.fromkeys(row.contender for row in some) if name not in costs]
    note = f"\nleft out, as results are missing: {', '.join(left_out)}" if left_out else ""
    axis.set(xlabel=f"models made, one of each size, the smallest first{note}")
    axis.set(ylabel=f"multiply-adds, {name}" if name else "multiply-adds")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, path, {"\n".join(map(_short, names)): look[names[0]] for names in alike.values()})


def total_costs(rows: Sequence[ResultRow], task: str, budget: str) -> dict[str, list[float]]:
    """Multiply-adds of making the n smallest models, n = 1, 2, ..., for every contender with all sizes.

    Tuning is paid per model and the ancestry once. A gene is paid with the first size that needs it. How many sizes
    share a gene follows from ``shared_by``, which counts pairs of size and task: it is ``shared_by`` over the number
    of tasks in the rows, so 1 for a gene per shape (``each``), and the number of sizes for one gene for all. Genes
    are paid in full although other tasks may use them too: this is the bill of someone who has only this task. An
    ancestry that was loaded, whose cost nobody recorded, counts 0.

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


def loss_over_depth(rows: Sequence[ResultRow], path: Path, task: str) -> None:
    """Draws the loss of the untuned descendants over their depth (SWS, Figure 1d), one line per width.

    Args:
        rows: Of the comparison; a descendant that several budgets share is drawn once.
        path: PNG file to write.
        task: Name of the task.

    Raises:
        LearngeneError: If there are no rows of this task.
    """
    from matplotlib.ticker import MaxNLocator

    some = _chosen(rows, task=task)
    some = list({(row.contender, row.shape, row.seed): row for row in some}.values())
    look, widths = styles(rows), sorted({row.embed_dim for row in some})
    figure, axis = _canvas(f"{task}: loss as initialised{_over_seeds(some)}")
    kinds = {f"width {width}": ("-", "--", "-.", ":")[number % 4] for number, width in enumerate(widths)}
    lines = group(some, "contender", "embed_dim")
    for (contender, width), mine in lines.items():
        depths = sorted(group(mine, "depth").items())
        line = _line((depth, [row.untuned_loss for row in same]) for (depth,), same in depths)
        _draw(axis, line, look[contender], kinds[f"width {width}"], len(lines) > BANDS)
    axis.set(xlabel="depth of the descendant, layers", ylabel="cross-entropy, nats")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, path, _shown(some, look), kinds if len(widths) > 1 else {})


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

    def file(*parts: str) -> Path:
        out.append(folder / ("-".join(re.sub(r"[^\w.]+", "_", part) for part in parts) + ".png"))
        return out[-1]

    for (task,), here in group(rows, "task").items():
        for (budget,), some in group(here, "budget").items():
            sizes, tuned = _by_params(some), max(row.epochs for row in some)
            if len({size[0].params for size in sizes}) > 1:
                accuracy_over_params(rows, file("accuracy", "params", task, budget), task, budget)
                if tuned and total_costs(rows, task, budget):
                    cost_over_sizes(rows, file("cost", "sizes", task, budget), task, budget)
            if tuned > 1:
                names = [size[0].shape for size in sizes]
                if len(names) > EPOCH_SHAPES:
                    names = [names[0], names[len(names) // 2], names[-1]]
                for name in names:
                    accuracy_over_epochs(rows, file("accuracy", "epochs", task, budget, name), task, budget, name)
        if any(row.epochs == 0 for row in here) and len({row.depth for row in here}) > 1:
            loss_over_depth(rows, file("loss", "depth", task), task)
    return out


def _chosen(rows: Sequence[ResultRow], **wanted: str) -> list[ResultRow]:
    some = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    if not some:
        raise LearngeneError(f"no results of {', '.join(f'{name} {value}' for name, value in wanted.items())} to plot")
    return some


def _by_params(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """The rows of each shape, the smallest first."""
    return sorted(group(rows, "shape").values(), key=lambda size: size[0].params)


def _scores(row: ResultRow) -> dict[int, float]:
    """Top-1 by epoch, where the epoch is known."""
    if len(row.curve) == row.epochs + 1:
        return dict(enumerate(row.curve))
    return {0: row.untuned_top1, row.epochs: row.last_top1}


def _line(points: Iterable[tuple[float, list[float]]]) -> Line:
    line = Line([], [], [])
    for x, values in points:
        mean, spread = mean_and_deviation(values)
        line.x.append(x)
        line.mean.append(mean)
        line.spread.append(spread)
    return line


def _after(rows: Sequence[ResultRow]) -> str:
    epochs, metric = {row.epochs for row in rows}, rows[0].metric
    if epochs == {0}:
        return f"{metric} as initialised"
    return (
        f"{metric} after {max(epochs)} epoch{'s' * (max(epochs) > 1)}" if len(epochs) == 1 else f"{metric} after tuning"
    )


def _over_seeds(rows: Sequence[ResultRow]) -> str:
    seeds = len({row.seed for row in rows})
    return f", mean ± s.d. of {seeds} seeds" if seeds > 1 else ", one seed"


def _canvas(title: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    figure.suptitle(title, fontsize=11, x=0.015, ha="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e4e4", lw=0.8)
    axis.set_axisbelow(True)
    return figure, axis


def _draw(axis: Axes, line: Line, look: Style, kind: str, bars: bool, *, spread: bool = True) -> None:
    every = max(1, len(line.x) // 15)
    axis.plot(line.x, line.mean, kind, **_marked(look), lw=1.7, markevery=every)
    known = [at for at, value in enumerate(line.spread) if not math.isnan(value)] if spread else []
    x, mean, deviation = ([values[at] for at in known] for values in (line.x, line.mean, line.spread))
    if not known:
        return
    if bars or len(known) < 2:
        axis.errorbar(x, mean, deviation, fmt="none", ecolor=look.color, elinewidth=1, capsize=2.5, alpha=0.7)
    else:
        low = [value - off for value, off in zip(mean, deviation, strict=True)]
        high = [value + off for value, off in zip(mean, deviation, strict=True)]
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


def _shown(rows: Sequence[ResultRow], look: dict[str, Style]) -> dict[str, Style]:
    """The legend of some rows."""
    return {_short(name): look[name] for name in dict.fromkeys(row.contender for row in rows)}


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _finish(figure: Figure, path: Path, look: dict[str, Style], kinds: dict[str, str] | None = None) -> None:
    """Puts the legend beside the plot and writes the file."""
    from matplotlib.lines import Line2D

    handles: list[Line2D] = [Line2D([], [], ls="-", lw=1.7, **_marked(style)) for style in look.values()]
    labels = list(look)
    for name, kind in (kinds or {}).items():
        handles.append(Line2D([], [], ls=kind, lw=1.7, color="black"))
        labels.append(name)
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    save_png(figure, path)
