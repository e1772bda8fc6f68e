"""Condensing: an ancestry model and data in, a gene out.

The auxiliary model is the gene evaluated at its auxiliary shape, the teacher is the ancestry model, and gradients flow
into the gene's own tensors, so that a method's constraint holds at every step by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from learngene.data.images import ImageSet
from learngene.data.preprocessing import fill_preprocessing, preprocessing_record
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import Ancestry, made_of
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making.hyper.make import refuse_guide, train_stage1
from learngene.making.pool.make import PoolSource, make_pool, refuse_sources
from learngene.methods import method as find_method
from learngene.methods.stitching import StitchedRows
from learngene.methods.tal import Hypernetwork
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.hyper import Stage1Hyper
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import Distill
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_full_disk
from learngene.training.losses import Parts, distillation_loss
from learngene.training.run import run_bytes, run_stage, write_once
from learngene.training.stage import Stage, TrainResult, set_drop_path
from learngene.vits.descendant_folder import vit_cfg
from learngene.vits.shape import ViTShape


def condense(
    ancestry: Ancestry | str | Path | None = None,
    *,
    method: str,
    shape: ViTShape | str | Mapping[str, Any],
    data: str | list[str] | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | str | None = None,
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
        distill: A distillation section or the name of a preset; the method's official one by default.
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
    known = ancestry if isinstance(ancestry, Ancestry) else None
    source = known.identity["source"] if known else ancestry
    fields: dict[str, Any] = {
        "kind": "condense",
        "method": method,
        "settings": dict(settings or {}),
        "ancestry": {"source": str(source)} if source is not None else None,
        "shape": shape,
        "data": data if isinstance(data, Mapping) else {"source": data},
        "train": train_fields,
    }
    if distill is not None:
        fields["distill"] = {"preset": distill} if isinstance(distill, str) else dict(distill)
    if pool is not None:
        fields["pool"] = dict(pool)
    if hyper is not None:
        fields["hyper"] = hyper
    models = [anchor if isinstance(anchor, Ancestry) else Ancestry(anchor) for anchor in anchors or ()]
    if models:
        fields["anchors"] = [{"source": model.identity["source"]} for model in models]
    if out is not None:
        fields["out"] = str(out)
    recipe = build_recipe(fields)
    assert isinstance(recipe, CondenseRecipe)
    return run(recipe, ancestry=known, anchors=models, keep=out is not None, show=show).gene


@dataclass
class CondenseResult:
    """What a condensing run made: the gene, where it was written, and how the training went."""

    gene: Learngene
    path: Path | None
    result: TrainResult


@dataclass
class Prepared:
    """Everything that a condensing run needs, checked against each other."""

    recipe: CondenseRecipe
    ancestry: Ancestry | None
    gene: Learngene
    images: Splits
    anchors: tuple[Ancestry, ...] = ()


def gene_path(recipe: CondenseRecipe) -> Path:
    """Where the gene of a recipe is written: beside its run folder."""
    return recipe.out.with_name(f"{recipe.out.name}.safetensors")


def prepare(
    recipe: CondenseRecipe,
    ancestry: Ancestry | None = None,
    images: Splits | None = None,
    anchors: Sequence[Ancestry] = (),
) -> Prepared:
    """Loads ancestry and data, builds the gene and checks that all of it fits together.

    Raises:
        LearngeneError: One line that says what does not fit; nothing has been written.
    """
    images = open_splits(recipe.data, opened=images, labels_for="condensing")
    kind = find_method(recipe.method, recipe.settings)
    if recipe.ancestry:
        ancestry = ancestry or Ancestry.from_spec(recipe.ancestry)
        if isinstance(kind, Hypernetwork):  # it is guided by features, which know no classes
            _refuse_other_size(recipe, images[0])
            refuse_guide(ancestry, recipe.shape, kind, (recipe.hyper or Stage1Hyper()).guidance)
        else:
            _refuse_other_task(ancestry, recipe, images[0])
        given = ancestry.preprocessing
    anchors = tuple(anchors) or tuple(Ancestry.from_spec(spec) for spec in recipe.anchors or ())
    for anchor in anchors:
        _refuse_other_task(anchor, recipe, images[0])
        given = anchor.preprocessing
    if not recipe.ancestry and not anchors:
        _refuse_other_size(recipe, images[0])
        given = vit_cfg(recipe.shape, "", {})
    recipe = recipe.model_copy(update={"data": fill_preprocessing(recipe.data, given)})
    gene = Learngene(kind, recipe.shape, seed=recipe.train.seed)
    if isinstance(gene.method, StitchedRows):
        refuse_sources(recipe, PoolSource(ancestry, anchors))
    return Prepared(recipe, ancestry, gene, images, anchors)


def _refuse_other_task(ancestry: Ancestry, recipe: CondenseRecipe, images: ImageSet) -> None:
    ancestry.refuse_mismatch(recipe.shape, len(images.class_names), recipe.data)
    if ancestry.class_names and ancestry.class_names != images.class_names:
        raise LearngeneError(
            f"ancestry {ancestry.identity['source']} was trained on other classes than the data has "
            f"('{ancestry.class_names[0]}', ... against '{images.class_names[0]}', ...)"
        )


def _refuse_other_size(recipe: CondenseRecipe, images: ImageSet) -> None:
    if recipe.shape.num_classes != len(images.class_names):
        raise LearngeneError(
            f"the auxiliary shape has {recipe.shape.num_classes} classes but {images.where} has "
            f"{len(images.class_names)}; set shape.num_classes"
        )
    if recipe.data.img_size not in (None, recipe.shape.img_size):
        raise LearngeneError(
            f"data.img_size {recipe.data.img_size} differs from the auxiliary shape's {recipe.shape.img_size}; "
            "leave it out"
        )


def run(
    recipe: CondenseRecipe,
    *,
    ancestry: Ancestry | None = None,
    anchors: Sequence[Ancestry] = (),
    images: Splits | None = None,
    keep: bool = True,
    show: bool = True,
) -> CondenseResult:
    """Runs a condensing recipe, or continues it if its run folder holds an unfinished run.

    Args:
        recipe: What to do.
        ancestry: The teacher, if it is loaded already.
        anchors: An SN-Net's anchors, if they are loaded already.
        images: The training and validation images, if they are open already.
        keep: Write the run folder and the gene file.
        show: Whether to print progress.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    path = gene_path(recipe) if keep else None
    if path:
        refuse_foreign_gene(path, recipe.method)
    prepared = prepare(recipe, ancestry, images, anchors)
    recipe, gene, teacher = prepared.recipe, prepared.gene, prepared.ancestry
    if path:
        refuse_full_disk(path, run_bytes(gene))
    if isinstance(gene.method, StitchedRows):
        source = PoolSource(teacher, prepared.anchors)
        result, paths = make_pool(recipe, source, gene, prepared.images, keep=keep, show=show)
        gene.metadata = provenance(prepared, result) | {"paths": paths}
    elif isinstance(gene.method, Hypernetwork):
        result = train_stage1(recipe, gene, teacher, prepared.images, keep=keep, show=show)
        gene.metadata = provenance(prepared, result)
    else:
        set_drop_path(gene.skeleton(), recipe.train.drop_path)
        stage = auxiliary_stage(gene, teacher, recipe.distill)
        result = run_stage(stage, recipe, prepared.images, keep=keep, show=show)
        gene.metadata = provenance(prepared, result)
    if path:
        write_once(lambda: gene.save(path, dtype=recipe.dtype))
    return CondenseResult(gene, path, result)


