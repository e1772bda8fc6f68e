"""Predicting: shapes and tasks to weights under timm's names, differentiable in the hypernetwork's parameters.

``graph_of`` makes a shape's graph, ``encode`` its nodes' vectors, ``low_rank_weights`` and ``dense_weights`` the
weights; ``predict`` is all three for several shapes at once. All take the gene's ``method.config`` and ``tensors()``.

The decoders give raw tensors; here they are cropped or tiled to size, scaled as GHN-3 scales (``norm_weights``), and
named. Layers of one kind stay stacked until the last moment, so that all of them are scaled at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from learngene.methods.tal.dense import DenseDecoder, tiled
from learngene.methods.tal.encoder import encode
from learngene.methods.tal.graph import Graph, graph
from learngene.methods.tal.low_rank import LowRankDecoder
from learngene.methods.tal.sizes import KERNEL, NetworkConfig
from learngene.vits.shape import ViTShape

Weights = dict[str, Tensor]
MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYER_VECTORS = (
    *("norm1.weight", "norm2.weight", "norm1.bias", "norm2.bias"),
    *(f"{matrix}.bias" for matrix in MATRICES),
)


@functools.lru_cache(maxsize=1024)
def graph_of(config: NetworkConfig, shape: ViTShape) -> Graph:
    """The graph of a shape as a hypernetwork reads it; it depends on nothing that is trained, so it is made once."""
    return graph(shape, config.channels, attention_node=config.attention_node)


def predict(
    config: NetworkConfig,
    tensors: Mapping[str, Tensor],
    shapes: Sequence[ViTShape],
    tasks: Float[Tensor, "shapes task_dim"] | None = None,
) -> list[Weights]:
    """All weights of ViTs under timm's names, each for its task; None leaves the task layers out.

    The class token is zero and its position a fixed row: neither is predicted, in the authors' code either.
    """
    device = tensors["class_position"].device
    with torch.autocast(device.type, enabled=False):  # decoding in half precision loses the small weights
        graphs = [graph_of(config, shape) for shape in shapes]
        nodes = encode(config, tensors, graphs, tasks)
        make = low_rank_weights if config.decoder == "low-rank" else dense_weights
        made = [
            make(config, tensors, shape, found, nodes[number, list(found.nodes)])
            for number, (shape, found) in enumerate(zip(shapes, graphs, strict=True))
        ]
        # Contiguous as a model's own are, so that the very same kernels run on them.
        return [{name: value.contiguous() for name, value in weights.items()} for weights in made]


def low_rank_weights(
    config: NetworkConfig, tensors: Mapping[str, Tensor], shape: ViTShape, found: Graph, nodes: Float[Tensor, "n hid"]
) -> Weights:
    """The weights of one ViT from LoGAH's decoder."""
    most = config.max_shape
    place = found.places
    width, grid, patch = shape.embed_dim, shape.grid_size, shape.patch_size
    rows = {"pos_embed": (grid, width * grid), "patch_embed.proj": (min(width, most) * patch, shape.in_chans * patch)}
    sizes = {name: shape.layer_params()[f"{name}.weight"] for name in MATRICES}
    wanted = {
        name: ([place[f"blocks.{layer}.{name}.weight"] for layer in range(shape.depth)], min(o, most), min(i, most))
        for name, (o, i) in sizes.items()
    }
    for name, (o, i) in rows.items():
        wanted[name] = ([place[name if name == "pos_embed" else f"{name}.weight"]], o, i)
    if shape.num_classes:
        wanted["head"] = ([place["head.weight"]], min(shape.num_classes, most), min(width, most))
    tallest = max(size for _, *sides in wanted.values() for size in sides)
    # The longest vector need not be the one that reaches farthest: 96 is decoded as 128, 100 as 100.
    lengths = (3 * width, shape.hidden_dim, shape.num_classes)
    deepest = max(config.rounded(length) + min(length, most) for length in lengths)
    decoder = LowRankDecoder.of(config, tensors, nodes, max(tallest, deepest))
    raw = decoder.matrices(wanted)
    out: Weights = {}
    for name, size in sizes.items():
        _add_layers(out, f"{name}.weight", _matrix(raw[name], size))
    kernel = raw["patch_embed.proj"].view(-1, patch, shape.in_chans, patch).permute(0, 2, 1, 3)
    out["patch_embed.proj.weight"] = _matrix(kernel[None], (width, shape.in_chans, patch, patch))[0]
    _add_stem(out, tensors, raw["pos_embed"][0].view(grid, width, grid).permute(1, 0, 2))

    groups: dict[tuple[int, int], list[str]] = {}  # vectors of one size are decoded together
    for name in LAYER_VECTORS:
        groups.setdefault((_half(name), shape.layer_params()[name][0]), []).append(name)
    for (half, length), names in sorted(groups.items()):
        chosen = [place[f"blocks.{layer}.{name}"] for name in names for layer in range(shape.depth)]
        values = tiled(decoder.vectors(chosen, length, half), (len(chosen), length))
        for name, value in zip(names, values.chunk(len(names)), strict=True):
            _add_layers(out, name, _vector(name, value))
    ends = ["patch_embed.proj.bias", f"{shape.norm_name}.bias"]
    for half, names in ((1, ends), (0, [f"{shape.norm_name}.weight"])):
        values = tiled(decoder.vectors([place[name] for name in names], width, half), (len(names), width))
        out |= {name: _vector(name, value) for name, value in zip(names, values, strict=True)}
    if shape.num_classes:
        classes = shape.num_classes
        out["head.weight"] = _matrix(raw["head"], (classes, width))[0]
        out["head.bias"] = _vector(
            "head.bias", tiled(decoder.vectors([place["head.bias"]], classes, 1), (1, classes))[0]
        )
    return out


