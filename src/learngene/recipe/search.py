"""The recipe of a search: an ancestry, named data sets, and how each of their super nets is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from learngene.methods.lsamd import LSAMD
from learngene.recipe.content_hash import content, hashed
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import (
    AncestrySpec,
    DataSpec,
    Routing,
    Section,
    Selection,
    Train,
    merge,
    without_removed,
)
from learngene.system.errors import RecipeError

NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
"""Of task names, which become names of folders."""
LONGEST_NAME = 100
"""Characters of a task name; file systems take 255, to which seed and hash are added."""


class SearchTask(Section):
    """One data set of a search."""

    data: DataSpec
    train: dict[str, Any] = Field({}, description="what differs from the search's `train`, often the rate")


class TaskSearch(Section):
    """The training of one super net: all that decides one data set's path."""

    kind: Literal["task-search"] = "task-search"
    task: str
    ancestry: AncestrySpec
    data: DataSpec
    train: Train
    routing: Routing
    out: Path


class SearchRecipe(Section):
    """An ancestry and several data sets to a gene file."""

    kind: Literal["search"] = "search"
    ancestry: AncestrySpec = Field(description="a plain ViT, whose blocks are searched")
    tasks: Annotated[dict[str, SearchTask], BeforeValidator(without_removed)] = Field(
        description="the data sets by name; null removes one; the paper takes twelve", min_length=1
    )
    train: Train = Train()
    routing: Routing = Routing()
    select: Selection = Selection()
    stem: bool = Field(True, description="whether the gene carries patch projection, positions and final norm")
    out: Path = Field(Path("runs/search"), description="run folder; the gene is written beside it as OUT.safetensors")
    kept: Path | None = Field(
        None, description="where trained super nets are kept, to be shared by searches; by default in the run folder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="storage type of the gene file")

    @model_validator(mode="after")
    def _tasks_fit(self) -> SearchRecipe:
        for name in self.tasks:
            if not name or name.startswith(".") or set(name) - set(NAME_CHARACTERS):
                raise RecipeError(f"tasks: '{name}' cannot name a folder; use letters, digits, dots, - and _")
            if len(name) > LONGEST_NAME:
                raise RecipeError(f"tasks: '{name}' is too long for a folder; use {LONGEST_NAME} characters or fewer")
        seen: dict[tuple[object, ...], str] = {}
        for name, task in self.tasks.items():
            data = task.data  # Images of another size, or prepared in another way, are still the same.
            where = (*sorted(str(Path(source).resolve()) for source in data.sources), data.root, data.train_split)
            if where in seen:
                raise RecipeError(f"tasks: {seen[where]} and {name} are the same data; leave one out")
            seen[where] = name
        for name in self.tasks:
            train = self.task(name).train
            if train.drop_path:
                raise RecipeError(f"tasks.{name}: train.drop_path is not for super nets, whose base blocks stay; use 0")
            if train.layer_decay is not None:
                raise RecipeError(f"tasks.{name}: train.layer_decay is for fine-tuning; leave it out")
        if self.routing.gate == "two-branch" and self.routing.noise == "none":
            raise RecipeError(
                "routing: without noise a two-branch gate sees two equal blocks and never tries the specific one; use "
                "noise: gaussian"
            )
        if self.select.tau is not None and self.select.tau >= len(self.tasks):
            raise RecipeError(
                f"select.tau: no block can be used by more than {self.select.tau} of {len(self.tasks)} data sets; "
                f"use 0 to {len(self.tasks) - 1}"
            )
        return self

    def task(self, name: str) -> TaskSearch:
        """The part of the recipe that decides one data set's path; its folder has a name made of that.

        Its seed is its own, made of the recipe's and the name.
        """
        task = self.tasks[name]
        train = validated(Train, _over(self.train.model_dump(exclude_unset=True), task.train), f"tasks.{name}.train")
        ancestry = self.ancestry.model_dump(mode="json")
        ancestry["source"] = "/".join(Path(self.ancestry.source).parts[-2:])  # wherever the folder lies
        # With one seed for all, every data set would draw the same noise, and paths would agree because of it.
        seed = int(hashed([train.seed, name]), 16)
        key = hashed([ancestry, content(task.data), content(train), content(self.routing), name])
        out = (self.kept or self.out) / f"{name}-s{train.seed}-{key}"
        train = train.model_copy(update={"seed": seed})
        return TaskSearch(task=name, ancestry=self.ancestry, data=task.data, train=train, routing=self.routing, out=out)

    @property
    def tau(self) -> int:
        """The threshold: half of the data sets unless the recipe says otherwise (the paper's 6 of 12)."""
        return len(self.tasks) // 2 if self.select.tau is None else self.select.tau

    def method(self, layers: tuple[int, ...]) -> LSAMD:
        """The method with the blocks that were found."""
        return LSAMD(layers=layers, stem=self.stem)


def _over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What all data sets have in common and what one says itself; where it names a preset, it starts from that."""
    if "preset" in own:
        return dict(own)
    sections = {key: value for key, value in own.items() if isinstance(value, Mapping) and "preset" in value}
    return {**merge(common, own), **sections}
