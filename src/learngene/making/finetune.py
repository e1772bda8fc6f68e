"""Fine-tuning: ordinary training of a descendant, or of any timm model, with no constraint left.

The images decide the task: with a class each a classifier is trained, with masks a segmenter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.images import ImageSet, open_split
from learngene.data.preprocessing import crop_pct, fill_preprocessing
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import made_of
from learngene.genes.gene import Learngene
from learngene.making.arguments import Data, data_fields, data_section, recipe_of
from learngene.making.steps import Step, make
from learngene.methods import method as find_method
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_full_disk
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, task_loss
from learngene.training.run import run_bytes, run_stage, write_once
from learngene.training.scores import SetScore, task_score
from learngene.training.stage import Stage, TrainResult, set_drop_path
from learngene.vits.checkpoint import is_checkpoint, load_checkpoint
from learngene.vits.descendant_folder import PROVENANCE, load_descendant, save_descendant
from learngene.vits.segmenter import Segmenter, segment
from learngene.vits.stitched_shape import Shape, shape_from
from learngene.vits.timm_models import TimmModel, timm_model


def finetune(
    model: TimmModel,
    *,
    data: Data,
    out: str | Path | None = None,
    show: bool = True,
    **train_fields: Any,
) -> TrainResult:
    """Trains a timm classifier, or a segmenter, in place.

    Args:
        model: A descendant, or any timm model with as many outputs as the data has classes; for images with masks one
            with a segmentation head, see ``segment``.
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
    recipe = recipe_of(FinetuneRecipe, model="in memory", data=data_fields(data), train=train_fields, out=out)
    return train_model(model, recipe, open_splits(recipe.data), keep=out is not None, show=show)


@dataclass
class FinetuneResult:
    """What a fine-tuning run made: the model, its folder, its score before, and how the training went."""

    model: TimmModel
    path: Path
    untuned: SetScore
    result: TrainResult


