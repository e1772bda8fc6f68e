"""Condensing in one stage from the features of one teacher or several, whose classes are nobody's business."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from accelerate.utils import gather_object
from torch import Tensor, nn

from learngene.data.batches import eval_loader
from learngene.data.evaluation_batches import LEAST_BATCH, EvaluationBatches
from learngene.data.images import ImageSet
from learngene.data.preprocessing import fill_preprocessing
from learngene.data.splits import Splits, open_splits, refuse_channels
from learngene.genes.ancestry import Ancestry, made_of
from learngene.making.drawn_shapes import DrawnShapes, shape_scores
from learngene.making.feature_teacher import Features, FeatureTeacher, for_student
from learngene.making.features import kept_bridge
from learngene.making.features.student import FeatureStudent, Match, current_matches, needs_scales
from learngene.making.inputs import CondenseInputs, Planned
from learngene.making.start import started_from
from learngene.recipe.condense import CondenseRecipe
from learngene.system.errors import LearngeneError, told_of
from learngene.training.evaluation_targets import AskedAgain, Evaluated, EvaluationTargets
from learngene.training.feature_losses import DISTANCES
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts, classification_loss, mean_parts
from learngene.training.probes import (
    MOST_COMPARED,
    common_neighbours,
    knn_accuracy,
    read_features,
    refuse_few,
    refuse_few_compared,
)
from learngene.training.scores import FeatureScore, autocast
from learngene.training.stage import Stage
from learngene.training.teacher import Teacher
from learngene.vits.shape import ViTShape

Matched = Callable[[Tensor], tuple[Tensor, Any, Sequence[Features]]]
"""Images to a student's logits, pooled features, and features in the space of every teacher."""

Probe = Callable[[Matched, torch.device, str], float]
"""(student, device, precision) to the accuracy of kNN in percent."""

T = TypeVar("T")


def refuse(inputs: CondenseInputs) -> None:
    """Raises ``LearngeneError`` unless every teacher has the wanted features of the images, and so on."""
    recipe = inputs.recipe
    shapes = [shape for turn in recipe.turns() for shape in turn.shapes] or [recipe.shape]
    depth = min(shape.depth for shape in shapes)
    if recipe.needs_labels:
        inputs.refuse_other_size()
    else:
        inputs.refuse_other_img_size()
    if recipe.pool is None or not recipe.needs_labels:
        refuse_few_compared(inputs.images.val, "val")
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
        student = stage.module
        assert isinstance(student, FeatureStudent)
        told = kept_bridge.keep_bridge(student, inputs, lambda number: first_pass(number, inputs, recipe))
        told |= _scores_by_shape(student, stage.evaluated, inputs, recipe)
        return told | ({"teachers": [each.identity for each in inputs.teachers]} if inputs.teachers else {})

    return stage, more


def _scores_by_shape(
    student: FeatureStudent, judges: Evaluated, inputs: CondenseInputs, recipe: CondenseRecipe
) -> dict[str, Any]:
    """What the gene's metadata says of the shapes that it was trained at."""

    def score(shapes: Sequence[ViTShape], batches: Any, device: torch.device, reduce: Any) -> dict[ViTShape, Any]:
        views = {shape: partial(student.matched, shape=shape) for shape in shapes}
        student.to(device)
        precision, probe = recipe.train.precision, _probe(recipe, inputs.knn)
        out = feature_scores(student, views, judges, batches, precision, reduce, probe)
        student.to("cpu")
        return out

    return shape_scores(recipe, inputs.images, score)


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
        for number, match in enumerate(matches):
            match.fit_scales(
                {kind: value.float().cpu() for kind, value in said.items()}
                for _, said in first_pass(number, inputs, recipe)
            )
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
    judges = evaluated(_held_out(inputs, recipe), inputs, dealt=True) if scored else ()

    def score(model: nn.Module, batches: Iterable[tuple[Tensor, Any]], precision: str, reduce: Any) -> FeatureScore:
        matched = {None: lambda images: model(images, True)}
        return feature_scores(model, matched, judges, batches, precision, reduce, probe)[None]

    made = made_of(inputs.ancestry, started_from(inputs.gene))
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
        evaluated=judges,
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
            try:
                out.append(FeatureTeacher(model, spec, recipe.shape, data))
            except Exception:
                if model.has_weights:
                    raise
                # A forward pass that does not run without weights, which timm's models may have; or a real fault again.
                out.append(FeatureTeacher(model.with_weights(), spec, recipe.shape, data))
    return out


def _total(matches: Sequence[Match], terms: Sequence[Parts]) -> Tensor:
    return torch.stack([match.total(term) for match, term in zip(matches, terms, strict=True)]).sum()


# -- images as evaluation sees them ------------------------------------------------------------------------


def evaluations(inputs: CondenseInputs, recipe: CondenseRecipe, *, scored: bool) -> list[EvaluationTargets]:
    """What is stored of images as evaluation sees them for one thing that is trained: first passes, and for scores."""
    out: list[Any] = [
        _of_first_pass(number, inputs, recipe)[1]
        for number, (spec, teacher) in enumerate(zip(recipe.feature_targets(), inputs.feature_teachers, strict=True))
        if needs_scales(spec, teacher.widths) or (spec.keep_bridge and not kept_bridge.teaches_length(spec))
    ]
    return [*out, *(evaluated(_held_out(inputs, recipe), inputs, dealt=True) if scored else ())]


