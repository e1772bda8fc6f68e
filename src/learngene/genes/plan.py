"""Planning: which shapes of a gene fit a budget, best first. No weights are touched and no torch is imported.

Latency is the exception: a shape that was never timed on this machine is built and timed once, then remembered
together with the machine's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from learngene.genes.gene_file import GeneHeader, read_header
from learngene.genes.shape_scores import Known, outside, shape_scores
from learngene.methods.base import is_count
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError, ShapeError
from learngene.system.files import write_file
from learngene.system.quantities import short
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape

if TYPE_CHECKING:
    from learngene.genes.gene import Learngene


@dataclass(frozen=True)
class Budget:
    """Limits that all have to hold; a limit of None does not bind.

    Attributes:
        max_params: Parameters of the descendant, head included.
        max_macs: Multiply-adds of one image.
        max_latency: Milliseconds of one forward pass on this machine.
        batch_size: Images per forward pass when timing.
        device: Where to time: ``cpu`` or ``cuda``.
        max_size: Megabytes (a million bytes) of its weights as a descendant folder stores them, in float32; with a
            device those of its files there.
        max_memory: Megabytes that loading and running it adds at its peak, on a device.
    """

    max_params: float | None = None
    max_macs: float | None = None
    max_latency: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    max_size: float | None = None
    max_memory: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_params", "max_macs", "max_latency", "max_size", "max_memory"):
            value = getattr(self, name)
            if not isinstance(value, Real | None):
                raise LearngeneError(f"budget: {name} must be a number, not {value!r}; 200_000 for 200K")
            if value is not None and not float(value) > 0:
                raise LearngeneError(f"budget: {name} must be positive, not {value!r}")
        if not is_count(self.batch_size):
            raise LearngeneError(f"budget: batch_size must be 1 or more, not {self.batch_size!r}")

    def admits(self, shape: Shape) -> bool:
        """Whether a shape is within the limits but for latency and memory, which have to be measured."""
        return self.room(shape) >= 1

    def room(self, shape: Shape, needs: Mapping[str, Callable[[Shape], float]] | None = None) -> float:
        """How many times a shape fits the tightest of the limits of ``NEEDS``, or of other needs; 1 without any."""
        needs = NEEDS if needs is None else needs
        limits = {name: limit for name, (limit, _) in self.limits.items() if name in needs}
        return min((limit / needs[name](shape) for name, limit in limits.items()), default=1.0)

    @property
    def limits(self) -> dict[str, tuple[float, str]]:
        """The limits that bind but for latency, by name, each with its unit."""
        units = {"max_params": "params", "max_macs": "macs", "max_size": "MB", "max_memory": "MB"}
        given = {name: (getattr(self, name), unit) for name, unit in units.items()}
        return {name: (limit, unit) for name, (limit, unit) in given.items() if limit is not None}

    @property
    def told(self) -> list[str]:
        """Every limit that binds, in words."""
        time = [f"{short(self.max_latency)} ms"] if self.max_latency is not None else []
        return [f"{short(limit)} {unit}" for limit, unit in self.limits.values()] + time


NEEDS: dict[str, Callable[[Shape], float]] = {
    "max_params": lambda shape: shape.params(),
    "max_macs": lambda shape: shape.macs(),
    "max_size": lambda shape: shape.params() * 4 / 1e6,
}
"""What a shape needs of each limit, as far as it follows from the shape alone."""


class Device(Protocol):
    """A runtime in which shapes are measured: ``devices.measure.OnDevice``."""

    def prepare(self, shapes: Sequence[Shape], *, memory: bool = False) -> None:
        """Measures what is needed to tell of these shapes."""

    def latency(self, shape: Shape) -> float:
        """Milliseconds of a forward pass."""

    def measured_latency(self, shape: ViTShape) -> float:
        """The same of a shape that nobody prepared."""

    def size(self, shape: Shape) -> float:
        """Megabytes of the shape's files."""

    def memory(self, shape: Shape) -> float:
        """Megabytes that it adds at its peak."""


