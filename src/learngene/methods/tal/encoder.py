"""The encoder of GHN-3, a Graphormer, and TAL's task layers in it: what TAL calls the learngene.

It reads padded batches of graphs, each with its own task, and gives one vector per node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learngene.methods.tal.graph import Graph
from learngene.methods.tal.sizes import DEGREES, PATHS, NetworkConfig

Tensors = Mapping[str, Tensor]
Nodes = Float[Tensor, "graphs nodes hid"]

EPS = 1e-5
"""Of layer norms: PyTorch's default, unlike the ViT's."""


def encode(
    config: NetworkConfig,
    tensors: Tensors,
    graphs: Sequence[Graph],
    tasks: Float[Tensor, "graphs task_dim"] | None = None,
) -> Nodes:
    """A vector per node of graphs that are encoded together; those behind the end of a shorter graph mean nothing.

    Without the embedding of each graph's task the task layers are left out, as in stage 1.
    """
    device, counts = tensors["encoder.types"].device, [len(graph.types) for graph in graphs]
    longest = max(counts)
    types = pad_sequence([graph.types for graph in graphs], batch_first=True).to(device)
    sizes = pad_sequence([graph.sizes for graph in graphs], batch_first=True).to(device)
    square = [F.pad(graph.distances, (0, longest - n) * 2) for graph, n in zip(graphs, counts, strict=True)]
    distances = torch.stack(square).to(device)
    x, bias = _inputs(tensors, types, sizes, distances), _edge_bias(tensors, distances)
    if min(counts) < longest:
        valid = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
        x = x * valid[..., None]
        bias = bias.masked_fill(~(valid[:, None, :, None] & valid[:, None, None, :]), -32768.0)
    for layer in range(config.encoder_layers):
        name = f"encoder.layers.{layer}"
        x = x + _attention(tensors, name, _task_layer(tensors, name, _norm(tensors, f"{name}.norm1", x), tasks), bias)
        hidden = F.gelu(linear(tensors, f"{name}.fc1", _norm(tensors, f"{name}.norm2", x)))
        x = x + linear(tensors, f"{name}.fc2", hidden)
    return _norm(tensors, "encoder.norm", x)


def _inputs(
    tensors: Tensors,
    types: Integer[Tensor, "graphs nodes"],
    sizes: Integer[Tensor, "graphs nodes 4"],
    distances: Integer[Tensor, "graphs nodes nodes"],
) -> Nodes:
    """Type, shape, degrees and distance from the input of every node."""
    edges = distances == 1
    out_degree, in_degree = (edges.sum(dim=dim).clamp(max=DEGREES - 1) for dim in (2, 1))
    channels = F.embedding(sizes[..., :2], tensors["encoder.channels"]).flatten(2)
    spatial = F.embedding(sizes[..., 2:], tensors["encoder.spatial"]).flatten(2)
    return (
        F.embedding(types, tensors["encoder.types"])
        + torch.cat([channels, spatial], dim=-1)
        + F.embedding(in_degree, tensors["encoder.in_degrees"])
        + F.embedding(out_degree, tensors["encoder.out_degrees"])
        + F.embedding(distances[:, 0].clamp(max=PATHS - 1), tensors["encoder.input_distances"])
    )


def _edge_bias(
    tensors: Tensors, distances: Integer[Tensor, "graphs nodes nodes"]
) -> Float[Tensor, "graphs heads nodes nodes"]:
    """What attention adds for every pair of nodes, by the distances there and back; one for all layers.

    In a graph without cycles one of the two is 0, so that there are only 2 Dmax + 1 pairs of values: the network behind
    the table runs on these, and every pair of nodes looks its value up.
    """
    farthest = int(distances.max())
    there = torch.arange(farthest + 1, device=distances.device)
    table = tensors["encoder.distances"][2 : farthest + 3]
    none = table[:1].expand(farthest + 1, -1)
    pairs = torch.cat([torch.cat([table, none], dim=-1), torch.cat([none, table], dim=-1)[1:]])
    values = linear(tensors, "encoder.edge2", F.relu(linear(tensors, "encoder.edge1", pairs)))
    back = distances.transpose(1, 2)
    index = torch.where(back > 0, back + len(there) - 1, distances)
    return F.embedding(index, values).permute(0, 3, 1, 2)


def _attention(tensors: Tensors, name: str, x: Nodes, bias: Float[Tensor, "graphs heads nodes nodes"]) -> Nodes:
    graphs, nodes, hid = x.shape
    heads = bias.shape[1]
    qkv = F.linear(x, tensors[f"{name}.qkv.weight"]).view(graphs, nodes, 3, heads, hid // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    # Spelled out: PyTorch's fused attention runs another kernel without gradients than with them, and a descendant
    # shall be bit by bit what was trained.
    mixed = (q @ k.transpose(2, 3) / (hid // heads) ** 0.5 + bias).softmax(dim=-1) @ v
    return linear(tensors, f"{name}.proj", mixed.transpose(1, 2).reshape(graphs, nodes, hid))


def _task_layer(tensors: Tensors, name: str, x: Nodes, tasks: Float[Tensor, "graphs task_dim"] | None) -> Nodes:
    """Features to (1 + gamma) features + beta, with (gamma, beta) = (W_gamma, W_beta) I_task (equations 2 and 3).

    The 1 and the biases are the code's; with weights that start at zero the first step is the task-free network.
    """
    if tasks is None:
        return x
    scale, shift = (linear(tensors, f"{name}.{kind}", tasks)[:, None] for kind in ("scale", "shift"))
    return (1 + scale) * x + shift


def _norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], EPS)


def linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """The linear layer of that name."""
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def mean_over_nodes(x: Nodes, counts: Sequence[int]) -> Float[Tensor, "graphs hid"]:
    """One vector per graph, the average over its nodes: what Figure 5 shows."""
    return torch.stack([x[number, :count].mean(dim=0) for number, count in enumerate(counts)])
