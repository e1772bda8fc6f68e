"""A step of any-size condensing at a shape over a plain timm ViT of that shape: what making its weights costs.

The gene is a ViT of width 192, depth 12, 3 heads (nested slices), its tiles (any-size), or two layers (TLEG), at shapes
in turn, so that no two steps in a row are of one shape. 32 px, patch 4, batch 32, one thread, CPU time of forward and
backward; besides, with AdamW's step, which passes over all of the gene's parameters that have a gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from bench import finish, paired_rounds, ratio, target
from torch import nn

from learngene.genes.gene import Learngene
from learngene.making.finetune import scratch
from learngene.methods import method
from learngene.vits.shape import ViTShape

SHAPE = ViTShape(embed_dim=192, depth=12, num_heads=3, patch_size=4, img_size=32, num_classes=100)
WIDE = ((192, 12), (128, 12), (128, 6), (64, 12), (64, 3))
SIZES = {"nested-slices": WIDE, "any-size": WIDE, "tleg": ((192, 12), (192, 6), (192, 3))}
LIMITS = {"nested-slices": 1.02, "any-size": 1.08, "tleg": 1.08}
ROUNDS = 30


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cases, pairs = {}, {}
    for name, sizes in SIZES.items():
        gene = Learngene(method(name), SHAPE)
        for width, depth in sizes:
            shape = SHAPE.replace(embed_dim=width, num_heads=width // SHAPE.head_dim, depth=depth)
            plain = scratch(shape)
            pairs[f"{name} {depth} x {width}"] = name
            for what, module, asked in (("", gene, (shape,)), (" timm", plain, ())):
                key = f"{name} {depth} x {width}{what}"
                cases[key], cases[f"{key}, AdamW"] = (
                    step(module.train(), images, *asked),
                    updated(module, images, *asked),
                )
    times = paired_rounds(cases, ROUNDS, warm_up=3)
    targets = [
        target(f"{key} over timm", ratio(times, key, f"{key} timm"), LIMITS[name]) for key, name in pairs.items()
    ]
    stated = {f"{key}, with AdamW": ratio(times, f"{key}, AdamW", f"{key} timm, AdamW") for key in pairs}
    finish("any_size", times, targets, stated=stated, batch_size=32, shape=SHAPE.to_dict())


def step(model: nn.Module, images: torch.Tensor, *shape: ViTShape) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        model(images, *shape).sum().backward()
        seconds = time.process_time() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return run


def updated(model: nn.Module, images: torch.Tensor, *shape: ViTShape) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    def run() -> float:
        start = time.process_time()
        model(images, *shape).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - start

    return run


if __name__ == "__main__":
    main()
