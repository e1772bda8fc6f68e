"""OpenVINO's files: an .xml with the graph and a .bin with the weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from learngene.devices.onnxruntime import OnnxRuntime
from learngene.devices.target import Job, Session, Target, most_common
from learngene.system.errors import LearngeneError

PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""What is not int8 in an int8 file is computed in float32: by default newer CPUs would take bfloat16."""


class OpenVino(Target):
    """OpenVINO on the CPU."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    modules: ClassVar = {**OnnxRuntime.modules, "openvino": "openvino"}
    precisions = ("fp32", "fp16", "bf16", "int8")

    def refuse(self, precision: str, command: str = "export", *, here: bool = True) -> None:
        """Refuses bfloat16 where the CPU has none: OpenVINO takes float32 instead, without a word."""
        super().refuse(precision, command, here=here)
        if here and precision == "bf16":
            import openvino

            if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise LearngeneError(
                    f"{command}: OpenVINO has no bf16 on this CPU and would compute in fp32; give --precision fp32 or "
                    "fp16"
                )

    def write(self, job: Job, path: Path) -> list[str]:
        """Converts the ONNX file, which for int8 is quantised: both runtimes then compute with the same numbers."""
        import openvino

        # convert_model splits a path at commas, so the ONNX file lies where none are; read_model folds less.
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / "model.onnx"
            said = OnnxRuntime().write(
                Job(**{**vars(job), "precision": "int8" if job.precision == "int8" else "fp32"}), onnx
            )
            openvino.save_model(openvino.convert_model(str(onnx)), str(path), compress_to_fp16=job.precision == "fp16")
        return said

    def open(self, path: Path, precision: str, threads: int | None = None) -> Session:
        """Compiles a file; the compiled graph says of every product in what it is computed."""
        import openvino

        options: dict[str, str] = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
        own = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(str(path), "CPU", {**options, **own})
        told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        words = [info["runtimePrecision"].value for info in told if info["layerType"].value in PRODUCTS]
        computed_in = most_common(words)
        if computed_in != "int8":  # what the graph says of the others is what their weights are stored in
            computed_in = most_common([compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled(images.numpy())[0].copy())

        return Session(run, computed_in, options)
