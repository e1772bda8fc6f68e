"""One image through every runtime, over eager PyTorch; export; session start of grown graphs; planning in a runtime.

    python benchmarks/devices.py [ROUNDS]

Wall time. All runtimes take their turns in one process, after a pause and a pass that is not counted, because idle
threads of the one before still spin for a while. A runtime that is not installed is left out, with the reason.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import finish, paired_rounds, ratio, target

from learngene.devices.executorch import ExecuTorch
from learngene.devices.grow import grow
from learngene.devices.onnxruntime import OnnxRuntime
from learngene.devices.openvino import OpenVino
from learngene.devices.target import Job, Target, most_common
from learngene.genes.gene import Learngene
from learngene.making.finetune import scratch
from learngene.methods import method
from learngene.methods.base import DEEPEST
from learngene.system.errors import LearngeneError
from learngene.vits.onnx_export import write_onnx
from learngene.vits.shape import ViTShape

SHAPES = {
    "DeiT-Ti, 224 px": ViTShape.named("deit_tiny_patch16_224"),
    "laptop, 32 px": ViTShape(embed_dim=64, depth=6, num_heads=4, patch_size=8, img_size=32, num_classes=10),
}
FILES: dict[str, tuple[type[Target], str]] = {
    "ONNX Runtime fp32": (OnnxRuntime, "fp32"),
    "ONNX Runtime int8": (OnnxRuntime, "int8"),
    "OpenVINO fp32": (OpenVino, "fp32"),
    "OpenVINO int8": (OpenVino, "int8"),
    "ExecuTorch fp32": (ExecuTorch, "fp32"),
    "ExecuTorch int8": (ExecuTorch, "int8"),
}
EAGER, COMPILED, DEFAULT = "PyTorch, eager", "PyTorch, torch.compile", "OpenVINO, its default precision"
THREADS, DEEP = (1, 2), 12
SECONDS, PAUSE = 0.03, 0.01
"""A case's passes take about so long; and how long others' threads are given to sleep."""

LIMITS = {
    ("OpenVINO fp32", EAGER): 1 / 1.35,
    (DEFAULT, EAGER): 1 / 3,
    ("ONNX Runtime fp32", EAGER): 1 / 1.2,
    ("ONNX Runtime int8", "ONNX Runtime fp32"): 1 / 2,
}
"""Most time of a case over another's, of DeiT-Ti with one thread, on a CPU that has VNNI and bfloat16."""

EXPORT, GROWN = 0.6, 1.5
"""Most time of writing ONNX over torch's own way, and of starting a session of a grown graph over a plain file's."""


