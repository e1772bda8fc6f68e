"""Fine-tuning: ordinary training of a descendant, or of any timm model, with no constraint left.

The images decide the task: with a class each a classifier is trained, with masks a segmenter.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.data.batches import EvalBatches, eval_loader
from learngene.data.class_match import fits, numbered
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.preprocessing import crop_pct, fill_preprocessing
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import made_of
from learngene.genes.expansion import with_heads
from learngene.genes.gene import Learngene
from learngene.making.arguments import Data, data_fields, data_section, model_of, recipe_of, refuse_other
from learngene.making.steps import Step, make
from learngene.methods import method as find_method
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError, told_of
from learngene.system.files import refuse_foreign, refuse_full_disk
from learngene.system.machine_faults import machine_faults
from learngene.training.classification import Baseline
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, task_loss
from learngene.training.rounding import rounded
from learngene.training.run import run_stage, write_once
from learngene.training.run_folder import run_bytes
from learngene.training.scores import SetScore, counted, task_score
from learngene.training.stage import Stage, TrainResult, set_drop_path
from learngene.training.teacher import Outputs
from learngene.vits.checkpoint import is_checkpoint, load_checkpoint
from learngene.vits.class_names import class_names, some
from learngene.vits.descendant_folder import PROVENANCE, load_descendant, save_descendant
from learngene.vits.input_size import at_size, image_config, is_fixed_size, resize, square_size
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
            with a segmentation head, see ``segment``. If it says that its classes are others, its head starts afresh;
            if they are the same in another order, the data's are numbered as the model's.
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
    model = refuse_other("finetune", model)
    recipe = recipe_of(FinetuneRecipe, model="in memory", data=data_fields(data), train=train_fields, out=out)
    return train_model(model, recipe, open_splits(recipe.data), keep=out is not None, show=show)


@dataclass
class FinetuneResult:
    """What a fine-tuning run made: the model, its folder, its score before, and how the training went."""

    model: TimmModel
    path: Path
    untuned: SetScore
    result: TrainResult


def run(recipe: FinetuneRecipe, *, images: Splits | None = None, show: bool = True) -> FinetuneResult:
    """Runs a fine-tuning recipe, or continues it if its run folder holds an unfinished run.

    Images are given if they are open already.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    images = open_splits(recipe.data, opened=images)
    model = starting_model(recipe, images.train)
    path = recipe.out / "descendant"
    refuse_foreign(path, PROVENANCE)
    refuse_full_disk(path, run_bytes(model))

    def tuned() -> FinetuneResult:
        untuned = evaluate(model, recipe.data, images=images.val)  # whose classes are the model's by now
        return FinetuneResult(model, path, untuned, train_model(model, recipe, images, keep=True, show=show))

    return make(Step(f"descendant {path}", path, tuned))


def starting_model(recipe: FinetuneRecipe, images: ImageSet) -> TimmModel:
    """The model a recipe starts from: expanded from a gene, loaded from a folder, or fresh.

    Where the images have masks, a classifier's head is replaced by a fresh segmentation head. A head of other classes
    is replaced, too. The model takes images of the size that the data section says.

    Raises:
        LearngeneError: If the source is none of these, the shape cannot be made, the model cannot take the images, or a
            segmenter meets images without masks.
    """
    model = _source_model(recipe, images)
    resize(model, recipe.data.img_size)
    square_size(model, recipe.data.img_size)  # which refuses what images are never read as
    becomes_segmenter = images.segmentation and not isinstance(model, Segmenter)
    if not becomes_segmenter:
        _refuse_other_task(model, images)
        return _with_head_for(model, images, recipe)
    return fresh_head(model, images, recipe.train.seed)


def _with_head_for(model: TimmModel, images: ImageSet, recipe: FinetuneRecipe) -> TimmModel:
    """The model with its own head if that is for the images' classes, else with a fresh one."""
    if fits(images, model, recipe.data):
        return model
    names = class_names(model)
    if names is not None and len(names) == len(images.class_names):
        warnings.warn(
            f"the model's classes ({some(names)}) are not those of {images.where} ({some(images.class_names)}), so its "
            "head starts afresh",
            stacklevel=4,
        )
    return fresh_head(model, images, recipe.train.seed)


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
    model.learngene = {**getattr(model, "learngene", {}), "class_names": names}
    if "shape" in model.learngene and not isinstance(model, Segmenter):
        model.learngene["shape"] = {**model.learngene["shape"], "num_classes": len(names)}
    return model