def auxiliary_stage(gene: Learngene, ancestry: Ancestry | None, distill: Distill) -> Stage:
    """What is trained when condensing at one auxiliary shape: the gene, by distillation, labels or both."""

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Parts:
        # The teacher sees the same mixed and erased batch, as in the authors' code.
        student = model(images)
        teacher = ancestry(images) if ancestry and distill.alpha > 0 else student.detach()
        return distillation_loss(student, teacher, targets, distill)

    shape, companions = gene.shape, (ancestry,) if ancestry else ()
    name, made = f"condense {gene.method.name}", made_of(ancestry)
    return Stage(name, gene, objective, shape.img_size, shape.in_chans, companions, made_of=made)


def provenance(prepared: Prepared, result: TrainResult) -> dict[str, Any]:
    """The metadata of a condensed gene, as documented in ``docs/format.md``."""
    recipe, (train_images, val_images) = prepared.recipe, prepared.images
    return {
        "ancestry": prepared.ancestry.identity if prepared.ancestry else {},
        **({"anchors": [anchor.identity for anchor in prepared.anchors]} if prepared.anchors else {}),
        "preprocessing": preprocessing_record(recipe.data, recipe.shape.img_size),
        "classes": train_images.class_names,
        "data": {
            "source": [Path(source).name for source in recipe.data.sources],
            "train_images": len(train_images),
            "val_images": len(val_images),
            "fingerprint": train_images.fingerprint(),
        },
        "training": {
            "epochs": recipe.train.epochs,
            "updates": result.updates,
            "images": result.images,
            "seconds": round(result.seconds, 1),
            "seed": recipe.train.seed,
            "recipe": recipe.model_dump(mode="json", include={"train", "distill", "pool", "hyper"}, exclude_none=True),
        },
        "accuracy": {key: round(value, 4) for key, value in asdict(result.final).items()},
        "versions": environment()["versions"],
    }