def run(recipe: FinetuneRecipe, *, show: bool = True) -> FinetuneResult:
    """Runs a fine-tuning recipe, or continues it if its run folder holds an unfinished run.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    images = open_splits(recipe.data)
    model = starting_model(recipe, images.train)
    path = recipe.out / "descendant"
    refuse_foreign(path, PROVENANCE)
    refuse_full_disk(path, run_bytes(model))

    def tuned() -> FinetuneResult:
        untuned = evaluate(model, recipe.data, images=images.val)
        return FinetuneResult(model, path, untuned, train_model(model, recipe, images, keep=True, show=show))

    return make(Step(f"descendant {path}", path, tuned))


def starting_model(recipe: FinetuneRecipe, images: ImageSet) -> TimmModel:
    """The model a recipe starts from: expanded from a gene, loaded from a folder, or fresh.

    Where the images have masks, a classifier's head is replaced by a fresh segmentation head.

    Raises:
        LearngeneError: If the source is none of these, the shape cannot be made, or a segmenter meets images without
            masks.
    """
    model = _source_model(recipe, images)
    if images.segmentation and not isinstance(model, Segmenter):
        return fresh_head(model, images, recipe.train.seed)
    return model


def fresh_head(model: TimmModel, images: ImageSet, seed: int) -> TimmModel:
    """Gives a model a new head for images: one score per class, or per class and pixel where images have masks.

    Args:
        model: A timm model, which is taken over.
        images: They say how many classes there are, and what they are called.
        seed: Of the head's weights.

    Returns:
        The model, or the segmenter made of it.
    """
    names = images.class_names
    if images.segmentation and not isinstance(model, Segmenter):
        return segment(model, len(names), seed=seed, class_names=names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.reset_classifier(len(names))
    return model


def _source_model(recipe: FinetuneRecipe, images: ImageSet) -> TimmModel:
    source, names = recipe.model, images.class_names
    if source == "scratch":
        if recipe.shape is None:
            raise LearngeneError("model scratch: needs a shape, for example shape: {embed_dim: 192, num_heads: 3}")
        _refuse_unused(recipe, "random weights", "options", "model_args")
        shape = shape_from({"num_classes": len(names), **_size(recipe, images), **recipe.shape})
        return scratch(shape, recipe.train.seed, class_names=names)
    if is_checkpoint(source, recipe.architecture):
        _refuse_unused(recipe, "a checkpoint, which has its shape", "shape", "options")
        model = load_checkpoint(source, recipe.architecture, recipe.model_args, state=recipe.state)
        return model if model.num_classes == len(names) else fresh_head(model, images, recipe.train.seed)
    _refuse_unused(recipe, "what is no checkpoint file", "architecture", "state")
    if Path(source).is_dir():
        _refuse_unused(recipe, "a descendant, which has its shape", "shape", "options", "model_args")
        model = load_descendant(source)
        if images.segmentation:
            _resize(model, recipe.data.img_size)
            if not isinstance(model, Segmenter):
                return model
        _refuse_other_task(model, images)
        if model.num_classes != len(names):
            model = fresh_head(model, images, recipe.train.seed)
            model.learngene = {**getattr(model, "learngene", {}), "class_names": names}
            if "shape" in model.learngene and not isinstance(model, Segmenter):
                model.learngene["shape"]["num_classes"] = len(names)
        return model
    if not Path(source).exists() and Path(source).suffix != ".safetensors":
        _refuse_unused(recipe, "a timm model, which has its shape", "shape", "options")
        arguments = {**_size(recipe, images), **recipe.model_args, "num_classes": len(names)}
        return timm_model(source, recipe.pretrained, arguments, seed=recipe.train.seed)
    _refuse_unused(recipe, "a gene", "model_args")
    gene = Learngene.load(source)
    changes = {"num_classes": len(names), **_size(recipe, images), **(recipe.shape or {})}
    path = changes.pop("path", None)
    if path is not None and (double := [name for name in ("depth", "embed_dim", "num_heads") if name in changes]):
        raise LearngeneError(f"shape.path says depth, width and heads already; leave shape.{double[0]} out")
    own = gene.shape if path is None else gene.method.named_shape(gene.shape, str(path))
    shape = own.replace(**changes)
    return gene.expand(shape, class_names=names, seed=recipe.train.seed, **recipe.options)


def _size(recipe: FinetuneRecipe, images: ImageSet) -> dict[str, int]:
    """The image size that a new segmenter is made for, if the data section says one."""
    size = recipe.data.img_size
    return {"img_size": size} if images.segmentation and size is not None else {}


def _resize(model: TimmModel, img_size: int | None) -> None:
    """Makes a loaded Vision Transformer take images of another size, if it has to."""
    if img_size is not None and hasattr(model, "set_input_size"):
        if isinstance(model, Segmenter):
            model.set_input_size(img_size)
        else:
            model.set_input_size(img_size=(img_size, img_size))


def _refuse_unused(recipe: FinetuneRecipe, what: str, *fields: str) -> None:
    for field in fields:
        if getattr(recipe, field):
            raise LearngeneError(f"model {recipe.model}: {field} means nothing for {what}; leave it out")


def scratch(shape: Shape, seed: int = 0, class_names: list[str] | None = None) -> TimmModel:
    """A timm ViT of a shape with timm's random initialisation: what every method has to beat."""
    return Learngene(find_method("scratch"), shape.parts[-1]).expand(shape, seed=seed, class_names=class_names)


def train_model(model: TimmModel, recipe: FinetuneRecipe, images: Splits, *, keep: bool, show: bool) -> TrainResult:
    """Trains a model on opened data and writes the descendant folder if ``keep``."""
    _refuse_classes(model, images.train)
    data = fill_preprocessing(recipe.data, model.pretrained_cfg)
    recipe = recipe.model_copy(update={"data": data})
    chans, size = input_size(model, data)
    set_drop_path(model, recipe.train.drop_path)
    loss = task_loss(images.train)

    def objective(module: nn.Module, batch: Tensor, targets: Tensor) -> Parts:
        return {"loss": loss(module(batch), targets)}

    made = made_of(None, getattr(model, "learngene", {}).get("gene"))
    stage = Stage(f"finetune {stage_name(model)}", model, objective, size, chans, made_of=made)
    result = run_stage(stage, recipe, images, keep=keep, show=show)
    set_drop_path(model, 0.0)
    crop = 1.0 if images.train.segmentation else crop_pct(data, size)
    _record_preprocessing(model, data, size, chans, crop)
    before = getattr(model, "learngene", {})
    model.learngene = {
        **{name: entry for name, entry in before.items() if name != "mask_values"},
        "class_names": images.train.class_names,
        **({"mask_values": data.mask_values} if data.mask_values else {}),
        "finetuned": {
            "data": recipe.data.names,
            "train": recipe.train.model_dump(mode="json"),
            "accuracy": asdict(result.final),
        },
    }
    if keep:
        write_once(lambda: save_descendant(model, recipe.out / "descendant"))
    return result


