#!/usr/bin/env bash
# openvino.convert_model of an ONNX file in a folder with a comma in its name says that the part before the comma does
# not exist: it takes a text, and a pathlib.Path just as well, for a list. Core.read_model reads the same file, and the
# whole path from there (save_model, compile_model) is fine with commas.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "openvino==2026.4.1" "onnx==1.23.2" "numpy==2.4.6"
mkdir "$work/one, two" "$work/three"
"$work/env/bin/python" - "$work" <<'P'
import pathlib
import sys
from importlib.metadata import version

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper

print(*(f"{name} {version(name)}" for name in ("openvino", "onnx")))
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
core, seen = openvino.Core(), {}
for folder in ("three", "one, two"):
    path = pathlib.Path(sys.argv[1], folder, "relu.onnx")
    onnx.save(model, path)
    ways = {"convert_model, text": lambda: openvino.convert_model(str(path)),
            "convert_model, Path": lambda: openvino.convert_model(path),
            "read_model": lambda: core.read_model(str(path))}
    for name, read in ways.items():
        try:
            openvino.save_model(read(), str(path.with_suffix(".xml")))
            compiled = core.compile_model(str(path.with_suffix(".xml")), "CPU")
            seen[folder, name] = float(compiled(np.array([2.0], np.float32))[0][0])
        except Exception as error:
            seen[folder, name] = str(error).strip().splitlines()[0].replace(sys.argv[1], "...")
        print(f"{folder}: {name}: {seen[folder, name]}")
assert {seen["three", name] for name in ways} == {2.0}
assert seen["one, two", "read_model"] == 2.0
for name in ("convert_model, text", "convert_model, Path"):
    assert "exist" in str(seen["one, two", name])
P
