"""Training for int8: the rounding that an int8 file will do, done in training, so that the weights get used to it.

Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PRODUCTS = (nn.Linear, nn.Conv2d)
"""What ``export`` quantises. The inside of attention stays in floating point there, and here."""

STEPS = 64
"""Steps of a weight on either side of 0: ``export`` gives weights 7 bits."""

NEWEST = 0.1
"""Weight of the newest batch in a range: ten times torch's own, because fine-tuning may have few steps."""


class RoundedWeight(nn.Module):
    """Weights as an int8 file stores them: per output channel in steps of a 64th of the largest, around 0."""

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weights; gradients pass as if they were not rounded."""
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-12) / STEPS
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -STEPS, STEPS)


@contextlib.contextmanager
def rounded(model: nn.Module) -> Iterator[None]:
    """Rounds weights, inputs and outputs of a model's layers inside the block; afterwards weights are as last rounded.

    The range of inputs and outputs is a moving average over training batches, by torch's own module.

    Args:
        model: Any timm model; its linear layers and convolutions are rounded.
    """
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

    layers = [layer for layer in model.modules() if isinstance(layer, PRODUCTS)]
    hooks = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
        layer.rounds = nn.ModuleList(FusedMovingAvgObsFakeQuantize(averaging_constant=NEWEST) for _ in range(2))
        hooks.append(layer.register_forward_pre_hook(lambda layer, inputs: _round(layer, 0, inputs[0])))
        hooks.append(layer.register_forward_hook(lambda layer, _, outputs: _round(layer, 1, outputs)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            del layer.rounds
            parametrize.remove_parametrizations(layer, "weight")


def _round(layer: Any, which: int, values: Tensor) -> Tensor:
    """Rounds inputs (0) or outputs (1) to the 256 steps of their range, which training images alone move."""
    rounding = layer.rounds[which]
    rounding.enable_observer(layer.training)
    out: Tensor = rounding(values.float())
    return out.to(values.dtype)
