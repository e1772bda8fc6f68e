"""Condensing: an ancestry model and data in, a gene out.

The auxiliary model is the gene evaluated at its auxiliary shape, the teacher is the ancestry model, and gradients flow
into the gene's own tensors, so that a method's constraint holds at every step by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from learngene.data.preprocessing import fill_preprocessing, preprocessing_record
from learngene.data.splits import Splits, open_splits
from learngene.genes.absent_weights import remember, without_weights
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making import auxiliary
from learngene.making.arguments import Data, ancestry_fields, data_fields, loaded, recipe_of
from learngene.making.feature_teacher import for_student
from learngene.making.hyper import stage1
from learngene.making.inputs import CondenseInputs, Planned, Taught
from learngene.making.pool import make as pool_rows
from learngene.making.start import refuse_other_classes, started_gene
from learngene.making.steps import MadeGene, gene_path, train_gene, training_record
from learngene.methods import method as find_method
from learngene.methods.base import Making
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.sections import AncestrySpec
from learngene.system.errors import DataError, NoClassesError, NoSplitError, told_of
from learngene.training.run import run_stage, write_once
from learngene.training.scores import FeatureScore
from learngene.training.stage import TrainResult
from learngene.vits.descendant_folder import vit_cfg
from learngene.vits.input_size import refuse_unread
from learngene.vits.shape import ViTShape


class Maker(Protocol):
    """How the genes of some methods are trained."""

    def refuse(self, inputs: CondenseInputs) -> None:
        """Raises ``LearngeneError`` if ancestry, anchors, gene and images do not fit together."""

    def taught(self, inputs: CondenseInputs) -> Sequence[Taught]:
        """The recipe of everything that is trained, and its teachers."""


class OneStage(Maker, Protocol):
    """How the genes are trained that are trained in one stage."""

    def planned(self, inputs: CondenseInputs, *, keep: bool) -> Planned:
        """The stage in which the gene is trained in place; ``keep`` lets a saved state in its run folder count."""


ONE_STAGE: dict[Making, OneStage] = {"stage": auxiliary, "hyper": stage1}
MAKERS: dict[Making, Maker] = {**ONE_STAGE, "pool": pool_rows}
"""By what ``Method.making`` says."""


def condense(
    ancestry: Ancestry | str | Path | None = None,
    *,
    method: str,
    shape: ViTShape | str | Mapping[str, Any],
    data: Data,
    settings: Mapping[str, Any] | None = None,
    depths: Sequence[int] | None = None,
    shapes: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    start: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | str | None = None,
    features: Mapping[str, Any] | str | None = None,
    teachers: Sequence[Mapping[str, Any]] | None = None,
    knn: Data | None = None,
    pool: Mapping[str, Any] | None = None,
    hyper: Mapping[str, Any] | None = None,
    anchors: Sequence[Ancestry | str | Path] | None = None,
    out: str | Path | None = None,
    show: bool = True,
    **train_fields: Any,
) -> Learngene:
    """Condenses an ancestry model into a learngene.

    Args:
        ancestry: The teacher, or a timm name, folder or checkpoint file for it. A method that learns from labels
            alone, such as ``pre-fin`` or ``share-init``, needs none.
        method: A method whose gene is trained, see ``learngene.methods``.
        shape: The auxiliary shape.
        data: Where the images are, or a whole data section.
        settings: The method's settings, for example ``{"stages": [3, 3, 4, 3, 3]}``.
        depths: At which the gene is trained, one per step; the auxiliary depth alone by default.
        shapes: The same of any sizes: a list such as ``[{"embed_dim": 32, "depth": 3}, ...]``, or a whole section.
        start: For ``wave`` and ``any-size``: ``gene``, the file of one whose templates are taken and stay, so that
            scalers alone are trained for ``shape``, and ``scalers``, what these start at.
        distill: A distillation section or the name of a preset; the method's official one by default.
        features: With ``distill={"target": "features"}``: which features of the ancestry, and how they are compared, or
            the name of a preset.
        teachers: Further teachers of features, each as an ancestry section with ``features`` that differ.
        knn: Labelled images on which every evaluation tells the accuracy of kNN, if features are learnt.
        pool: For ``pool`` and ``sn-net``: how rows are distilled, stitch layers start and paths are tuned.
        hyper: For ``tal``, ``logah`` and ``ghn3``: how the hypernetwork is trained.
        anchors: For ``sn-net``: the pretrained ViTs that become its rows, narrow to wide.
        out: A run folder, to be able to stop and go on; None keeps the run in memory.
        show: Whether to print progress.
        **train_fields: Fields of the train section: ``epochs``, ``batch_size``, ``preset`` and so on.

    Returns:
        The gene, with its provenance and measured accuracy in ``metadata``.

    Raises:
        LearngeneError: If anything does not fit, before the first step is trained.
    """
    models = [anchor if isinstance(anchor, Ancestry) else Ancestry(anchor) for anchor in anchors or ()]
    recipe = recipe_of(
        CondenseRecipe,
        method=method,
        settings=settings,
        ancestry=ancestry_fields(ancestry),
        shape=shape,
        depths=list(depths) if isinstance(depths, Iterable) else depths,
        shapes=shapes,
        start=start,
        data=data_fields(data),
        train=train_fields,
        distill={"preset": distill} if isinstance(distill, str) else distill,
        features={"preset": features} if isinstance(features, str) else features,
        teachers=teachers,
        knn=None if knn is None else data_fields(knn),
        pool=pool,
        hyper=hyper,
        anchors=[ancestry_fields(model) for model in models] or None,
        out=out,
    )
    return run(recipe, ancestry=loaded(ancestry), anchors=models, keep=out is not None, show=show).gene


def prepare(
    recipe: CondenseRecipe,
    ancestry: Ancestry | None = None,
    images: Splits | None = None,
    anchors: Sequence[Ancestry] = (),
) -> CondenseInputs:
    """Loads ancestry and data, builds the gene and checks that all of it fits together; nothing is written."""
    refuse_unread(recipe.shape.in_chans)
    recipe = recipe.model_copy(update={"data": recipe.images})
    images = opened(recipe, images)
    kind = find_method(recipe.method, recipe.settings)
    teacher = (ancestry or _ancestry(recipe, recipe.ancestry)) if recipe.ancestry else None
    anchors = tuple(anchors) or _loaded("anchors", recipe.anchors)
    models = [*anchors[-1:], *([teacher] if teacher else [])]
    given = models[0].preprocessing if models else vit_cfg(recipe.shape, "", {})
    if recipe.distill.target == "features":
        given = for_student(given, recipe.shape.in_chans)
    gene = Learngene(kind, recipe.shape, seed=recipe.train.seed) if recipe.start is None else started_gene(recipe)
    with told_of("teachers"):
        teachers = tuple(_ancestry(recipe, spec) for spec in recipe.teachers or ())
    inputs = CondenseInputs(recipe, teacher, gene, images, anchors, teachers)
    MAKERS[kind.making].refuse(inputs)
    refuse_other_classes(gene, inputs.images.train)
    inputs.recipe = recipe.model_copy(update={"data": fill_preprocessing(recipe.data, given)})
    return inputs


def _ancestry(recipe: CondenseRecipe, spec: AncestrySpec) -> Ancestry:
    """A teacher of a recipe: for now without weights, if outputs of it are stored."""
    replay = recipe.distill.replay
    return (replay and without_weights(replay.folder, spec)) or Ancestry.from_spec(spec)


def remember_teacher(inputs: CondenseInputs) -> None:
    """Writes down beside stored outputs whose they are, so that the next run need not load them."""
    recipe, replay = inputs.recipe, inputs.recipe.distill.replay
    if replay is None or recipe.ancestry is None or inputs.ancestry is None:
        return
    remember(replay.folder, recipe.ancestry, inputs.ancestry)
    for spec, model in zip(recipe.teachers or (), inputs.teachers, strict=True):
        remember(replay.folder, spec, model)


def opened(recipe: CondenseRecipe, images: Splits | None = None) -> Splits:
    """The images of a recipe, without classes where nobody looks at them; checked, if they are open already."""
    need = "condensing" if recipe.needs_labels else None
    try:
        return open_splits(recipe.images, opened=images, labels_for=need, unlabelled=need is None)
    except (NoSplitError, NoClassesError) as error:
        if need is None or recipe.distill.target == "logits":
            raise
        raise DataError(
            f"{error}; distill.alpha {recipe.distill.alpha:g} gives labels a weight: for images without classes set it "
            "to 1, and data.labels=false"
        ) from None


def _loaded(setting: str, specs: Sequence[AncestrySpec] | None) -> tuple[Ancestry, ...]:
    with told_of(setting):
        return tuple(Ancestry.from_spec(spec) for spec in specs or ())


def run(
    recipe: CondenseRecipe,
    *,
    ancestry: Ancestry | None = None,
    anchors: Sequence[Ancestry] = (),
    images: Splits | None = None,
    keep: bool = True,
    show: bool = True,
) -> MadeGene:
    """Runs a condensing recipe, or continues it if its run folder holds an unfinished run.

    Ancestry, anchors and images are given if they are loaded already. Without ``keep`` nothing is written.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    if keep:
        refuse_foreign_gene(gene_path(recipe.out), recipe.method)
    inputs = prepare(recipe, ancestry, images, anchors)

    def train() -> tuple[TrainResult, dict[str, Any]]:
        if (maker := ONE_STAGE.get(inputs.gene.method.making)) is None:
            result, more = pool_rows.train(inputs, keep=keep, show=show)
        else:
            stage, tells = maker.planned(inputs, keep=keep)
            result = run_stage(stage, inputs.recipe, inputs.images, keep=keep, show=show)
            more = tells()
        if ancestry is None:
            write_once(lambda: remember_teacher(inputs))
        return result, provenance(inputs, result) | more

    return train_gene(inputs.gene, recipe, train, keep=keep)


