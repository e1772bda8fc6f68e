"""One ONNX graph for several sizes, with the size as an input: a chain of ``If`` whose branches share their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEPTH = "depth"
"""Name of the input: which of the depths to run, a number. One between two of them runs the deeper."""


def one_graph(models: Mapping[int, Any]) -> Any:
    """Joins graphs of several depths, in which tensors outside of the graph have the same names and mean the same.

    ONNX Runtime folds the weights of every branch when a session starts, so that it keeps those of all depths.

    Args:
        models: ONNX models by depth, with the same inputs and outputs.
    """
    from onnx import TensorProto, helper

    weights: dict[str, Any] = {}
    inner: Any = None
    logits = next(iter(models.values())).graph.output[0].name
    for depth in sorted(models, reverse=True):
        graph = models[depth].graph
        outside = {each.name: each for each in graph.initializer if each.data_location == TensorProto.EXTERNAL}
        weights |= outside
        branch = _renamed(graph, f"{depth}:", keep={*outside, *(each.name for each in graph.input)})
        if inner is not None:
            limit, deep_enough = f"{depth}:limit", f"{depth}:deep enough"
            result = [helper.make_tensor_value_info(f"{depth}:result", 1, _sides(graph.output[0]))]
            nodes = [
                helper.make_node("LessOrEqual", [DEPTH, limit], [deep_enough]),
                helper.make_node("If", [deep_enough], [result[0].name], then_branch=branch, else_branch=inner),
            ]
            value = helper.make_tensor(limit, TensorProto.INT64, [], [depth])
            branch = helper.make_graph(nodes, f"up to {depth}", [], result, initializer=[value])
        inner = branch
    first = next(iter(models.values()))
    inputs = [*first.graph.input, helper.make_tensor_value_info(DEPTH, TensorProto.INT64, [])]
    inner.input.extend(inputs)
    inner.initializer.extend(weights.values())
    inner.node.append(helper.make_node("Identity", [inner.output[0].name], [logits]))
    inner.output[0].name = logits
    return helper.make_model(inner, opset_imports=first.opset_import, ir_version=first.ir_version)


def _renamed(graph: Any, prefix: str, keep: set[str]) -> Any:
    """A branch of a graph: names of its own, so that none hides another's, but those that are outside of it."""
    from onnx import helper

    def name(old: str) -> str:
        return old if old in keep or not old else prefix + old

    for node in graph.node:
        for part in (node.input, node.output):
            part[:] = map(name, part)
    own = [each for each in graph.initializer if each.name not in keep]
    for each in [*own, *graph.output]:
        each.name = name(each.name)
    return helper.make_graph(graph.node, prefix, [], graph.output, initializer=own)


def _sides(value: Any) -> list[Any]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
