"""Measuring in a runtime: a few models as its files, and the program that times them, run here or taken elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learngene.devices import measure_script
from learngene.devices.measurements import Measurements, family
from learngene.genes.gene_file import read_header
from learngene.genes.plan import cache_folder, plan
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError, nearest
from learngene.system.files import refuse_foreign, refuse_read_only, write_folder
from learngene.system.records import RecordError
from learngene.vits.shape import ViTShape
from learngene.vits.shape_rule import FAMILY
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from learngene.devices.target import Target

RUNTIMES = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "executorch": "executorch",
    "torch": "torch",
    "torch-compile": "torch",
}
"""By runtime, the target of ``export`` whose files it loads."""

DEPTHS = (1, 4, 8)
"""Depths that are measured: what a layer adds does not depend on how many there are."""

AHEAD = 3
"""How many times as wide the next width is that is measured, when shapes are asked for one by one."""

WIDTHS = 3
"""Widths that are measured at most: the ends and the middle, and others lie between."""

MOST_THREADS, MOST_BATCH = 1024, 4096
"""Beyond what a device has: a larger number is a slip with which a runtime would never end."""

SCRIPT, JOB, MODELS = "measure.py", "learngene-models.json", "model-*"


class OnDevice:
    """What shapes take in a runtime: measured here and remembered, or read from a file that was made elsewhere.

    Attributes:
        found: What was measured; None before the first ``prepare``.
    """

    def __init__(
        self, runtime: str, *, precision: str = "fp32", threads: int | None = None, batch_size: int = 1
    ) -> None:
        """Says what to measure; nothing is measured yet.

        Args:
            runtime: ``onnxruntime``, ``openvino``, ``executorch``, ``torch`` or ``torch-compile``.
            precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``, if the runtime and this CPU have it.
            threads: Of the runtime; its own choice by default.
            batch_size: Images of a pass.

        Raises:
            LearngeneError: If there is no such runtime; that one is not installed is seen by ``prepare``.
        """
        self._how = _how("plan", runtime, precision, threads, batch_size)
        self._file: Path | None = None
        self.found: Measurements | None = None

    @classmethod
    def read(cls, path: str | Path) -> OnDevice:
        """What was measured elsewhere, by the program that ``measure_on_device`` writes."""
        out = cls("torch")
        out._file, out.found = Path(path), Measurements.read(Path(path))
        return out

    def prepare(self, shapes: Sequence[Shape], *, memory: bool = False) -> None:
        """Measures what is needed to tell of these shapes and is not yet known here.

        Args:
            shapes: Of one gene and task.
            memory: Whether the peak memory is wanted, too.
        """
        if self._file is not None or not shapes:
            return
        parts = list({family(part): part for shape in shapes for part in shape.parts}.values())
        if self._tells(parts, memory=memory):
            return
        with tempfile.TemporaryDirectory() as folder:
            _target(self._how["runtime"]).refuse(self._how["precision"], "plan")
            write_models(Path(folder), few(parts), memory=memory, **self._how)
            fresh = _run(Path(folder))
        again = {family(ViTShape.from_dict(point.shape)) for point in fresh.points}
        kept = self.found.points if self.found else []
        kept = [point for point in kept if family(ViTShape.from_dict(point.shape)) not in again]
        self.found = Measurements(**{**dict(fresh), "points": kept + fresh.points})  # a copy keeps what it derived
        self.found.write(_cache(self._how))

    def _tells(self, parts: Sequence[ViTShape], *, memory: bool) -> bool:
        """Whether all is known by now, of this call or an earlier one."""
        if self.found is None:
            with contextlib.suppress(RecordError):  # else measured anew
                self.found = Measurements.read(_cache(self._how))
        return self.found is not None and all(self.found.tells(part, memory=memory) for part in parts)

    def measured_latency(self, shape: ViTShape) -> float:
        """Milliseconds of a forward pass, measured where they are not known yet.

        Of shapes that are asked for one by one, the narrowest first, few widths are measured: that of a shape together
        with one ``AHEAD`` times as wide, so that those between are known.
        """
        if not self._tells([shape], memory=False):
            ahead = min(AHEAD, FAMILY[-1][0] // shape.embed_dim)
            wider = shape.replace(embed_dim=ahead * shape.embed_dim, num_heads=ahead * shape.num_heads)
            self.prepare([shape, wider])
        return self.latency(shape)

    def latency(self, shape: Shape) -> float:
        """Milliseconds of a forward pass."""
        return self._measured.at(shape, "milliseconds")

    def size(self, shape: Shape) -> float:
        """Megabytes of the shape's files."""
        return self._measured.at(shape, "stored") / 1e6

    def memory(self, shape: Shape) -> float:
        """Megabytes that loading and running it adds at its peak to a process that has the runtime imported."""
        return self._measured.at(shape, "memory")

    @property
    def _measured(self) -> Measurements:
        assert self.found is not None, "prepare first"
        return self.found


