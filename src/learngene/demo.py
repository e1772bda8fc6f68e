"""The demo: a digits classifier is condensed into two genes, which become ViTs of many depths, next to scratch.

Everything is real and small: the ancestry is a LeViT (a convolution-attention hybrid, as in the papers), the genes are
condensed from it by distillation alone, and the descendants are ordinary timm models. Same seed, same table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from learngene.data.splits import open_splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.plan import Budget, plan
from learngene.making.condense import run as run_condense
from learngene.making.finetune import evaluate, finetune, scratch
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import DataSpec
from learngene.report import demo_page, demo_plot
from learngene.system.environment import environment
from learngene.system.files import refuse_foreign, write_file
from learngene.system.processes import end_with_parent
from learngene.vits.descendant_folder import TimmModel, save_descendant
from learngene.vits.shape import ViTShape

MARKER = "demo.json"
DATA: dict[str, Any] = {"source": "digits", "workers": 0}
AUXILIARY = ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10)
DEPTHS = (3, 4, 5, 6, 7, 8)
METHODS: dict[str, dict[str, Any]] = {"tleg": {}, "sws": {"stages": (2, 2, 2)}}
EPOCHS = 2
"""Fine-tuning epochs of a descendant; scratch gets as many, and three times as many."""

BUDGETS = {
    "at most 0.2 M parameters": Budget(max_params=0.2e6),
    "at most 0.3 M parameters and 6 M multiply-adds": Budget(max_params=0.3e6, max_macs=6e6),
    "at most 7 M multiply-adds": Budget(max_macs=7e6),
}
ANCESTRY_TRAIN: dict[str, Any] = {
    "preset": "laptop",
    "epochs": 10,
    "lr": 2e-3,
    "eval_every": 10,
    "augment": {"preset": "none"},
}
CONDENSE_TRAIN: dict[str, Any] = {
    "preset": "laptop",
    "epochs": 25,
    "batch_size": 32,
    "lr": 3e-3,
    "betas": (0.9, 0.98),
    "weight_decay": 0.3,
    "eval_every": 10,
    "save_every": 10,
    "schedule": {"warmup_epochs": 5},
    "augment": {"preset": "none", "mixup": 0.3, "mix_prob": 0.5},
}
TUNE_TRAIN: dict[str, Any] = {
    "preset": "laptop",
    "batch_size": 32,
    "lr": 5e-4,
    "betas": (0.9, 0.98),
    "weight_decay": 0.3,
    "eval_every": 100,
    "schedule": {"warmup_epochs": 0},
    "augment": {"preset": "none", "mixup": 0.3, "mix_prob": 0.5},
}
SCRATCH_TRAIN: dict[str, Any] = {
    **TUNE_TRAIN,
    "lr": 3e-3,
    "schedule": {"warmup_epochs": 0.5},
    "augment": {"preset": "none"},
}
"""Scratch has what suits it in so few epochs: the rate that condensing needs, a warm-up, and no mixing."""


@dataclass
class Row:
    """One depth of the demo's table; accuracies are top-1 in percent on the val split."""

    depth: int
    params: int
    macs: int
    tleg_untuned: float
    tleg_tuned: float
    sws_untuned: float
    sws_tuned: float
    scratch: float
    scratch_3x: float


