"""CPU time of whole commands over that of ``python -c "import torch"``, and the memory that expanding takes.

Every command is a process of its own. Of commands that train, only the time until the first line of output counts.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import finish, paired_rounds, ratio, target

from learngene.methods import method
from learngene.vits.shape import ViTShape

ROUNDS = 7
PROGRAM = str(Path(sys.executable).with_name("learngene"))
SMALL = ViTShape(embed_dim=96, depth=6, num_heads=3, patch_size=8, img_size=32, num_classes=10)
"""Its descendants are folders of about 2 MB."""

GENES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "TLEG": ("tleg", {}, ["--depth", "4"]),
    "SWS": ("sws", {"stages": (2, 2, 2)}, ["--depth", "4"]),
    "LSAMD": ("lsamd", {"layers": (1, 3, 4)}, ["--depth", "4", "--num-classes", "0"]),
    "pool path": ("pool", {"rows": (32, 96)}, ["--path", "4+2"]),
}
"""What is expanded with nothing fresh: name, settings and flags. LSAMD carries no head."""

QUICK, EXPANDED, DRAWN, FIRST, MEGABYTES = 0.15, 0.3, 1.15, 0.2, 150
"""The limits of the targets; all but the last are shares of importing torch."""

RECIPE = """
kind: condense
method: tleg
ancestry: {source: vit_tiny_patch16_224, pretrained: false}
shape: {embed_dim: 96, depth: 6, num_heads: 3, patch_size: 8, img_size: 32, num_classes: 10}
data: {source: digits}
train: {epochs: 1, preset: laptop}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Linux counts what a process took before it became a command, so this one must stay small.
        writer = multiprocessing.get_context("spawn").Process(target=write_genes, args=(folder,))
        writer.start()
        writer.join()
        expanding = {
            title: ["expand", str(folder / f"{kind}.safetensors"), *flags, "--out", str(folder / kind)]
            for title, (kind, _, flags) in GENES.items()
        }
        tleg = expanding["TLEG"]
        drawing = {"a fresh head": [*tleg, "--num-classes", "7"], "another image size": [*tleg, "--img-size", "64"]}
        gene = str(folder / "tleg.safetensors")
        quick = {"--help": ["--help"], "plan": ["plan", gene, "--max-params", "10M"], "info": ["info", gene]}
        quick |= {"methods": ["methods"]}
        (folder / "recipe.yaml").write_text(RECIPE)
        out = ["--out", str(folder / "run")]
        training = {
            "condense": ["condense", str(folder / "recipe.yaml"), f"out={folder / 'gene'}"],
            "finetune": ["finetune", "--model", "scratch", "--data", "digits", *out],
        }
        whole = {**expanding, **drawing, **quick}
        memory: dict[str, float] = {}
        cases = {"import torch": spent([sys.executable, "-c", "import torch"], "import torch", memory)}
        cases |= {title: spent([PROGRAM, *rest], title, memory) for title, rest in whole.items()}
        cases |= {title: first_line([PROGRAM, *rest]) for title, rest in training.items()}
        times = paired_rounds(cases, ROUNDS)
    targets = [
        *(limit(times, title, f"expand, {title}, nothing fresh", EXPANDED) for title in expanding),
        *(limit(times, title, f"expand, TLEG, {title}", DRAWN) for title in drawing),
        *(limit(times, title, title, QUICK) for title in quick),
        *(limit(times, title, f"first line of {title}", FIRST) for title in training),
        *(target(f"expand, {title}, nothing fresh: peak MB", memory[title], MEGABYTES) for title in expanding),
    ]
    finish("startup", times, targets, peak_megabytes={title: round(value, 1) for title, value in memory.items()})


def write_genes(folder: Path) -> None:
    """Writes the genes, for which torch has to be imported."""
    from learngene.genes.gene import Learngene

    for kind, settings, _ in GENES.values():
        Learngene(method(kind, settings), SMALL).save(folder / f"{kind}.safetensors")


def limit(times: dict[str, list[float]], title: str, what: str, share: float) -> dict[str, Any]:
    """A target on a command's share of importing torch."""
    return target(f"{what}: CPU time over import torch", ratio(times, title, "import torch"), share)


def spent(command: list[str], title: str, memory: dict[str, float]) -> Callable[[], float]:
    """Measures a whole process: its CPU seconds, and the most memory that any of its runs took."""

    def run() -> float:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        memory[title] = max(memory.get(title, 0.0), megabytes(used))
        return used.ru_utime + used.ru_stime

    return run


def megabytes(used: resource.struct_rusage) -> float:
    """The peak memory of a process, which macOS tells in bytes and Linux in KiB."""
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def first_line(command: list[str]) -> Callable[[], float]:
    """Measures the CPU seconds of a process until its first line of output, and ends it there."""

    def run() -> float:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            process.kill()
        if not re.search(rb": run folder ", line):
            raise SystemExit(f"{' '.join(command)} began with {line!r}")
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    return run


if __name__ == "__main__":
    main()