def evaluated(batches: EvaluationBatches, inputs: CondenseInputs, *, dealt: bool = False) -> Evaluated:
    """How to know what every teacher says of images, see ``EvaluationTargets``."""
    accelerator, replay = make_accelerator(), inputs.recipe.distill.replay
    if replay is None:
        return [AskedAgain(teacher, accelerator.device) for teacher in taught(inputs)]
    return [EvaluationTargets(teacher, replay, batches, accelerator, dealt=dealt) for teacher in taught(inputs)]


def first_pass(number: int, inputs: CondenseInputs, recipe: CondenseRecipe) -> Iterator[tuple[Tensor, Features]]:
    """Training images, and what a teacher says of them, by which its scales are fitted."""
    batches, teacher = _of_first_pass(number, inputs, recipe)
    teacher.prepare()
    device, seen = make_accelerator().device, 0
    for ((batch, _),) in batches.epoch(0):
        with autocast(device.type, recipe.train.precision):
            said = teacher.said(batch, seen)
        yield batch, said
        seen += len(batch)


def _of_first_pass(number: int, inputs: CondenseInputs, recipe: CondenseRecipe) -> tuple[EvaluationBatches, Any]:
    images = inputs.images.train
    count = min(recipe.feature_targets()[number].scale_images, len(images))
    chosen = images.picked(np.linspace(0, len(images) - 1, count).astype(int).tolist())
    batches = evaluation_batches(chosen, recipe, batch_size=64)
    return batches, evaluated(batches, inputs)[number]


def _held_out(inputs: CondenseInputs, recipe: CondenseRecipe) -> EvaluationBatches:
    """Those that the training loop judges on."""
    return evaluation_batches(inputs.images.val, recipe, batch_size=max(recipe.train.batch_size, LEAST_BATCH))


def evaluation_batches(images: ImageSet, recipe: CondenseRecipe, *, batch_size: int) -> EvaluationBatches:
    """Images as a recipe's gene sees them in evaluation."""
    shape, device = recipe.shape, make_accelerator().device
    size: dict[str, Any] = {"img_size": shape.img_size, "in_chans": shape.in_chans, "batch_size": batch_size}
    return EvaluationBatches(images, recipe.data, recipe.train.precision, **size, device=device)


@torch.inference_mode()
def feature_scores(
    model: nn.Module,
    students: Mapping[T, Matched],
    teachers: Evaluated,
    batches: Iterable[tuple[Tensor, Any]],
    precision: str,
    reduce: Any,
    probe: Probe | None,
) -> dict[T, FeatureScore]:
    """How well a model, as one student or as several, matches its teachers, which are asked once."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found = {name: _Agreement(current_matches(model), len(teachers)) for name in students}
    seen = 0
    for batch, _ in batches:
        with autocast(device.type, precision):
            theirs = [teacher.said(batch, seen) for teacher in teachers]
        images = batch.to(device)
        for name, agreement in found.items():
            with autocast(device.type, precision):
                _, own, mine = students[name](images)
            agreement.see(own, mine, theirs)
        seen += len(batch)
    out = {
        name: agreement.score(reduce, device, probe(students[name], device, precision) if probe else None)
        for name, agreement in found.items()
    }
    model.train(training)
    return out


class _Agreement:
    """How well a student has matched its teachers so far."""

    def __init__(self, matches: Sequence[Match], teachers: int) -> None:
        self.matches = matches
        self.pooled: list[list[Tensor]] = [[] for _ in range(teachers + 1)]
        self.loss, self.cosines, self.pairs, self.images = 0.0, 0.0, 0, 0

    def see(self, own: Tensor, mine: Sequence[Features], theirs: Sequence[Features]) -> None:
        """Adds a batch: the student's pooled features, those in the space of every teacher, and the teachers'."""
        each, count = list(zip(self.matches, mine, theirs, strict=True)), len(own)
        terms = [match.parts(one, other, push=False) for match, one, other in each]
        self.loss += float(_total(self.matches, terms)) * count
        for match, one, other in each:
            scaled = match.scaled(other)
            for kind in one:
                if match.loss(kind) in DISTANCES:
                    similar = F.cosine_similarity(one[kind].float(), scaled[kind].float(), dim=-1)
                    self.cosines, self.pairs = self.cosines + float(similar.mean()) * count, self.pairs + count
        if self.images < MOST_COMPARED:
            for kept, whole in zip(self.pooled, [own, *map(one_vector, theirs)], strict=True):
                kept.append(whole.float().cpu())
        self.images += count

    def score(self, reduce: Any, device: torch.device, knn: float | None) -> FeatureScore:
        """The score, for which neighbours are sought among all processes' images."""
        shares = [[torch.cat(kept) for kept in self.pooled]]
        sums = torch.tensor([self.loss, self.images, self.cosines, self.pairs], dtype=torch.float64)
        if reduce is not None:
            shares = gather_object(shares)  # dealt out one by one, so the first of every share are the first of all
            sums = reduce(sums.float().to(device), reduction="sum").double().cpu()
        most = MOST_COMPARED // len(shares)
        own, *others = (torch.cat([part[:most] for part in parts]) for parts in zip(*shares, strict=True))
        common = float(torch.stack([common_neighbours(own, other) for other in others]).mean())
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

    def accuracy(student: Matched, device: torch.device, precision: str) -> float:
        one, other = (read_features(lambda batch: student(batch)[1], each, device, precision) for each in loaders)
        return knn_accuracy(one, other, len(images.train.class_names))

    return accuracy
