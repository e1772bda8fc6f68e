"""A gene without training to a ready model, over ``timm.create_model`` of the same model.

Weight selection from DeiT-B to DeiT-S, from the whole model's gene file (warm), and Vanilla-LG to a 12-layer DeiT-S
whose lower nine layers are random, as they are in ``create_model``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch
from bench import finish, paired_rounds, ratio, target
from creation import timed

from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.extract import extract
from learngene.making.finetune import scratch
from learngene.vits.shape import ViTShape

BASE = ViTShape.named("deit_base_patch16_224", class_token=True)
SMALL = ViTShape.named("deit_small_patch16_224", class_token=True)
ROUNDS = 9


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        selection, vanilla = Path(folder) / "selection.safetensors", Path(folder) / "vanilla.safetensors"
        base = Ancestry(scratch(BASE))
        small = Ancestry(scratch(SMALL))
        extract(base, method="weight-selection").save(selection)
        extract(small, method="vanilla-lg").save(vanilla)
        cases = {
            "create_model": timed(lambda: timm.create_model("deit_small_patch16_224")),
            "weight selection": timed(lambda: Learngene.load(selection, verify_content=False).expand(SMALL)),
            "weight selection verified": timed(lambda: Learngene.load(selection).expand(SMALL)),
            "weight selection aligned": timed(
                lambda: Learngene.load(selection, verify_content=False).expand(SMALL, rule="aligned")
            ),
            "vanilla-lg": timed(lambda: Learngene.load(vanilla).expand(SMALL)),
            "extract vanilla-lg from a model in memory": timed(lambda: extract(small, method="vanilla-lg")),
        }
        times = paired_rounds(cases, ROUNDS)
    targets = [
        target("weight selection DeiT-B to DeiT-S", ratio(times, "weight selection", "create_model"), 0.35),
        target("the same, content verified", ratio(times, "weight selection verified", "create_model"), 0.35),
        target("Vanilla-LG, content verified", ratio(times, "vanilla-lg", "create_model"), 0.35),
    ]
    finish("selection", times, targets)


if __name__ == "__main__":
    main()