@dataclass(frozen=True)
class Candidate:
    """A shape that fits.

    Attributes:
        shape: What to expand.
        params: Its parameters.
        macs: Multiply-adds of one image.
        latency: Milliseconds per forward pass on this machine or the device, or None if nobody asked.
        layers: Which of the gene's tensors feed each layer.
        beyond_auxiliary: Deeper than the auxiliary model: untuned accuracy falls there, fine-tuning brings it back.
        top1: Accuracy in percent that was measured when the gene was made, for the same task: of a pool's path, or of a
            gene that was trained at several shapes.
        neighbours: Instead, of one that learnt features alone: nearest images in common with its teacher, in percent,
            for any task.
        known: Of a gene that was trained at several shapes: whether this one was measured, or lies between measured
            ones, so that its score is interpolated; see ``genes.shape_scores``.
        outside: Of a gene that was trained: on which sides the shape lies outside of all that its training served, and
            what the nearest of several shapes scored, in words.
        size: Megabytes of its files on the device, if there is one.
        memory: Megabytes that it adds there at its peak, if the budget asks.
    """

    shape: Shape
    params: int
    macs: int
    latency: float | None
    layers: list[str]
    beyond_auxiliary: bool
    top1: float | None = None
    neighbours: float | None = None
    known: Known | None = None
    outside: str = ""
    size: float | None = None
    memory: float | None = None


def plan(
    gene: Learngene | GeneHeader | str | Path,
    budget: Budget | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    timer: Callable[[Shape, int, str], float] | None = None,
    on: Device | None = None,
    **options: Any,
) -> list[Candidate]:
    """Lists the shapes of a gene that fit a budget, best first.

    Best is largest: at one width the papers' accuracy grows with depth (TLEG Table 1, SWS Table 1). What lies beyond
    the sizes that the gene's training served comes last. The paths of a pool were measured when it was made; for the
    same task and image size best is what scored highest. So were the shapes at
    which a gene was trained, if there were several; best is then what scored highest there or between them, and what
    lies beyond them comes last, by size.

    Args:
        gene: A gene, its header, or its file.
        budget: Limits that all have to hold; without one, every depth up to ``methods.base.DEEPEST`` is listed.
        num_classes: Of the task; by default those of option ``task``, if a gene was tuned on it, or the gene's own.
        img_size: Of the task in pixels; the gene's own by default.
        timer: Times a shape at a batch size on a device; measures eager timm and remembers by default.
        on: A runtime whose latency, sizes and memory count instead, such as ``OnDevice("onnxruntime", threads=1)``.
        **options: The method's choices at expansion, for example ``order``.

    Returns:
        Shapes with their parameters, multiply-adds and, if limited, latency. Empty if nothing fits.

    Raises:
        LearngeneError: If the gene cannot be read or the task's shape is impossible.
    """
    budget = budget or Budget()
    if not isinstance(budget, Budget):
        raise LearngeneError(f"plan: budget must be a Budget, such as Budget(max_params=200_000), not {budget!r}")
    if on is None and budget.max_memory is not None:
        raise LearngeneError("budget: max_memory is measured in a runtime; say which with --runtime, or leave it out")
    source = read_header(gene) if isinstance(gene, (str, Path)) else gene
    tuned = {entry["task"]: entry["classes"] for entry in source.metadata.get("tasks", [])}
    task = options.get("task")
    if num_classes is None and isinstance(task, str) and task in tuned:
        num_classes = len(tuned[task])
    base = source.shape.replace(
        num_classes=source.shape.num_classes if num_classes is None else num_classes,
        img_size=source.shape.img_size if img_size is None else img_size,
    )
    source.method.refuse(source.shape, base, **options)  # a wrong option is an error, a depth or a width is not
    fitting: list[Shape] = []
    for shape in source.method.shapes(source.shape, base):
        try:
            source.method.refuse(source.shape, shape, **options)
        except ShapeError:
            continue
        if budget.room(shape, _known_needs(on)) >= 1:
            fitting.append(shape)
    if on is not None:
        on.prepare(fitting, memory=budget.max_memory is not None)
        fitting = [shape for shape in fitting if budget.room(shape, needs_of(on)) >= 1]
    scores: Mapping[str, Mapping[str, Any]] = _scores(source, base)
    measured = shape_scores(source.metadata, source.shape, base)
    time_shape = timer or measured_latency
    candidates = []
    for shape in sorted(fitting, key=lambda shape: shape.params(), reverse=True):
        if on is not None:
            latency: float | None = on.latency(shape)
        else:
            latency = time_shape(shape, budget.batch_size, budget.device) if budget.max_latency else None
        if latency is None or latency <= (budget.max_latency or math.inf):
            layers = source.method.describe(source.shape, shape, **options)
            scored = scores.get(shape.path, {})
            found = measured.at(shape) if measured else None
            if measured and found:
                scored = {measured.name: found[0], "known": found[1]}
            beyond = found is None and source.method.beyond(source.shape, shape)
            scored = {**scored, "outside": outside(source, shape)}
            if on is not None:
                scored["size"] = on.size(shape)
                scored["memory"] = on.memory(shape) if budget.max_memory is not None else None
            candidates.append(Candidate(shape, shape.params(), shape.macs(), latency, layers, beyond, **scored))
    if measured:
        candidates.sort(key=lambda one: -1.0 if one.known is None else getattr(one, measured.name), reverse=True)
    elif "epochs" in source.metadata.get("training", {}):
        candidates.sort(key=lambda one: bool(one.outside) or one.beyond_auxiliary)
    for name in ("top1", "neighbours"):
        if all(getattr(candidate, name) is not None for candidate in candidates):
            candidates.sort(key=lambda candidate: getattr(candidate, name) or 0.0, reverse=True)
    return candidates


