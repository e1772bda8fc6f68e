#!/usr/bin/env bash
# safetensors.numpy writes other numbers than it is given where an array is part of a larger one whose columns were cut: the
# bytes are taken from its first element on, without its strides. The file is valid and no error is raised. Torch tensors of
# that kind are refused ("non contiguous tensor"). Cutting rows alone, or np.ascontiguousarray first, gives the right numbers.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "safetensors==0.8.0" "numpy==2.4.6"
"$work/env/bin/python" - <<'P'
import importlib.metadata

import numpy as np
from safetensors.numpy import load, save

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("safetensors", "numpy")))
whole = np.arange(12, dtype=np.float32).reshape(3, 4)
cases = {
    "rows": whole[:2],
    "rows and columns": whole[:2, :2],
    "transposed": whole.T,
    "copied first": np.ascontiguousarray(whole[:2, :2]),
}
wrong = set()
for name, array in cases.items():
    read = load(save({"x": array}))["x"]
    same = read.shape == array.shape and bool((read == array).all())
    print(f"{name}: given {array.tolist()}, read {read.tolist()}: {'the same' if same else 'OTHER NUMBERS'}")
    if not same:
        wrong.add(name)
assert "rows and columns" in wrong and not wrong & {"rows", "copied first"}, wrong
P
