"""What a super ancestry net costs: a training step over fine-tuning the plain ViT, its memory, and parallel searches.

The plain ViT is trained whole, as fine-tuning does. A super net trains specific blocks, adapters, final norm and head.
With noise and adapters as they start, its routing is random, so that about half of the layers, or of the images, take
either block; "all specific" takes no base block at all, which is the most that a batch-routed step can cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import finish, paired_rounds, ratio, target
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from learngene import save_descendant, scratch
from learngene.making.search.super_net import SuperNet, routed
from learngene.recipe.search import Routing
from learngene.recipe.sections import Train
from learngene.training.optimizer import make_optimizer
from learngene.vits.shape import ViTShape

SMALL = ViTShape(embed_dim=192, depth=12, num_heads=3, patch_size=4, img_size=32, num_classes=100, class_token=True)
BATCH, STEPS = 32, 24
TRAIN = Train(lr=1e-5, lr_batch=None)
TASKS, TASK_IMAGES = 4, 512


def main() -> None:
    torch.set_num_threads(1)
    times, targets, stated = steps()
    more = parallel()
    stated |= {"memory": memory(), "parallel": more}
    # What two cores give at most is seen by two commands that share nothing and search half of the data sets each.
    seconds = more["seconds"]
    together = seconds["two processes"] / seconds["two searches of half"]
    targets.append(target("a search in two processes over two searches of half the data sets at once", together, 1.1))
    targets.append(
        target("seconds of a search in two processes over those in one", more["ratios"]["two processes"], 0.65)
    )
    saved = stated["memory"]
    kept = saved["batch, all specific"] / saved["plain"]
    targets.append(target("activations kept by a step with all blocks specific over plain", kept, 1.05))
    finish("search", times, targets, **stated, batch_size=BATCH, shape=SMALL.to_dict())


def plain_and_nets() -> tuple[nn.Module, dict[str, SuperNet]]:
    """A plain ViT to be trained whole, and super nets of the same ancestry."""
    torch.manual_seed(0)
    ancestry = VisionTransformer(**SMALL.timm_kwargs()).eval().requires_grad_(False)
    plain = VisionTransformer(**SMALL.timm_kwargs())
    plain.load_state_dict(ancestry.state_dict())
    routings = {
        "batch": Routing(noise="gaussian"),
        "batch, all specific": Routing(),
        "img": Routing(route="img", noise="gaussian"),
        "batch, two-branch": Routing(gate="two-branch", noise="gaussian"),
    }
    nets = {name: SuperNet(routed(ancestry, spec)).train() for name, spec in routings.items()}
    for layer in nets["batch, all specific"].layers:
        layer.adapter.register_forward_hook(lambda _adapter, _inputs, found: (found[0], found[1] & False))
    return plain.train(), nets


def a_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, SMALL.in_chans, SMALL.img_size, SMALL.img_size, generator=generator)
    return images, torch.randint(SMALL.num_classes, (BATCH,), generator=generator)


def step_of(model: nn.Module) -> Callable[[], float]:
    """Forward, loss, backward, AdamW; CPU time."""
    optimizer, (images, labels) = make_optimizer(model, TRAIN), a_batch()

    def step() -> float:
        start = time.process_time()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - start

    return step


def steps() -> tuple[dict[str, list[float]], list[dict[str, Any]], dict[str, Any]]:
    plain, nets = plain_and_nets()
    cases = {"plain": step_of(plain), "plain again": step_of(plain)}
    cases |= {name: step_of(net) for name, net in nets.items()}
    times = paired_rounds(cases, STEPS, warm_up=3)
    targets = [
        target("batch-routed step over plain", ratio(times, "batch", "plain"), 1.05),
        target("the same, all blocks specific", ratio(times, "batch, all specific", "plain"), 1.05),
        target("image-routed step over plain", ratio(times, "img", "plain"), 1.25),
    ]
    stated = {"two_branch": ratio(times, "batch, two-branch", "plain")}
    return times, targets, {**stated, "step_noise": ratio(times, "plain again", "plain")}


def memory() -> dict[str, Any]:
    """Bytes that a step keeps for its way back, and bytes of optimizer state, by counting tensors."""
    plain, nets = plain_and_nets()
    out: dict[str, Any] = {}
    for name, model in {"plain": plain, **nets}.items():
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        kept: dict[int, int] = {}

        def keep(value: Tensor, own: set[int] = own, kept: dict[int, int] = kept) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        torch.manual_seed(0)
        images, labels = a_batch()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = nn.functional.cross_entropy(model(images), labels)
        out[name] = sum(kept.values())
        optimizer = make_optimizer(model, TRAIN)
        loss.backward()
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        out[f"{name}, optimizer"] = sum(value.nbytes for value in states if isinstance(value, Tensor))
        out[f"{name}, weights"] = sum(value.nbytes for value in model.parameters())
    return out


def parallel() -> dict[str, Any]:
    """Seconds of a search over several data sets in one process, in two, and as two commands, each with one thread."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        save_descendant(scratch(SMALL.replace(embed_dim=96, num_classes=10)), folder / "ancestry")
        tasks = {
            f"t{number}": {"data": {"source": str(images_in(folder / f"t{number}", number))}} for number in range(TASKS)
        }
        recipe = {
            "kind": "search",
            "ancestry": {"source": str(folder / "ancestry")},
            "tasks": tasks,
            "train": {"preset": "laptop", "epochs": 4, "batch_size": 32, "augment": {"preset": "none"}},
            "select": {"rule": "top_k", "k": 3},
        }
        (folder / "search.yaml").write_text(json.dumps(recipe))

        def searching(name: str, *more: str) -> list[Any]:
            command = [Path(sys.executable).with_name("learngene"), "search", folder / "search.yaml"]
            return [*command, f"out={folder}/out-{name}", *more]

        halves = [[f"tasks.{name}=null" for name in list(tasks)[number::2]] for number in range(2)]
        cases = {
            "one process": [searching("one")],
            "two processes": [searching("two", "--processes", "2")],
            "two searches of half": [searching(f"half{number}", *left) for number, left in enumerate(halves)],
        }
        seconds = {name: seconds_of(commands) for name, commands in cases.items()}
    ratios = {name: value / seconds["one process"] for name, value in seconds.items()}
    return {"seconds": seconds, "ratios": ratios, "tasks": TASKS, "images_each": TASK_IMAGES}


def seconds_of(commands: list[list[Any]]) -> float:
    """Seconds until all of some commands, started at once, have ended."""
    start = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ) for command in commands]
    if any(process.wait() for process in running):
        raise RuntimeError("a search failed")
    return time.perf_counter() - start


def images_in(folder: Path, seed: int) -> Path:
    """Random images of two classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    for split, count in (("train", TASK_IMAGES), ("val", 64)):
        for number in range(count):
            path = folder / split / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


if __name__ == "__main__":
    main()
