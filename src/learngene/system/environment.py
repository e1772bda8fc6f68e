"""Where a run takes place: machine, versions of packages, commit of the sources."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from importlib import import_module, metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What a measurement depends on: processor, threads, accelerator and versions. Imports no torch."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        "versions": versions(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the source tree learngene runs from, None if it is installed from a package."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__]
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return None


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    # Of the source that runs, which an editable installation does not tell.
    out = {"learngene": import_module("learngene").__version__}
    for package in ("torch", "timm", "torchvision", "accelerate", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
