"""Runs the benchmarks and writes one JSON each under ``results/benchmarks``: medians, and ratios within one run.

    python benchmarks/run.py [startup] [creation] [selection] [step] [any_size] [pool] [search] [hyper] [replay]
                             [devices] [loader] [large_sets] [runner] [gpu] [families]

Without names, all that this machine can run but the families of timm, which are no matter of time. One thread; nothing
else should be running.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "benchmarks"
NAMES = ["startup", "creation", "selection", "step", "any_size", "pool", "search", "hyper"]
NAMES += ["replay", "devices", "loader", "large_sets", "runner", "gpu"]


def main() -> None:
    names = sys.argv[1:] or NAMES
    RESULTS.mkdir(parents=True, exist_ok=True)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in names:
        if name not in (*NAMES, "families"):
            sys.exit(f"unknown benchmark '{name}'; known: {', '.join(NAMES)}, families")
        done = subprocess.run([sys.executable, HERE / f"{name}.py"], env=one_thread, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        if not done.stdout.strip():
            continue
        path = RESULTS / f"{name}.json"
        path.write_text(done.stdout)
        print(path)
        for claim in json.loads(done.stdout).get("targets", []):
            mark = "met" if claim["met"] else "MISSED"
            print(f"  {mark:6s} {claim['what']}: {claim['value']:.3f} (at most {claim['limit']})")


if __name__ == "__main__":
    main()
