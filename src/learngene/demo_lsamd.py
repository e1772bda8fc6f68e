"""The demo of LSAMD: six small data sets are made of the digits, and the blocks of a ViT that they share are searched.

The blocks become descendants of several depths for two of the data sets, one of which gives every pixel a class.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from learngene.data.images import ImageSet
from learngene.data.splits import open_splits
from learngene.demo import DATA, MARKER, claim_folder, print_written, score_table, workers, write_record
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.finetune import finetune, scratch
from learngene.making.search.make import run as run_search
from learngene.making.search.usage_map import usage_picture
from learngene.methods.lsamd import LSAMD
from learngene.recipe.loading import build_recipe
from learngene.recipe.search import SearchRecipe
from learngene.recipe.sections import DataSpec
from learngene.report import lsamd_page, lsamd_plot
from learngene.system.files import write_folder
from learngene.vits.descendant_folder import save_descendant
from learngene.vits.segmenter import segment
from learngene.vits.segmenter_sizes import segmenter_macs, segmenter_params
from learngene.vits.shape import ViTShape

SHAPE = ViTShape(embed_dim=48, depth=8, num_heads=3, patch_size=4, img_size=16, num_classes=10, class_token=True)
CANVAS = "canvas"
CANVAS_SIDE = 2 * SHAPE.img_size
CANVAS_CLASSES = ["background", "0 to 4", "5 to 9"]
INK = 64
"""Grey value, of 255, from which a pixel of a canvas belongs to its digit."""

NOISE = 70.0
"""Standard deviation of the noise, in grey values of 255."""

SETS = ("digits", "negative", "rotated", "noisy", "parity", CANVAS)
TRAIN_IMAGES, VAL_IMAGES = 768, 256
"""Of every data set; those for training are made of the ancestry's training digits, the others of its other digits."""

TUNED = ("rotated", CANVAS)
DEPTHS = (4, 6, 8)
SELECT = {"k": 4}
"""The paper's threshold may keep any number of blocks, or none after so few steps: then these depths could not be made.
The four most probable blocks exist with every seed."""

ANCESTRY_EPOCHS, SEARCH_EPOCHS, EPOCHS = 20, 6, 3
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

SEARCH_TRAIN: dict[str, Any] = {**TRAIN, "lr": 5e-4}
TUNE_TRAIN: dict[str, Any] = {**TRAIN, "lr": 1e-3}


def run_lsamd_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Runs the demo and writes ``demo.json``, ``search.png``, ``demo.png`` and ``index.html``.

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
    write_sets(out / "data")
    cells = [(task, depth) for task in TUNED for depth in DEPTHS]
    # Those that take longest start first: masks need larger images than classes.
    longest = sorted(cells, key=lambda cell: (cell[0] == CANVAS, cell[1]), reverse=True)
    with workers() as processes:
        console.print(f"[bold]1. An ancestry model[/], a ViT of {SHAPE.depth} layers, learns scikit-learn's digits")
        learning = processes.submit(_ancestry, out, seed)
        # Scratch needs no gene, so it fills the second process meanwhile.
        from_scratch = {cell: processes.submit(_from_scratch, out, seed, *cell) for cell in longest}
        ancestry = Ancestry(learning.result())
        teacher = ancestry.model.learngene["finetuned"]["accuracy"]["top1"]
        console.print(f"   top-1 {teacher:.1f} %")
        console.print(f"[bold]2. A search[/]: {len(SETS)} data sets choose between its blocks and copies of their own")
        # Processes that run the same search share its data sets out among themselves.
        searching = [processes.submit(_search, out, seed) for _ in range(2)]
        path = {each.result() for each in searching}.pop()
        gene = Learngene.load(path)
        search = gene.metadata["search"]
        counts = " ".join(f"{layer}:{count}" for layer, count in enumerate(search["usage"], start=1))
        kept = ", ".join(str(layer) for layer in search["layers"])
        console.print(f"   block:data sets {counts}; kept: {kept}", soft_wrap=True)
        console.print(f"[bold]3. Descendants[/] of {len(DEPTHS)} depths for {' and '.join(TUNED)}, next to scratch")
        tuned = {cell: processes.submit(_tuned, out, seed, path, *cell) for cell in longest}
        rows = [_row(gene, *cell, {**tuned[cell].result(), **from_scratch[cell].result()}) for cell in cells]
    content: dict[str, Any] = {
        "images": [TRAIN_IMAGES, VAL_IMAGES],
        "ancestry": {**ancestry.identity, "depth": SHAPE.depth, "top1": teacher},
        "gene": {"params": sum(p.numel() for p in gene.parameters()), "bytes": path.stat().st_size},
        "search": {key: value for key, value in search.items() if key != "tasks"}
        | {"tasks": [{k: v for k, v in task.items() if k != "seconds"} for task in search["tasks"]]},
        "epochs": {"ancestry": ANCESTRY_EPOCHS, "search": SEARCH_EPOCHS, "tune": EPOCHS},
        "rows": rows,
        "train": {"ancestry": TRAIN, "search": SEARCH_TRAIN, "tune": TUNE_TRAIN, "scratch": TRAIN},
    }
    result = write_record(out, "lsamd demo", seed, start, content)
    lsamd_plot(result, out / "demo.png")
    usage_picture(result["search"], out / "search.png")
    lsamd_page(result, [out / "search.png", out / "demo.png"], out / "index.html")
    _print(console, result, path, out)
    return result


