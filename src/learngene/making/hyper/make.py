"""Running the two stages: a hypernetwork trained on one data set under an ancestry, then tuned on several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.data.preprocessing import fill_preprocessing, preprocessing_record
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import Ancestry, made_of
from learngene.genes.gene import Learngene
from learngene.genes.gene_file import refuse_foreign_gene
from learngene.making.hyper.embedding import embedding_of
from learngene.making.hyper.meta import MetaBatch, meta_loss
from learngene.methods import default_settings
from learngene.methods import method as find_method
from learngene.methods.tal import TAL, Hypernetwork, LoGAH
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.hyper import Guidance, Stage1Hyper
from learngene.recipe.loading import build_recipe
from learngene.recipe.tune import TuneRecipe
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_full_disk
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts
from learngene.training.optimizer import refuse_unknown_optimizer
from learngene.training.run import run_bytes, run_stage, write_once
from learngene.training.run_folder import RunFolder
from learngene.training.stage import Stage, TrainResult
from learngene.training.task_batches import TaskFeed, TaskImages, joined
from learngene.vits.descendant_folder import vit_cfg
from learngene.vits.shape import ViTShape

# -- stage 1 -------------------------------------------------------------------------------------------------


def train_stage1(
    recipe: CondenseRecipe, gene: Learngene, ancestry: Ancestry | None, images: Splits, *, keep: bool, show: bool
) -> TrainResult:
    """Stage 1: a hypernetwork learns to predict ViTs for one data set, under the ancestry's guidance.

    Args:
        recipe: With mean and std resolved.
        gene: The hypernetwork, trained in place.
        ancestry: The guide; None for labels alone.
        images: The training and validation images.
        keep: Write the run folder.
        show: Whether to print progress.
    """
    hyper = recipe.hyper or Stage1Hyper()
    guidance, teacher_width = hyper.guidance, ancestry.width if ancestry else 0
    meta = MetaBatch(gene, hyper, guidance=guidance, teacher_width=teacher_width, drop_path=recipe.train.drop_path)
    patches = guidance.features == "channel-wise"

    def objective(model: nn.Module, batch: Tensor, targets: Tensor) -> Parts:
        teacher = ancestry.features(batch, patches=patches) if ancestry else None
        return meta_loss(model(batch), targets, hyper, guidance, teacher)

    shape = gene.shape
    stage = Stage(
        f"train {gene.method.name}",
        meta,
        objective,
        shape.img_size,
        shape.in_chans,
        companions=(ancestry,) if ancestry else (),
        before_step=lambda _epoch, _step: meta.draw(),
        uses_all=False,
        made_of=made_of(ancestry),
    )
    return run_stage(stage, recipe, images, keep=keep, show=show)


def refuse_guide(ancestry: Ancestry, shape: ViTShape, method: Hypernetwork, guidance: Guidance) -> None:
    """Raises ``LearngeneError`` unless the ancestry takes the images, and its features fit where they are used."""
    label = ancestry.identity["source"]
    patches = guidance.features == "channel-wise"
    zeros = torch.zeros(1, shape.in_chans, shape.img_size, shape.img_size, device=ancestry.device)
    try:
        found = ancestry.features(zeros, patches=patches)
    except (AssertionError, RuntimeError) as error:
        raise LearngeneError(
            f"ancestry {label} does not take images of {shape.img_size} px with {shape.in_chans} channels; change "
            f"shape.img_size or pass ancestry.model_args={{img_size: {shape.img_size}}} ({str(error).splitlines()[0]})"
        ) from None
    if patches and found.shape[1] != shape.grid_size**2:
        raise LearngeneError(
            f"ancestry {label} has {found.shape[1]} patches but the predicted ViTs have {shape.grid_size**2}; "
            "channel-wise guidance needs as many, features: pooled does not"
        )
    refuse_task_dim(ancestry, method)
    expansion, need = method.config.expansion, min(ancestry.width, method.config.max_shape)
    if method.decoder == "low-rank" and guidance.map == "predicted" and need > expansion:
        raise LearngeneError(
            f"ancestry {label} has {ancestry.width} features, but the decoder that predicts M has factors of "
            f"{expansion} rows; set settings.expansion={need} or more, or hyper.guidance.map=learned"
        )


def refuse_task_dim(ancestry: Ancestry, method: Hypernetwork) -> None:
    """Raises ``LearngeneError`` if the ancestry's features are not as wide as the task layers' inputs."""
    if method.task_aware and method.task_dim != ancestry.width:
        raise LearngeneError(
            f"ancestry {ancestry.identity['source']} has {ancestry.width} features, but the task layers take "
            f"{method.task_dim}; set settings.task_dim={ancestry.width} when the gene is made"
        )


# -- stage 2 -------------------------------------------------------------------------------------------------


@dataclass
class TuneResult:
    """What stage 2 made: the gene, where it was written, and how the training went."""

    gene: Learngene
    path: Path | None
    result: TrainResult


@dataclass
class Prepared:
    """Everything that stage 2 needs, checked against each other.

    Attributes:
        recipe: What to do.
        gene: The hypernetwork.
        ancestry: Whose features the embeddings are.
        tasks: Images of every task, and how they are prepared.
    """

    recipe: TuneRecipe
    gene: Learngene
    ancestry: Ancestry | None
    tasks: dict[str, TaskImages]


def tune(
    gene: Learngene | str | Path,
    ancestry: Ancestry | str | Path | None = None,
    *,
    tasks: Mapping[str, str | list[str] | Mapping[str, Any]],
    temperature: float = 2.0,
    freeze_encoder: bool = False,
    task_layers: bool | None = None,
    hyper: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    show: bool = True,
    **train_fields: Any,
) -> Learngene:
    """Tunes a hypernetwork on several tasks (stage 2).

    Args:
        gene: Of stage 1, or its file; a gene in memory is not changed.
        ancestry: The one of stage 1, whose features of each task's images are the task embeddings; for tal only.
        tasks: Data sets by name: where each one's images are, or its whole data section.
        temperature: Of drawing tasks: 1 by size, large values evenly.
        freeze_encoder: Train the decoder and the task layers only.
        task_layers: True gives a gene of LoGAH task layers, false takes them from one of TAL; by default as it is.
        hyper: The hyper section: ``meta_batch`` and ``penalty``.
        out: A run folder, to be able to stop and go on; None keeps the run in memory.
        show: Whether to print progress.
        **train_fields: Fields of the train section: ``epochs``, ``batch_size``, ``preset`` and so on.

    Returns:
        A gene that knows the tasks by name.

    Raises:
        LearngeneError: If anything does not fit, before the first step is trained.
    """
    known = ancestry if isinstance(ancestry, Ancestry) else None
    if not isinstance(gene, (Learngene, str, Path)):
        raise LearngeneError(f"tune: gene must be a Learngene or its file, not {type(gene).__name__}")
    if not isinstance(ancestry, (Ancestry, str, Path, type(None))):
        raise LearngeneError(f"tune: ancestry must be an Ancestry, a name or a path, not {type(ancestry).__name__}")
    source = known.identity["source"] if known else ancestry
    if not isinstance(tasks, Mapping):
        raise LearngeneError(f"tune: tasks must be a mapping from names of data sets, not {type(tasks).__name__}")
    fields: dict[str, Any] = {
        "kind": "tune",
        "gene": "in memory" if isinstance(gene, Learngene) else str(gene),
        "ancestry": {"source": str(source)} if source is not None else None,
        "tasks": {
            name: {"data": data if isinstance(data, Mapping) else {"source": data}} for name, data in tasks.items()
        },
        "temperature": temperature,
        "freeze_encoder": freeze_encoder,
        "task_layers": task_layers,
        "train": train_fields,
    }
    if hyper is not None:
        fields["hyper"] = hyper
    if out is not None:
        fields["out"] = str(out)
    recipe = build_recipe(fields)
    assert isinstance(recipe, TuneRecipe)
    memory = gene if isinstance(gene, Learngene) else None
    return run(recipe, gene=memory, ancestry=known, keep=out is not None, show=show).gene


def gene_path(recipe: TuneRecipe) -> Path:
    """Where the gene of a recipe is written: beside its run folder."""
    return recipe.out.with_name(f"{recipe.out.name}.safetensors")


def prepare(
    recipe: TuneRecipe,
    gene: Learngene | None = None,
    ancestry: Ancestry | None = None,
    images: Mapping[str, Splits] | None = None,
) -> Prepared:
    """Loads gene, ancestry and data and checks that all of it fits together; nothing is computed yet.

    Raises:
        LearngeneError: One line per fault; nothing has been written.
    """
    gene = _starting_gene(recipe, gene)
    task_aware = getattr(gene.method, "task_aware", False) if recipe.task_layers is None else recipe.task_layers
    recipe.refuse_ancestry(task_aware)
    if recipe.ancestry is not None:
        ancestry = ancestry or Ancestry.from_spec(recipe.ancestry)
    if recipe.task_layers is not None:
        gene = with_task_layers(gene, ancestry.width if ancestry and task_aware else 0)
    method = gene.method
    assert isinstance(method, Hypernetwork)
    method.refuse_trained(gene.shape)
    if ancestry is not None and task_aware:
        refuse_task_dim(ancestry, method)
        given = gene.metadata.get("ancestry", {}).get("sha256")
        if given and given != ancestry.identity["sha256"]:
            raise LearngeneError(
                f"ancestry {ancestry.identity['source']} is not the one that the gene was trained under (sha256 "
                f"{ancestry.identity['sha256'][:12]}, not {given[:12]}); its features mean something else"
            )
    refuse_unknown_optimizer(recipe.train)
    # Mean and std of a task are its own, else those of stage 1, else the ancestry's.
    given = gene.metadata.get("preprocessing") or (ancestry.preprocessing if ancestry else vit_cfg(gene.shape, "", {}))
    tasks: dict[str, TaskImages] = {}
    faults = []
    for name, task in recipe.tasks.items():
        try:
            spec = fill_preprocessing(task.data, given)
            train = recipe.task_train(name)
            splits = open_splits(
                spec,
                train,
                opened=(images or {}).get(name),
                labels_for="tuning a hypernetwork",
                processes=make_accelerator().num_processes,
                in_chans=gene.shape.in_chans,
            )
            if task.data.img_size not in (None, gene.shape.img_size):
                raise LearngeneError(
                    f"data.img_size {task.data.img_size} differs from the gene's {gene.shape.img_size}; leave it out"
                )
            method.refuse(gene.shape, gene.shape.replace(num_classes=len(splits.train.class_names)))
            tasks[name] = TaskImages(splits, spec, train)
        except LearngeneError as error:
            faults.append(f"task {name}: {error}")
    if faults:
        raise LearngeneError("\n".join(faults))
    return Prepared(recipe, gene, ancestry, tasks)


def _starting_gene(recipe: TuneRecipe, gene: Learngene | None) -> Learngene:
    """The gene of stage 1, as a copy, or a fresh one."""
    if recipe.gene is None:
        assert recipe.method is not None
        assert recipe.shape is not None
        return Learngene(find_method(recipe.method, recipe.settings), recipe.shape, seed=recipe.train.seed)
    gene = gene or Learngene.load(recipe.gene)
    if not isinstance(gene.method, Hypernetwork):
        raise LearngeneError(
            f"{recipe.gene}: a gene of {gene.method.name}, which predicts nothing; use tal, logah or ghn3"
        )
    tensors = {name: value.detach().clone() for name, value in gene.tensors().items()}
    return Learngene(gene.method, gene.shape, tensors, metadata=gene.metadata)


def with_task_layers(gene: Learngene, task_dim: int) -> Learngene:
    """A copy of a gene with task layers, which start at zero as the authors' code has them, or without.

    Args:
        gene: Of LoGAH or TAL; what both have is kept.
        task_dim: Width of the embeddings; 0 leaves task layers out.

    Raises:
        LearngeneError: If it is GHN-3's, to which nobody gave task layers.
    """
    if not isinstance(gene.method, (LoGAH, TAL)):
        raise LearngeneError(f"task_layers: are TAL's, and so for genes of logah or tal, not of {gene.method.name}")
    settings = default_settings(gene.method) | {"task_dim": task_dim}
    kind = find_method("tal" if task_dim else "logah", settings)
    have = gene.tensors()
    tensors = {
        name: have[name].detach().clone() if name in have and tuple(have[name].shape) == size else torch.zeros(size)
        for name, size in kind.gene_tensors(gene.shape).items()
    }
    return Learngene(kind, gene.shape, tensors, metadata=gene.metadata)


def run(
    recipe: TuneRecipe,
    *,
    gene: Learngene | None = None,
    ancestry: Ancestry | None = None,
    images: Mapping[str, Splits] | None = None,
    keep: bool = True,
    show: bool = True,
) -> TuneResult:
    """Runs stage 2, or continues it if its run folder holds an unfinished run.

    Args:
        recipe: What to do.
        gene: The gene of stage 1, if it is loaded already.
        ancestry: The ancestry, if it is loaded already.
        images: Training and validation images by task, if they are open already.
        keep: Write the run folder and the gene file.
        show: Whether to print progress.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    path = gene_path(recipe) if keep else None
    prepared = prepare(recipe, gene, ancestry, images)
    if path:
        refuse_foreign_gene(path, prepared.gene.method.name)
        refuse_full_disk(path, run_bytes(prepared.gene))
        RunFolder(recipe.out, recipe)  # refuses another run's folder before the ancestry looks at all images
    embeddings = embed_tasks(prepared)
    stage = tuning_stage(prepared, embeddings)
    both = joined({name: task.images for name, task in prepared.tasks.items()})
    result = run_stage(stage, recipe, both, keep=keep, show=show)
    tuned = prepared.gene
    tuned.metadata = provenance(prepared, embeddings, result)
    if path:
        write_once(lambda: tuned.save(path, dtype=recipe.dtype))
    return TuneResult(tuned, path, result)


