"""The computational graph of a ViT as GHN-3 sees it, from its shape alone: no tracing, no model.

A plain ViT is a chain of sums. Every half block, attention or MLP, is an edge from one sum to the next beside a detour
of five nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from learngene.methods.tal.sizes import SPATIAL
from learngene.vits.shape import ViTShape

CONV, MSA, SUM, INPUT, BIAS, NORM, POSITION = 4, 5, 7, 9, 10, 12, 13
"""Rows of GHN-3's table of node types; the other eight belong to convolutional networks."""

CUT_OFF = 50
"""Longer paths count as none, as in the authors' code."""

NONE = (-1, -1, -1, -1)
"""Sizes of a node without parameters."""


@dataclass(frozen=True)
class Graph:
    """What the encoder reads.

    Attributes:
        types: Row of every node in the table of types.
        sizes: Rows of every node in the tables of channels (out, in) and of spatial sides (height, width).
        distances: Length of the shortest directed path from row to column; 0 where there is none.
        names: Per node, the ViT parameters it stands for; a norm stands for weight and bias.
        nodes: The nodes that stand for parameters, in order.
        places: By parameter, which of these nodes stands for it.
    """

    types: Integer[Tensor, " nodes"]
    sizes: Integer[Tensor, "nodes 4"]
    distances: Integer[Tensor, "nodes nodes"]
    names: tuple[tuple[str, ...], ...]
    nodes: tuple[int, ...]
    places: Mapping[str, int]


def graph(shape: ViTShape, channels: tuple[int, ...], *, attention_node: bool = False) -> Graph:
    """The graph of a plain ViT, 8 + 12 depth nodes (13 depth with attention nodes).

    Args:
        shape: The ViT; its image size counts through the side of the position table, its class token has no node.
        channels: The channel counts with a row of their own, ascending.
        attention_node: A node for the softmax between query and output projection.
    """
    names, types, sizes = _nodes(shape, attention_node)
    distances = torch.from_numpy(_distances(shape.depth, attention_node))
    nodes = tuple(node for node, mine in enumerate(names) if mine)
    places = {name: place for place, node in enumerate(nodes) for name in names[node]}
    return Graph(torch.tensor(types), _rows(sizes, channels), distances, names, nodes, places)


def _nodes(
    shape: ViTShape, attention_node: bool
) -> tuple[tuple[tuple[str, ...], ...], list[int], list[tuple[int, int, int, int]]]:
    """Names, types and sizes (out, in, height, width) of all nodes in order."""
    width, patch, grid = shape.embed_dim, shape.patch_size, shape.grid_size
    nodes: list[tuple[tuple[str, ...], int, tuple[int, int, int, int]]] = [
        ((), INPUT, NONE),
        (("patch_embed.proj.weight",), CONV, (width, shape.in_chans, patch, patch)),
        (("patch_embed.proj.bias",), BIAS, (width, 1, 1, 1)),
        (("pos_embed",), POSITION, (1, width, grid, grid)),
        ((), SUM, NONE),
    ]

    def norm(name: str) -> None:
        nodes.append(((f"{name}.weight", f"{name}.bias"), NORM, (width, 1, 1, 1)))

    def linear(name: str, wide_out: int, wide_in: int) -> None:
        nodes.append(((f"{name}.weight",), CONV, (wide_out, wide_in, 1, 1)))
        nodes.append(((f"{name}.bias",), BIAS, (wide_out, 1, 1, 1)))

    for layer in range(shape.depth):
        block = f"blocks.{layer}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * width, width)
        if attention_node:
            nodes.append(((), MSA, NONE))
        linear(f"{block}.attn.proj", width, width)
        nodes.append(((), SUM, NONE))
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", shape.hidden_dim, width)
        linear(f"{block}.mlp.fc2", width, shape.hidden_dim)
        nodes.append(((), SUM, NONE))
    norm(shape.norm_name)
    linear("head", max(shape.num_classes, 1), width)
    return tuple(n[0] for n in nodes), [n[1] for n in nodes], [n[2] for n in nodes]


def _rows(sizes: list[tuple[int, int, int, int]], channels: tuple[int, ...]) -> Integer[Tensor, "nodes 4"]:
    """Rows of all sizes in the tables of channels and sides; the last row of each stands for none."""
    rows = np.array(sizes)
    none = rows[:, 0] < 0
    # Ties go to the smaller row, but 4 to 7 channels go to 8, and a side of 2 goes to 3.
    rows[:, :2] = _nearest(np.where((rows[:, :2] > 3) & (rows[:, :2] < 8), 8, rows[:, :2]), channels)
    rows[:, 2:] = _nearest(np.where(rows[:, 2:] == 2, 3, rows[:, 2:]), SPATIAL)
    rows[none] = (len(channels), len(channels), len(SPATIAL), len(SPATIAL))
    return torch.from_numpy(rows)


def _nearest(values: np.ndarray, known: tuple[int, ...]) -> np.ndarray:
    """Rows of the nearest known values; a graph has few that differ."""
    few, places = np.unique(values, return_inverse=True)
    return np.abs(few[:, None] - np.array(known)).argmin(1)[places].reshape(values.shape)


@functools.lru_cache(maxsize=64)
def _distances(depth: int, attention_node: bool) -> np.ndarray:
    """Shortest directed paths between the nodes that ``_nodes`` lists; 0 where there is none of at most ``CUT_OFF``."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    # Input, patch weight, patch bias and position table, all of which lead into the first sum.
    edges, last_sum = [(0, 1), (1, 2), (2, 4), (3, 4)], 4
    for half in range(2 * depth):
        detour = 6 if attention_node and half % 2 == 0 else 5
        next_sum = last_sum + detour + 1
        edges += [(node, node + 1) for node in range(last_sum, next_sum)] + [(last_sum, next_sum)]
        last_sum = next_sum
    edges += [(node, node + 1) for node in range(last_sum, last_sum + 3)]  # final norm, head weight, head bias
    start, end = zip(*edges, strict=True)
    count = last_sum + 4
    lengths = dijkstra(csr_array((np.ones(len(edges)), (start, end)), (count, count)), unweighted=True, limit=CUT_OFF)
    return np.where(np.isinf(lengths), 0, lengths).astype(np.int64)
