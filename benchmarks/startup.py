"""Wall time of the commands that import no torch: they shall answer in under 0.3 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import finish, paired_rounds, target

from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.vits.shape import ViTShape

ROUNDS = 11


def main() -> None:
    program = Path(sys.executable).with_name("learngene")
    with tempfile.TemporaryDirectory() as folder:
        gene = Path(folder) / "gene.safetensors"
        Learngene(method("tleg"), ViTShape.named("deit_small_patch16_224")).save(gene)
        commands = {
            "--help": ["--help"],
            "plan": ["plan", str(gene), "--max-params", "10M"],
            "info": ["info", str(gene)],
            "methods": ["methods"],
        }
        times = paired_rounds({name: timed([str(program), *rest]) for name, rest in commands.items()}, ROUNDS)
    targets = [target(f"learngene {name}, seconds", statistics.median(times[name]), 0.3) for name in commands]
    finish("startup", times, targets)


def timed(command: list[str]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
