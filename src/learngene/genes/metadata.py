"""The metadata of a gene file as models: what ``docs/format.md`` tells people and ``docs/gene.schema.json`` programs.

Readers check a pool's paths, the record of a search and tuned tasks by these models, since they are shown to somebody;
only genes that have one of them pay for importing pydantic. Every entry that is not known is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from learngene.methods import METHODS
from learngene.methods.tal.task_embedding import TaskEmbedding

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAbove0 = Annotated[float, Field(gt=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Words = Annotated[list[str], Field(min_length=1)]
Numbers = Annotated[list[float], Field(min_length=1)]
Shares = Annotated[list[Share], Field(min_length=1, description="Per layer of the ancestry, first layer first.")]
Layers = Annotated[
    list[Count],
    Field(description="Blocks of the ancestry, counted from 1, ascending.", json_schema_extra={"uniqueItems": True}),
]
Empty = Annotated[dict[str, Any], Field(max_length=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class Pinned(_Entry):
    """A model whose weights are pinned."""

    name: str
    tag: str
    source: str
    sha256: Sha256


class Preprocessing(_Entry):
    """How images must be prepared."""

    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: ShareAbove0


class TrainingData(_Entry):
    """What the gene was made of; extracting looks at no validation images."""

    source: list[str]
    train_images: Count
    val_images: Count | None = None
    fingerprint: Fingerprint


class TrainingRecipe(_Entry):
    """The sections of the recipe, defaults written out, that its method has."""

    train: dict[str, Any]
    distill: dict[str, Any] | None = None
    depths: list[Count] | None = Field(None, description="Of a gene that was trained at several depths.")
    shapes: dict[str, Any] | None = Field(None, description="Of a gene that was trained at several shapes.")
    features: dict[str, Any] | None = Field(None, description="Of a gene that learnt features, if the recipe has it.")
    pool: dict[str, Any] | None = Field(None, description="Of pool and sn-net, if the recipe has it.")
    hyper: dict[str, Any] | None = Field(None, description="Of tal, logah and ghn3.")
    temperature: Annotated[float, Field(gt=0)] | None = Field(None, description="Of drawing tasks.")
    freeze_encoder: bool | None = None


class Started(_Entry):
    """Whose templates a gene has."""

    digest: str = Field(description="Of the gene that they are from.")
    scalers: str = Field(description="What its own scalers started at: made, or fresh.")


class Training(_Entry):
    """How long the gene was trained, and with which settings."""

    epochs: Count | None = None
    updates: Annotated[int, Field(ge=0)] | None = None
    images: Annotated[int, Field(ge=0)] | None = None
    seconds: NotNegative
    seed: int | None = None
    recipe: TrainingRecipe | None = None
    stage1: Training | None = Field(None, description="Of a tuned hypernetwork: what `training` was before.")


class Accuracy(_Entry):
    """Measured at the auxiliary shape, the widest row of a pool, when training ended."""

    top1: Percent
    top5: Percent
    loss: float
    images: Count | None = None


class Agreement(_Entry):
    """How well a gene's features match its teachers', measured at the auxiliary shape when training ended."""

    neighbours: Annotated[
        Percent,
        Field(description="Of every image's 20 nearest by pooled features, the share that is also a teacher's."),
    ]
    loss: float
    images: Count
    cosine: Annotated[FiniteFloat, Field(ge=-100, le=100)] | None = Field(
        None, description="100 times the mean cosine with the teachers' features, behind the bridges."
    )
    knn: Percent | None = Field(None, description="Accuracy of nearest neighbours on the recipe's labelled images.")


class Bridge(_Entry):
    """A linear map, tensors `bridge.weight` and `bridge.bias`: from what the head reads to the teacher's output."""

    teacher: Pinned
    width: Count = Field(description="Of the teacher's output.")


