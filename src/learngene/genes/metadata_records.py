"""Records inside a gene's metadata: a pool's paths, a search and tuned tasks, as ``docs/format.md`` describes them.

They are checked as far as somebody is shown them. Only genes that have one pay for importing pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from learngene.methods.tal.task_embedding import TaskEmbedding

Words = Annotated[list[str], Field(min_length=1)]
Numbers = Annotated[list[float], Field(min_length=1)]
Layers = list[Annotated[int, Field(ge=1)]]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class PoolPath(_Entry):
    """A path of a pool, as it scored when the gene was made."""

    path: str
    top1: float


class SearchTask(_Entry):
    """One data set of a search; ``share`` has one value per layer of the ancestry."""

    task: str
    score: float
    layers: Layers
    share: Numbers


class Search(_Entry):
    """What a picture of a search shows; ``usage`` has one value per layer of the ancestry."""

    usage: Annotated[list[int], Field(min_length=1)]
    layers: Annotated[Layers, Field(min_length=1)]
    tasks: Annotated[list[SearchTask], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        depth = len(self.usage)
        if max([*self.layers, *(layer for task in self.tasks for layer in task.layers)]) > depth:
            raise ValueError("a layer lies beyond the ancestry")
        if any(len(task.share) != depth for task in self.tasks):
            raise ValueError("share is of another depth")
        return self


class Embedding(_Entry):
    """The embedding of a task; its numbers must be those of the fingerprint."""

    name: str
    vector: Numbers
    ancestry: str
    data: str
    images: int
    classes: Words
    preprocessing: dict[str, Any]
    fingerprint: str

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
    top1: Annotated[FiniteFloat, Field(ge=0, le=100)]
    embedding: Embedding | Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _own_embedding(self) -> Self:
        own = (self.task, self.classes)
        if isinstance(self.embedding, Embedding) and (self.embedding.name, self.embedding.classes) != own:
            raise ValueError("the embedding of another task")
        return self


def fault_of_records(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with the entries ``paths``, ``search`` and ``tasks``, None if nothing is."""
    try:
        TypeAdapter(list[PoolPath]).validate_python(metadata.get("paths", []), strict=True)
    except ValidationError:
        return "'paths' must be a list of objects with 'path' and 'top1'"
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
