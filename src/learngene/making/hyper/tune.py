"""Stage 2: a hypernetwork is tuned on several tasks, each with the embedding of what an ancestry sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.data.preprocessing import fill_preprocessing, preprocessing_record
from learngene.data.splits import Splits, open_splits
from learngene.genes.ancestry import Ancestry, made_of
from learngene.genes.gene import Learngene
from learngene.making.arguments import Data, ancestry_fields, data_fields, loaded, recipe_of, require_mapping
from learngene.making.hyper.embedding import embedding_of
from learngene.making.hyper.meta import MetaBatch, meta_loss
from learngene.making.hyper.stage1 import refuse_task_dim
from learngene.making.steps import MadeGene, train_gene, training_record
from learngene.methods import default_settings
from learngene.methods import method as find_method
from learngene.methods.tal import hypernetwork_of
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.tune import TuneRecipe
from learngene.system.errors import Faults, LearngeneError
from learngene.training.loop import make_accelerator
from learngene.training.losses import Parts
from learngene.training.optimizer import refuse_optimizer
from learngene.training.run import run_stage
from learngene.training.run_folder import RunFolder
from learngene.training.stage import Stage, TrainResult
from learngene.training.task_batches import TaskFeed, TaskImages, joined
from learngene.training.teacher import Outputs
from learngene.vits.descendant_folder import vit_cfg


@dataclass
class TuneInputs:
    """Everything that stage 2 needs, checked against each other.

    Attributes:
        recipe: What to do.
        gene: The hypernetwork.
        ancestry: Whose features the embeddings are.
        tasks: Images of every task, and how they are inputs.
    """

    recipe: TuneRecipe
    gene: Learngene
    ancestry: Ancestry | None
    tasks: dict[str, TaskImages]


def tune(
    gene: Learngene | str | Path,
    ancestry: Ancestry | str | Path | None = None,
    *,
    tasks: Mapping[str, Data],
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
    if not isinstance(gene, (Learngene, str, Path)):
        raise LearngeneError(f"tune: gene must be a Learngene or its file, not {type(gene).__name__}")
    if not isinstance(ancestry, (Ancestry, str, Path, type(None))):
        raise LearngeneError(f"tune: ancestry must be an Ancestry, a name or a path, not {type(ancestry).__name__}")
    require_mapping("tune", tasks=tasks)
    memory = gene if isinstance(gene, Learngene) else None
    recipe = recipe_of(
        TuneRecipe,
        gene="in memory" if memory else str(gene),
        ancestry=ancestry_fields(ancestry),
        tasks={name: {"data": data_fields(data)} for name, data in tasks.items()},
        temperature=temperature,
        freeze_encoder=freeze_encoder,
        task_layers=task_layers,
        hyper=hyper,
        train=train_fields,
        out=out,
    )
    return run(recipe, gene=memory, ancestry=loaded(ancestry), keep=out is not None, show=show).gene


def prepare(
    recipe: TuneRecipe,
    gene: Learngene | None = None,
    ancestry: Ancestry | None = None,
    images: Mapping[str, Splits] | None = None,
) -> TuneInputs:
    """Loads gene, ancestry and data and checks that all of it fits together; nothing is computed or written.

    Raises:
        LearngeneError: For the first fault of gene or ancestry, or one line per task with a fault.
    """
    gene = _starting_gene(recipe, gene)
    task_aware = gene.method.task_aware if recipe.task_layers is None else recipe.task_layers
    recipe.refuse_ancestry(task_aware)
    if recipe.ancestry is not None:
        ancestry = ancestry or Ancestry.from_spec(recipe.ancestry)
    if recipe.task_layers is not None:
        gene = with_task_layers(gene, ancestry.width if ancestry and task_aware else 0)
    method, shape = hypernetwork_of(gene.method), gene.shape
    method.refuse_trained(shape)
    if ancestry is not None and task_aware:
        refuse_task_dim(ancestry, method)
        given = gene.metadata.get("ancestry", {}).get("sha256")
        if given and given != ancestry.identity["sha256"]:
            raise LearngeneError(
                f"ancestry {ancestry.identity['source']} is not the one that the gene was trained under (sha256 "
                f"{ancestry.identity['sha256'][:12]}, not {given[:12]}); its features mean something else"
            )
    refuse_optimizer(recipe.train)
    # Tasks that have no mean and std of their own take those of stage 1, else the ancestry's.
    cfg = gene.metadata.get("preprocessing") or (ancestry.preprocessing if ancestry else vit_cfg(shape, "", {}))
    place: dict[str, Any] = {"processes": make_accelerator().num_processes, "in_chans": shape.in_chans}
    tasks: dict[str, TaskImages] = {}
    faults = Faults()
    for name, task in recipe.tasks.items():
        with faults.at(f"task {name}"):
            given, train, data = (images or {}).get(name), recipe.task_train(name), fill_preprocessing(task.data, cfg)
            opened = open_splits(data, train, opened=given, labels_for="tuning a hypernetwork", **place)
            if data.img_size not in (None, shape.img_size):
                raise LearngeneError(
                    f"data.img_size {data.img_size} differs from the gene's {shape.img_size}; leave it out"
                )
            method.refuse(shape, shape.replace(num_classes=len(opened.train.class_names)))
            tasks[name] = TaskImages(opened, data, train)
    faults.refuse()
    return TuneInputs(recipe, gene, ancestry, tasks)


def _starting_gene(recipe: TuneRecipe, gene: Learngene | None) -> Learngene:
    """The gene of stage 1, as a copy, or a fresh one."""
    if recipe.gene is None:
        assert recipe.method is not None
        assert recipe.shape is not None
        return Learngene(find_method(recipe.method, recipe.settings), recipe.shape, seed=recipe.train.seed)
    gene = gene or Learngene.load(recipe.gene)
    if gene.method.making != "hyper":
        raise LearngeneError(
            f"{recipe.gene}: a gene of {gene.method.name}, which predicts nothing; use tal, logah or ghn3"
        )
    tensors = {name: value.detach().clone() for name, value in gene.tensors().items()}
    return Learngene(gene.method, gene.shape, tensors, metadata=gene.metadata)


def with_task_layers(gene: Learngene, task_dim: int) -> Learngene:
    """A copy of a gene of LoGAH or TAL with task layers, which start at zero as the authors' code has them, or without.

    ``task_dim`` is the width of the embeddings; 0 leaves task layers out.
    """
    if gene.method.name not in ("logah", "tal"):
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
) -> MadeGene:
    """Runs stage 2, or continues it if its run folder holds an unfinished run.

    Gene, ancestry and the tasks' images are given if they are loaded already. Without ``keep`` nothing is written.

    Raises:
        LearngeneError: If anything does not fit or cannot be written.
    """
    inputs = prepare(recipe, gene, ancestry, images)
    both = joined({name: task.images for name, task in inputs.tasks.items()})

    def train() -> tuple[TrainResult, dict[str, Any]]:
        if keep:
            RunFolder(recipe.out, recipe)  # refuses another run's folder before the ancestry looks at all images
        embeddings = {
            name: embedding_of(inputs.ancestry, task.images.train, name, task.data)
            for name, task in inputs.tasks.items()
            if inputs.ancestry is not None
        }
        result = run_stage(_stage(inputs, embeddings), recipe, both, keep=keep, show=show)
        return result, _provenance(inputs, embeddings, result)

    return train_gene(inputs.gene, recipe, train, keep=keep)


def _stage(inputs: TuneInputs, embeddings: Mapping[str, TaskEmbedding]) -> Stage:
    """What stage 2 trains: all of the hypernetwork, by the labels of one task per step."""
    recipe, gene = inputs.recipe, inputs.gene
    for name, parameter in gene.tensors().items():
        if recipe.freeze_encoder and name.startswith("encoder.") and not {"scale", "shift"} & set(name.split(".")):
            parameter.requires_grad_(False)
    meta = MetaBatch(gene, recipe.hyper, drop_path=recipe.train.drop_path)
    vectors = {name: torch.tensor(embedding.vector)[None] for name, embedding in embeddings.items()}

    def enter(model: nn.Module, name: str) -> None:
        assert isinstance(model, MetaBatch)
        model.num_classes = len(inputs.tasks[name].images.train.class_names)
        model.task = vectors[name].to(next(model.parameters()).device) if vectors else None

    size = gene.shape.img_size, gene.shape.in_chans
    feed = TaskFeed(inputs.tasks, recipe.train, recipe.temperature, *size, enter)

    def before_step(epoch: int, step: int) -> None:
        enter(meta, feed.turn(epoch, step))
        meta.draw()

    def objective(model: nn.Module, batch: Tensor, targets: Tensor, _theirs: Sequence[Outputs]) -> Parts:
        return meta_loss(model(batch), targets, recipe.hyper)

    return Stage(
        f"tune {gene.method.name}",
        meta,
        objective,
        *size,
        before_step=before_step,
        uses_all=False,
        feed=feed,
        made_of=made_of(inputs.ancestry, gene.metadata.get("digest"), gene.method),
    )


def _provenance(inputs: TuneInputs, embeddings: Mapping[str, TaskEmbedding], result: TrainResult) -> dict[str, Any]:
    """The metadata of a tuned gene, as documented in ``docs/format.md``: that of stage 1, but for what changed."""
    recipe, gene, scores = inputs.recipe, inputs.gene, asdict(result.final)
    prepared = {name: preprocessing_record(task.data, gene.shape.img_size) for name, task in inputs.tasks.items()}
    tasks = [
        {
            "task": name,
            "source": task.data.names,
            "classes": task.images.train.class_names,
            **prepared[name],
            "top1": round(scores["tasks"][name], 4),
            **({"embedding": embeddings[name].to_dict()} if name in embeddings else {}),
        }
        for name, task in inputs.tasks.items()
    ]
    said = recipe.model_dump(mode="json", include={"train", "hyper", "temperature", "freeze_encoder"})
    training = training_record(recipe, result, said)
    if earlier := gene.metadata.get("training"):
        seconds = round(result.seconds + earlier.get("seconds", 0.0), 1)
        training |= {"seconds": seconds, "stage1": earlier}
    return {
        "ancestry": {},
        "preprocessing": next(iter(prepared.values())),
        **{key: value for key, value in gene.metadata.items() if key != "accuracy"},
        **({"ancestry": inputs.ancestry.identity} if inputs.ancestry else {}),
        "tasks": tasks,
        "accuracy": {key: round(scores[key], 4) for key in ("top1", "top5", "loss")},
        "training": training,
    }
