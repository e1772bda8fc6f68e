"""What a tuned hypernetwork makes of tasks: the embeddings of its graphs by task and depth (TAL, Figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from learngene.genes.gene import Learngene
from learngene.methods.tal import hypernetwork_of
from learngene.methods.tal.encoder import encode, mean_over_nodes
from learngene.methods.tal.predict import graph_of
from learngene.system.errors import LearngeneError

DEPTHS = tuple(range(3, 13))
"""The paper's ten ViTs; a gene that was trained on a list of sizes shows the depths of the list."""


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


@torch.no_grad()
def task_graphs(gene: Learngene | str | Path) -> TaskGraphs:
    """Encodes ViTs of the gene's own width for every task that it knows.

    A graph is the mean over its nodes; the head's node has the task's number of classes, as when it is expanded.

    Args:
        gene: Of TAL, tuned on some tasks, or its file.

    Raises:
        LearngeneError: If it knows no tasks.
    """
    where = "gene" if isinstance(gene, Learngene) else str(gene)
    gene = gene if isinstance(gene, Learngene) else Learngene.load(gene)
    if not gene.method.task_aware:
        raise LearngeneError(
            f"{where}: a gene of method {gene.method.name}, which has no task layers, so there are no graphs of tasks "
            "to draw; pictures of layers need a descendant folder, see `learngene expand`"
        )
    kind = hypernetwork_of(gene.method)
    tasks, sizes = gene.tasks(), kind.architectures
    if not tasks:
        raise LearngeneError(f"{where}: knows no tasks, only stage 1 was done; tune it on some with `learngene tune`")
    depths = DEPTHS if isinstance(sizes, str) else tuple(sorted({depth for depth, _, _ in sizes}))
    rows = []
    for task in tasks.values():
        shape = gene.shape.replace(num_classes=len(task.classes))
        graphs = [graph_of(kind.config, shape.replace(depth=depth)) for depth in depths]
        vectors = gene.task_vector(task).expand(len(depths), -1)
        nodes = encode(kind.config, gene.tensors(), graphs, vectors)
        rows.append(mean_over_nodes(nodes, [len(graph.types) for graph in graphs]).cpu().double().numpy())
    points, shares = principal(np.concatenate(rows))
    return TaskGraphs(tuple(tasks), depths, points.reshape(len(tasks), len(depths), 2), shares)


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
