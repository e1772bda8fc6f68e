"""How fast a model runs: latency on this machine, and multiply-adds counted by torch."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from learngene.vits.stitched_shape import Shape


def latency(shape: Shape, *, batch_size: int = 1, rounds: int = 9, device: str = "cpu") -> float:
    """Median time of one forward pass of a ViT of this shape, eager, float32.

    Args:
        shape: What to time; its weights do not matter.
        batch_size: Images per pass.
        rounds: Timed passes, after three that warm up.
        device: Where to run.

    Returns:
        Milliseconds.
    """
    import torch

    model = shape.skeleton().eval()
    values = {name: torch.full(value.shape, 0.01) for name, value in model.named_parameters()}
    model.load_state_dict(values, strict=True, assign=True)
    model.to(device)
    images = torch.full((batch_size, shape.in_chans, shape.img_size, shape.img_size), 0.1, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(rounds + 3):
            start = time.perf_counter()
            model(images)
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


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