def dense_weights(
    config: NetworkConfig, tensors: Mapping[str, Tensor], shape: ViTShape, found: Graph, nodes: Float[Tensor, "n hid"]
) -> Weights:
    """The weights of one ViT from GHN-3's decoder: blocks of m x m, repeated."""
    place = found.places
    width, grid, patch, depth = shape.embed_dim, shape.grid_size, shape.patch_size, shape.depth
    decoder = DenseDecoder(config, tensors, nodes)
    out: Weights = {}
    layers = [place[f"blocks.{layer}.{name}.weight"] for name in MATRICES for layer in range(depth)]
    blocks = decoder.kernels(layers, 1, 1)[..., 0, 0]
    for name, block in zip(MATRICES, blocks.split(depth), strict=True):
        _add_layers(out, f"{name}.weight", _matrix(block, shape.layer_params()[f"{name}.weight"]))
    kernel = decoder.kernels([place["patch_embed.proj.weight"]], *(min(patch, KERNEL),) * 2)
    out["patch_embed.proj.weight"] = _matrix(kernel, (width, shape.in_chans, patch, patch))[0]
    side = min(grid, KERNEL)
    _add_stem(out, tensors, tiled(decoder.kernels([place["pos_embed"]], side, side)[0, 0], (width, grid, grid)))
    ends = ("patch_embed.proj.bias", f"{shape.norm_name}.weight", f"{shape.norm_name}.bias")
    for name, value in zip(ends, decoder.halves([place[name] for name in ends]), strict=True):
        out[name] = _vector(name, tiled(value[_half(name)], (width,)))
    for name in LAYER_VECTORS:
        values = decoder.halves([place[f"blocks.{layer}.{name}"] for layer in range(depth)])[:, _half(name)]
        _add_layers(out, name, _vector(name, tiled(values, (depth, *shape.layer_params()[name]))))
    if shape.num_classes:
        out["head.weight"] = _matrix(decoder.head(place["head.weight"])[None], (shape.num_classes, width))[0]
        out["head.bias"] = _vector("head.bias", tiled(decoder.head_bias(place["head.bias"]), (shape.num_classes,)))
    return out


# -- sizes and scales --------------------------------------------------------------------------------------


def _matrix(raw: Tensor, size: Sequence[int]) -> Tensor:
    """Matrices or kernels of a size, times sqrt(2 / fan-in)."""
    return tiled(raw, (len(raw), *size)) * math.sqrt(2 / math.prod(size[1:]))


def _half(name: str) -> int:
    """Of a decoded pair, norms' weights take the first half and all biases the second."""
    return int(name.endswith("bias"))


def _vector(name: str, raw: Tensor) -> Tensor:
    """The scale of a norm, or a bias."""
    return torch.tanh(0.2 * raw) if name.endswith("bias") else 2 * torch.sigmoid(raw / 2)


def _add_layers(out: Weights, name: str, values: Tensor) -> None:
    out |= {f"blocks.{layer}.{name}": value for layer, value in enumerate(values.unbind())}


def _add_stem(out: Weights, tensors: Mapping[str, Tensor], kernel: Float[Tensor, "width grid grid"]) -> None:
    row = tensors["class_position"][: len(kernel)].view(1, 1, -1)
    out["cls_token"] = torch.zeros_like(row)
    out["pos_embed"] = torch.cat([row, position_table(kernel)[None]], dim=1)


def position_table(kernel: Float[Tensor, "width grid grid"]) -> Float[Tensor, "patches width"]:
    """Positions are decoded as a kernel of one output is: one value per channel, row and column of the image."""
    return kernel.flatten(1).T


def predict_matrix(
    config: NetworkConfig, tensors: Mapping[str, Tensor], vector: Float[Tensor, " hid"], rows: int, columns: int
) -> Float[Tensor, "rows columns"]:
    """One more matrix from the decoder, for a vector that is no node's: TAL's M, (rows, columns)."""
    most = config.max_shape
    with torch.autocast(vector.device.type, enabled=False):
        if config.decoder == "dense":
            raw = DenseDecoder(config, tensors, vector[None]).kernels([0], 1, 1)[..., 0, 0]
        else:
            sides = min(rows, most), min(columns, most)
            decoder = LowRankDecoder.of(config, tensors, vector[None], max(sides))
            raw = decoder.matrices({"map": ([0], *sides)})["map"]
        return _matrix(raw, (rows, columns))[0]