# -- data sets ---------------------------------------------------------------------------------------------


def write_sets(folder: Path) -> None:
    """Writes the data sets as folders of images: with a class each, and one with masks. What is there is kept.

    Args:
        folder: Where; every set gets a folder of its own.
    """
    splits = dict(zip(("train", "val"), open_splits(DataSpec(**DATA)), strict=True))
    for number, name in enumerate(SETS):
        if not (folder / name / MARKER).exists():
            write_folder(folder / name, MARKER, _Writer(splits, name, number))


class _Writer:
    """Fills the folder of one data set."""

    def __init__(self, splits: dict[str, ImageSet], name: str, number: int) -> None:
        self.splits, self.name, self.number = splits, name, number

    def __call__(self, folder: Path) -> None:
        (folder / MARKER).write_text(json.dumps({"kind": "data of the lsamd demo", "set": self.name}) + "\n")
        for split, (part, digits) in enumerate(self.splits.items()):
            rng = np.random.default_rng([self.number, split])
            count = min((TRAIN_IMAGES, VAL_IMAGES)[split], len(digits))
            for index, digit in enumerate(rng.permutation(len(digits))[:count]):
                if self.name == CANVAS:
                    image, mask = canvas(digits, rng)
                    save_pixels(image, folder / "images" / part / f"{index}.png")
                    save_pixels(mask, folder / "masks" / part / f"{index}.png")
                else:
                    image, label = changed(self.name, digit_pixels(digits, int(digit)), digits.labels[digit], rng)
                    save_pixels(image, folder / part / label / f"{index}.png")


