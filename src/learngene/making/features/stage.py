"""Condensing in one stage from the features of one teacher or several, whose classes are nobody's business."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from accelerate.utils import gather_object
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.preprocessing import fill_preprocessing
from learngene.data.splits import Splits, open_splits, refuse_channels
from learngene.genes.ancestry import Ancestry, made_of
from learngene.making.drawn_shapes import DrawnShapes, shape_scores
from learngene.making.feature_teacher import Features, FeatureTeacher, for_student
from learngene.making.features import kept_bridge
from learngene.making.features.student import FeatureStudent, Match, current_matches
from learngene.making.inputs import CondenseInputs, Planned
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.features import FeatureTarget
from learngene.system.errors import LearngeneError, told_of
from learngene.training.feature_losses import DISTANCES
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, classification_loss, mean_parts
from learngene.training.probes import MOST_COMPARED, common_neighbours, knn_accuracy, read_features, refuse_few
from learngene.training.scores import FeatureScore, autocast
from learngene.training.stage import Stage
from learngene.training.teacher import Teacher
from learngene.vits.shape import ViTShape

Probe = Callable[[nn.Module, str], float]
"""(model, precision) to the accuracy of kNN in percent."""


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` unless every teacher has the wanted features of the images, and so on."""
    recipe = inputs.recipe
    shapes = [shape for turn in recipe.turns() for shape in turn.shapes] or [recipe.shape]
    depth = min(shape.depth for shape in shapes)
    if recipe.needs_labels:
        inputs.refuse_other_size()
    else:
        inputs.refuse_other_img_size()
    images = len(inputs.images.train)
    inputs.feature_teachers = _teachers(inputs)
    for spec in recipe.feature_targets():
        if spec.queue is not None and spec.queue > images:
            raise LearngeneError(
                f"features.queue {spec.queue} is longer than the {images} training images; use at most {images}"
            )
        for _, mine in spec.blocks:
            if mine > depth:
                raise LearngeneError(f"features.blocks: block {mine} of a gene that is trained with {depth} blocks")
        if spec.keep_bridge and recipe.shape.embed_dim not in {shape.embed_dim for shape in shapes}:
            raise LearngeneError(
                f"features.keep_bridge: keeps the bridge of the auxiliary shape, and none of shapes has its embed_dim "
                f"{recipe.shape.embed_dim}; add one that has"
            )
    kept_bridge.refuse(inputs)
    if recipe.knn is not None:
        with told_of("knn"):
            inputs.knn = open_splits(recipe.knn, labels_for="kNN")
            refuse_few(inputs.knn.train)


def planned(inputs: CondenseInputs, *, keep: bool) -> Planned:
    """The stage in which the gene is trained in place; see ``making.condense.OneStage``."""
    recipe, gene = inputs.recipe, inputs.gene
    drawn = DrawnShapes(gene, recipe, len(inputs.images.train))
    stage = feature_stage(f"condense {gene.method.name}", gene, inputs, recipe, drawn, keep=keep)

    def more() -> dict[str, Any]:
        assert isinstance(stage.module, FeatureStudent)
        batches = _first_pass(recipe.features or FeatureTarget(), inputs, recipe)
        told = kept_bridge.keep_bridge(stage.module, inputs, batches)
        told |= _scores_by_shape(stage.module, inputs, recipe)
        return told | ({"teachers": [each.identity for each in inputs.teachers]} if inputs.teachers else {})

    return stage, more


def _scores_by_shape(student: FeatureStudent, inputs: CondenseInputs, recipe: CondenseRecipe) -> dict[str, Any]:
    """What the gene's metadata says of the shapes that it was trained at."""
    teachers, probe = inputs.feature_teachers, _probe(recipe, inputs.knn)

    def score(shapes: Sequence[ViTShape], batches: Any, device: torch.device, reduce: Any) -> dict[ViTShape, Any]:
        out = {}
        for module in (student, *teachers):
            module.to(device)
        for shape in shapes:
            student.scored = shape
            out[shape] = feature_score(student, teachers, batches, recipe.train.precision, reduce, probe)
        student.scored = None
        student.to("cpu")
        return out

    return shape_scores(inputs.gene, recipe, inputs.images, score)


