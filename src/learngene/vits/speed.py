"""How fast a model runs: latency on this machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