def changed(name: str, pixels: np.ndarray, label: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One digit as a data set shows it, and what it is called there."""
    if name == "negative":
        pixels = 255 - pixels
    elif name == "rotated":
        pixels = np.rot90(pixels)
    elif name == "noisy":
        pixels = np.clip(pixels + rng.normal(0, NOISE, pixels.shape), 0, 255).astype(np.uint8)
    elif name == "parity":
        return pixels, "odd" if label % 2 else "even"
    return pixels, str(label)


def canvas(digits: ImageSet, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two to four digits on a canvas, and for every pixel its class: background, or a digit below or from 5."""
    image, mask = (np.zeros((CANVAS_SIDE, CANVAS_SIDE), np.uint8) for _ in range(2))
    half = CANVAS_SIDE // 2
    for quarter in rng.permutation(4)[: rng.integers(2, 5)]:
        digit, side = int(rng.integers(len(digits))), int(rng.integers(half - 4, half + 1))
        top, left = (half * place + int(rng.integers(half - side + 1)) for place in divmod(int(quarter), 2))
        here = slice(top, top + side), slice(left, left + side)
        image[here] = digit_pixels(digits, digit, side)
        mask[here] = np.where(image[here] >= INK, 1 + digits.labels[digit] // 5, 0)
    return image, mask


def digit_pixels(digits: ImageSet, index: int, side: int = SHAPE.img_size) -> np.ndarray:
    """A digit's grey values."""
    return np.asarray(digits.image(index, "L").resize((side, side), Image.Resampling.BICUBIC))


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Writes an image, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _data(out: Path, task: str) -> dict[str, Any]:
    """The data section of a set."""
    own = {"img_size": CANVAS_SIDE, "mask_classes": CANVAS_CLASSES} if task == CANVAS else {"img_size": SHAPE.img_size}
    return {"source": str(out / "data" / task), "workers": 0, **own}


# -- models ------------------------------------------------------------------------------------------------


def _ancestry(out: Path, seed: int) -> Path:
    """Trains the ancestry, unless the last run left it."""
    path = out / f"ancestry-{seed}"
    if not path.exists():
        model = scratch(SHAPE, seed)
        finetune(model, data=DATA, show=False, epochs=ANCESTRY_EPOCHS, seed=seed, **TRAIN)
        save_descendant(model, path)
    return path


def _search(out: Path, seed: int) -> Path:
    """Searches, or continues or reuses the search that an earlier demo left."""
    recipe = build_recipe(
        {
            "kind": "search",
            "ancestry": {"source": str(_ancestry(out, seed))},
            "tasks": {task: {"data": _data(out, task)} for task in SETS},
            "train": {**SEARCH_TRAIN, "epochs": SEARCH_EPOCHS, "seed": seed},
            "select": SELECT,
            "out": str(out / f"search-{seed}"),
        }
    )
    assert isinstance(recipe, SearchRecipe)
    done = run_search(recipe, show=False, say=_say)
    assert done.path is not None
    return done.path


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


def _shape(task: str, depth: int) -> ViTShape:
    if task == CANVAS:
        return SHAPE.replace(depth=depth, img_size=CANVAS_SIDE, num_classes=len(CANVAS_CLASSES))
    return SHAPE.replace(depth=depth)


def _tuned(out: Path, seed: int, gene: Path, task: str, depth: int) -> dict[str, float]:
    model = Learngene.load(gene).expand(_shape(task, depth), seed=seed)
    return {"lsamd": _trained(model, out, seed, task, EPOCHS, TUNE_TRAIN)}


def _from_scratch(out: Path, seed: int, task: str, depth: int) -> dict[str, float]:
    """Trains random models for as many epochs, and for three times as many."""
    return {
        name: _trained(scratch(_shape(task, depth), seed), out, seed, task, epochs, TRAIN)
        for name, epochs in (("scratch", EPOCHS), ("scratch_3x", 3 * EPOCHS))
    }


def _trained(model: Any, out: Path, seed: int, task: str, epochs: int, settings: dict[str, Any]) -> float:
    if task == CANVAS:
        model = segment(model, len(CANVAS_CLASSES), seed=seed, class_names=CANVAS_CLASSES)
    result = finetune(model, data=_data(out, task), show=False, epochs=epochs, seed=seed, **settings)
    return result.final.main


def _row(gene: Learngene, task: str, depth: int, scores: dict[str, float]) -> dict[str, Any]:
    """One line of the table; scores are top-1, or mean IoU where there are masks, in percent on the val split."""
    shape, kind = _shape(task, depth), gene.method
    assert isinstance(kind, LSAMD)
    sizes = (segmenter_params, segmenter_macs) if task == CANVAS else (ViTShape.params, ViTShape.macs)
    return {
        "task": task,
        "metric": "mean IoU" if task == CANVAS else "top-1",
        "depth": depth,
        "blocks": kind.block_of_layer(depth),
        "params": sizes[0](shape),
        "macs": sizes[1](shape),
        **scores,
    }


def _print(console: Console, result: dict[str, Any], gene: Path, out: Path) -> None:
    headings = ["data set\n", "depth\n", "blocks\n", "params\nM", "MACs\nM", "LSAMD\n", "scratch\n", "scratch\nx3"]
    table = score_table("top-1 accuracy, on the canvas mean IoU, in percent", headings, ["data set\n", "blocks\n"])
    for row in result["rows"]:
        blocks = " ".join(str(block) for block in row["blocks"])
        sizes = [f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.2f}"]
        scores = [f"{row[name]:.1f}" for name in ("lsamd", "scratch", "scratch_3x")]
        table.add_row(row["task"], str(row["depth"]), blocks, *sizes, *scores)
    console.print(table)
    stored = result["gene"]
    console.print(f"{stored['bytes'] / 1e6:.2f} MB stored for all depths and data sets")
    print_written(console, result, out)
    console.print("Next, with your own data:")
    console.print(f"  learngene plan {gene} --explain", soft_wrap=True)
    console.print(f"  learngene expand {gene} --depth 7 --explain --out my-model", soft_wrap=True)
    console.print(f"  learngene picture {gene} --out search.png", soft_wrap=True)
