"""A condensing step on stored targets over the step that asks the teacher, and over a bare student loop without one.

Whole steps: images from files, augmentation (crop and flip), forward, backward, optimizer. One thread, CPU time. The
teacher and the student are of ViT-B's and ViT-Ti's sizes at patch 8, 64 px, batch 16; and of ViT-S's and ViT-Ti's at
patch 14, 56 px, batch 32. Weights are random, which costs the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from bench import finish, paired_rounds, ratio, target
from PIL import Image
from timm.data import create_transform
from torchvision.datasets import ImageFolder

from learngene import save_descendant, scratch
from learngene.making import auxiliary
from learngene.making.condense import prepare, remember_teacher
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.training.loop import _Pass, make_accelerator
from learngene.training.stored_targets import StoredTargets
from learngene.training.student import Student
from learngene.training.target_shards import pixel_prints
from learngene.vits.shape import ViTShape

CLASSES, STORED_EPOCHS = 64, 2
SIZES = {
    "B/8": {"width": 768, "heads": 12, "patch": 8, "side": 64, "batch": 16, "rounds": 6},
    "S/14": {"width": 384, "heads": 6, "patch": 14, "side": 56, "batch": 32, "rounds": 9},
}
TARGETS: dict[str, dict[str, Any]] = {
    "logits": {},
    "class tokens": {"distill": {"target": "features"}, "features": {"tokens": ["pooled"]}},
}
MEMORY = """
import json, sys
from learngene.making.condense import run
from learngene.recipe.loading import build_recipe
run(build_recipe(json.loads(sys.argv[1])), keep=False, show=False)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    targets: list[dict[str, Any]] = []
    stated: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for label, size in SIZES.items():
            folder = Path(name) / label.replace("/", "-")
            bench = Bench(label, size, folder)
            own = paired_rounds(bench.steps(), size["rounds"])
            own |= paired_rounds(bench.writing(), 9, warm_up=1)
            times |= {f"{label} {case}": values for case, values in own.items()}
            limit = 0.27 if label == "B/8" else 0.55
            for kind in TARGETS:
                over = ratio(own, f"stored {kind}", f"asking for {kind}")
                targets.append(target(f"{label}: step with stored {kind} over today's", over, limit))
                bare = ratio(own, f"stored {kind}", "bare student loop")
                targets.append(target(f"{label}: step with stored {kind} over a bare student loop", bare, 1.05))
                targets.append(
                    target(
                        f"{label}: share of reading, {kind}",
                        bench.share(kind, statistics.median(own[f"stored {kind}"])),
                        0.01,
                    )
                )
            targets.append(target(f"{label}: writing over running the teacher", ratio(own, "writing", "teacher"), 1.05))
            asking, reading = (statistics.median(own[f"{case} logits"]) for case in ("asking for", "stored"))
            stated[label] = {
                "asking over bare": round(ratio(own, "asking for logits", "bare student loop"), 3),
                "times as fast, all runs together, logits": {
                    str(runs): round(runs * asking / (asking + (runs - 1) * reading), 2) for runs in (1, 2, 5, 20)
                },
                "bytes of a view": bench.bytes_of_a_view(),
            }
            if label == "B/8":
                four = ratio(own, "four genes in one pass", "asking for logits") / 4
                targets.append(
                    target(f"{label}: four genes in one pass over four runs, teacher not stored", four, 0.46)
                )
                memory = {case: bench.peak(case) for case in ("asking", "stored")}
                stated[label]["peak memory, MB"] = {case: round(value / 1000) for case, value in memory.items()}
                over = memory["stored"] / memory["asking"]
                targets.append(target(f"{label}: peak memory with stored targets over today's", over, 0.75))
    finish("replay", times, targets, stated=stated, sizes=SIZES)


