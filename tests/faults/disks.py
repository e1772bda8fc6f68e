"""Disks that are full, cannot be written, or lose their folder while a run writes: one line, and the run goes on later.

Needs the right to mount a small file system in memory (Linux, root); says so and tries nothing where it is missing.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.runs_of_all_kinds import Kind, came_to, different, kinds
from processes import Command

EACH = 4
"""Trials of every kind of run on every kind of disk."""
LOST = ("best.pt", "metrics.jsonl")
"""What a run that is done does not write again if its folder vanished meanwhile, as locks; no result reads them."""


def disks(folder: Path, share: float, seed: int) -> dict[str, Any]:
    """Every kind of run on a disk that fills at a random moment, turns read-only, or whose folder vanishes."""
    return on_bad_disks(folder, kinds(folder), ("full", "read-only", "gone"), max(1, round(share * EACH)), seed)


def on_bad_disks(folder: Path, known: dict[str, Kind], wrong: Sequence[str], trials: int, seed: int) -> dict[str, Any]:
    """Runs of some kinds on a small disk, so many of each on which something goes wrong."""
    disk = folder / "disk"
    disk.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", disk):
        return {"trials": 0, "faults": ["no right to mount a file system"], "outcomes": {}}
    source, faults, outcomes = random.Random(seed), [], Counter[str]()
    try:
        for name, kind in known.items():
            work = disk / name
            start = time.monotonic()
            done = Command(folder, *kind.arguments(work)).wait()
            length = time.monotonic() - start
            assert done.code == 0, (name, done)
            expected = came_to(work / "out")
            size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
            shutil.rmtree(work)
            for fault in wrong:
                for number in range(trials):
                    run_on = _trial(folder, disk, name, kind, fault, source, size, length, expected)
                    outcomes[f"{name}, {fault}: {run_on[0]}"] += 1
                    faults += [f"{name}, {fault}, {number}: {each}" for each in run_on[1]]
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
    return {"trials": sum(outcomes.values()), "faults": faults, "outcomes": dict(sorted(outcomes.items()))}


def _trial(
    folder: Path,
    disk: Path,
    name: str,
    kind: Any,
    fault: str,
    source: random.Random,
    size: int,
    length: float,
    expected: dict[str, str],
) -> tuple[str, list[str]]:
    """One run on a bad disk and, once the disk is good again, to its end."""
    work, faults = disk / name, []
    arguments = kind.arguments(work)
    if fault == "full":
        mount("-o", f"remount,size={max(8192, int(size * source.uniform(0.02, 1.0)))}", disk)
    run = Command(folder, *arguments)
    if fault != "full":
        time.sleep(source.uniform(0, length))
        if fault == "read-only":
            mount("-o", "remount,ro", disk)
        else:
            shutil.rmtree(work / "out", ignore_errors=True)
    done = run.wait()
    mount("-o", "remount,rw,size=64m", disk)
    lines = [line for line in done.err.splitlines() if line.strip()]
    if done.code not in (0, 2) or "Traceback" in done.err or (done.code and not lines[-1].startswith("learngene: ")):
        faults.append(f"exit code {done.code}: {done.err[-400:]}")
    arguments = kind.arguments(work)
    again = Command(folder, *arguments).wait()
    if again.code:
        faults.append(f"goes on with exit code {again.code}: {again.err[-300:]}")
    else:
        found = came_to(work / "out")
        wrong = different(found, expected)
        if fault == "gone":
            wrong = [path for path in wrong if Path(path).name not in LOST and Path(path).suffix != ".lock"]
        faults += [f"other content of {wrong[:5]}"] if wrong else []
    shutil.rmtree(work, ignore_errors=True)
    return ("finished" if done.code == 0 else "refused"), faults


def mount(*arguments: object) -> int:
    """Mounts or remounts; the exit code."""
    return subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode
