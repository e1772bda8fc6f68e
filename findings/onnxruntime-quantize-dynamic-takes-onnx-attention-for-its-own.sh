#!/usr/bin/env bash
# ONNX Runtime's quantize_dynamic, with its defaults, turns a valid model with ONNX's own Attention node (opset 23, which
# torch.onnx writes for scaled_dot_product_attention) into one that does not load. It goes by the name alone and takes the
# node for com.microsoft's Attention, whose inputs are others (input, weights, bias), and writes a com.microsoft QAttention.
# The model runs before. With op_types_to_quantize=["MatMul"] it is quantised and runs.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "onnx==1.23.2" "onnxruntime==1.31.1" "numpy==2.4.6"
cd "$work"
env/bin/python - 2>"$work/log" <<'P' || { tail -20 "$work/log"; exit 1; }
import importlib.metadata
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable(logging.WARNING)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime")))
weights = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
graph = helper.make_graph(
    [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="product"),
        helper.make_node("Attention", ["q", "x", "x"], ["y"], name="attention", q_num_heads=2, kv_num_heads=2),
    ],
    "attention",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 16])],
    [numpy_helper.from_array(weights, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "plain.onnx")


def run(path: str) -> str:
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return f"runs, output {session.run(None, {'x': np.ones((1, 5, 16), np.float32)})[0].shape}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}"


quantize_dynamic("plain.onnx", "default.onnx")
quantize_dynamic("plain.onnx", "products.onnx", op_types_to_quantize=["MatMul"])
seen = {}
for name in ("plain", "default", "products"):
    nodes = [f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in onnx.load(f"{name}.onnx").graph.node]
    seen[name] = run(f"{name}.onnx")
    print(f"{name}: {', '.join(nodes)}\n    {seen[name]}")
assert seen["plain"].startswith("runs") and seen["products"].startswith("runs")
assert "QAttention" in seen["default"] and not seen["default"].startswith("runs")
P