def _source_model(recipe: FinetuneRecipe, images: ImageSet) -> TimmModel:
    source, names = recipe.model, images.class_names
    size = _own_size(recipe)
    if source == "scratch":
        if recipe.shape is None:
            raise LearngeneError("model scratch: needs a shape, for example shape: {embed_dim: 192, num_heads: 3}")
        _refuse_unused(recipe, "random weights", "options", "model_args")
        shape = shape_from({"num_classes": len(names), **size, **recipe.shape})
        return scratch(shape, recipe.train.seed, class_names=names)
    if is_checkpoint(source, recipe.architecture):
        _refuse_unused(recipe, "a checkpoint, which has its shape", "shape", "options")
        model = load_checkpoint(source, recipe.architecture, recipe.model_args, state=recipe.state)
        return model if model.num_classes == len(names) else fresh_head(model, images, recipe.train.seed)
    _refuse_unused(recipe, "what is no checkpoint file", "architecture", "state")
    if Path(source).is_dir():
        _refuse_unused(recipe, "a descendant, which has its shape", "shape", "options", "model_args")
        return load_descendant(source)
    if not Path(source).exists() and Path(source).suffix != ".safetensors":
        _refuse_unused(recipe, "a timm model, which has its shape", "shape", "options")
        size = size if images.segmentation or is_fixed_size(source) else {}  # others take any, and are not told
        arguments = {**size, **recipe.model_args, "num_classes": len(names)}
        return timm_model(source, recipe.pretrained, arguments, seed=recipe.train.seed)
    _refuse_unused(recipe, "a gene", "model_args")
    gene = Learngene.load(source)
    changes = {"num_classes": len(names), **size, **(recipe.shape or {})}
    path = changes.pop("path", None)
    if path is not None and (double := [name for name in ("depth", "embed_dim", "num_heads") if name in changes]):
        raise LearngeneError(f"shape.path says depth, width and heads already; leave shape.{double[0]} out")
    own = gene.shape if path is None else gene.method.named_shape(gene.shape, str(path))
    shape = own.replace(**with_heads(gene, changes))
    known = names if images.named and recipe.data.match_classes == "name" else None
    return gene.expand(shape, class_names=known, seed=recipe.train.seed, **recipe.options)


def _own_size(recipe: FinetuneRecipe) -> dict[str, int]:
    """The image size that a new model is made for, if the data section says one.

    Raises:
        LearngeneError: If shape or arguments say another.
    """
    size = recipe.data.img_size
    for where in ("shape", "model_args"):
        other = (getattr(recipe, where) or {}).get("img_size", size)
        if size is not None and other not in (size, [size, size]):
            raise LearngeneError(f"data.img_size {size} differs from {where}.img_size {other}; leave one of them out")
    return {} if size is None else {"img_size": size}


def _refuse_unused(recipe: FinetuneRecipe, what: str, *fields: str) -> None:
    for field in fields:
        if getattr(recipe, field):
            raise LearngeneError(f"model {recipe.model}: {field} means nothing for {what}; leave it out")


def scratch(shape: Shape, seed: int = 0, class_names: list[str] | None = None) -> TimmModel:
    """A timm ViT of a shape with timm's random initialisation: what every method has to beat."""
    return Learngene(find_method("scratch"), shape.parts[-1]).expand(shape, seed=seed, class_names=class_names)


def train_model(model: TimmModel, recipe: FinetuneRecipe, images: Splits, *, keep: bool, show: bool) -> TrainResult:
    """Trains a model on opened data and writes the descendant folder if ``keep``."""
    _refuse_other_task(model, images.train)
    if model.num_classes == len(images.train.class_names):
        _with_head_for(model, images.train, recipe)
    images = Splits(*(numbered(split, model, recipe.data) for split in images))
    resize(model, recipe.data.img_size)
    chans, size = square_size(model, recipe.data.img_size)
    other = baseline_of(recipe.baseline, images.val, recipe.data, recipe.train.precision) if recipe.baseline else None
    data = fill_preprocessing(recipe.data, image_config(model))
    recipe = recipe.model_copy(update={"data": data})
    set_drop_path(model, recipe.train.drop_path)
    loss = task_loss(images.train)

    def objective(module: nn.Module, batch: Tensor, targets: Tensor, _theirs: Sequence[Outputs]) -> Parts:
        return {"loss": loss(module(batch), targets)}

    made = made_of(None, getattr(model, "learngene", {}).get("gene"))
    stage = Stage(f"finetune {stage_name(model)}", model, objective, size, chans, baseline=other, made_of=made)
    with rounded(model) if recipe.train.quantize else contextlib.nullcontext():
        result = run_stage(stage, recipe, images, keep=keep, show=show)
    set_drop_path(model, 0.0)
    crop = 1.0 if images.train.segmentation else crop_pct(data, size)
    _record_preprocessing(model, data, size, chans, crop)
    before = getattr(model, "learngene", {})
    model.learngene = {
        **{name: entry for name, entry in before.items() if name not in ("mask_values", "bridge")},
        "class_names": images.train.class_names,
        **({"mask_values": data.mask_values} if data.mask_values else {}),
        "finetuned": {
            "data": recipe.data.names,
            "train": recipe.train.model_dump(mode="json"),
            "accuracy": {name: value for name, value in asdict(result.final).items() if name != "report"},
        },
    }
    if keep:
        write_once(lambda: save_descendant(model, recipe.out / "descendant"))
    return result


