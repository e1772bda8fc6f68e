"""Measuring one cell: its descendant made, scored, tuned, scored again, and the result written."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from learngene.comparing.jobs import Cell
from learngene.comparing.results import CellResult
from learngene.data.images import ImageSet
from learngene.data.splits import Splits
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.finetune import evaluate, fresh_head, scratch, train_model
from learngene.making.hyper.embedding import embedding_of
from learngene.making.hyper.task_graphs import task_graphs
from learngene.making.probe import probe
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.system.environment import commit, environment
from learngene.system.errors import LearngeneError, TrainingDivergedError
from learngene.training.scores import Accuracy, score_from
from learngene.vits.class_names import class_names, places
from learngene.vits.linearity import layer_state, linearity
from learngene.vits.shape import ViTShape
from learngene.vits.timm_models import TimmModel


def measure(cell: Cell, recipe: CompareRecipe, images: Splits) -> str:
    """Makes the descendant, scores it, tunes it and writes the result."""
    start = time.perf_counter()
    gene = Learngene.load(cell.gene.path) if cell.gene else None
    model = _descendant(cell, gene, images.train)
    line = linearity(*layer_state(model)) if isinstance(cell.shape, ViTShape) else math.nan
    content: dict[str, Any] = {
        "contender": cell.contender,
        "method": cell.spec.method,
        "shape": cell.shape.to_dict(),
        "task": cell.task,
        "seed": cell.seed,
        "params": cell.params,
        "macs": cell.macs,
        "gene": _gene_record(gene) if gene else None,
        "spec": cell.spec.model_dump(mode="json"),
        "layers": model.learngene["layers"],
        "linearity": None if math.isnan(line) else line,
        "fresh": len(model.learngene["fresh"]),
        "train": cell.train.model_dump(mode="json") if cell.train else None,
        "data": {
            "source": [Path(source).name for source in cell.data.sources],
            "train_images": len(images.train),
            "val_images": len(images.val),
            "fingerprint": images.train.fingerprint(),
        },
    }
    if cell.masked:
        model = fresh_head(model, images.train, cell.seed)
    untuned = _judged(model, cell) if cell.judge != "head" else evaluate(model, cell.data, images=images.val)
    first = asdict(untuned)
    content |= {"untuned": {name: value for name, value in first.items() if name != "report"}, "epochs": []}
    content |= {"last": first, "steps": 0, "error": None}
    if cell.train is not None:
        folder = recipe.store / "cells" / cell.key
        tuning = FinetuneRecipe(model=cell.contender, data=cell.data, train=cell.train, out=folder)
        try:
            result = train_model(model, tuning, images, keep=recipe.keep_runs, show=False)
            content |= {"epochs": result.history, "last": asdict(result.final), "steps": result.updates}
        except TrainingDivergedError as error:
            content["error"] = str(error)
    content["seconds"] = round(time.perf_counter() - start, 3)
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    content["environment"] = environment() | accelerator
    content["commit"] = commit()
    CellResult(key=cell.key, **content).write_new(cell.path)
    if content["error"]:
        raise LearngeneError(content["error"])
    tuned = score_from(content["last"]).main
    if cell.judge != "head":
        return f"{cell.judge} {tuned:.2f} %"
    return f"{untuned.label} {untuned.main:.2f} % untuned, {tuned:.2f} % after {len(content['epochs'])} epochs"


def _judged(model: TimmModel, cell: Cell) -> Accuracy:
    """What its frozen features score; they give one guess, and no loss."""
    found = probe(model, cell.data, knn=cell.judge == "knn", linear=cell.judge == "linear")
    top1 = found.knn if found.linear is None else found.linear.top1
    assert top1 is not None
    return Accuracy(top1, 0.0, 0.0, found.images)


def _descendant(cell: Cell, gene: Learngene | None, images: ImageSet) -> TimmModel:
    names = images.class_names
    if gene is None:
        return scratch(cell.shape, cell.seed, names)
    options: dict[str, Any] = {"layers": cell.spec.layers, "modules": cell.spec.modules, **cell.spec.options}
    if (task := _task_of(cell, gene, images)) is not None:
        options["task"] = task
    with warnings.catch_warnings(action="ignore"):  # shapes outside the trained range are what is asked about
        model = gene.expand(cell.shape, seed=cell.seed, **options)
    # A cell starts from the gene's head wherever the number of classes is the same, whatever they are called.
    if places(names, class_names(model) or []) is None:
        model.learngene["class_names"] = names
    return model


def _task_of(cell: Cell, gene: Learngene, images: ImageSet) -> TaskEmbedding | None:
    """The embedding of a cell's task, if the gene was tuned to take one: a task's own, or that of an unseen task."""
    known = gene.tasks()
    if not known or cell.gene is None or cell.gene.ancestry is None:
        return None
    return known.get(cell.task) or embedding_of(
        Ancestry.from_spec(cell.gene.ancestry.source()), images, cell.task, cell.data
    )


def _gene_record(gene: Learngene) -> dict[str, Any]:
    metadata = gene.metadata
    training = metadata.get("training", {})
    return {
        "digest": metadata["digest"],
        "stored_params": sum(parameter.numel() for parameter in gene.parameters()),
        "auxiliary": gene.shape.to_dict(),
        **({"paths": metadata["paths"]} if "paths" in metadata else {}),
        **({"search": metadata["search"]} if "search" in metadata else {}),
        **({"tasks": {task["task"]: task["top1"] for task in metadata["tasks"]}} if "tasks" in metadata else {}),
        **({"task_share": round(task_graphs(gene).task_share, 6)} if gene.tasks() else {}),
        "top1": metadata.get("accuracy", {}).get("top1"),
        "epochs": training.get("epochs"),
        "seconds": training.get("seconds", 0.0),
        "ancestry": metadata.get("ancestry"),
    }
