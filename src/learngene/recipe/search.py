"""The recipe of a search: an ancestry, named data sets, and how each of their super nets is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from learngene.methods.lsamd import LSAMD
from learngene.recipe.content_hash import hashed_content, short_hash
from learngene.recipe.gene_run import LAYERED, GeneRun, GeneType
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import (
    AncestrySpec,
    AtLeast0,
    ByName,
    DataSpec,
    FractionAbove0,
    Positive,
    Section,
    Train,
    merge,
)
from learngene.system.errors import RecipeError

LONGEST_NAME = 100
"""Characters of a task name; file systems take 255, to which seed and hash are added."""
BLOCKS = 5
"""Of the paper's learngene."""


class Routing(Section):
    """How a super ancestry net decides between base and specific blocks, and how that decision learns (LSAMD)."""

    presets: ClassVar = {"stable": {}, "paper": {"noise": "gaussian"}}
    preset: str | None = Field(
        None,
        description="stable (the defaults: blocks agree best over seeds, docs/lsamd.md) or paper (with noise)",
    )
    route: Literal["batch", "img"] = Field(
        "batch", description="batch: the majority decides for all (the paper's choice); img: every sample for itself"
    )
    gate: Literal["straight-through", "two-branch", "scale"] = Field(
        "straight-through",
        description="how adapters learn from a hard choice, on which the paper is silent: straight-through (its value "
        "is the chosen block's output), two-branch (runs the other block, too, and learns from the difference), scale "
        "(multiplies by the probability, as Mod-Squad does with parts of blocks; shrinks what a frozen net passes on)",
    )
    compared: FractionAbove0 = Field(
        1.0, description="two-branch: share of a batch's images on which the other block runs, too"
    )
    noise: Literal["gaussian", "literal", "none"] = Field(
        "none",
        description="gaussian: random while training, as the gates that the paper takes its own from; literal: as "
        "equation 1 is printed; none: the blocks found agree better over seeds, but two-branch gates need noise",
    )
    descriptor: Literal["mean", "cls", "vote"] = Field(
        "mean", description="what an adapter sees of a sample: mean of its tokens, class token, or every token's vote"
    )
    prefer_base: AtLeast0 = Field(
        0.0, description="weight in the loss of the mean probability of specific blocks; the paper has none"
    )

    @model_validator(mode="after")
    def _compared_by_its_gate(self) -> Routing:
        if self.compared != 1 and self.gate != "two-branch":
            raise RecipeError(f"compared means nothing for gate {self.gate}; leave it out, or use gate: two-branch")
        return self


class Selection(Section):
    """Which base blocks become the learngene, by how much the data sets use them (LSAMD, equation 3)."""

    presets: ClassVar = {"stable": {}, "paper": {"rule": "threshold"}}
    preset: str | None = Field(None, description="stable (the defaults) or paper (threshold)")
    rule: Literal["threshold", "top_k"] = Field(
        "top_k", description="threshold: the paper's, by choices; top_k: by probabilities, and never empty"
    )
    tau: int | None = Field(
        None, ge=0, description="threshold: used by more than so many data sets; half of them by default, as the paper"
    )
    k: Positive | None = Field(None, description="top_k: so many blocks; 5 by default, as many as the paper finds")

    @model_validator(mode="before")
    @classmethod
    def _rule_of_its_value(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("tau") is not None and "rule" not in given:
            return {"rule": "threshold", **given}
        return given

    @model_validator(mode="after")
    def _one_rule(self) -> Selection:
        unused = "k" if self.rule == "threshold" else "tau"
        if getattr(self, unused) is not None:
            raise RecipeError(f"{unused} means nothing for rule {self.rule}; leave it out")
        return self

    @property
    def blocks(self) -> int:
        """How many blocks rule top_k keeps."""
        return self.k or BLOCKS


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
    tasks: ByName[SearchTask] = Field(
        description="the data sets by name; null removes one; the paper takes twelve", min_length=1
    )
    train: Train = Train()
    routing: Routing = Routing()
    select: Selection = Selection()
    stem: bool = Field(True, description="whether the gene carries patch projection, positions and final norm")
    out: GeneRun = Path("runs/search")
    kept: Path | None = Field(
        None, description="where trained super nets are kept, to be shared by searches; by default in the run folder"
    )
    dtype: GeneType = "float32"

    @model_validator(mode="after")
    def _tasks_fit(self) -> SearchRecipe:
        for name in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
                raise RecipeError(f"tasks: '{name}' cannot name a folder; use letters, digits, dots, - and _")
            if len(name) > LONGEST_NAME:
                raise RecipeError(f"tasks: '{name}' is too long for a folder; use {LONGEST_NAME} characters or fewer")
        seen: dict[tuple[object, ...], str] = {}
        for name, task in self.tasks.items():
            data = task.data  # Images of another size, or prepared in another way, are still the same.
            where = (*sorted(str(Path(source).resolve()) for source in data.sources), data.root, data.train_split)
            if (other := seen.setdefault(where, name)) != name:
                raise RecipeError(f"tasks: {other} and {name} are the same data; leave one out")
            train = self.task(name).train
            if train.drop_path:
                raise RecipeError(f"tasks.{name}: train.drop_path is not for super nets, whose base blocks stay; use 0")
            for key in LAYERED:
                if getattr(train, key) is not None:
                    raise RecipeError(f"tasks.{name}: train.{key} is for fine-tuning; leave it out")
        if self.routing.gate == "two-branch" and self.routing.noise == "none":
            raise RecipeError(
                "routing: without noise a two-branch gate sees two equal blocks and never tries the specific one; use "
                "noise: gaussian"
            )
        tau, sets = self.select.tau, len(self.tasks)
        if tau is not None and tau >= sets:
            raise RecipeError(
                f"select.tau: no block can be used by more than {tau} of {sets} data sets; use 0 to {sets - 1}"
            )
        return self

    def task(self, name: str) -> TaskSearch:
        """The part of the recipe that decides one data set's path; its folder has a name made of that.

        Its seed is its own, made of the recipe's and the name.
        """
        task = self.tasks[name]
        train = validated(Train, _over(self.train.model_dump(exclude_unset=True), task.train), f"tasks.{name}.train")
        ancestry = hashed_content(self.ancestry)
        ancestry["source"] = "/".join(Path(self.ancestry.source).parts[-2:])  # wherever the folder lies
        # With one seed for all, every data set would draw the same noise, and paths would agree because of it.
        seed = int(short_hash([train.seed, name]), 16)
        key = short_hash([ancestry, task.data, train, self.routing, name])
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
