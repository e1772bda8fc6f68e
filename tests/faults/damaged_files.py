"""Damaged gene files of every method, descendant folders, result files and states of runs."""

from __future__ import annotations

import functools
import json
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.trials import Verdicts, damage, damage_json
from hyper import HYPER, hyper_gene
from learngene import load_descendant, save_descendant
from learngene.comparing.claims.verdict_file import VerdictFile
from learngene.comparing.results import CellResult
from learngene.genes.gene import Learngene
from learngene.making.condense import run
from learngene.methods import METHODS
from learngene.recipe.loading import build_recipe, load_recipe
from learngene.system.records import Record
from learngene.training.run_folder import RunFolder
from pico import FAST, condense_fields, make_ancestry, make_images, pico_gene, pico_shape

GENES, OTHERS = 10_000, 2_000
RESULTS = Path(__file__).parents[2] / "results" / "laptop"
SETTINGS: dict[str, Any] = {"pool": {"rows": [8, 16]}, "sn-net": {"rows": [8, 16]}, "lsamd": {"layers": [2, 4]}}
SETTINGS |= {"sws": {"stages": [2, 2]}, "mini-init": {"blocks": 2}}

Content = tuple[Any, dict[str, torch.Tensor]]


def damaged_files(folder: Path, share: float, seed: int) -> dict[str, Any]:
    """10,000 gene files and 2,000 others, none of which may be taken for what it is not."""
    warnings.simplefilter("ignore")
    verdicts = Verdicts()
    names = [name for name in METHODS if METHODS[name].origins]
    for name in names:
        gene = hyper_gene(name) if name in HYPER else pico_gene(name, SETTINGS.get(name))
        gene.metadata |= {"classes": ["blue", "green", "red"], "accuracy": {"top1": 50.0}}
        path = folder / f"{name}.safetensors"
        gene.save(path)
        rounds = round(share * GENES / len(names))
        in_many_ways(verdicts, f"gene of {name}", path, rounds, seed, _damaged_gene, lambda p=path: _gene(p))
    each = round(share * OTHERS / 8)
    descendant = folder / "descendant"
    save_descendant(pico_gene().expand(3), descendant)
    for name in ("config.json", "model.safetensors", "learngene.json"):
        change = damaged_json if name.endswith("json") else damage
        what, read = f"descendant's {name}", functools.partial(_descendant, descendant)
        in_many_ways(verdicts, what, descendant / name, each, seed, change, read)
    for record, pattern in ((CellResult, "cells/*.json"), (VerdictFile, "claims/*.json")):
        path = folder / "record.json"
        record.read(sorted(RESULTS.glob(pattern))[0]).write(path)
        read = _record(record, path)
        in_many_ways(verdicts, record.__name__, path, each, seed, damaged_json, read)
        path.unlink()
    state = _state(folder)
    in_many_ways(verdicts, "state of a run", state.path / "last.pt", 3 * each, seed, damage, lambda: _saved(state))
    return verdicts.record()


def in_many_ways(
    verdicts: Verdicts,
    what: str,
    path: Path,
    rounds: int,
    seed: int,
    change: Callable[[bytes, random.Random], tuple[str, bytes]],
    read: Callable[[], Content],
) -> None:
    """Damages one file in so many ways; it is whole again at the end."""
    whole, before = path.read_bytes(), read()
    for number in range(rounds):
        trial, content = change(whole, random.Random(f"{what} {seed} {number}"))
        path.write_bytes(content)
        verdicts.judge(what, f"{number} ({trial})", lambda: _equal(read(), before))
    path.write_bytes(whole)


def _equal(one: Content, other: Content) -> bool:
    (said, tensors), (said_before, before) = one, other
    same = tensors.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in tensors.items())
    return same and json.dumps(said, sort_keys=True) == json.dumps(said_before, sort_keys=True)


def _damaged_gene(content: bytes, source: random.Random) -> tuple[str, bytes]:
    """Bytes anywhere, or a value of the header or of the metadata in it, under a header of the right length."""
    where = source.choice(["bytes", "header", "metadata"])
    if where == "bytes":
        return damage(content, source)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if where == "header":
        trial, header = damage_json(header, source)
    else:
        trial, metadata = damage_json(json.loads(header["__metadata__"]["learngene"]), source)
        header["__metadata__"]["learngene"] = json.dumps(metadata)
    return f"{where}: {trial}", _with_header(header, content[8 + length :])


def damaged_header(content: bytes, source: random.Random) -> tuple[str, bytes]:
    """A value of the header of a safetensors file, under a header of the right length."""
    (length,) = struct.unpack("<Q", content[:8])
    trial, header = damage_json(json.loads(content[8 : 8 + length]), source)
    return trial, _with_header(header, content[8 + length :])


def _with_header(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def damaged_json(content: bytes, source: random.Random) -> tuple[str, bytes]:
    if source.random() < 0.3:
        return damage(content, source)
    trial, value = damage_json(json.loads(content), source)
    return trial, json.dumps(value, indent=1).encode()


def _gene(path: Path) -> Content:
    gene = Learngene.load(path)
    said = [gene.method.name, repr(gene.method), gene.shape.to_dict(), {**gene.metadata, "digest": ""}]
    return said, gene.tensors()


def _descendant(folder: Path) -> Content:
    model = load_descendant(folder)
    known = ("gene", "method", "shape", "layers", "fresh", "class_names")
    cfg = {key: model.pretrained_cfg.get(key) for key in ("mean", "std", "crop_pct", "interpolation", "input_size")}
    return [{key: model.learngene.get(key) for key in known}, cfg], model.state_dict()


def _record(record: type[Record], path: Path) -> Callable[[], Content]:
    return lambda: (record.read(path).content(), {})


def _state(folder: Path) -> RunFolder:
    """The folder of a short run with its last state."""
    images, ancestry = make_images(folder / "images"), make_ancestry(folder / "ancestry")
    recipe = build_recipe(condense_fields(ancestry, images, folder / "run", train=FAST, shape=pico_shape().to_dict()))
    run(recipe, keep=True, show=False)  # type: ignore[arg-type]
    return RunFolder(folder / "run", load_recipe(folder / "run" / "recipe.yaml"))


def _saved(folder: RunFolder) -> Content:
    found = folder.load()
    assert found
    content, progress = found
    tensors = {f"{part}.{name}": value for part, values in content.items() if isinstance(values, dict)
               for name, value in values.items() if isinstance(value, torch.Tensor)}  # fmt: skip
    return [repr(progress), repr(content.get("scaler"))], tensors
