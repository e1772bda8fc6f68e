"""Looking into weights: whether the layers of a Vision Transformer lie on a line (TLEG, Figure 1).

For every tensor that all layers have, the layers' values are vectors, one per layer. Centred over the layers and
projected on their first principal component they become one number per layer, which TLEG observes to rise about
linearly with the layer's position. A line fits some of it by chance, and more so the fewer layers there are:
``random_linearity`` says how much, and belongs beside every R squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learngene.system.errors import LearngeneError
from learngene.vits.shape import ViTShape

if TYPE_CHECKING:
    from torch import Tensor, nn

MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
"""The weight matrices of a layer, over which ``linearity`` takes the mean."""
CHUNK = 1 << 18
"""Columns of all layers that are in memory in double precision at a time."""
NOTHING = 1e-24
"""A share of the sum of squares below which layers are equal but for the rounding of their mean."""


@dataclass(frozen=True)
class LayerLine:
    """One tensor of every layer, projected on its first principal component over the layers.

    Attributes:
        values: One per layer, centred; in the direction in which they rise with position.
        explained: Share of the variance over layers that the component explains; NaN if the layers are all equal.
        r_squared: Of a straight line of value over position; NaN if the layers are all equal.
    """

    values: tuple[float, ...]
    explained: float
    r_squared: float


@dataclass(frozen=True)
class LayerShares:
    """One tensor of every layer: how much the layers have in common, and how much of the rest their position explains.

    Attributes:
        mean: Share of the sum of squares that lies in the layers' mean.
        line: Share of what is left that lies on a straight line over position; NaN if the layers are all equal.
        cubic: The same of polynomials of degree 3, which are what four Chebyshev terms can say.
        cosine: The largest between two layers, by its absolute value.
    """

    mean: float
    line: float
    cubic: float
    cosine: float


def layer_state(model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """The tensors of a timm model's layers, and how many layers it has.

    Raises:
        LearngeneError: If the model has no ``blocks``, or they are not alike.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(blocks, "__len__"):
        raise LearngeneError(f"{type(model).__name__} has no 'blocks'; give a Vision Transformer of timm")
    state = {f"blocks.{name}": value for name, value in blocks.state_dict().items()}
    _names(state, len(blocks))
    return state, len(blocks)


def layer_lines(state: Mapping[str, Tensor], depth: int) -> dict[str, LayerLine]:
    """Projects every tensor of the layers on its first principal component over the layers.

    Works on the depth x depth matrix of the layers' inner products, so that a ViT-B takes seconds and little memory.

    Args:
        state: Tensors with timm's names, ``blocks.0.norm1.weight`` and so on; others are ignored.
        depth: Layers.

    Returns:
        A line per tensor, by its name within the layer; those of a plain ViT first, in their order.

    Raises:
        LearngeneError: If the layers do not have the same tensors, or none.
    """
    return {name: _line([state[f"blocks.{i}.{name}"] for i in range(depth)]) for name in _names(state, depth)}


def linearity(state: Mapping[str, Tensor], depth: int) -> float:
    """Mean R squared of the weight matrices of attention and MLP: 1 if all layers lie on lines.

    Matrices that are equal in all layers are left out; if all are, there is no line and the value is 0. With two
    layers it is always 1. Compare it with ``random_linearity``.

    Args:
        state: As for ``layer_lines``.
        depth: Layers.

    Raises:
        LearngeneError: If the layers are not alike, or have none of these matrices.
    """
    names = [name for name in _names(state, depth) if name in MATRICES]
    if not names:
        raise LearngeneError(f"the layers have none of {', '.join(MATRICES)}; give a Vision Transformer of timm")
    lines = [_line([state[f"blocks.{i}.{name}"] for i in range(depth)]) for name in names]
    fits = [line.r_squared for line in lines if not math.isnan(line.r_squared)]
    return sum(fits) / len(fits) if fits else 0.0


def layer_shares(state: Mapping[str, Tensor], depth: int) -> dict[str, LayerShares]:
    """What the layers share, tensor by tensor; arguments, names and faults as of ``layer_lines``."""
    return {name: _shares([state[f"blocks.{i}.{name}"] for i in range(depth)]) for name in _names(state, depth)}


