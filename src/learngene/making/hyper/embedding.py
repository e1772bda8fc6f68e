"""Task embeddings: what an ancestry sees of a task's images on average (TAL, section 3.2)."""

from __future__ import annotations

from pathlib import Path

import torch

from learngene.data.batches import eval_loader
from learngene.data.images import ImageSet
from learngene.data.open_split import open_split
from learngene.data.preprocessing import PREPROCESSING
from learngene.data.splits import refuse_channels
from learngene.genes.ancestry import Ancestry
from learngene.genes.gene import Learngene
from learngene.making.arguments import Data, data_section
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.sections import DataSpec
from learngene.system.errors import LearngeneError, nearest
from learngene.training.loop import make_accelerator

BATCH = 256


def embed_task(ancestry: Ancestry | str | Path, data: Data | DataSpec, *, name: str | None = None) -> TaskEmbedding:
    """The embedding of a task: the mean of the ancestry's features over its training images.

    Args:
        ancestry: The ancestry that the gene was made with, or a timm name, folder or file for it.
        data: Where the images are, or a whole data section; only the training split is read.
        name: What to call the task; by default the name of its source.

    Raises:
        LearngeneError: If the images cannot be read.
    """
    spec = data_section(data)
    if not isinstance(ancestry, (Ancestry, str, Path)):
        raise LearngeneError(
            f"embed_task: ancestry must be an Ancestry, a name or a path, not {type(ancestry).__name__}"
        )
    ancestry = ancestry if isinstance(ancestry, Ancestry) else Ancestry(ancestry)
    return embedding_of(
        ancestry, open_split(spec, "train"), name or spec.sources[0].rstrip("/").rpartition("/")[2], spec
    )


def task_of(gene: Learngene, task: str, ancestry: str | None = None) -> TaskEmbedding:
    """A task that a gene of TAL was tuned on, by name, or the embedding of a folder's, tar's or named set's images.

    ``ancestry`` says where the gene's ancestry is, if it is no longer where it was; no other is taken.
    """
    if not gene.method.task_aware:
        raise LearngeneError(f"--task: a gene of {gene.method.name} predicts for no task; leave it out")
    known = gene.tasks()
    if task in known:
        if ancestry is not None:
            raise LearngeneError(f"--ancestry: the gene has the embedding of task {task} already; leave it out")
        return known[task]
    if not task.strip():
        raise LearngeneError(f"--task: is empty; give images or a task of this gene: {', '.join(known) or 'none'}")
    identity = gene.metadata.get("ancestry", {})
    if not Path(task).exists() and "/" not in task and task != "digits":
        raise LearngeneError(
            f"--task {task}: no folder or tar of images, and no task of this gene, which was tuned on "
            f"{', '.join(known) or 'none'}{nearest(task, known) if known else ''}"
        )
    spec = data_section(task)
    images = open_split(spec, "train")  # whatever is wrong with them is said before the ancestry is looked for
    source = ancestry or str(identity.get("source", ""))
    try:
        found = Ancestry(source, sha256=identity.get("sha256"))
    except LearngeneError as error:
        if ancestry is None:
            raise LearngeneError(
                f"--task {task}: its embedding needs the gene's ancestry, of which the gene knows the name '{source}'; "
                f"say where it is with --ancestry ({error})"
            ) from None
        raise LearngeneError(f"--ancestry: must be the ancestry that the gene was trained under ({error})") from None
    return embedding_of(found, images, Path(task).name, spec)


@torch.inference_mode()
def embedding_of(ancestry: Ancestry, images: ImageSet, name: str, spec: DataSpec) -> TaskEmbedding:
    """The embedding of opened training images, prepared as the ancestry was trained, whatever the descendant gets.

    The authors' code gives the ancestry images with the data set's mean and deviation, which its checkpoint does not
    expect.
    """
    if images.segmentation:
        raise LearngeneError(f"{images.where}: a task embedding is of images with a class each, not of masks")
    given = ancestry.preprocessing
    chans, size, _ = given["input_size"]
    filled = {key: tuple(v) if isinstance(v := given[key], list) else v for key in PREPROCESSING}
    spec = spec.model_copy(update=filled)
    refuse_channels(spec, chans)
    device = make_accelerator().device
    ancestry.to(device)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch, _ in eval_loader(images, spec, img_size=size, in_chans=chans, batch_size=BATCH):
        features = ancestry.features(batch.to(device)).double().cpu()
        if not features.isfinite().all():
            raise LearngeneError(f"{images.where}: the ancestry's features of its images are not finite")
        total, count = total + features.sum(dim=0), count + len(batch)
    return TaskEmbedding(
        name=name,
        vector=tuple((total / count).float().tolist()),
        ancestry=ancestry.identity["sha256"],
        data=images.fingerprint(),
        images=count,
        classes=tuple(images.class_names),
        preprocessing={key: given[key] for key in (*PREPROCESSING, "input_size")},
    )
