"""Export: a descendant as an ONNX file that was run again and gave the same logits."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from learngene.system.errors import LearngeneError

TOLERANCE = 1e-3
"""Largest accepted difference of a logit, relative to the largest logit; float32 kernels differ by about 1e-6."""

OPSET = 23


def write_onnx(model: nn.Module, example: torch.Tensor, path: Path, *, fold: bool = True) -> None:
    """Writes an ONNX file with a free batch size, unchecked.

    Of opset 23, which has attention as one node: the graph is a third smaller, and quantisers leave its inside alone.

    Args:
        model: What to write.
        example: Two images.
        path: The file.
        fold: Whether to compute ahead what depends on weights alone: transposed matrices and small sums, which are then
            stored under names of their own.

    Raises:
        LearngeneError: If torch cannot turn the model into ONNX.
    """
    import onnx
    from onnxscript.optimizer import optimize_ir

    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Fused attention with a mask lays its result out otherwise than what torch rewrites it into, which ends in a view
    # that is impossible.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(
                model,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                optimize=False,
            )
            optimize_ir(program.model, should_fold=lambda node: None if fold or not _of_weights(node) else False)
            program.save(str(path), external_data=False)
        except Exception as error:
            kind = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
            raise LearngeneError(f"export: torch cannot turn {kind} into ONNX ({_reason(error)})") from error
    written = onnx.load(str(path))
    weights = {tensor.name for tensor in written.graph.initializer}
    # The exporter lists the shapes of weights too, and quantisers, which transpose weights, then see two for one.
    others = [value for value in written.graph.value_info if value.name not in weights]
    del written.graph.value_info[:]
    written.graph.value_info.extend(others)
    onnx.save(written, str(path))


def _of_weights(node: Any) -> bool:
    return any(value is not None and value.is_initializer() for value in node.inputs)


def _reason(error: BaseException) -> str:
    """The first line of what was raised first: torch's exporter wraps it in advice to its developers, in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:200]