def feature_stage(
    name: str,
    model: nn.Module,
    inputs: CondenseInputs,
    recipe: CondenseRecipe,
    drawn: DrawnShapes | None = None,
    *,
    keep: bool,
    scored: bool = True,
) -> Stage:
    """The stage in which a model learns features, behind the first pass of its teachers.

    Args:
        name: Shown while it runs.
        model: The gene, or a row of a pool.
        inputs: Teachers and images.
        recipe: The gene's, or the row's.
        drawn: At which shapes a gene is trained, step by step.
        keep: Whether a saved state in its run folder counts, which has the statistics.
        scored: Judge by features; else by accuracy.
    """
    shape, specs, teachers = recipe.shape, recipe.feature_targets(), inputs.feature_teachers
    widths = {each.embed_dim for turn in recipe.turns() for each in turn.shapes}
    others = sorted(widths - {shape.embed_dim}) if drawn else []
    with torch.random.fork_rng():
        torch.manual_seed(recipe.train.seed)
        matches = [
            Match(spec, teacher, shape.embed_dim, len(inputs.images.train), others)
            for spec, teacher in zip(specs, teachers, strict=True)
        ]
    student = FeatureStudent(model, matches, drawn)
    if not (keep and (recipe.out / "last.pt").exists()):
        fit_scales(matches, teachers, inputs, recipe)
    pooled = any(match.pooled for match in matches)
    uses_all = recipe.shape.ending == "aligned" or recipe.distill.alpha < 1 or pooled
    uses_all = uses_all and not (drawn and drawn.several)
    stage = matching_stage(name, student, inputs, recipe, scored=scored, uses_all=uses_all)
    return replace(stage, before_step=drawn.draw) if drawn else stage


def matching_stage(
    name: str,
    student: nn.Module,
    inputs: CondenseInputs,
    recipe: CondenseRecipe,
    *,
    scored: bool = True,
    uses_all: bool,
) -> Stage:
    """The stage in which a student learns features with bridges and scales that it has already.

    Args:
        name: Shown while it runs.
        student: A model with its matches.
        inputs: Teachers and images.
        recipe: The gene's, the row's or that of a pool's paths.
        scored: Judge by features; else by accuracy.
        uses_all: See ``Stage``.
    """
    alpha, shape, teachers = recipe.distill.alpha, recipe.shape, inputs.feature_teachers
    names = [f"teacher {number} " if len(teachers) > 1 else "" for number in range(1, len(teachers) + 1)]

    def objective(model: nn.Module, images: Tensor, targets: Tensor, theirs: Sequence[Features]) -> Parts:
        found = model(images, True)
        several = found if isinstance(found, list) else [found]
        return mean_parts(
            one_loss(logits, mine, targets, theirs, first=number == 0)
            for number, (logits, _, mine) in enumerate(several)
        )

    def one_loss(
        logits: Tensor, mine: Sequence[Features], targets: Tensor, theirs: Sequence[Features], *, first: bool
    ) -> Parts:
        matches = current_matches(student)
        terms = [match.parts(one, other, push=first) for match, one, other in zip(matches, mine, theirs, strict=True)]
        loss = _total(matches, terms)
        out = {name + kind: value for name, term in zip(names, terms, strict=True) for kind, value in term.items()}
        if alpha == 1:
            return {"loss": loss, **out}
        labels = classification_loss(logits, targets)
        return {"loss": alpha * loss + (1 - alpha) * labels, "labels": labels, **out}

    probe = _probe(recipe, inputs.knn) if scored else None

    def score(model: nn.Module, batches: Iterable[tuple[Tensor, Any]], precision: str, reduce: Any) -> FeatureScore:
        for teacher in teachers:
            teacher.to(next(model.parameters()).device)  # where all that it says is stored, nobody else has
        return feature_score(model, teachers, batches, precision, reduce, probe)

    made = made_of(inputs.ancestry)
    made |= {f"teacher {number}": other.identity["sha256"] for number, other in enumerate(inputs.teachers, start=2)}
    return Stage(
        name,
        student,
        objective,
        shape.img_size,
        shape.in_chans,
        taught(inputs),
        uses_all=uses_all,
        score=score if scored else None,
        made_of=made,
    )


def taught(inputs: CondenseInputs) -> tuple[Teacher, ...]:
    """The teachers as the training loop knows them."""
    return tuple(teacher.described() for teacher in inputs.feature_teachers)


def _teachers(inputs: CondenseInputs) -> list[FeatureTeacher]:
    """Every teacher with its size and normalisation, the ancestry first."""
    recipe = inputs.recipe
    assert inputs.ancestry is not None
    data = fill_preprocessing(recipe.data, for_student(inputs.ancestry.preprocessing, recipe.shape.in_chans))
    refuse_channels(data, recipe.shape.in_chans)
    models: Sequence[Ancestry] = [inputs.ancestry, *inputs.teachers]
    specs = recipe.feature_targets()
    out: list[FeatureTeacher] = []
    for model, spec in zip(models, specs, strict=True):
        with told_of("teachers") if out else contextlib.nullcontext():
            out.append(FeatureTeacher(model, spec, recipe.shape, data))
    return out