def run_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Runs the demo and writes ``demo.json``, ``demo.png`` and ``index.html``.

    Args:
        out: Folder to write; what an earlier run left there (ancestry, finished genes) is used again.
        seed: Of everything that is random.

    Returns:
        What was written to ``demo.json``.

    Raises:
        LearngeneError: If ``out`` is not ours or cannot be written.
    """
    console, start = Console(highlight=False), time.perf_counter()
    claim_folder(out)
    with workers() as processes:
        console.print("[bold]1. An ancestry model[/] learns scikit-learn's digits")
        learning = processes.submit(_ancestry, out, seed)
        # Scratch needs no gene, so it fills the second process meanwhile; the deepest take longest and start first.
        depths = sorted(DEPTHS, reverse=True)
        from_scratch = {depth: processes.submit(_scratch, depth, seed) for depth in depths}
        ancestry = Ancestry(learning.result())
        teacher = ancestry.model.learngene["finetuned"]["accuracy"]["top1"]
        console.print(f"   {ancestry.identity['name']}: top-1 {teacher:.1f} %")

        console.print("[bold]2. Two genes[/] are condensed from it by distillation, without labels")
        running = {name: processes.submit(_gene, name, out, seed) for name in METHODS}
        paths = {name: future.result() for name, future in running.items()}
        genes = {name: Learngene.load(path) for name, path in paths.items()}
        for name, gene in genes.items():
            size, accuracy = paths[name].stat().st_size, gene.metadata["accuracy"]["top1"]
            console.print(f"   {name}: {paths[name]}, {size / 1e6:.2f} MB, top-1 {accuracy:.1f} %")

        console.print("[bold]3. Budgets[/] pick shapes; expanding one takes a fraction of a second")
        picks = {text: plan(paths["tleg"], budget)[0].shape.depth for text, budget in BUDGETS.items()}
        for text, depth in picks.items():
            console.print(f"   {text}: {depth} layers")

        console.print(f"[bold]4. Descendants[/] of {len(DEPTHS)} depths: untuned, tuned, and trained from scratch")
        expanded = {depth: processes.submit(_descendants, depth, paths, seed) for depth in depths}
        rows = [_row(depth, expanded[depth].result() | from_scratch[depth].result()) for depth in DEPTHS]
    content: dict[str, Any] = {
        "ancestry": {**ancestry.identity, "top1": teacher},
        "genes": {
            name: {
                "top1": gene.metadata["accuracy"]["top1"],
                "bytes": paths[name].stat().st_size,
                "params": sum(p.numel() for p in gene.parameters()),
            }
            for name, gene in genes.items()
        },
        "budgets": picks,
        "tune_epochs": EPOCHS,
        "auxiliary_depth": AUXILIARY.depth,
        "rows": [asdict(row) for row in rows],
        "train": {"ancestry": ANCESTRY_TRAIN, "condense": CONDENSE_TRAIN, "tune": TUNE_TRAIN, "scratch": SCRATCH_TRAIN},
    }
    result = write_record(out, "demo", seed, start, content)
    demo_plot(result, out / "demo.png")
    demo_page(result, out / "demo.png", out / "index.html")
    _print(console, result, out)
    return result


def claim_folder(out: Path) -> None:
    """Marks a folder as a demo's, so that what it leaves there is found again; refuses one that is not."""
    refuse_foreign(out, MARKER)
    if not (out / MARKER).exists():
        write_file(out / MARKER, lambda temporary: temporary.write_text("{}\n"))


def write_record(out: Path, kind: str, seed: int, start: float, content: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``demo.json`` and gives what it holds.

    Args:
        out: The demo's folder.
        kind: Which demo.
        seed: Of the run.
        start: When it began, by ``time.perf_counter``.
        content: What it found.
    """
    result: dict[str, Any] = {
        "kind": kind,
        "seed": seed,
        "data": {"source": "digits", "fingerprint": open_splits(DataSpec(**DATA))[0].fingerprint()},
        **content,
        "environment": environment(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_file(out / MARKER, lambda temporary: temporary.write_text(json.dumps(result, indent=2) + "\n"))
    return result


def score_table(title: str, headings: Sequence[str], texts: Collection[str] = ()) -> Table:
    """An empty table as all demos print it.

    Args:
        title: Above it.
        headings: Of its columns.
        texts: Those of columns that hold text and not numbers.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in texts else "right", no_wrap=True)
    return table


def print_written(console: Console, result: Mapping[str, Any], out: Path) -> None:
    """Says what a demo wrote, and how long it took."""
    console.print(f"\nWritten in {result['seconds']:.0f} s: {out / MARKER}, {out / 'demo.png'}, {out / 'index.html'}")


