"""The demo of TAL: a hypernetwork learns digits under an ancestry, then five tasks, and predicts ViTs for each of them.

Beside it LoGAH v4, the same without guidance and without task layers, which has to tell tasks apart by their images.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from learngene.data.images import ImageSet
from learngene.data.splits import open_splits
from learngene.demo import DATA, MARKER, claim_folder, print_written, score_table, workers, write_record
from learngene.demo_lsamd import digit_pixels, save_pixels
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.condense import run as run_condense
from learngene.making.finetune import evaluate, finetune, scratch
from learngene.making.hyper.embedding import embed_task
from learngene.making.hyper.make import run as run_tune
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import DataSpec
from learngene.recipe.tune import TuneRecipe
from learngene.report import tal_page, tal_plot
from learngene.system.files import write_folder
from learngene.vits.descendant_folder import save_descendant
from learngene.vits.shape import ViTShape

SHAPE = ViTShape(embed_dim=48, depth=4, num_heads=4, patch_size=4, img_size=16, num_classes=10, class_token=True)
ANCESTRY_DEPTH = 6
HOME = {**DATA, "img_size": SHAPE.img_size}
"""The data of stage 1, and of the ancestry."""

TASKS = {"rotated": 10, "negative": 10, "parity": 2, "half": 2, "thirds": 3}
"""Of stage 2, with their classes. Two have ten and two have two: without task layers they look alike."""

UNSEEN = {"faint": 10}
"""Near one of the tasks, with images that none of them has: negative digits at half the contrast."""

TRAIN_IMAGES, VAL_IMAGES = 768, 256
"""Of every data set; those for training are made of the ancestry's training digits, the others of its other digits."""

TRAINED = (2, 4, 6)
"""Depths of the ViTs that the hypernetworks are trained on, all of one width: of several they learn more slowly."""

DEPTHS = (3, 4, 6)
"""Of the descendants; the hypernetworks have not seen the first."""

SETTINGS: dict[str, Any] = {"size": "laptop"}
KINDS = {"tal": "TAL", "logah": "LoGAH v4"}
ANCESTRY_EPOCHS, HOME_EPOCHS, TASK_EPOCHS, EPOCHS = 20, 18, 28, 4
"""The last is of fine-tuning; scratch gets as many, and three times as many."""

TRAIN: dict[str, Any] = {
    "preset": "laptop",
    "batch_size": 32,
    "lr": 2e-3,
    "betas": (0.9, 0.98),
    "eval_every": 100,
    "schedule": {"warmup_epochs": 0.5},
    "augment": {"preset": "none"},
}
"""Of the ancestry, and of scratch."""

HOME_TRAIN: dict[str, Any] = {
    **TRAIN,
    "lr": 5e-4,
    "betas": (0.9, 0.999),
    "weight_decay": 0.01,
    "clip_grad": 1,
    "save_every": 10,
    "schedule": {"warmup_epochs": 1},
}
"""Of stage 1. At twice the rate a hypernetwork learns much less here, at four times half as much."""

TASK_TRAIN: dict[str, Any] = {**HOME_TRAIN, "batch_size": 64}
"""Of stage 2."""

TUNE_TRAIN: dict[str, Any] = {**TRAIN, "lr": 1e-3}


