"""Programs of ``torch.export``, which need torch alone to run and no timm."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from learngene.devices.target import Job, Session, Target, most_common

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchProgram(Target):
    """Eager torch on the CPU."""

    name = "torch"
    suffix = ".pt2"
    extra = None
    modules: ClassVar = {"torch": "torch"}
    precisions = ("fp32", "fp16", "bf16")

    def write(self, job: Job, path: Path) -> list[str]:
        """Writes a program that takes images of the model's own type."""
        dtype = DTYPES[job.precision]
        model = job.model if job.precision == "fp32" else copy.deepcopy(job.model).to(dtype)
        batch = {0: torch.export.Dim("batch")}
        with warnings.catch_warnings(), path.open("wb") as file:
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (job.example.to(dtype),), dynamic_shapes=(batch,))
            torch.export.save(program, file)
        slow = job.precision == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16")
        return ["this CPU has no bf16 of its own and computes it slowly by other means"] if slow else []

    def open(self, path: Path, precision: str, threads: int | None = None) -> Session:
        """Loads a program; its weights say in what it computes. Threads are those of torch."""
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            program = torch.export.load(file)
        module, dtype = program.module(), DTYPES[precision]
        words = [str(value.dtype).removeprefix("torch.") for value in program.state_dict.values() if value.ndim > 1]

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return module(images.to(dtype)).float()

        return Session(run, most_common(words), {})