def measure_on_device(
    gene: str | Path,
    out: str | Path,
    *,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = 1,
    num_classes: int | None = None,
    img_size: int | None = None,
) -> list[str]:
    """Writes a folder with a program and a few models, for a device that has Python and the runtime alone.

    There ``python measure.py > latency.json`` makes the file for ``OnDevice.read``.

    Args:
        gene: The gene file that is planned with.
        out: The folder.
        runtime: As for ``OnDevice``, like the following three.
        precision: Of the files.
        threads: Of the runtime there.
        batch_size: Images of a pass.
        num_classes: Of the task; the gene's own by default.
        img_size: Of the task in pixels; the gene's own by default.

    Returns:
        The names of the model files.
    """
    how = _how("measure-on-device", runtime, precision, threads, batch_size)
    _target(runtime).refuse(precision, "measure-on-device", here=False)
    refuse_read_only(Path(out).parent)
    refuse_foreign(Path(out), JOB)
    shapes = [one.shape for one in plan(read_header(gene), num_classes=num_classes, img_size=img_size)]
    parts = list({family(part): part for shape in shapes for part in shape.parts}.values())
    write_folder(Path(out), (JOB, SCRIPT, MODELS), lambda folder: write_models(folder, few(parts), memory=True, **how))
    job = json.loads((Path(out) / JOB).read_text())
    return [model["file"] for group in job["groups"] for model in group]


def _how(command: str, runtime: str, precision: str, threads: int | None, batch_size: int) -> dict[str, Any]:
    """How to measure; raises ``LearngeneError`` on behalf of a command for what no runtime can do."""
    if runtime not in RUNTIMES:
        raise LearngeneError(f"{command}: unknown runtime '{runtime}'{nearest(runtime, RUNTIMES)}")
    for name, value, most in (("threads", threads, MOST_THREADS), ("batch_size", batch_size, MOST_BATCH)):
        if value is not None and not 1 <= value <= most:
            raise LearngeneError(f"{command}: {name} must be from 1 to {most}, not {value}")
    return {"runtime": runtime, "precision": precision, "threads": threads, "batch_size": batch_size}


def _target(runtime: str) -> Target:
    from learngene.devices.export import TARGETS

    return TARGETS[RUNTIMES[runtime]]()


def few(parts: Sequence[ViTShape]) -> list[ViTShape]:
    """A shape for each of a few widths: of many the ends and what is nearest to their middle."""
    wide = sorted(parts, key=lambda part: part.embed_dim)
    if len(wide) <= WIDTHS:
        return wide
    middle = (wide[0].embed_dim + wide[-1].embed_dim) / 2
    return [wide[0], min(wide[1:-1], key=lambda part: abs(part.embed_dim - middle)), wide[-1]]


def write_models(
    folder: Path,
    shapes: Sequence[ViTShape],
    *,
    runtime: str,
    precision: str,
    threads: int | None,
    batch_size: int,
    memory: bool,
) -> None:
    """Writes a folder as ``measure_script`` wants it: models with random weights of every width at a few depths."""
    import torch

    from learngene.devices.target import Job
    from learngene.making.finetune import scratch

    target = _target(runtime)
    groups = []
    for number, shape in enumerate(shapes):
        group = []
        for depth in DEPTHS:
            at = shape.replace(depth=depth)
            model = scratch(at).eval()
            images = torch.randn(2, at.in_chans, at.img_size, at.img_size)
            file = folder / f"model-{number}-{shape.embed_dim}x{depth}{target.suffix}"
            calibration = images if precision == "int8" else None
            target.write(Job(model, images, precision, batch_size, calibration, lambda _: True), file)
            stored = sum(each.stat().st_size for each in folder.glob(f"{file.stem}.*"))
            group.append({"file": file.name, "stored": stored, "shape": at.to_dict()})
        groups.append(group)
    image = [shapes[0].in_chans, shapes[0].img_size, shapes[0].img_size]
    job = {"runtime": runtime, "precision": precision, "threads": threads, "batch_size": batch_size}
    (folder / JOB).write_text(json.dumps({**job, "image": image, "memory": memory, "groups": groups}, indent=1))
    shutil.copyfile(measure_script.__file__, folder / SCRIPT)


def _run(folder: Path) -> Measurements:
    """Runs the program of a folder, in a process of its own that has the runtime for itself."""
    done = subprocess.run([sys.executable, folder / SCRIPT], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise LearngeneError(f"plan: the runtime cannot time these models here ({last[:200]})")
    (folder / "latency.json").write_text(done.stdout)
    return Measurements.read(folder / "latency.json")


def _cache(how: dict[str, Any]) -> Path:
    """Where measurements of this environment are remembered."""
    package = {"torch-compile": "torch"}.get(how["runtime"], how["runtime"])
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        version = None
    where = {"environment": environment(), "how": how, "version": version}
    key = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"runtime-{key}.json"