def run_tal_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Runs the demo and writes ``demo.json``, ``demo.png`` and ``index.html``.

    Args:
        out: Folder to write; what an earlier run left there is used again.
        seed: Of everything that is random, but for the images.

    Returns:
        What was written to ``demo.json``.

    Raises:
        LearngeneError: If ``out`` is not ours or cannot be written.
    """
    console, start = Console(highlight=False), time.perf_counter()
    claim_folder(out)
    write_task_sets(out / "data")
    with workers() as processes:
        console.print(f"[bold]1. An ancestry model[/], a ViT of {ANCESTRY_DEPTH} layers, learns scikit-learn's digits")
        learning = processes.submit(_ancestry, out, seed)
        # LoGAH needs no ancestry, so it fills the second process meanwhile, and scratch follows it.
        rival = processes.submit(_hypernetwork, out, seed, "logah")
        ancestry = Ancestry(learning.result())
        teacher = ancestry.model.learngene["finetuned"]["accuracy"]["top1"]
        console.print(f"   top-1 {teacher:.1f} %")
        console.print(
            f"[bold]2. Two hypernetworks[/] learn digits, then {len(TASKS)} tasks: TAL guided by it, LoGAH not"
        )
        making = processes.submit(_hypernetwork, out, seed, "tal")
        from_scratch = {
            depth: processes.submit(_from_scratch, out, seed, depth) for depth in sorted(DEPTHS, reverse=True)
        }
        paths = {"tal": making.result(), "logah": rival.result()}
        genes = {name: Learngene.load(path) for name, path in paths.items()}
        for name, gene in genes.items():
            mean = gene.metadata["accuracy"]["top1"]
            console.print(f"   {KINDS[name]}: {paths[name]}, top-1 {mean:.1f} % on average over the tasks")
        console.print(f"[bold]3. Descendants[/] of {len(DEPTHS)} depths are predicted for every task")
        predicting = {depth: processes.submit(_predicted, out, seed, depth, paths) for depth in DEPTHS}
        tuning = {depth: processes.submit(_tuned, out, seed, depth, paths) for depth in DEPTHS}
        predicted = {depth: future.result() for depth, future in predicting.items()}
        unseen = {depth: {**tuning[depth].result(), **from_scratch[depth].result()} for depth in DEPTHS}
    content: dict[str, Any] = {
        "images": [TRAIN_IMAGES, VAL_IMAGES],
        "ancestry": {**ancestry.identity, "depth": ANCESTRY_DEPTH, "top1": teacher},
        "genes": {
            name: {"params": sum(p.numel() for p in gene.parameters()), "bytes": paths[name].stat().st_size}
            for name, gene in genes.items()
        },
        "trained_depths": list(TRAINED),
        "epochs": {"ancestry": ANCESTRY_EPOCHS, "home": HOME_EPOCHS, "tasks": TASK_EPOCHS, "tune": EPOCHS},
        "rows": [{**_sizes(task, depth), **predicted[depth][task]} for task in (*TASKS, *UNSEEN) for depth in DEPTHS],
        "tuned": [{**_sizes(task, depth), **unseen[depth]} for task in UNSEEN for depth in DEPTHS],
        "train": {
            "ancestry": TRAIN,
            "home": HOME_TRAIN,
            "tasks": TASK_TRAIN,
            "tune": TUNE_TRAIN,
            "scratch": TRAIN,
        },
    }
    result = write_record(out, "tal demo", seed, start, content)
    tal_plot(result, out / "demo.png")
    tal_page(result, out / "demo.png", out / "index.html")
    _print(console, result, paths["tal"], out)
    return result


# -- data sets ---------------------------------------------------------------------------------------------


def write_task_sets(folder: Path) -> None:
    """Writes the data sets as folders of images with a class each. What is there is kept.

    Args:
        folder: Where; every set gets a folder of its own.
    """
    splits = dict(zip(("train", "val"), open_splits(DataSpec(**DATA)), strict=True))
    for number, name in enumerate((*TASKS, *UNSEEN)):
        if not (folder / name / MARKER).exists():
            write_folder(folder / name, MARKER, _Writer(splits, name, number))


class _Writer:
    """Fills the folder of one data set."""

    def __init__(self, splits: dict[str, ImageSet], name: str, number: int) -> None:
        self.splits, self.name, self.number = splits, name, number

    def __call__(self, folder: Path) -> None:
        (folder / MARKER).write_text(json.dumps({"kind": "data of the tal demo", "set": self.name}) + "\n")
        for split, (part, digits) in enumerate(self.splits.items()):
            rng = np.random.default_rng([self.number, split])
            count = min((TRAIN_IMAGES, VAL_IMAGES)[split], len(digits))
            for index, digit in enumerate(rng.permutation(len(digits))[:count]):
                pixels = digit_pixels(digits, int(digit), SHAPE.img_size)
                image, label = shown(self.name, pixels, int(digits.labels[digit]))
                save_pixels(image, folder / part / label / f"{index}.png")


def shown(name: str, pixels: np.ndarray, label: int) -> tuple[np.ndarray, str]:
    """One digit as a task shows it, and what it is called there. All tasks differ in their images."""
    if name == "rotated":
        return np.rot90(pixels), str(label)
    if name == "negative":
        return 255 - pixels, str(label)
    if name == "parity":
        return pixels, "odd" if label % 2 else "even"
    if name == "half":
        return pixels[::-1], "5 to 9" if label >= 5 else "0 to 4"
    if name == "thirds":
        return pixels[:, ::-1], f"rest {label % 3}"
    return 255 - pixels // 2, str(label)


def _data(out: Path, task: str) -> dict[str, Any]:
    """The data section of a set."""
    return {"source": str(out / "data" / task), "workers": 0, "img_size": SHAPE.img_size}


# -- models ------------------------------------------------------------------------------------------------


def _ancestry(out: Path, seed: int) -> Path:
    """Trains the ancestry, unless the last run left it."""
    path = out / f"ancestry-{seed}"
    if not path.exists():
        model = scratch(SHAPE.replace(depth=ANCESTRY_DEPTH), seed)
        finetune(model, data=HOME, show=False, epochs=ANCESTRY_EPOCHS, seed=seed, **TRAIN)
        save_descendant(model, path)
    return path


def _hypernetwork(out: Path, seed: int, kind: str) -> Path:
    """Trains a hypernetwork in both stages, or continues or reuses what an earlier demo left."""
    sizes = [{"depth": depth, "embed_dim": SHAPE.embed_dim, "num_heads": SHAPE.num_heads} for depth in TRAINED]
    settings = {**SETTINGS, "architectures": sizes}
    guide: dict[str, Any] = {}
    if kind == "tal":
        settings["task_dim"] = SHAPE.embed_dim
        guide = {"ancestry": {"source": str(_ancestry(out, seed))}}
    home = build_recipe(
        {
            "kind": "condense",
            "method": kind,
            "settings": settings,
            "shape": SHAPE,
            "data": HOME,
            "train": {**HOME_TRAIN, "epochs": HOME_EPOCHS, "seed": seed},
            "out": str(out / f"{kind}-digits-{seed}"),
            **guide,
        }
    )
    assert isinstance(home, CondenseRecipe)
    first = run_condense(home, show=kind == "tal").path
    tasks = build_recipe(
        {
            "kind": "tune",
            "gene": str(first),
            "tasks": {task: {"data": _data(out, task)} for task in TASKS},
            "train": {**TASK_TRAIN, "epochs": TASK_EPOCHS, "seed": seed},
            "out": str(out / f"{kind}-{seed}"),
            **guide,
        }
    )
    assert isinstance(tasks, TuneRecipe)
    done = run_tune(tasks, show=kind == "tal")
    assert done.path is not None
    return done.path


def _shape(task: str, depth: int) -> ViTShape:
    return SHAPE.replace(depth=depth, num_classes=(TASKS | UNSEEN)[task])


def _descendant(out: Path, seed: int, kind: str, path: Path, task: str, depth: int) -> Any:
    """A predicted ViT; for a task that TAL was not tuned on, by the embedding of its images."""
    own: str | TaskEmbedding | None = None
    if kind == "tal":
        own = task if task in TASKS else embed_task(Ancestry(_ancestry(out, seed)), _data(out, task))
    return Learngene.load(path).expand(_shape(task, depth), task=own, seed=seed)


def _predicted(out: Path, seed: int, depth: int, paths: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Untuned accuracies of a depth by task, next to random weights."""
    scores: dict[str, dict[str, float]] = {}
    for task in (*TASKS, *UNSEEN):
        models = {kind: _descendant(out, seed, kind, path, task, depth) for kind, path in paths.items()}
        models["random"] = scratch(_shape(task, depth), seed)
        scores[task] = {name: evaluate(model, _data(out, task)).main for name, model in models.items()}
    return scores