def embed_tasks(prepared: Prepared) -> dict[str, TaskEmbedding]:
    """The embeddings of all tasks; none without task layers."""
    if prepared.ancestry is None:
        return {}
    ancestry = prepared.ancestry
    return {name: embedding_of(ancestry, task.images[0], name, task.data) for name, task in prepared.tasks.items()}


def tuning_stage(prepared: Prepared, embeddings: Mapping[str, TaskEmbedding]) -> Stage:
    """What stage 2 trains: all of the hypernetwork, by the labels of one task per step."""
    recipe, gene = prepared.recipe, prepared.gene
    for name, parameter in gene.tensors().items():
        if recipe.freeze_encoder and name.startswith("encoder.") and not {"scale", "shift"} & set(name.split(".")):
            parameter.requires_grad_(False)
    meta = MetaBatch(gene, recipe.hyper, drop_path=recipe.train.drop_path)
    vectors = {name: torch.tensor(embedding.vector)[None] for name, embedding in embeddings.items()}

    def enter(model: nn.Module, name: str) -> None:
        assert isinstance(model, MetaBatch)
        model.num_classes = len(prepared.tasks[name].images[0].class_names)
        model.task = vectors[name].to(next(model.parameters()).device) if vectors else None

    shape = gene.shape
    feed = TaskFeed(prepared.tasks, recipe.train, recipe.temperature, shape.img_size, shape.in_chans, enter)

    def before_step(epoch: int, step: int) -> None:
        enter(meta, feed.turn(epoch, step))
        meta.draw()

    def objective(model: nn.Module, batch: Tensor, targets: Tensor) -> Parts:
        return meta_loss(model(batch), targets, recipe.hyper)

    return Stage(
        f"tune {gene.method.name}",
        meta,
        objective,
        shape.img_size,
        shape.in_chans,
        before_step=before_step,
        uses_all=False,
        feed=feed,
        made_of=made_of(prepared.ancestry, gene.metadata.get("digest")),
    )