def random_shares(depth: int) -> LayerShares:
    """What layers of many independent values have on average: every direction over the layers has as much of them."""
    return LayerShares(1 / depth, random_linearity(depth), min(1.0, 3 * random_linearity(depth)), 0.0)


def random_linearity(depth: int) -> float:
    """The R squared that layers of independent normal weights have on average: 1 / (depth - 1), whatever their size.

    Their first component points in any direction of the depth - 1 that centring leaves, with equal chance, and the
    line is one of these directions.
    """
    return 1 / (depth - 1) if depth > 1 else 0.0


def random_limit(depth: int, share: float = 0.95) -> float:
    """The R squared that one tensor of independent normal weights stays below with the chance ``share``."""
    from scipy.stats import beta

    if depth < 3:
        return random_linearity(depth)
    # The squared cosine of a random direction in depth - 1 dimensions with a fixed one.
    return float(beta.ppf(share, 0.5, (depth - 2) / 2))


def _names(state: Mapping[str, Tensor], depth: int) -> list[str]:
    """The tensors of a layer, those of a plain ViT first.

    Raises:
        LearngeneError: If there are none, or they are not the same in every layer.
    """
    shapes = [
        {
            name.removeprefix(f"blocks.{i}."): tuple(value.shape)
            for name, value in state.items()
            if name.startswith(f"blocks.{i}.") and value.is_floating_point()
        }
        for i in range(depth)
    ]
    if not shapes or not shapes[0]:
        raise LearngeneError("no tensors with names such as 'blocks.0.norm1.weight'; give a Vision Transformer of timm")
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            name = next(name for name in {**shapes[0], **other} if shapes[0].get(name) != other.get(name))
            raise LearngeneError(f"the layers are not alike: '{name}' of layer {i + 1} is not as in layer 1")
    plain = list(ViTShape().layer_params())
    return sorted(shapes[0], key=lambda name: plain.index(name) if name in plain else len(plain))


def _pieces(layers: list[Tensor]) -> Iterator[Tensor]:
    """Columns of [layers, values], in double precision."""
    import torch

    flat = [layer.detach().reshape(-1) for layer in layers]
    for start in range(0, flat[0].numel(), CHUNK):
        yield torch.stack([layer[start : start + CHUNK].cpu().double() for layer in flat])


def _shares(layers: list[Tensor]) -> LayerShares:
    import torch

    depth = len(layers)
    gram = torch.zeros(depth, depth, dtype=torch.float64)
    for part in _pieces(layers):
        gram += part @ part.T
    place = torch.linspace(-1, 1, depth, dtype=torch.float64)
    # Orthonormal polynomials over the layers' positions: a constant, a line, and so on.
    basis, _ = torch.linalg.qr(torch.stack([place**n for n in range(min(4, depth))], dim=1))
    mean, *others = ((basis.T @ gram @ basis).diagonal() / gram.trace()).tolist()
    left = 1 - mean if 1 - mean > 1e-12 else math.nan
    lengths = gram.diagonal().sqrt()
    cosines = (gram / torch.outer(lengths, lengths)).nan_to_num().fill_diagonal_(0)
    return LayerShares(mean, sum(others[:1]) / left, sum(others) / left, float(cosines.abs().max()))


def _line(layers: list[Tensor]) -> LayerLine:
    import torch

    depth = len(layers)
    gram, total = torch.zeros(depth, depth, dtype=torch.float64), 0.0
    for part in _pieces(layers):
        total += float(part.square().sum())
        part -= part.mean(0)
        gram += part @ part.T
    variance = float(gram.trace())
    if variance <= NOTHING * total:
        return LayerLine((0.0,) * depth, math.nan, math.nan)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    largest = max(0.0, float(eigenvalues[-1]))
    values = vectors[:, -1] * math.sqrt(largest)
    position = torch.arange(depth, dtype=torch.float64)
    position -= position.mean()
    product = float(values @ position)
    if product < 0:
        values, product = -values, -product
    r_squared = product**2 / float(position.square().sum() * (values - values.mean()).square().sum())
    return LayerLine(tuple(values.tolist()), min(1.0, largest / variance), min(1.0, r_squared))
