"""The genes of a comparison: what each contender's is made of, and the name that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learngene.comparing.jobs import AncestryJob, Comparison, GeneJob
from learngene.making.pool.rows import row_recipes
from learngene.methods import Method, method
from learngene.recipe.compare import SOURCE, ContenderSpec, ModelSpec, SearchSpec, Stage2Spec
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import FREE_TO_CHANGE, hashed_content, short_hash
from learngene.recipe.hyper import Stage1Hyper, stage1_hyper
from learngene.recipe.loading import build_recipe
from learngene.recipe.one_line_faults import validated
from learngene.recipe.search import SearchRecipe
from learngene.recipe.tune import TuneRecipe
from learngene.vits.shape import ViTShape


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


def gene_job(out: Comparison, name: str, spec: ContenderSpec, shape_name: str, task: str, seed: int) -> GeneJob | None:
    """The gene of a contender's cell; None for one that starts from nothing.

    Args:
        out: The comparison, whose ancestries are added to.
        name: Of the contender.
        spec: The contender.
        shape_name: The cell's shape, which decides for contenders with a gene per shape.
        task: The cell's task, which decides for contenders with a hypernetwork per task.
        seed: The cell's seed.
    """
    recipe, kind = out.recipe, method(spec.method, spec.settings)
    ancestry = _ancestry(out, spec.ancestry, seed) if spec.ancestry else None
    if not kind.origins:
        return None
    fields = {**recipe.shape, **spec.auxiliary, "num_classes": out.num_classes[SOURCE]}
    if spec.each:
        fields |= recipe.shapes[shape_name]
    if spec.search is not None:
        assert ancestry is not None
        return _searched_gene(out, name, spec, spec.search, ancestry, seed)
    if spec.stage2 is not None:
        return _tuned_gene(out, name, spec, spec.stage2, ancestry, task, seed)
    if not spec.trained:
        assert ancestry is not None
        shape = ancestry.shape or out.loaded.get(ancestry.name) or ViTShape.from_dict(fields)
        key = short_hash([spec.method, spec.settings, ancestry.folder.name])
        path = recipe.store / f"{spec.method}-{key}.safetensors"
        return GeneJob(spec.method, kind, shape, ancestry, None, recipe.data, path)
    return _condensed_gene(out, name, spec, ViTShape.from_dict(fields), ancestry, seed)


def _condensed_gene(
    out: Comparison, name: str, spec: ContenderSpec, shape: ViTShape, ancestry: AncestryJob | None, seed: int
) -> GeneJob:
    recipe, kind = out.recipe, method(spec.method, spec.settings)
    train = recipe.train("condense", spec.train, {"seed": seed})
    given: dict[str, Any] = {
        "kind": "condense",
        "method": spec.method,
        "settings": spec.settings,
        "shape": shape,
        "data": recipe.data,
        "train": train,
    }
    if spec.distill is not None:
        given["distill"] = spec.distill
    unguided = False
    if kind.making == "hyper":
        fields = stage1_hyper(spec.hyper, task_aware=kind.task_aware)
        given["hyper"] = validated(Stage1Hyper, fields, f"contenders.{name}.hyper")
        unguided = given["hyper"].guidance.alpha == 0  # then the ancestry is for task embeddings only
    if ancestry is not None and not unguided:
        given["ancestry"] = ancestry.source()
    anchors = tuple(_ancestry(out, anchor, seed) for anchor in spec.anchors)
    if anchors:
        given["anchors"] = [anchor.source() for anchor in anchors]
    if kind.making == "pool":
        given["pool"] = {**(spec.pool or {}), **({} if anchors else {"kept": recipe.store})}
    condense = build_recipe(given, where=f"contenders.{name}")
    assert isinstance(condense, CondenseRecipe)
    guided = condense.hyper is not None and condense.hyper.guidance.alpha > 0
    needs_teacher = kind.making == "pool" or condense.distill.alpha > 0 or guided
    teacher = ancestry.folder.name if ancestry and needs_teacher else None
    content = [*_method_content(spec, kind), shape.to_dict(), recipe.data, train]
    if condense.pool:
        content += [condense.pool.model_copy(update={"kept": None}), [job.folder.name for job in anchors]]
    if condense.hyper:
        content.append(condense.hyper)
    label = f"{spec.method}-d{shape.depth}-s{seed}-{short_hash([*content, condense.distill, teacher])}"
    condense = condense.model_copy(update={"out": recipe.store / label})
    if teacher is None:
        condense, ancestry = condense.model_copy(update={"ancestry": None}), None
    title, path = f"{spec.method} d{shape.depth} seed {seed}", recipe.store / f"{label}.safetensors"
    rows = tuple(row_recipes(condense)) if kind.making == "pool" else ()
    return GeneJob(title, kind, shape, ancestry, condense, recipe.data, path, rows, anchors)


def _searched_gene(
    out: Comparison, name: str, spec: ContenderSpec, search: SearchSpec, ancestry: AncestryJob, seed: int
) -> GeneJob:
    recipe = out.recipe
    tasks = recipe.learned(search)
    train = recipe.train("condense", spec.train, {"seed": seed})
    rates = {task: {"lr": search.rates[task]} for task in tasks if task in search.rates}
    given: dict[str, Any] = {
        "kind": "search",
        "ancestry": ancestry.source(),
        "tasks": {task: {"data": out.task_data(task), "train": rates.get(task, {})} for task in tasks},
        "train": train,
        "routing": search.routing,
        "select": search.select,
        "stem": search.stem,
        "kept": recipe.store,
    }
    built = build_recipe(given, where=f"contenders.{name}.search")
    assert isinstance(built, SearchRecipe)
    parts = [built.task(task) for task in tasks]
    key = short_hash([sorted(part.out.name for part in parts), search.select, built.tau, search.stem])
    label = f"{spec.method}-s{seed}-{key}"
    built = built.model_copy(update={"out": recipe.store / label})
    shape = ancestry.shape or out.loaded.get(ancestry.name)
    if shape is None:
        shape = ViTShape.from_dict({**recipe.shape, **spec.auxiliary, "num_classes": out.num_classes[SOURCE]})
    # Which blocks will be kept is not known yet; how many, only if the rule says so.
    kind = built.method(tuple(range(1, (search.select.blocks if search.select.rule == "top_k" else 1) + 1)))
    path, title = recipe.store / f"{label}.safetensors", f"{spec.method} seed {seed}"
    return GeneJob(title, kind, shape, ancestry, built, recipe.data, path, searches=tuple(parts))


def _tuned_gene(
    out: Comparison,
    name: str,
    spec: ContenderSpec,
    stage2: Stage2Spec,
    ancestry: AncestryJob | None,
    task: str,
    seed: int,
) -> GeneJob:
    """A hypernetwork tuned on several tasks, or on the cell's own, behind stage 1 or fresh."""
    recipe, kind = out.recipe, method(spec.method, spec.settings)
    tasks = [task] if stage2.each else recipe.learned(stage2)
    shape = ViTShape.from_dict({**recipe.shape, **spec.auxiliary, "num_classes": out.num_classes[SOURCE]})
    stage1 = None if stage2.fresh else _condensed_gene(out, name, spec, shape, ancestry, seed)
    train = recipe.train("condense", spec.train, stage2.train, {"seed": seed})
    hyper = {key: value for key, value in (spec.hyper or {}).items() if key != "guidance"}
    embedding = ancestry if spec.task_aware else None
    given: dict[str, Any] = {
        "kind": "tune",
        "tasks": {each: {"data": out.task_data(each), "augment": stage2.augment.get(each, {})} for each in tasks},
        "temperature": stage2.temperature,
        "freeze_encoder": stage2.freeze_encoder,
        "task_layers": stage2.task_layers,
        "hyper": hyper,
        "train": train,
    }
    given |= {"gene": stage1.path} if stage1 else {"method": spec.method, "settings": spec.settings, "shape": shape}
    if embedding is not None:
        given["ancestry"] = embedding.source()
    built = validated(TuneRecipe, given, f"contenders.{name}.stage2")
    described = {each: [spec.data, spec.augment] for each, spec in built.tasks.items()}
    start = stage1.path.name if stage1 else [*_method_content(spec, kind), shape.to_dict()]
    content = [start, described, stage2.temperature, stage2.freeze_encoder, built.hyper, train]
    if stage2.task_layers is not None:
        content.append(stage2.task_layers)
    key = short_hash([*content, embedding.folder.name if embedding else None])
    where = f"-{task}" if stage2.each else ""
    label = f"{spec.method}-tuned{where}-s{seed}-{key}"
    built = built.model_copy(update={"out": recipe.store / label})
    path = recipe.store / f"{label}.safetensors"
    title = f"{spec.method} tuned on {task if stage2.each else len(tasks)} seed {seed}"
    return GeneJob(title, kind, shape, embedding, built, recipe.data, path, stage1=stage1)


def _method_content(spec: ContenderSpec, kind: Method) -> list[Any]:
    """What a contender says about its method, and which reading of its tensors that is, if there was another."""
    return [spec.method, spec.settings, *([kind.format_version] if kind.changes else [])]


def _identity(spec: ModelSpec) -> dict[str, Any]:
    """What an entry says about its model; its training is hashed as a whole."""
    values = hashed_content(spec)
    values.pop("per_seed")  # the seed is part of how it is trained
    values["train"] = {name: value for name, value in spec.train.items() if name not in FREE_TO_CHANGE}
    if spec.source and ":" not in spec.source:  # a path; timm has names with a colon, and then with a slash
        values["source"] = Path(spec.source).name
    return values