def evaluate(
    model: TimmModel,
    data: DataSpec | Data,
    *,
    images: ImageSet | None = None,
    split: str = "val",
    precision: str = "fp32",
) -> SetScore:
    """Scores a model on a split, on an accelerator if there is one.

    Args:
        model: A descendant, or any timm classifier; for images with masks one with a segmentation head.
        data: Where the images are; the model's own normalisation is used unless the section says otherwise.
        images: The opened split, if it is open already.
        split: ``val`` or ``train``.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.

    Raises:
        LearngeneError: If the data does not fit the model.
    """
    spec = data_section(data)
    images = images or open_for(model, spec, split)
    _refuse_classes(model, images)
    chans, size = input_size(model, spec)
    loader = eval_loader(images, fill_preprocessing(spec, model.pretrained_cfg), img_size=size, in_chans=chans)
    device = make_accelerator().device
    score = task_score(model.to(device), loader, images.ignore_index, precision=precision)
    model.to("cpu")
    return score


def open_for(model: TimmModel, spec: DataSpec, split: str) -> ImageSet:
    """A split as a model takes it: masks have its classes and mean what they did in training, unless the data says."""
    values = getattr(model, "learngene", {}).get("mask_values")
    if spec.mask_values is None and values is not None:
        spec = spec.model_copy(update={"mask_values": values})
    return open_split(spec, split, _mask_classes(model))


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


def _mask_classes(model: TimmModel) -> list[str] | int | None:
    """The classes that masks have if nobody says them: those of the segmenter that is judged on them."""
    if not isinstance(model, Segmenter):
        return None
    names: list[str] | None = getattr(model, "learngene", {}).get("class_names")
    return names or model.num_classes


def mask_names(model: TimmModel, data: DataSpec) -> list[str]:
    """What to call the classes of a segmenter's pixels: as the data section says, else as the model does."""
    given = data.mask_classes or _mask_classes(model)
    return given if isinstance(given, list) else [str(value) for value in range(given or 0)]


def _refuse_other_task(model: TimmModel, images: ImageSet) -> None:
    if isinstance(model, Segmenter) and not images.segmentation:
        raise LearngeneError(
            f"the model has a segmentation head, but {images.where} has no masks; give images/<split>/ with "
            "masks/<split>/, or a classifier"
        )
    if images.segmentation and not isinstance(model, Segmenter):
        raise LearngeneError(
            f"the model is a classifier, but {images.where} has masks; give it a segmentation head: in Python with "
            f"learngene.segment(model, {len(images.class_names)}), on the command line with `learngene finetune` or "
            "`learngene expand --segment`"
        )


def _refuse_classes(model: TimmModel, images: ImageSet) -> None:
    _refuse_other_task(model, images)
    if model.num_classes != len(images.class_names):
        raise LearngeneError(
            f"the model has {model.num_classes} classes but {images.where} has {len(images.class_names)}; "
            "expand it with the data's number of classes"
        )


def _record_preprocessing(model: TimmModel, data: DataSpec, size: int, chans: int, crop_pct: float) -> None:
    """Makes the model say how the images it was trained on were prepared."""
    model.pretrained_cfg = model.default_cfg = {
        **model.pretrained_cfg,
        "tag": model.pretrained_cfg.get("tag") if hasattr(model, "learngene") else "learngene_trained",
        "input_size": (chans, size, size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": crop_pct,
    }
