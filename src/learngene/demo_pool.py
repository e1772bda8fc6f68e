"""The demo of pools: a digits classifier is distilled into two rows of blocks, from which 18 models can be taken.

Beside it an SN-Net of equal storage: the same rows, trained by themselves and stitched by least squares.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from learngene.demo import DATA, claim_folder, print_written, score_table, workers, write_record
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.plan import Budget, plan
from learngene.making.condense import run as run_condense
from learngene.making.finetune import finetune, scratch
from learngene.methods.pool import Pool
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.report import pool_page, pool_plot
from learngene.vits.descendant_folder import save_descendant
from learngene.vits.shape import ViTShape

WIDE = ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10, class_token=True)
ROWS = (32, 64)
ANCESTRY_DEPTH = 12
BUDGETS = {
    "at most 0.10 M parameters": Budget(max_params=0.10e6),
    "at most 0.20 M parameters": Budget(max_params=0.20e6),
    "at most 4 M multiply-adds": Budget(max_macs=4e6),
}
TRAIN: dict[str, Any] = {
    "preset": "laptop",
    "batch_size": 32,
    "lr": 2e-3,
    "betas": (0.9, 0.98),
    "eval_every": 100,
    "save_every": 10,
    "schedule": {"warmup_epochs": 2},
    "augment": {"preset": "none", "mixup": 0.3, "mix_prob": 0.5},
}
ANCESTRY_EPOCHS, ROW_EPOCHS, ANCHOR_EPOCHS, PATH_EPOCHS = 25, 12, 18, 25
"""Rows and anchors as 100 to 150, as in the paper; an anchor has no teacher to be paid for."""

TUNE: dict[str, Any] = {"epochs": PATH_EPOCHS, "lr": 1e-3}


def run_pool_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Runs the demo and writes ``demo.json``, ``demo.png`` and ``index.html``.

    Args:
        out: Folder to write; what an earlier run left there is used again.
        seed: Of everything that is random.

    Returns:
        What was written to ``demo.json``.

    Raises:
        LearngeneError: If ``out`` is not ours or cannot be written.
    """
    console, start = Console(highlight=False), time.perf_counter()
    claim_folder(out)
    with workers() as pool:
        console.print("[bold]1. An ancestry model[/], a ViT of 12 layers, learns scikit-learn's digits")
        learning = pool.submit(_ancestry, out, seed)
        # SN-Net needs no ancestry, so it fills the second process meanwhile.
        rival = pool.submit(_sn_net, out, seed)
        ancestry = Ancestry(learning.result())
        teacher = ancestry.model.learngene["finetuned"]["accuracy"]["top1"]
        console.print(f"   {ancestry.model.learngene['shape']['depth']} layers: top-1 {teacher:.1f} %")
        console.print("[bold]2. A pool[/] of two rows is distilled from it, stitched and tuned path by path")
        path = pool.submit(_pool, out, seed).result()
        genes = {"pool": Learngene.load(path), "sn-net": Learngene.load(rival.result())}
    scores = {name: {each["path"]: each["top1"] for each in gene.metadata["paths"]} for name, gene in genes.items()}
    console.print("[bold]3. Budgets[/] pick paths; taking one out takes a fraction of a second")
    picks = {text: plan(genes["pool"], budget)[0].shape.path for text, budget in BUDGETS.items()}
    for text, name in picks.items():
        console.print(f"   {text}: {name}, top-1 {scores['pool'][name]:.1f} %")
    kind = Pool(rows=ROWS)
    rows = [
        {
            "blocks": kind.counts(path),
            "path": path.path,
            "params": path.params(),
            "macs": path.macs(),
            "pool": scores["pool"][path.path],
            "sn_net": scores["sn-net"][path.path],
        }
        for path in sorted(kind.paths(WIDE), key=lambda path: path.params())
    ]
    content: dict[str, Any] = {
        "ancestry": {**ancestry.identity, "depth": ANCESTRY_DEPTH, "top1": teacher},
        "stored": {"params": sum(p.numel() for p in genes["pool"].parameters()), "bytes": path.stat().st_size},
        "budgets": picks,
        "epochs": {"rows": ROW_EPOCHS, "paths": PATH_EPOCHS, "anchors": ANCHOR_EPOCHS},
        "rows": rows,
        "train": {"all": TRAIN, "paths": TUNE},
    }
    result = write_record(out, "pool demo", seed, start, content)
    pool_plot(result, out / "demo.png")
    pool_page(result, out / "demo.png", out / "index.html")
    _print(console, result, path, out)
    return result


def _ancestry(out: Path, seed: int) -> Path:
    return _trained(WIDE.replace(depth=ANCESTRY_DEPTH), ANCESTRY_EPOCHS, out / f"ancestry-{seed}", seed)


def _trained(shape: ViTShape, epochs: int, path: Path, seed: int) -> Path:
    """Trains a ViT from random weights, unless the last run left it."""
    if not path.exists():
        model = scratch(shape, seed)
        finetune(model, data=DATA, show=False, epochs=epochs, seed=seed, **TRAIN)
        save_descendant(model, path)
    return path


def _pool(out: Path, seed: int) -> Path:
    return _condensed("pool", out, seed, ROW_EPOCHS, ancestry={"source": str(_ancestry(out, seed))})


def _sn_net(out: Path, seed: int) -> Path:
    rows = Pool(rows=ROWS).row_shapes(WIDE)
    anchors = [_trained(row, ANCHOR_EPOCHS, out / f"anchor-{row.embed_dim}-{seed}", seed) for row in rows]
    return _condensed("sn-net", out, seed, ANCHOR_EPOCHS, anchors=[{"source": str(anchor)} for anchor in anchors])


def _condensed(name: str, out: Path, seed: int, epochs: int, **source: Any) -> Path:
    """Makes a gene, or continues or reuses the run that an earlier demo left."""
    fields = {
        "kind": "condense",
        "method": name,
        "settings": {"rows": ROWS},
        "shape": WIDE,
        "data": DATA,
        "pool": {"tune": TUNE},
        "train": {**TRAIN, "epochs": epochs, "seed": seed},
        "out": str(out / f"{name}-{seed}"),
    }
    recipe = build_recipe(fields | source)
    assert isinstance(recipe, CondenseRecipe)
    done = run_condense(recipe, show=name == "pool")
    assert done.path is not None
    return done.path


def _print(console: Console, result: dict[str, Any], gene: Path, out: Path) -> None:
    headings = ("blocks", "path", "params\nM", "MACs\nM", "pool\n", "SN-Net\n")
    table = score_table("top-1 accuracy in percent, without tuning any model by itself", headings, ["path"])
    for row in result["rows"]:
        sizes = [f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.2f}"]
        table.add_row(row["blocks"], row["path"], *sizes, f"{row['pool']:.1f}", f"{row['sn_net']:.1f}")
    console.print(table)
    singly = sum(row["params"] for row in result["rows"])
    stored = result["stored"]
    console.print(
        f"{stored['bytes'] / 1e6:.2f} MB stored for all {len(result['rows'])} paths; singly these models take "
        f"{4 * singly / 1e6:.2f} MB, {singly / stored['params']:.1f} times the parameters",
        soft_wrap=True,
    )
    print_written(console, result, out)
    console.print("Next, with your own budget and data:")
    console.print(f"  learngene plan {gene} --max-params 0.2M --explain", soft_wrap=True)
    console.print(f"  learngene expand {gene} --path 4+2 --out my-model", soft_wrap=True)
    console.print(f"  learngene picture {gene} --out pool.png", soft_wrap=True)
