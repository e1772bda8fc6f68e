"""Activation checkpointing: what a layer puts out on its way is computed again for its gradients, instead of kept.

timm does that for models that own their weights. Those of a gene's auxiliary model are computed and gone again before
gradients are, so that a layer has to be given them anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from learngene.system.errors import LearngeneError


def recompute_layers(model: nn.Module) -> None:
    """Has a timm model compute its layers again for their gradients.

    Raises:
        LearngeneError: If it has no layers for which timm can.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError):
        raise LearngeneError(
            f"train.recompute: timm cannot compute layers of {type(model).__name__} again; leave it out"
        ) from None


@contextlib.contextmanager
def recomputed(layers: Iterable[nn.Module], wanted: bool) -> Iterator[None]:
    """Has layers called inside the block be computed again for their gradients, with the weights they have now.

    Args:
        layers: Such as a ViT's blocks.
        wanted: Whether that is wanted, and gradients will be.
    """
    chosen = list(layers) if wanted and torch.is_grad_enabled() else []
    for layer in chosen:
        layer.forward = partial(_recomputed, _Plain(layer))
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


class _Plain(nn.Module):
    """A layer as its class computes it, whatever stands in for that."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """What the layer makes of its inputs."""
        return type(self.layer).forward(self.layer, *inputs, **more)


def _recomputed(layer: _Plain, *inputs: Any, **more: Any) -> Any:
    weights: dict[str, Tensor] = dict(chain(layer.named_parameters(), layer.named_buffers()))

    def compute(*inputs: Any) -> Any:
        return functional_call(layer, weights, inputs, more)

    return checkpoint(compute, *inputs, use_reentrant=False)
