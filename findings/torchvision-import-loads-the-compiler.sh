#!/usr/bin/env bash
# `import torch` leaves the compiler alone, but `import torchvision` loads torch._dynamo, and sympy with it, whatever part of
# it is wanted: its __init__ imports all operators, of which roi_align takes one helper from torch._dynamo.utils. So torchvision,
# a package that looks thin, costs more CPU time to import than torch itself, and so does everything that imports it,
# timm for one. Seen: 3.8 s for torch and 5.7 s more for torchvision, on a machine where both were in the page cache.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "torch==2.15.0" "torchvision==0.29.2" "timm==1.0.31"
"$work/env/bin/python" -c 'import timm'  # compiles and reads the files once
OMP_NUM_THREADS=1 "$work/env/bin/python" - <<'P'
import importlib
import importlib.metadata
import inspect
import sys
import time

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "timm")))


def imported(name: str) -> tuple[float, bool]:
    start, before = time.process_time(), len(sys.modules)
    importlib.import_module(name)
    seconds, compiler = time.process_time() - start, "torch._dynamo" in sys.modules and "sympy" in sys.modules
    print(f"import {name}: {seconds:.1f} s of CPU time, {len(sys.modules) - before} modules, compiler loaded: {compiler}")
    return seconds, compiler


torch_alone = imported("torch")
thin = imported("torchvision.transforms")
assert not torch_alone[1] and thin[1]
if thin[0] <= torch_alone[0]:
    print("(not slower than torch on this machine; times are told, not judged)")
line = next(
    line for line in inspect.getsource(sys.modules["torchvision.ops.roi_align"]).splitlines() if "torch._dynamo" in line
)
print("torchvision/ops/roi_align.py:", line.strip())
P
