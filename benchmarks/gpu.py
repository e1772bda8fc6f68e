"""Images per second of a condensing step on a GPU as a share of the plain model's, with bf16 and compile.

Prints nothing on a machine without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from bench import finish, paired_rounds, ratio
from torch import nn

from learngene.genes.gene import Learngene
from learngene.making.finetune import scratch
from learngene.methods import method
from learngene.vits.shape import ViTShape

SHAPE = ViTShape.named("deit_small_patch16_224")
SETTINGS = {"tleg": {}, "sws": {"stages": (3, 3, 2, 2, 2)}}
BATCH, STEPS, ROUNDS = 256, 10, 9


def main() -> None:
    if not torch.cuda.is_available():
        return
    models = {"timm": scratch(SHAPE)} | {
        name: Learngene(method(name, settings), SHAPE) for name, settings in SETTINGS.items()
    }
    images = torch.randn(BATCH, 3, SHAPE.img_size, SHAPE.img_size, device="cuda")
    cases = {}
    for name, model in models.items():
        model.cuda().train().compile()
        cases[name] = steps(model, images, torch.optim.AdamW(model.parameters(), fused=True))
    times = paired_rounds(cases, ROUNDS, warm_up=2)
    speed = {name: BATCH * STEPS / min(values) for name, values in times.items()}
    shares = {name: 1 / ratio(times, name, "timm") for name in SETTINGS}
    device = torch.cuda.get_device_name()
    finish("gpu", times, [], images_per_second=speed, share_of_plain=shares, device=device, shape=SHAPE.to_dict())


def steps(model: nn.Module, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    def run() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(images).float().pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