def needs_of(on: Device | None) -> dict[str, Callable[[Shape], float]]:
    """What a shape needs of each limit, on a device as it was measured there."""
    return NEEDS if on is None else {**NEEDS, "max_size": on.size, "max_memory": on.memory}


def _known_needs(on: Device | None) -> dict[str, Callable[[Shape], float]]:
    """Those that are known before anything is measured."""
    return {name: need for name, need in NEEDS.items() if on is None or name != "max_size"}


def misfit(gene: Learngene | GeneHeader | str | Path, budget: Budget, **task: Any) -> str:
    """Why no shape fits a budget: the limits that none meets, with the smallest value of each, and the largest shape.

    Args:
        gene: As for ``plan``, which found nothing.
        budget: The limits.
        **task: Further arguments of ``plan``.
    """
    source = read_header(gene) if isinstance(gene, (str, Path)) else gene
    wide = Budget(max_memory=math.inf) if budget.max_memory is not None else Budget()
    every, reasons = plan(source, wide, **task), []
    needs = needs_of(task.get("on"))
    if not every:
        return "for this task the method makes no shape at all"

    def label(one: Candidate) -> str:
        return " ".join(source.method.label(source.shape, one.shape).split())

    for name, (limit, unit) in budget.limits.items():
        least = min(every, key=lambda one: needs[name](one.shape))
        if (needed := needs[name](least.shape)) > limit:
            has, most = short(needed), short(limit)
            reasons.append(f"the smallest is {label(least)} with {has} {unit}, more than {most} of {name}")
    if budget.max_latency is not None and (timed := plan(source, replace(budget, max_latency=math.inf), **task)):
        fastest = min(timed, key=lambda one: one.latency or 0.0)
        within = "" if len(timed) == len(every) else " within the other limits"
        reasons.append(
            f"the fastest{within} is {label(fastest)} with {fastest.latency:.4g} ms, more than "
            f"{budget.max_latency:.4g} of max_latency"
        )
    reasons = reasons or ["every limit can be met, but not all by one shape"]
    largest = max(every, key=lambda one: one.params)
    size = f"{short(largest.params)} params and {short(largest.macs)} macs"
    return f"{' and '.join(reasons)}; the largest is {label(largest)} with {size}"


def _scores(source: Learngene | GeneHeader, base: ViTShape) -> dict[str, dict[str, float]]:
    """What paths scored when the gene was made; nothing for another image size, and no accuracy of another task."""
    if base.img_size != source.shape.img_size:
        return {}
    counted = ("top1", "neighbours") if base.num_classes == source.shape.num_classes else ("neighbours",)
    return {
        path["path"]: {name: path[name] for name in counted if path.get(name) is not None}
        for path in source.metadata.get("paths", [])
    }


def measured_latency(shape: Shape, batch_size: int, device: str) -> float:
    """Milliseconds of a forward pass on this machine, remembered by shape and environment.

    The memory is one JSON file per environment in ``$LEARNGENE_CACHE``, by default ``~/.cache/learngene``.
    """
    where = environment()
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise LearngeneError(f"budget: device '{device}' is not available on this machine; use cpu")
        where["accelerator"] = torch.cuda.get_device_name()
    key = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"latency-{key}.json"
    try:
        known = dict(json.loads(path.read_text())["milliseconds"])
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    size = {**shape.to_dict(), "batch_size": batch_size, "device": device}
    entry = json.dumps({key: value for key, value in size.items() if key != "num_classes"}, sort_keys=True)
    if entry not in known:
        from learngene.vits.speed import latency

        known[entry] = latency(shape, batch_size=batch_size, device=device)
        content = json.dumps({"environment": where, "milliseconds": known}, indent=1)
        write_file(path, lambda temporary: temporary.write_text(content))
    return float(known[entry])


def cache_folder() -> Path:
    """Where learngene keeps what it can measure or make again."""
    given = os.environ.get("LEARNGENE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "learngene"
