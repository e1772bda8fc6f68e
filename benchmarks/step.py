"""Forward and backward of the auxiliary model over a plain timm ViT of the same shape: what the constraint costs.

Width 192, depth 12, 3 heads, 32 px, patch 4, batch 32, one thread, CPU time; the authors' code: 1.06 and 1.02.
Mini-Init is compared with the same plain ViT with relative positions, whose layers share nothing and whose heads do not
mix.
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
from learngene.vits.fresh_weights import init_value
from learngene.vits.multiplexed_attention import MultiplexedAttention
from learngene.vits.shape import ViTShape

SHAPE = ViTShape(embed_dim=192, depth=12, num_heads=3, patch_size=4, img_size=32, num_classes=100)
SETTINGS = {
    "tleg": {},
    "sws": {"stages": (3, 3, 2, 2, 2)},
    "wave": {},
    "any-size": {},
    "sweet": {"ranks": (24, 96, 96)},
    "lets": {"width": 128, "sources": 6},
    "mini-init": {},
}
ROUNDS = 40


def main() -> None:
    torch.set_num_threads(1)
    models = {"timm": scratch(SHAPE)} | {
        name: Learngene(method(name, settings), SHAPE) for name, settings in SETTINGS.items()
    }
    models["timm, relative positions"] = relative()
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # The same plain model a second time: how far from 1 its ratio lies is the noise of this run.
    cases = {name: step(model.train(), images) for name, model in models.items()}
    cases["timm again"] = step(models["timm"], images)
    times = paired_rounds(cases, ROUNDS, warm_up=3)
    targets = [
        target("tleg step over timm", ratio(times, "tleg", "timm"), 1.03),
        target("sws step over timm", ratio(times, "sws", "timm"), 1.01),
        target("wave step over timm", ratio(times, "wave", "timm"), 1.05),
        target("any-size step over timm", ratio(times, "any-size", "timm"), 1.05),
        target("sweet step over timm", ratio(times, "sweet", "timm"), 1.08),
        target("lets step over timm", ratio(times, "lets", "timm"), 1.10),
    ]
    stated = {
        "mini-init over timm with relative positions": ratio(times, "mini-init", "timm, relative positions"),
        "timm with relative positions over timm": ratio(times, "timm, relative positions", "timm"),
    }
    noise = ratio(times, "timm again", "timm")
    finish("step", times, targets, noise=noise, stated=stated, batch_size=32, shape=SHAPE.to_dict())


class Relative(MultiplexedAttention):
    """Multiplexed attention whose heads do not mix."""

    def mixed(self, attention: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
        """The heads as they are."""
        return attention


def relative() -> nn.Module:
    model = SHAPE.skeleton(attn_layer=Relative)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    model.load_state_dict({name: init_value(name, shapes, generator) for name in shapes}, assign=True)
    return model.requires_grad_(True)


def step(model: nn.Module, images: torch.Tensor) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        model(images).sum().backward()
        seconds = time.process_time() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return run


if __name__ == "__main__":
    main()