class PoolPath(_Entry):
    """A path of a pool, as it scored when the gene was made."""

    path: Annotated[
        str,
        Field(
            description="Width and blocks of every segment, counted from 1.",
            pattern=r"^[1-9][0-9]*:[1-9][0-9]*-[1-9][0-9]*([+][1-9][0-9]*:[1-9][0-9]*-[1-9][0-9]*)*$",
        ),
    ]
    blocks: Annotated[
        str, Field(description="How many blocks of every row, narrow to wide.", pattern="^[0-9]+([+][0-9]+)+$")
    ]
    top1: Percent | None = None
    neighbours: Percent | None = Field(None, description="In place of top1, of a pool that learnt features alone.")

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if (self.top1 is None) == (self.neighbours is None):
            raise ValueError("either top1 or neighbours")
        return self


class ShapeScore(_Entry):
    """A shape that the gene was trained at, as it scored when it was made."""

    embed_dim: Count
    num_heads: Count
    depth: Count
    top1: Percent | None = None
    neighbours: Percent | None = Field(None, description="In place of top1, of a gene that learnt features.")
    knn: Percent | None = Field(None, description="Accuracy of nearest neighbours on the recipe's labelled images.")

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if (self.top1 is None) == (self.neighbours is None):
            raise ValueError("either top1 or neighbours")
        return self


class SearchTask(_Entry):
    """One data set of a search, and what its super net did."""

    task: str
    source: list[str]
    data: Annotated[str, Field(pattern="^[0-9a-f]{16}(-[0-9a-f]{16})?$")]
    layers: Layers
    share: Shares
    soft: Shares
    metric: str
    score: Percent
    lr: Annotated[float, Field(gt=0)]
    epochs: Count
    seconds: NotNegative


class Search(_Entry):
    """The search that found the blocks. Also in search.json of its run folder."""

    tasks: Annotated[list[SearchTask], Field(min_length=1)]
    usage: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(min_length=1, description="Per layer, by how many data sets the base block is used."),
    ]
    soft_usage: Annotated[
        list[NotNegative],
        Field(min_length=1, description="Per layer, the sum over data sets of the mean probability of the base block."),
    ]
    select: dict[str, Any]
    routing: dict[str, Any]
    layers: Annotated[Layers, Field(min_length=1)]

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        depth = len(self.usage)
        if max([*self.layers, *(layer for task in self.tasks for layer in task.layers)]) > depth:
            raise ValueError("a layer lies beyond the ancestry")
        if any(len(task.share) != depth for task in self.tasks):
            raise ValueError("share is of another depth")
        return self


class Embedding(_Entry):
    """The mean of the ancestry's features over a task's training images; the numbers are those of the fingerprint."""

    name: str
    vector: Annotated[list[float], Field(min_length=1, description="As many numbers as settings.task_dim.")]
    ancestry: Sha256
    data: Annotated[Fingerprint, Field(description="Fingerprint of the images.")]
    images: Count
    classes: Words
    preprocessing: Annotated[dict[str, Any], Field(description="How the ancestry got the images.")]
    fingerprint: Fingerprint

    @model_validator(mode="after")
    def _unchanged(self) -> Self:
        TaskEmbedding.from_dict(self.model_dump())
        return self


class TunedTask(_Entry):
    """A task that a hypernetwork was tuned on."""

    task: str
    source: Words
    classes: Words
    mean: Numbers
    std: Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1)]
    interpolation: str | None = None
    crop_pct: ShareAbove0 | None = None
    top1: Percent
    embedding: Embedding | Empty = Field(default_factory=dict, description="Of tal.")

    @model_validator(mode="after")
    def _own_embedding(self) -> Self:
        own = (self.task, self.classes)
        if isinstance(self.embedding, Embedding) and (self.embedding.name, self.embedding.classes) != own:
            raise ValueError("the embedding of another task")
        return self


class Parts(_Entry):
    """The parameters of an architecture by name, each with its shape, and its multiply-adds."""

    stem: dict[str, list[int]]
    layer: dict[str, list[int]] = Field(description="Of one layer, without blocks.i.")
    tail: dict[str, list[int]]
    head: dict[str, list[int]] = Field(description="Of one class.")
    patches: Count = Field(description="Tokens that stand for a patch of the image.")
    tokens: Count = Field(description="All that pass through the layers.")
    macs: Count = Field(description="Multiply-adds of one image besides layers and head.")
    layer_macs: Count
    undecayed: list[str] = Field(description="Parameters of several dimensions without weight decay.")


