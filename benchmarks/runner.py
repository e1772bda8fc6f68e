"""A comparison over doing the same by hand: what keys, locks, result files and laying out cost beside the training.

Three cells of scratch on digits, 10 epochs each, one process; by hand means making, scoring and training the model.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from bench import finish, paired_rounds, ratio, target

from learngene.comparing.jobs import Cell
from learngene.comparing.run import compare, prepare
from learngene.data.splits import open_splits
from learngene.making.finetune import evaluate, scratch, train_model
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.one_line_faults import validated

ROUNDS = 3
FIELDS = {
    "data": {"source": "digits", "img_size": 32, "workers": 0},
    "shape": {"embed_dim": 64, "num_heads": 4, "patch_size": 8, "img_size": 32},
    "shapes": {"d6": {"depth": 6}},
    "contenders": {"scratch": {"method": "scratch"}},
    "tune": {"preset": "laptop", "batch_size": 32, "augment": {"preset": "none"}},
    "budgets": {"ten": {"epochs": 10}},
    "run": {"seeds": [0, 1, 2]},
}


def main() -> None:
    torch.set_num_threads(1)
    times = paired_rounds({"by hand": by_hand, "compare": by_compare}, ROUNDS, warm_up=0)
    overhead = ratio(times, "compare", "by hand") - 1
    targets = [target("compare over the same cells by hand, less 1", overhead, 0.02)]
    finish("runner", times, targets)


def by_compare() -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        compare(recipe(folder), say=lambda _: None)
        return time.perf_counter() - start


def by_hand() -> float:
    with tempfile.TemporaryDirectory() as folder:
        cells = prepare(recipe(folder))[0].cells
        start = time.perf_counter()
        images = open_splits(cells[0].data)
        for cell in cells:
            run(cell, images, Path(folder))
        return time.perf_counter() - start


def run(cell: Cell, images: object, folder: Path) -> None:
    assert cell.train is not None
    model = scratch(cell.shape, cell.seed)
    evaluate(model, cell.data, images=images[1])
    tuning = FinetuneRecipe(model="scratch", data=cell.data, train=cell.train, out=folder)
    train_model(model, tuning, images, keep=False, show=False)


def recipe(folder: str) -> CompareRecipe:
    return validated(CompareRecipe, {**FIELDS, "out": folder, "store": f"{folder}/store"}, "benchmark")


if __name__ == "__main__":
    main()
