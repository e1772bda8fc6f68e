"""The runs in a folder, as their files tell: what state they are in, what they scored, what can be made again.

No torch is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from learngene.recipe.loading import load_yaml
from learngene.system.errors import LearngeneError
from learngene.system.files import take_lock

MARKER, LOCK = "recipe.yaml", ".lock"
LAST, BEST, RESULT, METRICS = "last.pt", "best.pt", "result.json", "metrics.jsonl"
TARGETS_KEY = "key.json"
SCORES = {"top1": "top-1", "miou": "mean IoU", "knn": "kNN", "neighbours": "neighbours in common"}
"""What entries of an epoch are scores, and what they are called."""

State = Literal["running", "finished", "diverged", "stopped", "not begun"]


@dataclass(frozen=True)
class KeptRun:
    """A run folder.

    Attributes:
        path: Where it is.
        what: Its kind, and the method or the model.
        state: ``stopped`` has a saved state, from which the same command continues.
        epoch: Epochs completed, and how many there shall be; None before the first.
        score: Of the last epoch that was evaluated, in words; empty without one.
        size: Bytes on disk, its gene included.
        model: The descendant folder or the gene that it made, if it is there.
        replay: The folder of the stored targets that its recipe names.
    """

    path: Path
    what: str
    state: State
    epoch: tuple[int, int] | None
    score: str
    size: int
    model: Path | None
    replay: Path | None

    def states(self) -> list[Path]:
        """Its saved states, of which nobody needs to go on: those of a finished run whose model is there."""
        if self.state != "finished" or self.model is None:
            return []
        return [self.path / name for name in (LAST, BEST) if (self.path / name).is_file()]


def kept_runs(folder: Path) -> Iterator[KeptRun]:
    """All runs in a folder and in the folders below it, by path.

    Raises:
        LearngeneError: If there is no such folder.
    """
    if not folder.is_dir():
        raise LearngeneError(f"{folder}: no such folder")
    for place, folders, files in os.walk(folder):
        folders.sort()
        if MARKER in files and (run := _run(Path(place))):
            yield run


def stored_targets(folder: Path, runs: list[KeptRun]) -> list[Path]:
    """The folders of stored targets below a folder that no process writes, and none of some runs may still read."""
    busy = {run.replay.resolve() for run in runs if run.replay and run.state in ("running", "stopped", "not begun")}
    return [
        key.parent
        for key in sorted(folder.rglob(f"targets-*/{TARGETS_KEY}"))
        if not key.parent.is_symlink()
        and key.parent.parent.resolve() not in busy
        and not any(map(held, key.parent.parent.glob("locks/*")))
    ]


def held(lock: Path) -> bool:
    """Whether some process holds the lock that a file stands for."""
    if not lock.is_file():
        return False
    try:
        mine = take_lock(lock)
    except LearngeneError:  # a file that cannot be written: as if somebody held it
        return True
    if mine is None:
        return True
    mine.close()
    return False


def disk_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    inside = [path] if path.is_file() else path.rglob("*")
    total = 0
    for each in inside:
        with contextlib.suppress(FileNotFoundError):  # a run in progress renames its files
            total += each.stat().st_size if each.is_file() and not each.is_symlink() else 0
    return total


def gene_path(out: Path) -> Path:
    """Where the gene of a run is written: beside its run folder."""
    return out.with_name(f"{out.name}.safetensors")


def _run(path: Path) -> KeptRun | None:
    try:
        recipe = load_yaml((path / MARKER).read_text())
    except (OSError, ValueError, LearngeneError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, Mapping) or "out" not in recipe:
        return None  # somebody else's recipe.yaml
    gene, descendant = gene_path(path), path / "descendant"
    model = next((each for each in (descendant, gene) if each.exists()), None)
    entries = _entries(path / METRICS)
    last = entries[-1] if entries else {}
    scores = [(name, entry[key]) for entry in reversed(entries) for key, name in SCORES.items() if key in entry]
    replay = (recipe.get("distill") or {}).get("replay") or {}
    return KeptRun(
        path=path,
        what=f"{recipe.get('kind', 'run')} {recipe.get('method') or recipe.get('model') or ''}".strip(),
        state=_state(path, model),
        epoch=(last["epoch"], last["epochs"]) if last else None,
        score=f"{scores[0][0]} {scores[0][1]:.2f} %" if scores else "",
        size=disk_size(path) + (disk_size(gene) if gene.is_file() else 0),
        model=model,
        replay=Path(replay["folder"]) if "folder" in replay else None,
    )


def _state(path: Path, model: Path | None) -> State:
    if held(path / LOCK):
        return "running"
    if (path / RESULT).exists():
        try:
            return "diverged" if json.loads((path / RESULT).read_text()).get("error") else "finished"
        except (OSError, ValueError, AttributeError):
            return "stopped"  # a damaged record; its files stay
    if (path / LAST).exists() or any(path.glob(f"*/{MARKER}")):  # of several stages, each in a folder of its own
        return "finished" if model and not (path / LAST).exists() else "stopped"
    return "not begun"


def _entries(path: Path) -> list[dict[str, Any]]:
    """The epochs in ``metrics.jsonl``, as far as they are whole."""
    out: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if not isinstance(entry, dict) or not {"epoch", "epochs"} <= entry.keys():
                break
            out.append(entry)
    return out