def provenance(prepared: Prepared, embeddings: Mapping[str, TaskEmbedding], result: TrainResult) -> dict[str, Any]:
    """The metadata of a tuned gene, as documented in ``docs/format.md``."""
    recipe, gene, scores = prepared.recipe, prepared.gene, asdict(result.final)
    first = next(iter(prepared.tasks.values()))
    tasks = []
    for name, task in prepared.tasks.items():
        entry: dict[str, Any] = {
            "task": name,
            "source": [Path(source).name for source in recipe.tasks[name].data.sources],
            "classes": task.images[0].class_names,
            **preprocessing_record(task.data, gene.shape.img_size),
            "top1": round(scores["tasks"][name], 4),
        }
        if name in embeddings:
            entry["embedding"] = embeddings[name].to_dict()
        tasks.append(entry)
    earlier = gene.metadata.get("training")
    return {
        **{key: value for key, value in gene.metadata.items() if key != "accuracy"},
        "ancestry": prepared.ancestry.identity if prepared.ancestry else gene.metadata.get("ancestry", {}),
        "preprocessing": gene.metadata.get("preprocessing") or preprocessing_record(first.data, gene.shape.img_size),
        "tasks": tasks,
        "accuracy": {key: round(scores[key], 4) for key in ("top1", "top5", "loss")},
        "training": {
            "epochs": recipe.train.epochs,
            "updates": result.updates,
            "images": result.images,
            "seconds": round(result.seconds + (earlier or {}).get("seconds", 0.0), 1),
            "seed": recipe.train.seed,
            "recipe": recipe.model_dump(mode="json", include={"train", "hyper", "temperature", "freeze_encoder"}),
            **({"stage1": earlier} if earlier else {}),
        },
        "versions": environment()["versions"],
    }
