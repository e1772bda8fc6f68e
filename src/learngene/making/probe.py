"""Frozen features of any model judged on labelled images: its head and its classes do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from learngene.data.batches import eval_loader
from learngene.data.images import ImageSet
from learngene.data.preprocessing import fill_preprocessing
from learngene.data.splits import open_splits
from learngene.making.arguments import Data, data_section, model_of
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError
from learngene.system.machine_faults import machine_faults
from learngene.training.loop import make_accelerator
from learngene.training.probes import (
    MOST_COMPARED,
    LinearProbe,
    common_neighbours,
    compared_neighbours,
    knn_accuracy,
    linear_probe,
    read_features,
    refuse_few,
    refuse_few_compared,
)
from learngene.vits.input_size import at_size, image_config
from learngene.vits.segmenter import Segmenter
from learngene.vits.timm_models import TimmModel


@dataclass(frozen=True)
class Probes:
    """What a model's frozen features score.

    Attributes:
        knn: Percent of images that the vote of their 20 nearest training images names rightly; None if not asked for.
        linear: Of a linear classifier on the features; None if not asked for.
        neighbours: Of every judged image's nearest, the percentage that is also its nearest for the teacher; None
            without one.
        nearest: How many of them that are: 20, but a quarter of the other judged images at most.
        train_images: How many images voted and were trained on.
        images: How many were judged.
    """

    knn: float | None
    linear: LinearProbe | None
    train_images: int
    images: int
    neighbours: float | None = None
    nearest: int | None = None


def probe(
    model: TimmModel | str | Path,
    data: DataSpec | Data,
    *,
    knn: bool = True,
    linear: bool = False,
    teacher: TimmModel | str | Path | None = None,
    seeds: int = 3,
    split: str = "val",
    precision: str = "fp32",
) -> Probes:
    """Judges what a model's head would read: class token, mean over patches, or whatever its pooling gives.

    Args:
        model: A descendant, or any timm model, with or without a head, or its folder or name; it stays as it is.
        data: Where images are, which need labels for ``knn`` and ``linear`` only; the model's
            own normalisation is used unless the section says otherwise.
        knn: Let the 20 nearest training images by cosine vote, exp(cosine / 0.07) each, as DINO does.
        linear: Train a linear classifier, with the best of five rates.
        teacher: A model, or its folder or name, with which it should agree on who resembles whom; it gets the
            images as it was trained.
        seeds: How often the classifier is trained.
        split: ``val`` or ``train``, on which is judged; the training images vote and are learnt from.
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.

    Raises:
        LearngeneError: If the data does not fit the model; for ``knn`` and ``linear``, if it has no classes, or a class
            of fewer than two images; for a teacher, if fewer than five images are judged.
    """
    model = model_of("probe", model)
    if isinstance(model, Segmenter):
        raise LearngeneError(
            "the model has a segmentation head; kNN and linear probes need a model with one vector an image"
        )
    if split not in ("train", "val"):
        raise LearngeneError(f"unknown split '{split}'; give train or val")
    spec = data_section(data)
    votes = knn or linear
    if votes:
        images = open_splits(spec, labels_for="a probe")
        refuse_few(images.train)
    else:
        images = open_splits(spec.model_copy(update={"labels": False}), unlabelled=True)
    judged = images.val if split == "val" else images.train
    if teacher is not None:
        refuse_few_compared(judged, split)
    *trained, test = _features(model, [images.train, judged] if votes else [judged], spec, precision)
    common = nearest = None
    if teacher is not None:
        teacher = model_of("probe: teacher", teacher)
        judged = judged.picked(range(min(MOST_COMPARED, len(judged))))
        own_way = spec.model_copy(update={"mean": None, "std": None, "img_size": None})
        ((theirs, _),) = _features(teacher, [judged], own_way, precision)
        nearest = compared_neighbours(len(judged))
        common = 100 * float(common_neighbours(test[0][: len(theirs)], theirs).mean())
    classes = len(images.train.class_names)
    return Probes(
        knn_accuracy(trained[0], test, classes) if knn else None,
        linear_probe(trained[0], test, classes, seeds=seeds) if linear else None,
        len(images.train),
        len(test[1]),
        common,
        nearest,
    )


def _features(
    model: TimmModel, images: Sequence[ImageSet], spec: DataSpec, precision: str
) -> list[tuple[Tensor, Tensor]]:
    """Of every set what the model's head reads of its images, and their labels."""
    model, chans, size = at_size(model, spec.img_size)
    device, training = make_accelerator().device, model.training
    model.to(device).eval()

    def features(batch: Tensor) -> Tensor:
        out: Tensor = model.forward_head(model.forward_features(batch), pre_logits=True)
        if out.ndim != 2:
            raise LearngeneError(f"the model's head reads {tuple(out.shape[1:])} numbers of an image, not one vector")
        return out

    section = fill_preprocessing(spec, image_config(model))
    with machine_faults():
        out = [
            read_features(features, eval_loader(part, section, img_size=size, in_chans=chans), device, precision)
            for part in images
        ]
    model.train(training).to("cpu")
    if not all(found.isfinite().all() for found, _ in out):
        raise LearngeneError("the model's features are not finite numbers, so their scores mean nothing")
    return out
