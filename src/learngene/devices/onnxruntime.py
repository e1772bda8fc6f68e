"""ONNX files, run by ONNX Runtime; int8 by its own tools."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from learngene.devices.target import Job, Session, Target, most_common
from learngene.vits.onnx_export import write_onnx

PRODUCTS = ("MatMul", "Gemm", "Conv", "QLinearMatMul")
"""Operators that compute with weights. The inside of attention stays in floating point."""


class OnnxRuntime(Target):
    """ONNX Runtime on the CPU."""

    name = "onnx"
    suffix = ".onnx"
    extra = "export"
    modules: ClassVar = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
    precisions = ("fp32", "fp16", "int8")  # its CPU kernels have no bfloat16

    def write(self, job: Job, path: Path) -> list[str]:
        """Writes one file, with weights inside."""
        if job.precision == "int8":
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                plain = Path(folder) / "plain.onnx"
                write_onnx(job.model, job.example, plain)
                return quantise(job, plain, path, self)
        write_onnx(job.model, job.example, path)
        if job.precision == "fp16":
            import onnx
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), str(path))
        return []

    def open(self, path: Path, precision: str, threads: int | None = None) -> Session:
        """Loads a file; its profiler tells of every product what types it got."""
        session = load_session(path, threads)
        name = session.get_inputs()[0].name
        size = [1 if isinstance(side, str) else side for side in session.get_inputs()[0].shape]
        words = _product_types(path, {name: torch.zeros(size).numpy()})

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

        return Session(run, most_common(words), {})


def load_session(path: Path, threads: int | None = None, profile: str | None = None) -> Any:
    """ONNX Runtime's own session of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _product_types(path: Path, feeds: dict[str, Any]) -> list[str]:
    """The types of the first inputs of all products of a run."""
    with tempfile.TemporaryDirectory() as folder:
        session = load_session(path, profile=f"{folder}/run")
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    products = [event["args"] for event in events if any(key in event["args"].get("op_name", "") for key in PRODUCTS)]
    return [next(iter(event["input_type_shape"][0])) for event in products if event.get("input_type_shape")]


def quantise(job: Job, plain: Path, path: Path, target: Target) -> list[str]:
    """Writes an int8 file: statically, without the layers that lose most, or else with ranges found while it runs.

    Weights have 7 bits. CPUs without dot products of 8-bit numbers add two products in 16 bits, and those of 8 bits
    overflow there, without a word.

    Args:
        job: What to write; its ``holds`` decides when enough layers are left out.
        plain: The file in float32.
        path: The file to write.
        target: Which opens a candidate to see whether it holds.

    Returns:
        What was done, in words.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = plain.with_name("folded.onnx")
    how: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    how["op_types_to_quantize"] = ["MatMul", "Gemm", "Conv"]
    with _quiet():
        quant_pre_process(str(plain), str(folded), skip_symbolic_shape=True)
        worst: list[str] = []
        left_out = 0
        while True:
            leave = worst[:left_out]
            static: dict[str, Any] = {**how, "activation_type": QuantType.QUInt8, "nodes_to_exclude": leave}
            quantize_static(str(folded), str(path), _reader(job.calibration), **static)
            if job.holds(target.open(path, "int8")):
                names = f" without {', '.join(leave)}, which lose most" if leave else ""
                return [f"static, per channel{names}"]
            worst = worst or _by_loss(folded, path, job.calibration)
            left_out = max(1, 2 * left_out)
            if left_out > len(worst) // 2:
                break
        quantize_dynamic(str(folded), str(path), **how)
    return ["dynamic, per channel: static quantisation loses too much, whatever is left out"]


def _by_loss(plain: Path, quantised: Path, images: Tensor | None) -> list[str]:
    """Nodes with weights, those first whose output differs most between both files."""
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number, path in enumerate((plain, quantised)):
            augmented = f"{folder}/{number}.onnx"
            debug.modify_model_output_intermediate_tensors(str(path), augmented)
            found.append(debug.collect_activations(augmented, _reader(images)))
    errors = debug.compute_activation_error(debug.create_activation_matching(found[1], found[0]))
    graph = onnx.load(str(plain)).graph
    kept = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in PRODUCTS and kept & set(node.input)]
    ratio = {node.name: errors.get(node.input[0], {}).get("qdq_err", float("inf")) for node in nodes}
    return sorted(ratio, key=lambda name: float(ratio[name]))  # signal to noise: the least is the worst


def _reader(images: Tensor | None, batch: int = 16) -> Any:
    """Images as ONNX Runtime's tools want them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter(() if images is None else images.split(batch))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that ONNX Runtime's tools log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
