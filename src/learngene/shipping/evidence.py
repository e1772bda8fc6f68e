"""Which way to make models, by what was measured: the table of our own comparisons, and what it advises.

A comparison is one data set, teacher, number of sizes, budget and seed; its budget is told in epochs: those that every
model could be trained for by itself, which means the same on every machine and for every size of model.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from learngene.system.files import in_package

FILE = "ship_evidence.json"
MARGIN = 1.0
"""Points that a way must be ahead of scratch, which is simpler, to be chosen."""
REACH = 1.0
"""Distance at which a comparison counts a third as much as one of the same kind: a factor of e in images or epochs."""


@dataclass(frozen=True)
class Job:
    """What decides which way is best, as far as is known.

    Attributes:
        images: Training images.
        classes: How many.
        img_size: Side in pixels.
        teacher: ``none``, or what kind it is.
        sizes: Models that are wanted.
        epochs: That each could be trained for by itself in all of the budget.
    """

    images: int
    classes: int
    img_size: int
    teacher: str
    sizes: int
    epochs: float

    def distance(self, other: Job) -> float:
        """How unlike two jobs are; infinite if their teachers are of other kinds."""
        if self.teacher != other.teacher or (self.sizes == 1) != (other.sizes == 1):
            return math.inf
        pairs = (
            (self.epochs, other.epochs, 1.0),
            (self.images, other.images, 0.5),
            (self.sizes, other.sizes, 1.0),
            (self.images / self.classes, other.images / other.classes, 0.25),
            (self.img_size, other.img_size, 0.25),
        )
        return sum(weight * abs(math.log(a / b)) for a, b, weight in pairs)


@dataclass(frozen=True)
class Advice:
    """What the table says.

    Attributes:
        method: The way to go.
        ahead: Points that every way is expected to be ahead of scratch, on average over the sizes.
        comparisons: How many count.
        sets: Whose.
        why: A line.
    """

    method: str
    ahead: dict[str, float]
    comparisons: int
    sets: list[str]
    why: str


@functools.cache
def evidence() -> list[dict[str, Any]]:
    """The cells of the table: of the installed package, or of a checkout."""
    path = in_package(Path(__file__).with_name(FILE), f"results/{FILE}")
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return cells


def job_of(cell: dict[str, Any]) -> Job:
    """The job that a cell of the table was measured on."""
    return Job(**{name: cell[name] for name in Job.__annotations__})


def advise(job: Job, ways: Collection[str], cells: Iterable[dict[str, Any]] | None = None) -> Advice:
    """The way that was best on jobs like this one, among those that can be gone.

    Ways are compared with scratch within a comparison alone, and comparisons count the more the nearer they are.
    Scratch is chosen where nothing was ahead of it by ``MARGIN``, and where nothing is known.

    Args:
        job: What is to be done.
        ways: Names of the ways that can make all models.
        cells: The table; the committed one by default.
    """
    alike: dict[tuple[Any, ...], dict[str, float]] = {}
    jobs: dict[tuple[Any, ...], Job] = {}
    for cell in evidence() if cells is None else cells:
        key = (cell["data"], cell["teacher"], cell["sizes"], cell["budget"], cell["seed"])
        alike.setdefault(key, {})[cell["method"]] = cell["mean"]
        if cell["method"] == "scratch":
            jobs[key] = job_of(cell)
    near = {key: math.exp(-job.distance(known) / REACH) for key, known in jobs.items()}
    near = {key: weight for key, weight in near.items() if weight > 0.03}
    leads: dict[str, list[tuple[float, float]]] = {}
    for key, weight in near.items():
        for name, mean in alike[key].items():
            if name in ways and name != "scratch":
                leads.setdefault(name, []).append((weight, mean - alike[key]["scratch"]))
    ahead = {name: sum(w * lead for w, lead in found) / sum(w for w, _ in found) for name, found in leads.items()}
    best = max(ahead, key=ahead.__getitem__, default="scratch")
    chosen = best if ahead.get(best, 0.0) >= MARGIN else "scratch"
    counted = leads.get(best, [])
    sets = sorted({key[0] for key in near})
    return Advice(chosen, ahead, len(counted), sets, _why(job, chosen, best, ahead, sets, len(counted)))


def _why(job: Job, chosen: str, best: str, ahead: dict[str, float], sets: list[str], count: int) -> str:
    if not ahead:
        return "no comparison like this job was made yet, so every model is trained by itself, which is simplest"
    where = f"in {count} comparison{'s' * (count != 1)} most like this job ({', '.join(sets)})"
    lead = ahead[best]
    if chosen == "scratch":
        what = f"{best} was {abs(lead):.1f} points {'ahead of' if lead > 0 else 'behind'} scratch"
        return f"{where} {what} on average over the sizes at equal time: no gene is worth it here"
    return f"{where} {best} was {lead:.1f} points ahead of scratch on average over the sizes at equal time"


def mean_top1(top1: Iterable[float]) -> float:
    """On average over the sizes, as the table has it."""
    return round(fmean(top1), 2)