def workers() -> ProcessPoolExecutor:
    """Processes of one thread each: on small models they are faster than threads, and every machine adds alike.

    A demo that is killed takes them with it.
    """
    return ProcessPoolExecutor(
        max_workers=min(2, os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
    )


def _begin() -> None:
    torch.set_num_threads(1)
    end_with_parent()


def _ancestry(out: Path, seed: int) -> Path:
    """Trains the ancestry, unless the last run left it."""
    path = out / f"ancestry-{seed}"
    if not path.exists():
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: TimmModel = timm.create_model("levit_128s", num_classes=10, img_size=AUXILIARY.img_size)
        finetune(model, data={**DATA, "img_size": AUXILIARY.img_size}, show=False, **ANCESTRY_TRAIN, seed=seed)
        save_descendant(model, path)
    return path


def _gene(name: str, out: Path, seed: int) -> Path:
    """Condenses a gene, or continues or reuses the run that an earlier demo left."""
    ancestry = Ancestry(_ancestry(out, seed))
    recipe = build_recipe(
        {
            "kind": "condense",
            "method": name,
            "settings": METHODS[name],
            "ancestry": {"source": ancestry.identity["source"], "sha256": ancestry.identity["sha256"]},
            "shape": AUXILIARY,
            "data": DATA,
            "train": {**CONDENSE_TRAIN, "seed": seed},
            "out": str(out / f"{name}-{seed}"),
        }
    )
    assert isinstance(recipe, CondenseRecipe)
    done = run_condense(recipe, ancestry=ancestry, show=True)
    assert done.path is not None
    return done.path


def _descendants(depth: int, genes: dict[str, Path], seed: int) -> dict[str, float]:
    """Expands every gene to a depth; scores the models as they are and fine-tuned."""
    scores: dict[str, float] = {}
    for name, path in genes.items():
        model = Learngene.load(path).expand(AUXILIARY.replace(depth=depth))
        scores[f"{name}_untuned"] = evaluate(model, DATA).main
        scores[f"{name}_tuned"] = _trained(model, TUNE_TRAIN, EPOCHS, seed)
    return scores


def _scratch(depth: int, seed: int) -> dict[str, float]:
    """Trains random models of a depth for as many epochs, and for three times as many."""
    shape = AUXILIARY.replace(depth=depth)
    return {
        name: _trained(scratch(shape, seed), SCRATCH_TRAIN, epochs, seed)
        for name, epochs in (("scratch", EPOCHS), ("scratch_3x", 3 * EPOCHS))
    }


def _row(depth: int, scores: dict[str, float]) -> Row:
    shape = AUXILIARY.replace(depth=depth)
    return Row(depth=depth, params=shape.params(), macs=shape.macs(), **scores)


def _trained(model: TimmModel, settings: dict[str, Any], epochs: int, seed: int) -> float:
    result = finetune(model, data=DATA, show=False, epochs=epochs, seed=seed, **settings)
    return result.final.main


def _print(console: Console, result: dict[str, Any], out: Path) -> None:
    headings = ["depth\n", "params\nM", "MACs\nM", "stored\nMB"]
    headings += ["TLEG\nuntuned", "TLEG\ntuned", "SWS\nuntuned", "SWS\ntuned", "scratch\n", "scratch\nx3"]
    table = score_table("top-1 accuracy in percent", headings)
    for row in result["rows"]:
        sizes = [f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.2f}", f"{4 * row['params'] / 1e6:.2f}"]
        table.add_row(str(row["depth"]), *sizes, *(f"{row[key]:.1f}" for key in list(row)[3:]))
    console.print(table)
    singly = sum(row["params"] for row in result["rows"])
    for name, gene in result["genes"].items():
        console.print(
            f"{name.upper()}: {gene['bytes'] / 1e6:.2f} MB stored for all depths; "
            f"singly these models take {4 * singly / 1e6:.2f} MB, {singly / gene['params']:.1f} times the parameters",
            soft_wrap=True,
        )
    print_written(console, result, out)
    gene = out / f"tleg-{result['seed']}.safetensors"
    console.print("Next, with your own budget and data:")
    console.print(f"  learngene plan {gene} --max-latency 2 --explain", soft_wrap=True)
    console.print(f"  learngene expand {gene} --depth 10 --out my-model", soft_wrap=True)
    console.print(
        "  learngene finetune --model my-model --data digits --preset laptop --epochs 3 --out runs/mine "
        "train.augment.preset=none",
        soft_wrap=True,
    )
