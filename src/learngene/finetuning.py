"""Fine-tuning: ordinary training of a descendant, or of any timm classifier, with no constraint left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.ancestry import timm_model
from learngene.descendant import PROVENANCE, TimmModel, load_descendant, save_descendant
from learngene.errors import LearngeneError
from learngene.files import refuse_foreign, refuse_full_disk
from learngene.gene import Learngene
from learngene.measure import Accuracy, accuracy
from learngene.methods import method as find_method
from learngene.recipe import FinetuneRecipe, build_recipe
from learngene.sections import DataSpec, default_crop
from learngene.shape import ViTShape
from learngene.stitched import Shape, shape_from
from learngene.train.batches import eval_loader
from learngene.train.images import ImageSet, open_data, open_split
from learngene.train.loop import Stage, TrainResult, make_accelerator, set_drop_path
from learngene.train.losses import classification_loss
from learngene.train.run import run_bytes, run_stage, write_once


def finetune(
    model: TimmModel,
    *,
    data: str | list[str] | Mapping[str, Any],
    out: str | Path | None = None,
    show: bool = True,
    **train_fields: Any,
) -> TrainResult:
    """Trains a timm classifier in place.

    Args:
        model: A descendant, or any timm model with as many outputs as the data has classes.
        data: Where the images are, or a whole data section.
        out: A run folder, to be able to stop and go on, with the descendant in ``out/descendant``; None keeps
            everything in memory.
        show: Whether to print progress.
        **train_fields: Fields of the train section: ``epochs``, ``lr``, ``preset`` and so on.

    Returns:
        How the training went.

    Raises:
        LearngeneError: If anything does not fit, before the first step is trained.
    """
    fields: dict[str, Any] = {
        "kind": "finetune",
        "model": "in memory",
        "data": data if isinstance(data, Mapping) else {"source": data},
        "train": train_fields,
    }
    if out is not None:
        fields["out"] = str(out)
    recipe = build_recipe(fields)
    assert isinstance(recipe, FinetuneRecipe)
    return train_model(model, recipe, open_data(recipe.data), keep=out is not None, show=show)


@dataclass
class Finetuned:
    """What a fine-tuning run made: the model, its folder, its accuracy before, and how the training went."""

    model: TimmModel
    path: Path
    untuned: Accuracy
    result: TrainResult


def run(recipe: FinetuneRecipe, *, show: bool = True) -> Finetuned:
    """Runs a fine-tuning recipe, or continues it if its run folder holds an unfinished run.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    images = open_data(recipe.data)
    model = starting_model(recipe, images[0])
    path = recipe.out / "descendant"
    refuse_foreign(path, PROVENANCE)
    refuse_full_disk(path, run_bytes(model))
    untuned = evaluate(model, recipe.data, images=images[1])
    result = train_model(model, recipe, images, keep=True, show=show)
    return Finetuned(model, path, untuned, result)


def starting_model(recipe: FinetuneRecipe, images: ImageSet) -> TimmModel:
    """The model a recipe starts from: expanded from a gene, loaded from a folder, or fresh.

    Raises:
        LearngeneError: If the source is none of these, or the shape cannot be made.
    """
    source, names = recipe.model, images.class_names
    if source == "scratch":
        if recipe.shape is None:
            raise LearngeneError("model scratch: needs a shape, for example shape: {embed_dim: 192, num_heads: 3}")
        _refuse_unused(recipe, "random weights", "options", "model_args")
        shape = shape_from({"num_classes": len(names), **recipe.shape})
        return scratch(shape, recipe.train.seed, class_names=names)
    if Path(source).is_dir():
        _refuse_unused(recipe, "a descendant, which has its shape", "shape", "options", "model_args")
        model = load_descendant(source)
        if model.num_classes != len(names):
            with torch.random.fork_rng():
                torch.manual_seed(recipe.train.seed)
                model.reset_classifier(len(names))
            model.learngene = {**getattr(model, "learngene", {}), "class_names": names}
            if "shape" in model.learngene:
                model.learngene["shape"]["num_classes"] = len(names)
        return model
    if not Path(source).exists() and Path(source).suffix != ".safetensors":
        _refuse_unused(recipe, "a timm model, which has its shape", "shape", "options")
        arguments = {**recipe.model_args, "num_classes": len(names)}
        with torch.random.fork_rng():
            torch.manual_seed(recipe.train.seed)
            return timm_model(source, recipe.pretrained, arguments)
    _refuse_unused(recipe, "a gene", "model_args")
    gene = Learngene.load(source)
    changes = {"num_classes": len(names), **(recipe.shape or {})}
    path = changes.pop("path", None)
    if path is not None and (double := [name for name in ("depth", "embed_dim", "num_heads") if name in changes]):
        raise LearngeneError(f"shape.path says depth, width and heads already; leave shape.{double[0]} out")
    own = gene.shape if path is None else gene.method.named_shape(gene.shape, str(path))
    shape = own.replace(**changes)
    return gene.expand(shape, class_names=names, seed=recipe.train.seed, **recipe.options)