PLAN = {"first": 20, "again": 0.3}
"""Most seconds of planning every depth in a runtime, measured and remembered."""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    times: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    computed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, shape in SHAPES.items():
            files = written(shape, folder / title, skipped)
            for threads in THREADS:
                cases = contenders(shape, files, threads, skipped, computed)
                found = paired_rounds({case: timed(run) for case, run in cases.items()}, rounds)
                times |= {f"{title}, {threads} threads: {case}": values for case, values in found.items()}
        torch.set_num_threads(1)
        times |= paired_rounds(exports(folder, skipped), max(3, rounds // 7))
        times |= paired_rounds(starts(folder), rounds)
        planned = planning(folder, skipped)
        times |= planned
    targets = [
        target(f"seconds of {case} time, {DEEPEST} depths", statistics.median(values), PLAN[case.split(": ")[1]])
        for case, values in planned.items()
    ]
    for (case, base), limit in LIMITS.items():
        ours, theirs = (f"DeiT-Ti, 224 px, 1 threads: {each}" for each in (case, base))
        if ours in times:
            targets.append(target(f"{case} over {base}, DeiT-Ti, one thread", ratio(times, ours, theirs), limit))
    for title in SHAPES:
        share = ratio(times, f"export {title}: ONNX", f"export {title}: torch's own")
        targets.append(target(f"writing ONNX over torch's own way, {title}", share, EXPORT))
        share = ratio(times, f"start {title}: grown", f"start {title}: plain")
        targets.append(target(f"session start, grown over plain, {title}, {DEEP} layers", share, GROWN))
    kinds = {kind for name, (kind, _) in FILES.items() if name not in skipped}
    versions = {package: version for kind in kinds for package, version in kind().versions().items()}
    has = torch.cpu.get_capabilities()
    cpu = {name: has.get(name, False) for name in ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16")}
    more = {"computed_in": computed, "skipped": skipped, "versions": versions, "cpu": cpu}
    finish("devices", times, targets, over_eager=over_eager(times), **more)


def written(shape: ViTShape, folder: Path, skipped: dict[str, str]) -> dict[str, Path]:
    """The files of every runtime that there is; int8 is calibrated on noise, which decides no time."""
    folder.mkdir()
    files = {}
    for name, (kind, precision) in FILES.items():
        runtime = kind()
        try:
            runtime.refuse(precision)
        except LearngeneError as error:
            skipped[name] = str(error).removeprefix("export: ")
            continue
        files[name] = folder / f"{name.replace(' ', '-')}{runtime.suffix}"
        runtime.write(job(shape, precision), files[name])
    return files


def job(shape: ViTShape, precision: str) -> Job:
    images = torch.randn(8, shape.in_chans, shape.img_size, shape.img_size)
    return Job(scratch(shape).eval(), images[:2], precision, 1, images, lambda _: True)


def contenders(
    shape: ViTShape, files: dict[str, Path], threads: int, skipped: dict[str, str], computed: dict[str, str]
) -> dict[str, Callable[[], object]]:
    """A pass of one image in every runtime."""
    torch.set_num_threads(threads)
    images = torch.full((1, shape.in_chans, shape.img_size, shape.img_size), 0.1)
    model = scratch(shape).eval()
    cases: dict[str, Callable[[], object]] = {EAGER: without_gradients(model, images)}
    torch.compiler.reset()  # what is compiled for one thread has no others
    cases[COMPILED] = without_gradients(torch.compile(model), images)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases[COMPILED]()
    except Exception as error:
        skipped[COMPILED] = str(error).strip().splitlines()[0]
        del cases[COMPILED]
    for name, path in files.items():
        kind, precision = FILES[name]
        session = kind().open(path, precision, threads)
        computed[name] = session.computed_in
        cases[name] = lambda session=session: session.run(images)
        if name == "OpenVINO fp32":
            import openvino

            compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads})
            computed[DEFAULT] = most_common([compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()])
            cases[DEFAULT] = lambda compiled=compiled: compiled(images.numpy())
    return cases


def without_gradients(model: Any, images: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of a pass: the median of as many as take about ``SECONDS``, after a pause and one that warms up."""

    def measure() -> float:
        time.sleep(PAUSE)
        run()
        found, begin = [], time.perf_counter()
        while not found or time.perf_counter() - begin < SECONDS:
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    return measure


def once(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds of a call."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measure


def exports(folder: Path, skipped: dict[str, str]) -> dict[str, Callable[[], float]]:
    """Writing models of 12 layers as ONNX, for ExecuTorch, and as torch's own optimizing exporter does."""
    cases = {}
    for title, shape in SHAPES.items():
        one = job(shape.replace(depth=DEEP), "fp32")
        cases[f"export {title}: ONNX"] = once(lambda one=one: write_onnx(one.model, one.example, folder / "e.onnx"))
        cases[f"export {title}: torch's own"] = once(lambda one=one: torchs_own(one, folder / "t.onnx"))
        if "ExecuTorch fp32" not in skipped:
            cases[f"export {title}: ExecuTorch"] = once(lambda one=one: ExecuTorch().write(one, folder / "e.pte"))
    return cases


def torchs_own(one: Job, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            one.model, (one.example,), path, dynamic_shapes=dynamic, dynamo=True, opset_version=20, verbose=False
        )


def starts(folder: Path) -> dict[str, Callable[[], float]]:
    """Loading a plain file of 12 layers, and a graph that computes as many from a TLEG gene, in ONNX Runtime."""
    import onnxruntime

    cases = {}
    for number, (title, shape) in enumerate(SHAPES.items()):
        shape = shape.replace(depth=DEEP)
        gene, plain = folder / f"{number}.safetensors", folder / f"plain{number}.onnx"
        Learngene(method("tleg"), shape).save(gene)
        grow(gene, folder / f"grown{number}", [DEEP])
        one = job(shape, "fp32")
        write_onnx(one.model, one.example, plain)
        for case, path in (("plain", plain), ("grown", folder / f"grown{number}/depth-{DEEP}.onnx")):
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.intra_op_num_threads = 3, 1
            load = lambda path=path, options=options: onnxruntime.InferenceSession(str(path), options)  # noqa: E731
            cases[f"start {title}: {case}"] = once(load)
    return cases


def planning(folder: Path, skipped: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of the command that plans all depths of the laptop gene in a runtime: measuring, then remembering."""
    gene, times = folder / "plan.safetensors", {}
    Learngene(method("tleg"), SHAPES["laptop, 32 px"]).save(gene)
    for runtime in ("onnxruntime", "openvino"):
        if runtime == "openvino" and "OpenVINO fp32" in skipped:
            continue
        command = [sys.executable, "-m", "learngene", "plan", gene, "--runtime", runtime, "--threads", "1"]
        where = {**os.environ, "LEARNGENE_CACHE": str(folder / runtime)}
        run = once(
            lambda command=command, where=where: subprocess.run(command, env=where, check=True, capture_output=True)
        )
        times[f"plan --runtime {runtime}: first"] = [run()]
        times[f"plan --runtime {runtime}: again"] = [run() for _ in range(5)]
    return times


def over_eager(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as fast as eager PyTorch every runtime is, by shape and threads."""
    out: dict[str, dict[str, float]] = {}
    for name in times:
        where, _, case = name.partition(": ")
        if f"{where}: {EAGER}" in times:
            out.setdefault(where, {})[case] = round(1 / ratio(times, name, f"{where}: {EAGER}"), 3)
    return out


if __name__ == "__main__":
    main()
