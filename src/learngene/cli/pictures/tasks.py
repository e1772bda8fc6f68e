"""A picture of a hypernetwork's graphs: where the encoder puts ViTs of some depths for every task (TAL, Figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from learngene.genes.gene_file import read_header
from learngene.methods.tal import Hypernetwork
from learngene.system.errors import LearngeneError
from learngene.system.png import save_png

if TYPE_CHECKING:
    from learngene.genes.gene import Learngene

DEPTHS = tuple(range(3, 13))
"""The paper's ten ViTs; a gene that was trained on a list of sizes shows the depths of the list."""
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a", "#7f7f7f", "#000000",
)  # fmt: skip
"""Okabe and Ito's palette without the yellow, and more."""
MARKERS = "os^Dv"
"""Of every ten tasks in turn."""
SMALL, LARGE = 18.0, 130.0
"""Areas of the shallowest and of the deepest ViT's point, in square points."""
GREY = "#666666"
WIDE, HIGH = 6.6, 4.5
"""Inches."""
LETTER, ROW = 0.085, 0.19
"""Inches: width of a letter of a task's name, and height of a line of the legend."""


@dataclass(frozen=True)
class TaskGraphs:
    """Graphs on the plane of their first two principal components.

    Attributes:
        tasks: Names of the tasks.
        depths: Of the ViTs.
        points: Of every task and depth.
        shares: Of the variance, per component; 0 if all graphs are one.
    """

    tasks: tuple[str, ...]
    depths: tuple[int, ...]
    points: Float[np.ndarray, "tasks depths 2"]
    shares: tuple[float, float]

    @property
    def task_share(self) -> float:
        """How much of the variance is between tasks: 1 if each task is one point, 0 if it makes no difference."""
        centre, means = self.points.mean(axis=(0, 1)), self.points.mean(axis=1)
        total = float(((self.points - centre) ** 2).sum())
        between = len(self.depths) * float(((means - centre) ** 2).sum())
        return between / total if total > 0 else 0.0


def task_graphs(gene: Learngene | str | Path) -> TaskGraphs:
    """Encodes ViTs of the gene's own width for every task that it knows.

    A graph is the mean over its nodes; the head's node has the task's number of classes, as when it is expanded.

    Args:
        gene: Of TAL, tuned on some tasks, or its file.

    Raises:
        LearngeneError: If it knows no tasks.
    """
    import torch

    from learngene.genes.gene import Learngene
    from learngene.methods.tal.encoder import encode, mean_over_nodes
    from learngene.methods.tal.predict import graph_of

    where = "gene" if isinstance(gene, Learngene) else str(gene)
    if not isinstance(gene, Learngene):
        refuse_taskless(where, read_header(gene).method)
        gene = Learngene.load(gene)
    kind = gene.method
    refuse_taskless(where, kind)
    assert isinstance(kind, Hypernetwork)
    tasks, sizes = gene.tasks(), kind.architectures
    if not tasks:
        raise LearngeneError(f"{where}: knows no tasks, only stage 1 was done; tune it on some with `learngene tune`")
    depths = DEPTHS if isinstance(sizes, str) else tuple(sorted({depth for depth, _, _ in sizes}))
    rows = []
    with torch.no_grad():
        for task in tasks.values():
            shape = gene.shape.replace(num_classes=len(task.classes))
            graphs = [graph_of(kind, shape.replace(depth=depth)) for depth in depths]
            vectors = gene.task_vector(task).expand(len(depths), -1)
            nodes = encode(kind, gene.tensors(), graphs, vectors)
            rows.append(mean_over_nodes(nodes, [len(graph.types) for graph in graphs]).cpu().double().numpy())
    points, shares = principal(np.concatenate(rows))
    return TaskGraphs(tuple(tasks), depths, points.reshape(len(tasks), len(depths), 2), shares)


def refuse_taskless(where: str, kind: object) -> None:
    """Raises ``LearngeneError`` if graphs of a gene of this method are the same for every task."""
    if not getattr(kind, "task_aware", False):
        raise LearngeneError(
            f"{where}: a gene of method {getattr(kind, 'name', kind)}, which has no task layers, so there are no "
            "graphs of tasks to draw; pictures of layers need a descendant folder, see `learngene expand`"
        )


def principal(
    vectors: Float[np.ndarray, "points features"],
) -> tuple[Float[np.ndarray, "points 2"], tuple[float, float]]:
    """Vectors on their first two principal components, and the components' shares of the variance.

    A component points to where its largest entry is positive, so that a gene always gives the same picture.
    """
    centred = vectors - vectors.mean(axis=0)
    _, values, components = np.linalg.svd(centred, full_matrices=False)
    first = components[:2]
    first = first * np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])[:, None]
    points = np.zeros((len(vectors), 2))
    points[:, : len(first)] = centred @ first.T
    total = float((values**2).sum())
    one, two = [*(float(value**2) / total if total > 0 else 0.0 for value in values[:2]), 0.0][:2]
    return points, (one, two)


def task_picture(gene: Learngene | str | Path, out: Path) -> None:
    """Draws the graphs of ViTs of several depths: one colour per task, larger points for deeper ViTs.

    Args:
        gene: Of TAL, tuned on some tasks, or its file.
        out: PNG file to write.

    Raises:
        LearngeneError: If it knows no tasks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = task_graphs(gene)
    ends = sorted({found.depths[0], found.depths[-1]})
    legend = 0.35 + LETTER * max(len(name) for name in (*found.tasks, f"depth {ends[-1]}"))
    wide, high = WIDE + legend, max(HIGH, 1.0 + ROW * (len(found.tasks) + len(ends) + 1))
    figure = Figure(figsize=(wide, high))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.75 / wide, 0.8 / high, (WIDE - 0.85) / wide, (high - 1.25) / high))
    low, span = found.depths[0], max(found.depths[-1] - found.depths[0], 1)
    areas = [SMALL + (LARGE - SMALL) * (depth - low) / span for depth in found.depths]
    handles = []
    for number, name in enumerate(found.tasks):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        xs, ys = found.points[number].T
        axes.plot(xs, ys, color=colour, linewidth=0.8, zorder=2)
        axes.scatter(
            xs[::-1], ys[::-1], s=areas[::-1], color=colour, marker=marker, edgecolors="white", linewidths=0.5, zorder=3
        )
        handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=8, label=name))
    for depth in ends:
        size = areas[found.depths.index(depth)] ** 0.5
        handles.append(Line2D([], [], linestyle="", marker="o", color=GREY, markersize=size, label=f"depth {depth}"))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, fontsize=8
    )
    for axis, name, share in zip((axes.xaxis, axes.yaxis), ("first", "second"), found.shares, strict=True):
        axis.set_label_text(f"{name} principal component, {100 * share:.0f} % of the variance", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"Graphs of ViTs for {len(found.tasks)} tasks, as the decoder gets them"
    figure.text(0.02, 1 - 0.27 / high, title, fontsize=10, va="center")
    note = "a point: one ViT's graph for one task, mean over its nodes; lines join the depths of a task"
    figure.text(0.02, 0.16 / high, note, fontsize=7, color=GREY, va="center")
    save_png(figure, out)
