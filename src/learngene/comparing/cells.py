"""What a comparison consists of: its jobs, and the cells to measure.

Nothing here trains. A job's key is a hash of everything that decides its result, so that two comparisons which
need the same gene, or the same cell, share one file, and a cell that is there is never run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from learngene.comparing.genes import gene_job
from learngene.comparing.jobs import Cell, Comparison, GeneJob
from learngene.methods import method
from learngene.recipe.compare import SOURCE, CompareRecipe, ContenderSpec
from learngene.recipe.content_hash import short_hash
from learngene.recipe.sections import DataSpec
from learngene.system.errors import ShapeError
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape, shape_from


def lay_out(
    recipe: CompareRecipe,
    num_classes: Mapping[str, int],
    train_images: Mapping[str, int],
    loaded: Mapping[str, ViTShape] | None = None,
    masked: Collection[str] = (),
) -> Comparison:
    """Makes all jobs of a recipe, with their keys.

    Args:
        recipe: The recipe.
        num_classes: Classes of every task.
        train_images: Training images of every task, from which equal costs are computed.
        loaded: Shapes of the plain ViTs that are loaded as they are, by name of the ancestry.
        masked: Tasks whose images have masks.

    Raises:
        LearngeneError: If a contender's gene cannot be described: the first fault.
    """
    from learngene.comparing.cost import equal_epochs

    out = Comparison(recipe, num_classes, loaded or {}, masked)
    genes: dict[Path, GeneJob] = {}
    for name in recipe.chosen("contenders"):
        spec = recipe.contenders[name]
        for shape_name in recipe.chosen("shapes"):
            for seed in recipe.run.seeds:
                per_task = spec.stage2 is not None and spec.stage2.each
                gene: GeneJob | None = None
                for number, task in enumerate(recipe.chosen("tasks")):
                    if number == 0 or per_task:
                        gene = gene_job(out, name, spec, shape_name, task, seed)
                    if gene is not None:
                        if recipe.run.skip_impossible and not _possible(out, spec, shape_name, gene):
                            continue
                        gene = genes.setdefault(gene.path, gene)
                    for budget in recipe.chosen("budgets"):
                        if task in (recipe.budgets[budget].tasks or [task]):
                            out.cells.append(_cell(out, name, shape_name, task, budget, seed, gene, None))
    out.genes = list(genes.values())
    equal = [budget for budget in recipe.chosen("budgets") if recipe.budgets[budget].cost_of]
    if equal:
        epochs = equal_epochs(out, train_images)
        out.cells = [
            _cell(out, c.contender, c.shape_name, c.task, c.budget, c.seed, c.gene, epochs[c.coordinates])
            if c.budget in equal
            else c
            for c in out.cells
        ]
    return out


def _possible(out: Comparison, spec: ContenderSpec, shape_name: str, gene: GeneJob) -> bool:
    try:
        gene.method.refuse(gene.shape, _shape(out, shape_name, SOURCE), **spec.options)
    except ShapeError:
        return False
    return True


def _shape(out: Comparison, shape_name: str, task: str) -> Shape:
    """A named shape with the classes of a task, and with the size of its images if the task says one."""
    recipe = out.recipe
    size = out.task_data(task).img_size
    own = {"num_classes": out.num_classes[task], **({"img_size": size} if size else {})}
    return shape_from({**recipe.shape, **recipe.shapes[shape_name], **own})


def _cell(
    out: Comparison,
    contender: str,
    shape_name: str,
    task: str,
    budget: str,
    seed: int,
    gene: GeneJob | None,
    epochs: int | None,
) -> Cell:
    recipe = out.recipe
    spec, data = recipe.contenders[contender], out.task_data(task)
    shape = _shape(out, shape_name, task)
    if epochs is None:
        epochs = round(recipe.budgets[budget].epochs * spec.times)
    tuning = (recipe.budgets[budget].tune, spec.tune, {"epochs": epochs, "seed": seed})
    train = recipe.train("tune", *tuning) if epochs else None
    content = [
        [spec.method, spec.settings, spec.options, spec.layers, spec.modules],
        gene.path.name.rpartition("-")[2] if gene else None,
        [shape.to_dict(), seed, data, train],
    ]
    key = short_hash(content)
    widths = [part.embed_dim for part in shape.parts] if isinstance(shape, StitchedShape) else [shape.embed_dim]
    width = f"d{shape.depth}w{'-'.join(str(each) for each in widths)}"
    path = recipe.out / "cells" / f"{spec.method}-{width}-{data_name(data)}-e{epochs}-s{seed}-{key}.json"
    kind = method(spec.method, spec.settings)
    masked = task in out.masked
    return Cell(contender, shape_name, task, budget, seed, spec, kind, gene, shape, data, train, key, path, masked)


def data_name(data: DataSpec) -> str:
    """A short name of a data section: its source's file name."""
    return Path(data.sources[0]).name.split(".")[0]
