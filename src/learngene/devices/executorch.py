"""ExecuTorch's programs, for phones and smaller: lowered to XNNPACK."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from learngene.devices.target import Job, Session, Target


class ExecuTorch(Target):
    """ExecuTorch with XNNPACK."""

    name = "executorch"
    suffix = ".pte"
    extra = "executorch"
    modules: ClassVar = {"executorch.exir": "executorch", "torchao": "torchao"}
    precisions = ("fp32", "fp16", "int8")

    def write(self, job: Job, path: Path) -> list[str]:
        """Writes a program for batches of up to ``job.batch`` images; memory for those is planned in it."""
        with _quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

        # Without a largest batch the lowering would close it at the example's, without a word.
        shapes = ({0: torch.export.Dim("batch", max=job.batch)},) if job.batch > 1 else None
        example = job.example if job.batch > 1 else job.example[:1]
        model, said = job.model, []
        if job.precision == "fp16":
            model, example = copy.deepcopy(model).half(), example.half()
        with _quiet():
            if job.precision == "int8":
                model, said = self._quantised(job, example, shapes), ["static, per channel, by torchao and XNNPACK"]
            program = torch.export.export(model, (example,), dynamic_shapes=shapes)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with path.open("wb") as file:
            lowered.write_to_file(file)
        return said

    def _quantised(self, job: Job, example: Tensor, shapes: Any) -> torch.nn.Module:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        watched = prepare_pt2e(torch.export.export(job.model, (example,), dynamic_shapes=shapes).module(), quantizer)
        assert job.calibration is not None
        with torch.no_grad():
            for part in job.calibration.split(job.batch):
                watched(part)
        quantised: torch.nn.Module = convert_pt2e(watched)
        return quantised

    def open(self, path: Path, precision: str, threads: int | None = None) -> Session:
        """Loads a program, which says the type that it takes. Threads are one pool for all programs of the process."""
        with _quiet():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            if threads is not None:
                portable_lib._unsafe_reset_threadpool(threads)  # unsafe while another thread runs a program
            program = Runtime.get().load_program(str(path))
            method = program.load_method("forward")
        taken = torch.float16 if precision == "fp16" else torch.float32

        # The method needs its program alive and does not keep it: both live as long as this function.
        def run(images: Tensor, _alive: Any = program) -> Tensor:
            return method.execute([images.to(taken).contiguous()])[0].clone().float()

        return Session(run, precision, {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the lowering and the runtime say of themselves."""
    import warnings

    with warnings.catch_warnings(), open(os.devnull, "w") as nothing, redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        yield