def provenance(inputs: CondenseInputs, result: TrainResult) -> dict[str, Any]:
    """The metadata of a condensed gene, as documented in ``docs/format.md``."""
    recipe, images = inputs.recipe, inputs.images
    start = {} if recipe.start is None else {"start": inputs.gene.metadata["start"]}
    sections = {"train", "distill", "depths", "shapes", "features", "pool", "hyper"}
    said = recipe.model_dump(mode="json", include=sections, exclude_none=True)
    if (replay := recipe.distill.replay) is not None:  # where outputs lie, and what changes nothing, is not told
        del said["distill"]["replay"]
        said["distill"] |= {"replay": replay.decides} if replay.decides else {}
    final = asdict(result.final)
    scores = {key: round(value, 4) for key, value in final.items() if isinstance(value, (int, float))}
    return {
        "ancestry": inputs.ancestry.identity if inputs.ancestry else {},
        **({"anchors": [anchor.identity for anchor in inputs.anchors]} if inputs.anchors else {}),
        "preprocessing": preprocessing_record(recipe.data, recipe.shape.img_size),
        **({"classes": images.train.class_names} if recipe.shape.num_classes else {}),
        "data": {
            "source": recipe.data.names,
            "train_images": len(images.train),
            "val_images": len(images.val),
            "fingerprint": images.train.fingerprint(),
        },
        **start,
        "training": training_record(recipe, result, said),
        "agreement" if isinstance(result.final, FeatureScore) else "accuracy": scores,
    }
