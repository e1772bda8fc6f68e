"""How fast a model runs and trains on this machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

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

    model = _filled(shape, device).eval()
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


def train_speed(shape: Shape, *, batch_size: int = 64, seconds: float = 1.5, device: str = "cpu") -> float:
    """Images per second in training: forward, cross-entropy, backward and AdamW, float32, no data to read.

    Args:
        shape: What to time; it must have classes.
        batch_size: Images per step.
        seconds: Steps are taken for so long, but at least two; the first warms up and does not count.
        device: Where to run.
    """
    import torch

    model = _filled(shape, device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.full((batch_size, shape.in_chans, shape.img_size, shape.img_size), 0.1, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return batch_size / statistics.median(times[1:])


def _filled(shape: Shape, device: str) -> Any:
    """A model whose weights are all alike."""
    import torch

    model = shape.skeleton()
    values = {name: torch.full(value.shape, 0.01) for name, value in model.named_parameters()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.to(device)
