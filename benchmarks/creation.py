"""Gene file (warm) to a ready 12-layer DeiT-B, over ``timm.create_model`` alone; and the peak memory of it.

The authors' code takes 1.89 (TLEG) and 1.15 (SWS) of ``create_model`` and verifies nothing. Genes of any width, of
DeiT-B's size, are also expanded to DeiT-S. One thread, CPU time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from bench import finish, paired_rounds, ratio, target

from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.vits.shape import ViTShape

AUXILIARY = {
    "tleg": ViTShape.named("deit_base_patch16_224"),
    "sws": ViTShape.named("deit_base_patch16_224", depth=16),
}
DESCENDANT = ViTShape.named("deit_base_patch16_224")
ANY_WIDTH = {
    "wave": DESCENDANT,
    "any-size": DESCENDANT,
    "nested-slices": DESCENDANT,
    "sweet": DESCENDANT,
    "lets": DESCENDANT.replace(depth=16),
}
SETTINGS = {"sweet": {"ranks": (24, 384, 384)}}  # half of the width, as in step.py
SMALL = ViTShape.named("deit_small_patch16_224")
ROUNDS = 9

PEAK = """
import sys, torch
from pathlib import Path
from learngene.genes.gene import Learngene
import timm.models.vision_transformer
def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = kilobytes("VmRSS")
model = Learngene.load(sys.argv[1]).expand(12)
print((kilobytes("VmHWM") - before) * 1024)
"""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, shape in (AUXILIARY | ANY_WIDTH).items():
            paths[name] = Path(folder) / f"{name}.safetensors"
            Learngene(method(name, SETTINGS.get(name, {})), shape).save(paths[name])
        cases = {
            f"create_model{label}": timed(lambda size=size: timm.create_model(f"vit_{size}_patch16_224", **kwargs()))
            for label, size in (("", "base"), (" DeiT-S", "small"))
        }
        for name in ANY_WIDTH:
            cases[f"{name} DeiT-S"] = timed(lambda path=paths[name]: Learngene.load(path).expand(SMALL))
        cases["lets DeiT-B"] = timed(lambda: Learngene.load(paths["lets"]).expand(12))
        for name in AUXILIARY:
            cases[f"{name} verified"] = timed(lambda path=paths[name]: Learngene.load(path).expand(12))
            cases[name] = timed(lambda path=paths[name]: Learngene.load(path, verify_content=False).expand(12))
        times = paired_rounds(cases, ROUNDS)
        targets, memory = [], {}
        for name in AUXILIARY:
            path = paths[name]
            targets.append(target(f"{name}, content verified", ratio(times, f"{name} verified", "create_model"), 0.45))
            targets.append(target(f"{name}, not verified", ratio(times, name, "create_model"), 0.35))
            done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
            needed = path.stat().st_size + 4 * DESCENDANT.params()
            memory[name] = {"peak_bytes": json.loads(done.stdout), "gene_and_descendant_bytes": needed}
            targets.append(target(f"{name}, peak over gene + descendant", memory[name]["peak_bytes"] / needed, 1.10))
    for name in ("wave", "any-size", "nested-slices", "sweet"):
        share = ratio(times, f"{name} DeiT-S", "create_model DeiT-S")
        targets.append(target(f"{name} to DeiT-S, content verified", share, 0.45))
    for size in ("S", "B"):
        seconds = statistics.median(times[f"lets DeiT-{size}"])
        targets.append(target(f"lets to DeiT-{size}, seconds", seconds, 2.0))
    finish("creation", times, targets, memory=memory)


def kwargs() -> dict[str, object]:
    return {"class_token": False, "global_pool": "avg", "fc_norm": False}


def timed(make: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        made = make()
        seconds = time.process_time() - start
        del made
        return seconds

    return run


if __name__ == "__main__":
    main()