def _tuned(out: Path, seed: int, depth: int, paths: dict[str, Path]) -> dict[str, float]:
    """Accuracies of predicted ViTs on the unseen task after fine-tuning."""
    (task,) = UNSEEN
    return {
        kind: _trained(_descendant(out, seed, kind, path, task, depth), out, seed, task, EPOCHS, TUNE_TRAIN)
        for kind, path in paths.items()
    }


def _from_scratch(out: Path, seed: int, depth: int) -> dict[str, float]:
    """Trains random models on the unseen task for as many epochs, and for three times as many."""
    (task,) = UNSEEN
    return {
        name: _trained(scratch(_shape(task, depth), seed), out, seed, task, epochs, TRAIN)
        for name, epochs in (("scratch", EPOCHS), ("scratch_3x", 3 * EPOCHS))
    }


def _trained(model: Any, out: Path, seed: int, task: str, epochs: int, settings: dict[str, Any]) -> float:
    result = finetune(model, data=_data(out, task), show=False, epochs=epochs, seed=seed, **settings)
    return result.final.main


def _sizes(task: str, depth: int) -> dict[str, Any]:
    shape = _shape(task, depth)
    return {
        "task": task,
        "classes": shape.num_classes,
        "depth": depth,
        "params": shape.params(),
        "macs": shape.macs(),
    }


def _print(console: Console, result: dict[str, Any], gene: Path, out: Path) -> None:
    headings = ["task\n", "classes\n", "depth\n", "params\nM", "TAL\n", "LoGAH v4\n", "random\n"]
    table = score_table("top-1 accuracy in percent, untuned", headings, ["task\n"])
    for row in result["rows"]:
        name = row["task"] if row["task"] in TASKS else f"{row['task']} (unseen)"
        scores = [f"{row[key]:.1f}" for key in ("tal", "logah", "random")]
        table.add_row(name, str(row["classes"]), str(row["depth"]), f"{row['params'] / 1e6:.3f}", *scores)
    console.print(table)
    epochs = result["epochs"]["tune"]
    headings = ["task\n", "depth\n", "TAL\n", "LoGAH v4\n", "scratch\n", "scratch\nx3"]
    title = f"top-1 accuracy in percent on the unseen task after {epochs} epoch{'s' * (epochs > 1)} of fine-tuning"
    table = score_table(title, headings, ["task\n"])
    for row in result["tuned"]:
        scores = [f"{row[key]:.1f}" for key in ("tal", "logah", "scratch", "scratch_3x")]
        table.add_row(row["task"], str(row["depth"]), *scores)
    console.print(table)
    stored = result["genes"]["tal"]
    console.print(f"{stored['bytes'] / 1e6:.2f} MB stored for all depths and tasks")
    print_written(console, result, out)
    console.print("Next, with your own images:")
    console.print(f"  learngene plan {gene}", soft_wrap=True)
    console.print(f"  learngene expand {gene} --depth 5 --task half --out my-model", soft_wrap=True)
    console.print(f"  learngene expand {gene} --depth 5 --task YOUR_IMAGES --out my-model", soft_wrap=True)
