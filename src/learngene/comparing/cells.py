"""What a comparison consists of: its jobs, and the cells to measure.

Nothing here trains. A job's key is a hash of everything that decides its result, so that two comparisons which
need the same gene, or the same cell, share one file, and a cell that is there is never run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path

from learngene.comparing.cost import equal_epochs
from learngene.comparing.genes import gene_job
from learngene.comparing.jobs import Cell, Comparison, Coordinates, GeneJob
from learngene.methods import Method, method
from learngene.recipe.compare import SOURCE, CompareRecipe, ContenderSpec
from learngene.recipe.content_hash import short_hash
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
    out = Comparison(recipe, num_classes, loaded or {}, masked)
    genes: dict[Path, GeneJob] = {}
    for name, shape_name, seed in product(recipe.chosen("contenders"), recipe.chosen("shapes"), recipe.run.seeds):
        spec = recipe.contenders[name]
        kind = method(spec.method, spec.settings)
        per_task = spec.stage2 is not None and spec.stage2.each
        gene: GeneJob | None = None
        for number, task in enumerate(recipe.chosen("tasks")):
            if number == 0 or per_task:
                gene = gene_job(out, name, kind, shape_name, task, seed)
            if gene is not None:
                if recipe.run.skip_impossible and not _possible(out, spec, shape_name, gene):
                    continue
                gene = genes.setdefault(gene.path, gene)
            for budget in recipe.chosen("budgets"):
                if task in (recipe.budgets[budget].tasks or [task]):
                    epochs = round(recipe.budgets[budget].epochs * spec.times)
                    out.cells.append(_cell(out, (name, shape_name, task, budget, seed), kind, gene, epochs))
    out.genes = list(genes.values())
    epochs_of = equal_epochs(out, train_images)
    for number, cell in enumerate(out.cells):
        if cell.coordinates in epochs_of:
            out.cells[number] = _cell(out, cell.coordinates, cell.method, cell.gene, epochs_of[cell.coordinates])
    return out


def lay_out_declared(recipe: CompareRecipe) -> tuple[Comparison, dict[str, int]]:
    """Like ``lay_out``, by the sizes that a recipe declares and without its data; returns the training images, too."""
    sizes = recipe.sizes or {}
    images = {task: size.images for task, size in sizes.items()}
    masked = [task for task, size in sizes.items() if size.masks]
    return lay_out(recipe, {task: size.classes for task, size in sizes.items()}, images, masked=masked), images


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


def _cell(out: Comparison, at: Coordinates, kind: Method, gene: GeneJob | None, epochs: int) -> Cell:
    recipe, (contender, shape_name, task, budget, seed) = out.recipe, at
    spec, data, shape = recipe.contenders[contender], out.task_data(task), _shape(out, shape_name, task)
    tuning = (recipe.budgets[budget].tune, spec.tune, {"epochs": epochs, "seed": seed})
    train = recipe.train("tune", *tuning) if epochs else None
    content = [
        [spec.method, spec.settings, spec.options, spec.layers, spec.modules],
        gene.path.name.rpartition("-")[2] if gene else None,
        [shape.to_dict(), seed, data, train],
    ]
    judge = recipe.budgets[budget].judge
    content += [judge] if judge != "head" else []
    key, how = short_hash(content), f"e{epochs}" if judge == "head" else judge
    widths = [part.embed_dim for part in shape.parts] if isinstance(shape, StitchedShape) else [shape.embed_dim]
    width = f"d{shape.depth}w{'-'.join(map(str, widths))}"
    source = Path(data.sources[0]).name.split(".")[0]
    path = recipe.out / "cells" / f"{spec.method}-{width}-{source}-{how}-s{seed}-{key}.json"
    return Cell(*at, spec, kind, gene, shape, data, train, key, path, task in out.masked, judge)