class Bench:
    """A teacher, images and runs of one size."""

    def __init__(self, label: str, size: dict[str, int], folder: Path) -> None:
        self.size, self.folder, self.read = size, folder, {kind: [] for kind in TARGETS}
        draw_images(folder / "images", size["side"])
        self.student = ViTShape(
            embed_dim=192,
            depth=12,
            num_heads=3,
            patch_size=size["patch"],
            img_size=size["side"],
            num_classes=CLASSES,
            class_token=True,
        )
        teacher = self.student.replace(embed_dim=size["width"], num_heads=size["heads"])
        names = sorted(path.name for path in (folder / "images" / "train").iterdir())
        save_descendant(scratch(teacher, seed=1, class_names=names), folder / "teacher")
        self.runs = {
            f"{case} {kind}": self.run(kind, case == "stored") for kind in TARGETS for case in ("asking for", "stored")
        }

    def fields(self, kind: str = "logits", stored: bool = False, **changes: Any) -> dict[str, Any]:
        """A recipe."""
        more = TARGETS[kind]
        shape = {**self.student.to_dict(), **({"num_classes": 0} if "distill" in more else {})}
        train = {"batch_size": self.size["batch"], "epochs": 1000, "augment": {"preset": "light"}, **changes}
        out = {"kind": "condense", "method": "tleg", "ancestry": {"source": str(self.folder / "teacher")}, **more}
        out |= {"shape": shape, "data": {"source": str(self.folder / "images"), "workers": 0}, "train": train}
        if stored:
            replay = {"folder": str(self.folder / "store"), "epochs": STORED_EPOCHS}
            out["distill"] = {**out.get("distill", {}), "replay": replay}
        return out

    def run(self, kind: str, stored: bool, count: int = 1) -> _Pass:
        """A pass of one gene or more that is about to begin; its targets are stored first if it reads them."""
        recipe = build_recipe(self.fields(kind, stored))
        assert isinstance(recipe, CondenseRecipe)
        inputs = prepare(recipe)
        all_inputs = [inputs, *(prepare(recipe, inputs.ancestry) for _ in range(count - 1))]
        students = [Student(auxiliary.planned(each, keep=False)[0], recipe.train) for each in all_inputs]
        remember_teacher(inputs)
        data, replay = inputs.recipe.data, recipe.distill.replay
        run = _Pass(students, *inputs.images, data, False, make_accelerator(), replay)
        for student in students:
            student.enter()
        for each in run.teachers:
            if isinstance(each, StoredTargets):
                for epoch in range(STORED_EPOCHS):
                    each.make(epoch, range(run.batches.steps_per_epoch))
        return run

    def steps(self) -> dict[str, Callable[[], float]]:
        """One training step of every run, and of the bare loop."""
        for kind in TARGETS:
            (stored,) = self.runs[f"stored {kind}"].teachers
            stored.outputs = timed(stored.outputs, self.read[kind])  # type: ignore[method-assign]
        more = {"four genes in one pass": stepping(self.run("logits", False, 4)), "bare student loop": self.bare()}
        return {name: stepping(run) for name, run in self.runs.items()} | more

    def share(self, kind: str, whole: float) -> float:
        """Of reading and of looking at the images' fingerprints in the seconds of a step."""
        run = self.runs[f"stored {kind}"]
        raw = next(iter(run.batches.epoch(0)))[0][0]
        start = time.process_time()
        for _ in range(50):
            pixel_prints(raw)
        prints = (time.process_time() - start) / 50
        return (statistics.fmean(self.read[kind]) + prints) / whole

    def writing(self) -> dict[str, Callable[[], float]]:
        """An epoch of writing logits, and of running the teacher over the same images."""
        stored = self.run("logits", True).teachers[0]
        assert isinstance(stored, StoredTargets)
        steps = range(stored.views.batches.steps_per_epoch)

        def write() -> float:
            for path in stored.folder.glob("*/epoch00000-*.safetensors"):
                path.unlink()
            stored.places[0].at = None
            start = time.process_time()
            stored.make(0, steps)
            return time.process_time() - start

        def teacher() -> float:
            start = time.process_time()
            for _, _, _, mixed in stored._views(0, steps):
                stored._ask(mixed)
            return time.process_time() - start

        return {"writing": write, "teacher": teacher}

    def bare(self) -> Callable[[], float]:
        """The student alone, as one would write it with timm and torchvision: labels, no teacher."""
        size, side = self.size, self.size["side"]
        transform = create_transform(side, is_training=True, scale=(0.6, 1.0), hflip=0.5, color_jitter=0.0)
        images = ImageFolder(str(self.folder / "images" / "train"), transform)
        kwargs = {"img_size": side, "patch_size": size["patch"], "num_classes": CLASSES}
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **kwargs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
        batches: Iterator[Any] = iter(())

        def step() -> float:
            nonlocal batches
            start = time.process_time()
            found = next(batches, None)
            if found is None:
                loader = torch.utils.data.DataLoader(images, size["batch"], shuffle=True, drop_last=True)
                batches = iter(loader)
                found = next(batches)
            pixels, labels = found
            F.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return time.process_time() - start

        return step

    def bytes_of_a_view(self) -> dict[str, float]:
        """On disk, by what is stored."""
        out = {}
        for path in sorted((self.folder / "store").glob("*/*/epoch00001-*.safetensors")):
            views = self.runs["stored logits"].batches.steps_per_epoch * self.size["batch"]
            out[path.parent.name] = round(path.stat().st_size / views, 1)
        return out

    def peak(self, case: str) -> int:
        """Peak memory in kB of a process that trains for two epochs."""
        fields = self.fields("logits", case == "stored", epochs=STORED_EPOCHS, schedule={"warmup_epochs": 0})
        call = [sys.executable, "-c", MEMORY, json.dumps(fields)]
        return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same call, which notes the seconds it takes."""

    def run(*args: Any) -> Any:
        start = time.process_time()
        out = call(*args)
        spent.append(time.process_time() - start)
        return out

    return run


def stepping(run: _Pass) -> Callable[[], float]:
    """One step after another of a run, epoch after epoch."""
    place = {"epoch": 0, "step": 0}
    batches: Iterator[Any] = iter(())

    def step() -> float:
        nonlocal batches
        start = time.process_time()
        parts = next(batches, None)
        if parts is None:
            place.update(epoch=place["epoch"] + 1, step=0)
            batches = iter(run.batches.epoch(place["epoch"] % run.view_epochs))
            parts = next(batches)
        seen = list(run._seen(parts, place["epoch"] % run.view_epochs, place["step"]))
        for student in run.students:
            student.progress.epoch, student.progress.step = place["epoch"], place["step"]
            student.step(seen, len(parts))
            student.look(1.0, stopped=False)
        place["step"] += 1
        return time.process_time() - start

    return step


def draw_images(folder: Path, side: int) -> None:
    """A noisy JPEG per class and split, a third larger than what is trained on."""
    for split in ("train", "val"):
        for number in range(CLASSES):
            path = folder / split / f"{number:03d}" / "0.jpg"
            path.parent.mkdir(parents=True)
            noise = np.random.default_rng([number, split == "val"]).integers(0, 256, (side * 4 // 3, side * 4 // 3, 3))
            Image.fromarray(noise.astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