class Metadata(_Entry):
    """The JSON text under the key 'learngene' of the safetensors header's __metadata__. See format.md."""

    version: Count = Field(description="Version of the gene format: 2 for hypernetworks, 1 for all others.")
    method: str = Field(description="How the tensors become layers.", json_schema_extra={"enum": list(METHODS)})
    settings: dict[str, Any] = Field(description="The method's settings, fixed when the gene is made.")
    shape: dict[str, Any] = Field(description="The auxiliary shape.")
    layout: Parts | None = Field(None, description="Of a shape with an arch, so that planning needs no torch.")
    digest: str = Field(
        description="XXH3 with 128 bits over metadata, table of tensors and tensor bytes.",
        pattern="^xxh3_128:[0-9a-f]{32}$",
    )
    ancestry: Pinned | Empty | None = Field(None, description="Empty if the gene was condensed from labels alone.")
    anchors: Annotated[list[Pinned], Field(min_length=2)] | None = Field(
        None, description="Of sn-net: the pretrained models that became its rows, narrow to wide."
    )
    teachers: Annotated[list[Pinned], Field(min_length=1)] | None = Field(
        None, description="Further teachers of features, beside the ancestry."
    )
    bridge: Bridge | None = Field(None, description="Of a gene with features.keep_bridge.")
    preprocessing: Preprocessing | None = None
    classes: list[str] | None = Field(None, description="Class names in the order of the head's outputs.")
    data: TrainingData | None = None
    start: Started | None = Field(None, description="Of a gene that has the templates of another.")
    training: Training | None = None
    accuracy: Accuracy | None = None
    agreement: Agreement | None = Field(None, description="In place of accuracy, of a gene that learnt features.")
    paths: Annotated[list[PoolPath], Field(min_length=1)] | None = Field(
        None, description="Of pool and sn-net: every path, as it scored when the gene was made."
    )
    shapes: Annotated[list[ShapeScore], Field(min_length=1)] | None = Field(
        None,
        description="Of a gene that was trained at several shapes: how it scored there when it was made.",
    )
    search: Search | None = None
    tasks: Annotated[list[TunedTask], Field(min_length=1)] | None = Field(
        None, description="Of tal, logah and ghn3: the tasks that the hypernetwork was tuned on."
    )
    versions: dict[str, str] | None = Field(None, description="Versions of the packages the gene was made with.")


def fault_of_records(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with those of a gene's entries that are shown to somebody, None if nothing is."""
    try:
        if "bridge" in metadata:
            Bridge.model_validate(metadata["bridge"])
    except ValidationError:
        return "'bridge' must say its teacher and its width, see docs/format.md"
    try:
        TypeAdapter(list[PoolPath]).validate_python(metadata.get("paths", []), strict=True)
    except ValidationError:
        return "'paths' must be a list of objects with 'path', 'blocks' and 'top1' or 'neighbours'"
    try:
        shapes = TypeAdapter(list[ShapeScore]).validate_python(metadata.get("shapes", []), strict=True)
    except ValidationError:
        shapes = None
    if shapes is None or len({entry.top1 is None for entry in shapes}) > 1:
        return "'shapes' must be a list of sizes, each with 'top1' or each with 'neighbours', see docs/format.md"
    try:
        if "search" in metadata:
            Search.model_validate(metadata["search"])
    except ValidationError:
        return "'search' must be the record of a search, see docs/format.md"
    fault = _fault_of_tasks(metadata.get("tasks", []))
    return f"'tasks': {fault}, see docs/format.md" if fault else None


def _fault_of_tasks(entries: Any) -> str | None:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "must be a list of tuned tasks"
    names = [entry.get("task") for entry in entries]
    if not all(isinstance(name, str) and name.isprintable() and names.count(name) == 1 for name in names):
        return "every task needs a printable name of its own"
    for entry in entries:
        try:
            TunedTask.model_validate(entry)
        except ValidationError as error:
            place = error.errors()[0]["loc"]
            return f"task {entry['task']}: its {place[0] if place else 'embedding'} is missing, damaged or not its own"
    return None
