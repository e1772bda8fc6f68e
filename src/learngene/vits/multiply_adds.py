"""Multiply-adds of any model, counted by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def multiply_adds(model: nn.Module, in_chans: int, img_size: int) -> int:
    """Multiply-adds of one image through any model, by torch's own counter, whose FLOPs are two per multiply-add.

    Args:
        model: Any model.
        in_chans: Channels of an image.
        img_size: Its side in pixels.
    """
    import torch
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    image = torch.zeros(1, in_chans, img_size, img_size, device=next(model.parameters()).device)
    detached = {name: value.detach() for name, value in model.named_parameters()}  # what the counter can follow
    with counter, torch.no_grad():
        functional_call(model, detached, (image,))
    return int(counter.get_total_flops() // 2)
