"""What hypernetworks cost: a training step over a plain step of the same ViT, predicting, graphs, memory.

The plain ViT is trained with the same loss, penalty, clipping and optimizer. CPU time of one thread, batch 32 of 32 px
with patch 4, as the authors' code was measured: its steps take 5.9, 5.0 and 21.3 times a plain one at these sizes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import finish, paired_rounds, ratio, target
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from learngene import Learngene
from learngene.making.hyper.guidance import penalty
from learngene.making.hyper.meta import MetaBatch, meta_loss
from learngene.methods import method
from learngene.methods.tal.graph import graph
from learngene.recipe.hyper import Hyper
from learngene.recipe.sections import Train
from learngene.training.losses import classification_loss
from learngene.training.optimizer import make_optimizer
from learngene.vits.shape import ViTShape

BATCH, STEPS, PREDICTIONS = 32, 16, 15
TRAIN = Train(lr=1e-5, lr_batch=None, weight_decay=0.01)
CLIP = 5.0
COMMON: dict[str, Any] = {"patch_size": 4, "img_size": 32, "num_classes": 10, "class_token": True}
SIZES: dict[str, tuple[dict[str, Any], ViTShape, float, float]] = {
    "hid 32, rank 16": (
        {"hid": 32, "encoder_layers": 2, "encoder_heads": 8, "rank": 16, "expansion": 32768},
        ViTShape(embed_dim=64, depth=3, num_heads=4, **COMMON),
        1.4,
        3,
    ),
    "hid 64, rank 32": ({"size": "tiny"}, ViTShape(embed_dim=192, depth=12, num_heads=3, **COMMON), 1.15, 25),
    "published": ({"size": "published"}, ViTShape(embed_dim=192, depth=12, num_heads=3, **COMMON), 1.6, 90),
}
"""Settings, ViT, and the limits of the step's ratio and of predicting, in milliseconds."""


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(json.dumps({"construct": construct, "step": published_step}[sys.argv[1]]()))
        return
    times: dict[str, list[float]] = {}
    targets: list[dict[str, Any]] = []
    for name, (settings, shape, most, milliseconds) in SIZES.items():
        gene = Learngene(method("logah", settings), shape)
        cases = {"hyper": hyper_step(gene), "plain": plain_step(shape)}
        found = paired_rounds({f"{name}: {case}": step for case, step in cases.items()}, STEPS, warm_up=2)
        found |= paired_rounds({f"{name}: predict": predicting(gene)}, PREDICTIONS, warm_up=2)
        times |= found
        step = ratio(found, f"{name}: hyper", f"{name}: plain")
        targets.append(target(f"{name}: training step over plain", step, most))
        predict = 1e3 * sorted(found[f"{name}: predict"])[PREDICTIONS // 2]
        targets.append(target(f"{name}: predicting, ms", predict, milliseconds))
    deep, channels = SIZES["published"][1], method("logah").config.channels  # type: ignore[attr-defined]
    times |= paired_rounds({"graph, depth 12": lambda: timed(lambda: graph(deep, channels))}, 50, warm_up=2)
    targets.append(target("graph of depth 12, ms", 1e3 * sorted(times["graph, depth 12"])[25], 1.0))
    made, trained = alone("construct"), alone("step")
    targets.append(target("constructing the published hypernetwork, s", made["seconds"], 3.0))
    targets.append(target("constructing it, GiB beyond imports", made["gib"], 1.0))
    targets.append(target("peak memory of its training step, GiB", trained["peak_gib"], 2.0))
    finish("hyper", times, targets, batch_size=BATCH)


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(COMMON["num_classes"], (BATCH,), generator=generator)
    return images, nn.functional.one_hot(labels, COMMON["num_classes"]).float()


def hyper_step(gene: Learngene) -> Callable[[], float]:
    hyper = Hyper()
    meta, (images, targets) = MetaBatch(gene, hyper).train(), a_batch()
    return step_of(meta, lambda: meta_loss(meta(images), targets, hyper)["loss"])


def plain_step(shape: ViTShape) -> Callable[[], float]:
    model, (images, targets) = VisionTransformer(**shape.timm_kwargs()).train(), a_batch()
    weights = list(model.parameters())
    return step_of(model, lambda: classification_loss(model(images), targets) + Hyper().penalty * penalty(weights))


def step_of(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], float]:
    optimizer = make_optimizer(model, TRAIN)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: timed(step)


def predicting(gene: Learngene) -> Callable[[], float]:
    def predict() -> None:
        with torch.inference_mode():
            gene.weights()

    return lambda: timed(predict)


def alone(case: str) -> dict[str, float]:
    """A case in a process of its own, for its memory."""
    done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def construct() -> dict[str, float]:
    settings, shape, *_ = SIZES["published"]
    # What imports needed for a moment counts as if it were ours: an upper bound.
    before, start = resident_gib(), time.perf_counter()
    Learngene(method("logah", settings), shape)
    return {"seconds": time.perf_counter() - start, "gib": peak_gib() - before}


def published_step() -> dict[str, float]:
    settings, shape, *_ = SIZES["published"]
    step = hyper_step(Learngene(method("logah", settings), shape))
    for _ in range(3):
        step()
    return {"peak_gib": peak_gib()}


if __name__ == "__main__":
    main()