def _refuse_unused(recipe: FinetuneRecipe, what: str, *fields: str) -> None:
    for field in fields:
        if getattr(recipe, field):
            raise LearngeneError(f"model {recipe.model}: {field} means nothing for {what}; leave it out")


def scratch(shape: Shape, seed: int = 0, class_names: list[str] | None = None) -> TimmModel:
    """A timm ViT of a shape with timm's random initialisation: what every method has to beat."""
    own = shape if isinstance(shape, ViTShape) else shape.part(-1)
    return Learngene(find_method("scratch"), own).expand(shape, seed=seed, class_names=class_names)


def train_model(
    model: TimmModel, recipe: FinetuneRecipe, images: tuple[ImageSet, ImageSet], *, keep: bool, show: bool
) -> TrainResult:
    """Trains a model on opened data and writes the descendant folder if ``keep``."""
    _refuse_classes(model, images[0])
    data = fill_preprocessing(recipe.data, model)
    recipe = recipe.model_copy(update={"data": data})
    chans, size = input_size(model, data)
    set_drop_path(model, recipe.train.drop_path)
    stage = Stage(f"finetune {stage_name(model)}", model, _objective, size, chans)
    result = run_stage(stage, recipe, images, keep=keep, show=show)
    set_drop_path(model, 0.0)
    _record_preprocessing(model, data, size, chans)
    model.learngene = {
        **getattr(model, "learngene", {}),
        "class_names": images[0].class_names,
        "finetuned": {
            "data": [Path(source).name for source in recipe.data.sources],
            "train": recipe.train.model_dump(mode="json"),
            "accuracy": asdict(result.final),
        },
    }
    if keep:
        write_once(lambda: save_descendant(model, recipe.out / "descendant"))
    return result


def evaluate(
    model: TimmModel,
    data: DataSpec | str | Mapping[str, Any],
    *,
    images: ImageSet | None = None,
    split: str = "val",
    precision: str = "fp32",
) -> Accuracy:
    """Scores a model on a split, on an accelerator if there is one.

    Args:
        model: A descendant, or any timm classifier.
        data: Where the images are; the model's own normalisation is used unless the section says otherwise.
        images: The opened split, if it is open already.
        split: ``val`` or ``train``.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.

    Raises:
        LearngeneError: If the data does not fit the model.
    """
    spec = data if isinstance(data, DataSpec) else data_section(data)
    images = images or open_split(spec, split)
    _refuse_classes(model, images)
    chans, size = input_size(model, spec)
    loader = eval_loader(images, fill_preprocessing(spec, model), img_size=size, in_chans=chans)
    device = make_accelerator().device
    score = accuracy(model.to(device), loader, precision=precision)
    model.to("cpu")
    return score


def data_section(data: str | list[str] | Mapping[str, Any]) -> DataSpec:
    """A data section from a bare source or from its fields, with the one-line errors of a recipe."""
    fields = data if isinstance(data, Mapping) else {"source": data}
    recipe = build_recipe({"kind": "finetune", "model": "in memory", "data": fields})
    assert isinstance(recipe, FinetuneRecipe)
    return recipe.data


def fill_preprocessing(data: DataSpec, model: TimmModel) -> DataSpec:
    """The data section with mean and std taken from the model where it leaves them open."""
    cfg = model.pretrained_cfg
    return data.model_copy(update={key: getattr(data, key) or tuple(cfg[key]) for key in ("mean", "std")})


def input_size(model: TimmModel, data: DataSpec) -> tuple[int, int]:
    """Channels and side of the images a timm model takes; the data section decides if it says so."""
    from timm.data import resolve_model_data_config

    chans, size, _ = resolve_model_data_config(model)["input_size"]
    return chans, data.img_size or size


def stage_name(model: TimmModel) -> str:
    """What to call a model while it trains."""
    record = getattr(model, "learngene", {})
    if "shape" in record:
        return f"{record.get('method')}-{shape_from(record['shape']).depth}"
    return str(model.pretrained_cfg.get("architecture", type(model).__name__))


def _objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return classification_loss(model(images), targets)


def _refuse_classes(model: TimmModel, images: ImageSet) -> None:
    if model.num_classes != len(images.class_names):
        raise LearngeneError(
            f"the model has {model.num_classes} classes but {images.where} has {len(images.class_names)}; "
            "expand it with the data's number of classes"
        )


def _record_preprocessing(model: TimmModel, data: DataSpec, size: int, chans: int) -> None:
    """Makes the model say how the images it was trained on were prepared."""
    model.pretrained_cfg = model.default_cfg = {
        **model.pretrained_cfg,
        "tag": model.pretrained_cfg.get("tag") if hasattr(model, "learngene") else "learngene_trained",
        "input_size": (chans, size, size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct or default_crop(size),
    }