def evaluate(
    model: TimmModel | str | Path,
    data: DataSpec | Data,
    *,
    images: ImageSet | None = None,
    split: str = "val",
    precision: str = "fp32",
    baseline: TimmModel | str | Path | None = None,
) -> SetScore:
    """Scores a model on a split, on an accelerator if there is one.

    Args:
        model: A descendant, or any timm classifier, or its folder or name; for images with masks one with a
            segmentation head.
        data: Where the images are; the model's own normalisation is used unless the section says otherwise.
        images: The opened split, if it is open already.
        split: ``val`` or ``train``.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
        baseline: Another classifier to compare it with on the same images, such as its teacher, or one from scratch.

    Returns:
        The score; of a classifier with a ``report``, whose ``baseline`` is the comparison.

    Classes are found by name where both sides have names: their order may differ, and the images may lack some.

    Raises:
        LearngeneError: If the data does not fit the model, or the baseline.
    """
    spec, model = data_section(data), model_of("evaluate", model)
    images = images or open_for(model, spec, split)
    other = None if baseline is None else baseline_of(baseline, images, spec, precision)
    with _judged(model, images, spec) as (judged, loader):
        names = loader.views.images.class_names
        how: dict[str, Any] = {"precision": precision, "names": names, "baseline": other}
        return task_score(judged, loader, images.ignore_index, **how)


def baseline_of(model: TimmModel | str | Path, images: ImageSet, spec: DataSpec, precision: str) -> Baseline:
    """What a classifier that another is compared with gets right of some images.

    Raises:
        LearngeneError: If it does not fit them, or they have masks.
    """
    name = str(model) if isinstance(model, (str, Path)) else "the baseline"
    with told_of("baseline"):
        if images.segmentation:
            raise LearngeneError(f"models are compared by a guess for each image, but {images.where} has masks")
        own = spec.model_copy(update={"img_size": None})  # as it was made to see images
        with _judged(model_of("evaluate", model), images, own) as (judged, loader):
            tally = counted(judged, loader, precision=precision)
        if not isfinite(tally.result().loss):
            raise LearngeneError(f"{name}: its outputs are not finite numbers, so its scores mean nothing")
    return Baseline(name, torch.cat(tally.hits).numpy())


@contextlib.contextmanager
def _judged(model: TimmModel, images: ImageSet, spec: DataSpec) -> Iterator[tuple[TimmModel, EvalBatches]]:
    """A model on the device, with images as it takes them, whose classes are numbered as its own."""
    _refuse_other_task(model, images)
    images = numbered(images, model, spec)
    model, chans, size = at_size(model, spec.img_size)
    loader = eval_loader(images, fill_preprocessing(spec, image_config(model)), img_size=size, in_chans=chans)
    with machine_faults():
        yield model.to(make_accelerator().device), loader
    model.to("cpu")


def open_for(model: TimmModel, spec: DataSpec, split: str) -> ImageSet:
    """A split as a model takes it: masks have its classes and mean what they did in training, unless the data says."""
    values = getattr(model, "learngene", {}).get("mask_values")
    if spec.mask_values is None and values is not None:
        spec = spec.model_copy(update={"mask_values": values})
    return open_split(spec, split, _mask_classes(model))


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
    return class_names(model) or model.num_classes


def mask_names(model: TimmModel, data: DataSpec) -> list[str]:
    """What to call the classes of a segmenter's pixels: as the model does, else as the data section."""
    given = class_names(model) or data.mask_classes
    return given if isinstance(given, list) else [str(value) for value in range(model.num_classes)]


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


def _record_preprocessing(model: TimmModel, data: DataSpec, size: int, chans: int, crop_pct: float) -> None:
    """Makes the model say how the images it was trained on were prepared."""
    from_gene = "method" in getattr(model, "learngene", {})
    model.pretrained_cfg = model.default_cfg = {
        **model.pretrained_cfg,
        "tag": model.pretrained_cfg.get("tag") if from_gene else "learngene_trained",
        "input_size": (chans, size, size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": crop_pct,
    }
