"""Times the models beside this file in a runtime, and prints the JSON that ``learngene plan --latency-file`` reads.

    python measure.py > latency.json

It needs Python and the runtime alone: ``learngene measure-on-device`` copies it to a folder as it stands.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS, ROUNDS, WARM_UP = 2.0, 21, 3
"""Models of one width are timed in turn, for about so long and in at most so many rounds, after some to warm up."""

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
TORCH_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32"}


def load(job: dict[str, Any], path: Path) -> Callable[[], object]:
    """A forward pass of a model, with images of grey."""
    runtime, threads = job["runtime"], job["threads"]
    shape = [job["batch_size"], *job["image"]]
    if runtime == "onnxruntime":
        import numpy
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {session.get_inputs()[0].name: numpy.full(shape, 0.1, "float32")}
        return lambda: session.run(None, feeds)
    if runtime == "openvino":
        import numpy
        import openvino

        core = openvino.Core()
        if job["precision"] == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            sys.exit("measure: this CPU has no bf16, and OpenVINO would compute in fp32")
        how = {"INFERENCE_PRECISION_HINT": HINTS[job["precision"]]}
        compiled = core.compile_model(str(path), "CPU", how | ({"INFERENCE_NUM_THREADS": threads} if threads else {}))
        images = numpy.full(shape, 0.1, "float32")
        return lambda: compiled(images)
    import torch

    filled = torch.full(shape, 0.1, dtype=getattr(torch, TORCH_TYPES[job["precision"]]))
    if runtime == "executorch":
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if threads:
            portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(str(path))
        method = program.load_method("forward")

        def execute(_alive: Any = program) -> object:  # the method needs its program alive and does not keep it
            return method.execute([filled])

        return execute
    if threads:
        torch.set_num_threads(threads)
    module: Any = torch.export.load(str(path)).module()
    if runtime == "torch-compile":
        module = torch.compile(module)

    def run() -> object:
        with torch.inference_mode():
            return module(filled)

    return run


def times(passes: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of every pass: medians of rounds in which all take their turn, so that load falls on all alike."""
    found: list[list[float]] = [[] for _ in passes]
    begin = time.perf_counter()
    for number in range(WARM_UP + ROUNDS):
        for run, own in zip(passes, found, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
        if number >= 2 * WARM_UP and time.perf_counter() - begin > SECONDS:
            break
    return [1e3 * statistics.median(own[WARM_UP:]) for own in found]


def megabytes(key: str) -> float:
    """What Linux says of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def memory(file: str) -> float | None:
    """Megabytes that loading and running a model adds at its peak, in a process that has the runtime imported."""
    if platform.system() != "Linux":
        return None
    done = subprocess.run([sys.executable, __file__, file], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def print_memory(job: dict[str, Any], file: str) -> None:
    """What ``memory`` asks another process for."""
    __import__({"torch-compile": "torch"}.get(job["runtime"], job["runtime"]))
    if job["runtime"] == "executorch":
        __import__("executorch.runtime")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = megabytes("VmRSS")
    run = load(job, HERE / file)
    for _ in range(2):
        run()
    print(max(megabytes("VmHWM") - before, 0.01))  # a small model may fit into what the runtime had taken


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measures all models, or the memory of the one that is named."""
    job = json.loads((HERE / "learngene-models.json").read_text())
    if job["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    if len(sys.argv) > 1:
        print_memory(job, sys.argv[1])
        return
    points = []
    for group in job["groups"]:
        passes = [load(job, HERE / model["file"]) for model in group]
        for model, milliseconds in zip(group, times(passes), strict=True):
            taken = memory(model["file"]) if job["memory"] else None
            points.append(
                {"shape": model["shape"], "milliseconds": milliseconds, "stored": model["stored"], "memory": taken}
            )
    package = {"torch-compile": "torch"}.get(job["runtime"], job["runtime"])
    told = {key: job[key] for key in ("runtime", "precision", "batch_size", "threads")}
    where: dict[str, Any] = {"machine": platform.machine(), "processor": processor(), "system": platform.system()}
    where |= {"cores": os.cpu_count(), "python": platform.python_version()}
    head = {"kind": "learngene-latency", "version": 1, **told, "runtime_version": metadata.version(package)}
    print(json.dumps({**head, "environment": where, "points": points}, indent=1))


if __name__ == "__main__":
    main()
