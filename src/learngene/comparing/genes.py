"""The genes of a comparison: what each contender's is made of, and the name that says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learngene.comparing.jobs import AncestryJob, Comparison, GeneJob
from learngene.making.pool.rows import row_recipes
from learngene.methods import Method
from learngene.recipe.compare import SOURCE, ContenderSpec, ModelSpec, SearchSpec, Stage2Spec
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import FREE_TO_CHANGE, hashed_content, short_hash
from learngene.recipe.hyper import Stage1Hyper, stage1_hyper
from learngene.recipe.loading import build_recipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.search import SearchRecipe
from learngene.recipe.tune import TuneRecipe
from learngene.vits.shape import ViTShape


def gene_job(out: Comparison, name: str, kind: Method, shape_name: str, task: str, seed: int) -> GeneJob | None:
    """The gene of a contender's cell; None for one that starts from nothing.

    Args:
        out: The comparison, whose ancestries are added to.
        name: Of the contender.
        kind: Its method with its settings.
        shape_name: The cell's shape, which decides for contenders with a gene per shape.
        task: The cell's task, which decides for contenders with a hypernetwork per task.
        seed: The cell's seed.
    """
    spec = out.recipe.contenders[name]
    ancestry = _ancestry(out, spec.ancestry, seed) if spec.ancestry else None
    if not kind.origins:
        return None
    asked = _AskedGene(out, name, spec, kind, ancestry, seed)
    if spec.search is not None:
        return asked.searched(spec.search)
    if spec.stage2 is not None:
        return asked.tuned(spec.stage2, task)
    if spec.trained:
        return asked.condensed(asked.auxiliary(out.recipe.shapes[shape_name] if spec.each else {}))
    return asked.extracted()


def _ancestry(out: Comparison, name: str, seed: int) -> AncestryJob:
    recipe = out.recipe
    spec = recipe.ancestries[name]
    label = f"{name}-s{seed}" if spec.per_seed else name
    if label not in out.ancestries:
        shape = None
        if spec.shape is not None:
            shape = ViTShape.from_dict({**recipe.shape, **spec.shape, "num_classes": out.num_classes[SOURCE]})
        train = recipe.train("condense", spec.train, {"seed": seed} if spec.per_seed else {})
        content = [_identity(spec), shape.to_dict() if shape else None, train, recipe.data]
        folder = recipe.store / f"ancestry-{label}-{short_hash(content)}"
        out.ancestries[label] = AncestryJob(label, spec, shape, train, recipe.data, folder)
    return out.ancestries[label]


def _identity(spec: ModelSpec) -> dict[str, Any]:
    """What an entry says about its model; its training is hashed as a whole."""
    values = hashed_content(spec)
    values.pop("per_seed")  # the seed is part of how it is trained
    values.pop("trained_macs", None)
    values["train"] = {name: value for name, value in spec.train.items() if name not in FREE_TO_CHANGE}
    if spec.source and ":" not in spec.source:  # a path; timm has names with a colon, and then with a slash
        values["source"] = Path(spec.source).name
    return values


@dataclass(frozen=True)
class _AskedGene:
    """A contender's gene for a seed; each way to make one is a method that describes and names it."""

    out: Comparison
    name: str
    spec: ContenderSpec
    kind: Method
    ancestry: AncestryJob | None
    seed: int

    def auxiliary(self, changes: dict[str, Any]) -> ViTShape:
        classes = self.out.num_classes[SOURCE] if self.spec.needs_labels else 0
        own = {**self.spec.auxiliary, "num_classes": classes, **changes}
        return ViTShape.from_dict({**self.out.recipe.shape, **own})

    def origin(self) -> tuple[AncestryJob, ViTShape]:
        """The ancestry that blocks are taken from, and its shape."""
        assert self.ancestry is not None
        known = self.ancestry.shape or self.out.loaded.get(self.ancestry.name)
        return self.ancestry, known or self.auxiliary({})

    def path(self, label: str) -> Path:
        return self.out.recipe.store / f"{label}.safetensors"

    def method_content(self) -> list[Any]:
        """What is said about the method, and which reading of its tensors that is, if there was another."""
        return [self.spec.method, self.spec.settings, *([self.kind.format_version] if self.kind.changes else [])]

    def extracted(self) -> GeneJob:
        ancestry, shape = self.origin()
        key = short_hash([self.spec.method, self.spec.settings, ancestry.folder.name])
        return GeneJob(self.spec.method, self.kind, shape, ancestry, None, self.path(f"{self.spec.method}-{key}"))

    def condensed(self, shape: ViTShape) -> GeneJob:
        out, spec, kind, ancestry = self.out, self.spec, self.kind, self.ancestry
        recipe = out.recipe
        train = recipe.train("condense", spec.train, {"seed": self.seed})
        given: dict[str, Any] = {"kind": "condense", "method": spec.method, "settings": spec.settings, "shape": shape}
        given |= {"data": recipe.data, "train": train}
        if spec.distill is not None:
            given["distill"] = spec.distill
        if spec.features is not None:
            given["features"] = spec.features
        given |= {name: value for name in ("depths", "shapes") if (value := getattr(spec, name)) is not None}
        unguided = False
        if kind.making == "hyper":
            fields = stage1_hyper(spec.hyper, task_aware=kind.task_aware)
            given["hyper"] = validated(Stage1Hyper, fields, f"contenders.{self.name}.hyper")
            unguided = given["hyper"].guidance.alpha == 0  # then the ancestry is for task embeddings only
        if ancestry is not None and not unguided:
            given["ancestry"] = ancestry.source()
        anchors = tuple(_ancestry(out, anchor, self.seed) for anchor in spec.anchors)
        if anchors:
            given["anchors"] = [anchor.source() for anchor in anchors]
        if kind.making == "pool":
            given["pool"] = {**(spec.pool or {}), **({} if anchors else {"kept": recipe.store})}
        condense = build_recipe(given, where=f"contenders.{self.name}")
        assert isinstance(condense, CondenseRecipe)
        guided = condense.hyper is not None and condense.hyper.guidance.alpha > 0
        if not (kind.making == "pool" or condense.distill.alpha > 0 or guided):  # no teacher is needed
            condense, ancestry = condense.model_copy(update={"ancestry": None}), None
        content = [*self.method_content(), shape.to_dict(), recipe.data, train]
        if condense.pool:
            content += [condense.pool.model_copy(update={"kept": None}), [job.folder.name for job in anchors]]
        if condense.hyper:
            content.append(condense.hyper)
        if condense.distill.target == "features":
            content.append(condense.feature_targets())
        if condense.depths:
            content.append({"depths": condense.depths})
        if condense.shapes:
            content.append({"shapes": condense.shapes})
        key = short_hash([*content, condense.distill, ancestry.folder.name if ancestry else None])
        label = f"{spec.method}-d{shape.depth}-s{self.seed}-{key}"
        condense = condense.model_copy(update={"out": recipe.store / label})
        title = f"{spec.method} d{shape.depth} seed {self.seed}"
        rows = tuple(row_recipes(condense)) if kind.making == "pool" else ()
        return GeneJob(title, kind, shape, ancestry, condense, self.path(label), rows, anchors)

    def searched(self, search: SearchSpec) -> GeneJob:
        recipe, method = self.out.recipe, self.spec.method
        ancestry, shape = self.origin()
        tasks = recipe.learned(search)
        rates = {task: {"lr": search.rates[task]} for task in tasks if task in search.rates}
        given = {
            "kind": "search",
            "ancestry": ancestry.source(),
            "tasks": {task: {"data": self.out.task_data(task), "train": rates.get(task, {})} for task in tasks},
            "train": recipe.train("condense", self.spec.train, {"seed": self.seed}),
            "routing": search.routing,
            "select": search.select,
            "stem": search.stem,
            "kept": recipe.store,
        }
        built = build_recipe(given, where=f"contenders.{self.name}.search")
        assert isinstance(built, SearchRecipe)
        parts = tuple(built.task(task) for task in tasks)
        key = short_hash([sorted(part.out.name for part in parts), search.select, built.tau, search.stem])
        label = f"{method}-s{self.seed}-{key}"
        built = built.model_copy(update={"out": recipe.store / label})
        # Which blocks will be kept is not known yet; how many, only if the rule says so.
        kind = built.method(tuple(range(1, (search.select.blocks if search.select.rule == "top_k" else 1) + 1)))
        title = f"{method} seed {self.seed}"
        return GeneJob(title, kind, shape, ancestry, built, self.path(label), searches=parts)

    def tuned(self, stage2: Stage2Spec, task: str) -> GeneJob:
        """A hypernetwork tuned on several tasks, or on the cell's own, behind stage 1 or fresh."""
        spec, recipe, shape = self.spec, self.out.recipe, self.auxiliary({})
        tasks = [task] if stage2.each else recipe.learned(stage2)
        stage1 = None if stage2.fresh else self.condensed(shape)
        train = recipe.train("condense", spec.train, stage2.train, {"seed": self.seed})
        embedding = self.ancestry if spec.task_aware else None
        data = {each: self.out.task_data(each) for each in tasks}
        given: dict[str, Any] = {
            "kind": "tune",
            "tasks": {each: {"data": data[each], "augment": stage2.augment.get(each, {})} for each in tasks},
            "temperature": stage2.temperature,
            "freeze_encoder": stage2.freeze_encoder,
            "task_layers": stage2.task_layers,
            "hyper": {key: value for key, value in (spec.hyper or {}).items() if key != "guidance"},
            "train": train,
        }
        fresh = {"method": spec.method, "settings": spec.settings, "shape": shape}
        given |= {"gene": stage1.path} if stage1 else fresh
        if embedding is not None:
            given["ancestry"] = embedding.source()
        built = validated(TuneRecipe, given, f"contenders.{self.name}.stage2")
        described = {each: [spec.data, spec.augment] for each, spec in built.tasks.items()}
        start = stage1.path.name if stage1 else [*self.method_content(), shape.to_dict()]
        content = [start, described, stage2.temperature, stage2.freeze_encoder, built.hyper, train]
        if stage2.task_layers is not None:
            content.append(stage2.task_layers)
        key = short_hash([*content, embedding.folder.name if embedding else None])
        label = f"{spec.method}-tuned{f'-{task}' if stage2.each else ''}-s{self.seed}-{key}"
        built = built.model_copy(update={"out": recipe.store / label})
        title = f"{spec.method} tuned on {task if stage2.each else len(tasks)} seed {self.seed}"
        return GeneJob(title, self.kind, shape, embedding, built, self.path(label), stage1=stage1)