def _total(matches: Sequence[Match], terms: Sequence[Parts]) -> Tensor:
    return torch.stack([match.total(term) for match, term in zip(matches, terms, strict=True)]).sum()


def fit_scales(
    matches: Sequence[Match], teachers: Sequence[FeatureTeacher], inputs: CondenseInputs, recipe: CondenseRecipe
) -> None:
    """The first pass: statistics of every teacher's features over training images as evaluation sees them."""
    device = make_accelerator().device
    for match, teacher in zip(matches, teachers, strict=True):
        loader = _first_pass(match.spec, inputs, recipe)
        teacher.to(device)

        def features(teacher: FeatureTeacher = teacher, loader: Any = loader) -> Iterator[Features]:
            for batch, _ in loader:
                with autocast(device.type, recipe.train.precision):
                    found = teacher(batch.to(device))
                yield {kind: value.float().cpu() for kind, value in found.items()}

        match.fit_scales(features())


def _first_pass(spec: FeatureTarget, inputs: CondenseInputs, recipe: CondenseRecipe) -> Any:
    """Batches of the training images that statistics are taken of."""
    images, shape = inputs.images.train, recipe.shape
    count = min(spec.scale_images, len(images))
    chosen = images.picked(np.linspace(0, len(images) - 1, count).astype(int).tolist())
    return eval_loader(chosen, recipe.data, img_size=shape.img_size, in_chans=shape.in_chans, batch_size=64)


@torch.inference_mode()
def feature_score(
    model: nn.Module,
    teachers: Sequence[FeatureTeacher],
    batches: Iterable[tuple[Tensor, Any]],
    precision: str,
    reduce: Any,
    probe: Probe | None,
) -> FeatureScore:
    """How well a student matches its teachers; neighbours are sought among all processes' images."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    matches = current_matches(model)
    pooled: list[list[Tensor]] = [[] for _ in range(len(teachers) + 1)]
    loss, cosines, pairs, images = 0.0, 0.0, 0, 0
    for batch, _ in batches:
        batch = batch.to(device)
        with autocast(device.type, precision):
            theirs = [teacher(batch) for teacher in teachers]
            _, own, mine = model(batch, True)
        terms = [match.parts(one, other, push=False) for match, one, other in zip(matches, mine, theirs, strict=True)]
        loss += float(_total(matches, terms)) * len(batch)
        for match, one, other in zip(matches, mine, theirs, strict=True):
            scaled = match.scaled(other)
            for kind in one:
                if match.loss(kind) in DISTANCES:
                    similar = F.cosine_similarity(one[kind].float(), scaled[kind].float(), dim=-1)
                    cosines, pairs = cosines + float(similar.mean()) * len(batch), pairs + len(batch)
        if images < MOST_COMPARED:
            for kept, whole in zip(pooled, [own, *map(one_vector, theirs)], strict=True):
                kept.append(whole.float().cpu())
        images += len(batch)
    shares = [[torch.cat(kept) for kept in pooled]]
    sums = torch.tensor([loss, images, cosines, pairs], dtype=torch.float64)
    if reduce is not None:
        shares = gather_object(shares)  # dealt out one by one, so the first of every share are the first of all
        sums = reduce(sums.float().to(device), reduction="sum").double().cpu()
    most = MOST_COMPARED // len(shares)
    own, *others = (torch.cat([part[:most] for part in parts]) for parts in zip(*shares, strict=True))
    common = float(torch.stack([common_neighbours(own, other) for other in others]).mean())
    knn = probe(model, precision) if probe else None
    model.train(training)
    loss, images, cosines, pairs = sums.tolist()
    cosine = 100 * cosines / pairs if pairs else None
    return FeatureScore(100 * common, loss / images, int(images), cosine, knn)


def one_vector(features: Features) -> Tensor:
    """A teacher's vector of an image: its pooled or class token, else the mean over what it has."""
    first = next(iter(features.values()))
    return first if first.ndim == 2 else first.mean(1)


# -- kNN while condensing ----------------------------------------------------------------------------------


def _probe(recipe: CondenseRecipe, images: Splits | None) -> Probe | None:
    """KNN on the recipe's labelled images, prepared as those that are trained on."""
    if recipe.knn is None or images is None:
        return None
    shape = recipe.shape
    data = recipe.knn.model_copy(update={"mean": recipe.data.mean, "std": recipe.data.std})
    loaders = [eval_loader(part, data, img_size=shape.img_size, in_chans=shape.in_chans) for part in images]

    def accuracy(model: nn.Module, precision: str) -> float:
        device = next(model.parameters()).device
        one, other = (read_features(lambda batch: model(batch, True)[1], each, device, precision) for each in loaders)
        return knn_accuracy(one, other, len(images.train.class_names))

    return accuracy
