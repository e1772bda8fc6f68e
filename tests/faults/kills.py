"""Runs of every kind, killed at random moments and started again: the same result, and no stray file."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from faults.runs_of_all_kinds import Kind, came_to, different, kinds
from processes import Command

KILLS = 50


def kills(folder: Path, share: float, seed: int) -> dict[str, Any]:
    """50 runs that are killed up to three times each, at moments drawn evenly over the time they need."""
    return killed(folder, kinds(folder), round(share * KILLS), seed)


def killed(folder: Path, known: dict[str, Kind], trials: int, seed: int) -> dict[str, Any]:
    """Runs of some kinds, one after the other."""
    source, faults, outcomes = random.Random(seed), [], Counter[str]()
    expected, lengths = {}, {}
    for name, kind in known.items():
        work = folder / name
        start = time.monotonic()
        done = Command(folder, *kind.arguments(work)).wait()
        lengths[name] = time.monotonic() - start
        assert done.code == 0, (name, done)
        expected[name] = came_to(work / "out")
        shutil.rmtree(work)
    names = list(known)
    for number in range(trials):
        name = names[number % len(names)]
        work = folder / name
        times = 0
        for _ in range(source.choice([1, 1, 2, 3])):
            run = Command(folder, *known[name].arguments(work))
            time.sleep(source.uniform(0, lengths[name]))
            run.kill()
            times += run.wait().code != 0
        done = Command(folder, *known[name].arguments(work)).wait()
        where = f"{name} {number}, killed {times} times"
        if done.code:
            faults.append(f"{where}: goes on with exit code {done.code}: {done.err[-300:]}")
        elif (found := came_to(work / "out")) != expected[name]:
            faults.append(f"{where}: other content of {different(found, expected[name])[:5]}")
        outcomes[f"{name}, killed {times} times"] += 1
        shutil.rmtree(work)
    return {"trials": sum(outcomes.values()), "faults": faults, "outcomes": dict(sorted(outcomes.items()))}
