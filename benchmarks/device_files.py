"""The demo's descendants in every runtime and precision, and what storing a gene in half costs its layers.

    python benchmarks/device_files.py demo-output

writes results/device_files.json, of the untuned descendants of the demo's TLEG gene on scikit-learn's digits: bytes,
latency of one image with one thread, agreement with the model and accuracy. What cannot be had is told with the reason.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from learngene.devices.export import TARGETS, export
from learngene.genes.gene import Learngene
from learngene.system.environment import commit, environment
from learngene.system.errors import LearngeneError

OUT = Path(__file__).parents[1] / "results" / "device_files.json"
DEPTHS = (3, 4, 5, 6, 7, 8)
DEEP = 12
"""Layers over which the error of half genes is looked at."""

ROUNDS = 51
DATA = {"source": "digits", "workers": 0}
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1]) / "tleg-0.safetensors"
    torch.set_num_threads(1)
    files: list[dict[str, Any]] = []
    for depth in DEPTHS:
        files += of_depth(Learngene.load(path).expand(depth).eval(), depth)
    gene = {"digest": Learngene.load(path).metadata["digest"], "half": {name: half(path, name) for name in HALF}}
    result = {"gene": gene, "files": files, "rounds": ROUNDS, "environment": environment(), "commit": commit()}
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(OUT)


def of_depth(model: Any, depth: int) -> list[dict[str, Any]]:
    """A line for every runtime and precision; all files of a depth take their turns on the clock."""
    lines: list[dict[str, Any]] = []
    sessions = {}
    images = torch.full((1, 3, 32, 32), 0.1)
    with tempfile.TemporaryDirectory() as name:
        for to, kind in TARGETS.items():
            for precision in kind.precisions:
                file = Path(name) / f"{to}-{precision}{kind.suffix}"
                line: dict[str, Any] = {"depth": depth, "target": to, "precision": precision}
                lines.append(line)
                try:
                    said = export(model, file, to=to, precision=precision, data=DATA, keep_worse=True)
                except LearngeneError as error:
                    line["missing"] = str(error).removeprefix("export: ")
                    continue
                kept = ("top1_agreement", "relative_difference", "score", "model_score", "images")
                line |= {"bytes": sum(said.files.values()), "computed_in": said.computed_in, "notes": said.notes}
                line |= {key: said.agreement[key] for key in kept}
                sessions[len(lines) - 1] = kind().open(file, precision, 1)
        times: dict[int, list[float]] = {number: [] for number in sessions}
        for _ in range(ROUNDS):
            for number, session in sessions.items():
                session.run(images)  # the threads of the one before may still spin
                start = time.perf_counter()
                session.run(images)
                times[number].append(time.perf_counter() - start)
    for number, found in times.items():
        lines[number]["milliseconds"] = 1e3 * statistics.median(found)
    return lines


def half(path: Path, dtype: str) -> dict[str, Any]:
    """Relative errors of expanded layers, and of what lies between two, for a gene that is stored in half.

    Beside it the same of a model whose layers are each stored in half.
    """
    gene = Learngene.load(path)
    with tempfile.TemporaryDirectory() as name:
        gene.save(Path(name) / "half.safetensors", dtype=dtype)
        size = (Path(name) / "half.safetensors").stat().st_size
        exact, ours = layers(gene), layers(Learngene.load(Path(name) / "half.safetensors"))
    one_by_one = [layer.to(HALF[dtype]).float() for layer in exact]
    apart = steps(exact)
    return {
        "bytes_over_float32": size / path.stat().st_size,
        "layers": [error(found, layer) for found, layer in zip(ours, exact, strict=True)],
        "between": [error(found, step) for found, step in zip(steps(ours), apart, strict=True)],
        "between_one_by_one": [error(found, step) for found, step in zip(steps(one_by_one), apart, strict=True)],
    }


def layers(gene: Learngene) -> list[torch.Tensor]:
    """All numbers of every expanded layer."""
    state = gene.expand(DEEP).state_dict()
    of = [[key for key in sorted(state) if key.startswith(f"blocks.{i}.")] for i in range(DEEP)]
    return [torch.cat([state[key].flatten() for key in keys]).double() for keys in of]


def steps(every: list[torch.Tensor]) -> list[torch.Tensor]:
    return [after - before for before, after in itertools.pairwise(every)]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
