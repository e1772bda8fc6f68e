"""The fault campaign: damaged files, killed runs, full disks, damaged images, stored targets.

    make faults                                    all of it, into results/faults.json
    python tests/faults/run.py [PART ...] [--share 0.1] [--seed 1] [--out FILE]

All is drawn at random, but repeatable. Nothing may be loaded with other content, no exception may be one that is not
ours, nothing may take longer than two seconds, and a run that was stopped in any way must come to the very same result
when it is started again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
os.environ |= {"LEARNGENE_CACHE": tempfile.mkdtemp(prefix="learngene-faults-")}
sys.path.insert(0, str(Path(__file__).parents[1]))

import typer

from faults.damaged_files import damaged_files
from faults.damaged_images import damaged_images
from faults.disks import disks
from faults.kills import kills
from faults.stored_targets import stored_targets
from learngene.system.environment import environment

PARTS = {"files": damaged_files, "kills": kills, "disks": disks, "images": damaged_images, "targets": stored_targets}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(PARTS)}; all by default")] = None,
    share: Annotated[float, typer.Option(help="of the full number of trials")] = 1.0,
    seed: Annotated[int, typer.Option(help="of every random choice")] = 0,
    out: Annotated[Path, typer.Option(help="the record; parts that are not run are kept from an older one")] = Path(
        "results/faults.json"
    ),
) -> None:
    """Runs the campaign; exits with 1 if there was a fault."""
    record = json.loads(out.read_text()) if out.exists() else {"kind": "fault campaign", "parts": {}}
    faulty = 0
    for name in parts or PARTS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="learngene-faults-") as folder:
            found = PARTS[name](Path(folder), share, seed)
            found["faults"] = [fault.replace(folder, "FOLDER").strip() for fault in found["faults"]]
        found |= {"seed": seed, "share": share, "seconds": round(time.perf_counter() - start, 1)}
        record["parts"][name] = {**found, "environment": environment()}
        out.write_text(json.dumps(record, indent=1) + "\n")
        faults = found["faults"]
        faulty += len(faults)
        print(f"{name}: {found['trials']} trials, {len(faults)} faults, {found['seconds']} s", flush=True)
        for fault in faults[:20]:
            print(f"  {fault}")
    sys.exit(faulty > 0)


if __name__ == "__main__":
    typer.run(main)
