"""A short run of every kind, as a command in a process of its own, and what it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from comparisons import compare_fields
from hyper import home, train_fields, tune_fields
from learngene import load_descendant
from learngene.genes.gene import Learngene
from learngene.system.files import write_file
from pico import FAST, condense_fields, finetune_fields, make_ancestry, make_images, pico_shape
from pools import POOL
from searches import make_sets, search_fields

LONG = {**FAST, "epochs": 5, "save_every": 1}
CLOCK = {"seconds", "environment", "images_per_second", "commit", "digest", "gene", "hardware", "started"}
"""Entries that differ between two runs of the same recipe, or follow from such; tensors are compared themselves."""


@dataclass
class Kind:
    """A kind of run: its command and the recipe of a run in a folder."""

    command: str
    fields: Callable[[Path], dict[str, Any]]

    def arguments(self, folder: Path) -> list[str]:
        """The command's arguments for a run that writes ``folder / "out"`` and nothing else."""
        recipe = folder / "recipe.yaml"
        text = yaml.safe_dump(json.loads(json.dumps(self.fields(folder / "out"))))
        write_file(recipe, lambda temporary: temporary.write_text(text))
        return [self.command, str(recipe)]


def kinds(folder: Path) -> dict[str, Kind]:
    """One run of each kind on the same few images, of about two seconds each."""
    images = make_images(folder / "images")
    teacher = make_ancestry(folder / "ancestry")
    deep, wide = make_ancestry(folder / "deep", depth=4), make_ancestry(folder / "wide", depth=6, embed_dim=32)
    sets = make_sets(folder / "sets")
    pair = make_images(folder / "pair", classes=("blue", "red"))
    home(teacher, images, folder / "home", train=FAST)
    stage1 = folder / "home.safetensors"
    two = {"colours": images, "pair": pair}

    def compared(out: Path) -> dict[str, Any]:
        return compare_fields(out, images, out=str(out / "results"), store=str(out / "store"))

    return {
        "condense": Kind("condense", lambda out: condense_fields(teacher, images, out, train=LONG)),
        "hyper": Kind("condense", lambda out: train_fields(teacher, images, out, train=LONG)),
        "pool": Kind("condense", lambda out: condense_fields(wide, images, out, **POOL, train=LONG)),
        "search": Kind("search", lambda out: search_fields(deep, sets, out, train=LONG)),
        "tune": Kind("tune", lambda out: tune_fields(stage1, teacher, two, out, train=LONG)),
        "finetune": Kind("finetune", lambda out: finetune_fields(teacher, images, out, train=LONG)),
        "compare": Kind("compare", compared),
    }


def replaying(folder: Path) -> dict[str, Kind]:
    """Writing what a teacher says, and a run that does so on its way; what is stored lies below ``out``, too."""
    images, teacher = make_images(folder / "images"), make_ancestry(folder / "ancestry", depth=6)

    def fields(out: Path) -> dict[str, Any]:
        train = {**LONG, "epochs": 30, "save_every": 5}
        distill = {"target": "features", "replay": str(out / "store")}
        shape = {**pico_shape().to_dict(), "num_classes": 0}
        more = {"shape": shape, "distill": distill, "features": {"tokens": ["pooled"]}, "train": train}
        return condense_fields(teacher, images, out / "run", **more)

    return {"targets": Kind("targets", fields), "condense with replay": Kind("condense", fields)}


def came_to(folder: Path) -> dict[str, str]:
    """Every file below ``out`` by name, with a hash of what matters in it."""
    return {str(path.relative_to(folder)): _hash(path) for path in _files(folder)}


def different(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """The files that one has and the other has not, or has otherwise."""
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        half = path.suffix == ".tmp" and _is_stored(path)  # deleted when nobody can be writing it any more
        shown = "events.out" in path.name or path.suffix in (".png", ".html", ".yaml")
        if path.is_file() and not half and not shown:
            yield path


def _is_stored(path: Path) -> bool:
    return any(part.startswith("targets-") for part in path.parts)


def _hash(path: Path) -> str:
    content: Any
    if path.suffix == ".safetensors" and _is_stored(path):
        with safe_open(path, framework="pt") as file:  # its metadata lie in any order
            content = [file.metadata(), _tensors({name: file.get_tensor(name) for name in file.keys()})]  # noqa: SIM118
    elif path.suffix == ".safetensors" and path.name != "model.safetensors":
        gene = Learngene.load(path)
        content = [_without_clock(gene.metadata), _tensors(gene.tensors())]
    elif path.name == "model.safetensors":
        content = _tensors(load_descendant(path.parent).state_dict())
    elif path.suffix == ".json":
        content = _without_clock(json.loads(path.read_text()))
    elif path.suffix == ".jsonl":
        content = [_without_clock(json.loads(line)) for line in path.read_text().splitlines()]
    elif path.suffix == ".pt":
        content = "state"  # of the last step, which a finished run leaves
    else:
        content = "".join(line for line in path.read_text().splitlines() if "second" not in line) and path.suffix
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tensors(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [f"{name} {hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()}" for name, value in tensors.items()]


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clock(inner) for key, inner in value.items() if key not in CLOCK}
    return [_without_clock(inner) for inner in value] if isinstance(value, list) else value
