"""A descendant among the models of its gene: what it takes, and which smaller ones there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learngene.genes.gene_file import GeneHeader, read_header
from learngene.genes.plan import Budget, Candidate, plan
from learngene.system.errors import LearngeneError
from learngene.vits.descendant_folder import read_record, weight_file
from learngene.vits.speed import latency
from learngene.vits.stitched_shape import Shape, shape_from

NEAR = (".", "..", "../..", "../runs", "../../runs")
"""Where a descendant's gene is looked for, seen from its folder: beside it, beside its run, where ``ship`` has it."""


@dataclass(frozen=True)
class DescendantPlan:
    """What a descendant takes.

    Attributes:
        shape: Of the model.
        size: Megabytes of its weights as stored.
        latency: Milliseconds per image here; None if that was not asked.
        digest: Of the gene that it was made from; None if it was made from none.
        gene: The file of that gene, if it lies near.
        header: Of that file.
        smaller: Shapes of that gene with fewer parameters, for the same classes and images, best first.
    """

    shape: Shape
    size: float
    latency: float | None
    digest: str | None
    gene: Path | None = None
    header: GeneHeader | None = None
    smaller: list[Candidate] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        """Plain values."""
        smaller = [{"shape": one.shape.to_dict(), "params": one.params, "macs": one.macs} for one in self.smaller]
        sizes = {"params": self.shape.params(), "macs": self.shape.macs(), "size": self.size, "latency": self.latency}
        gene = str(self.gene) if self.gene else None
        return {"shape": self.shape.to_dict(), **sizes, "digest": self.digest, "gene": gene, "smaller": smaller}


def plan_descendant(folder: Path, *, measure: bool = True) -> DescendantPlan:
    """Looks at a descendant folder and for its gene.

    Args:
        folder: Of the descendant.
        measure: Whether to time it here.

    Raises:
        LearngeneError: If its record says no shape, as those of other models.
    """
    record, weights = read_record(folder) or {}, weight_file(folder)
    if "shape" not in record:
        raise LearngeneError(f"{folder}: a model of no gene, whose shape nobody says; see `learngene info {folder}`")
    shape = shape_from(record["shape"])
    size = weights.stat().st_size / 1e6 if weights else 0.0
    digest = record.get("gene")
    found = _gene_near(folder, digest) if digest else None
    smaller = []
    if found is not None:
        budget = Budget(max_params=shape.params() - 1)
        smaller = plan(found, budget, num_classes=shape.num_classes, img_size=shape.img_size)
    timed = latency(shape) if measure else None
    return DescendantPlan(shape, size, timed, digest, found.path if found else None, found, smaller)


def _gene_near(folder: Path, digest: str) -> GeneHeader | None:
    for place in NEAR:
        for path in sorted((folder / place).resolve().glob("*.safetensors")):
            try:
                header = read_header(path)
            except LearngeneError:
                continue  # weights of a model, or damaged
            if header.metadata["digest"] == digest:
                return header
    return None
