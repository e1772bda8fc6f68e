"""``ship``: from images and sizes to models that are trained, judged, exported and told of on one page."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from learngene.data.splits import Splits, open_splits
from learngene.devices.measure import OnDevice
from learngene.making.arguments import Data, data_fields, recipe_of
from learngene.recipe.loading import build_recipe, read_fields
from learngene.recipe.ship import ShipRecipe
from learngene.shipping.judge import behind, judged
from learngene.shipping.look import look
from learngene.shipping.page import verdict, write_ship_page
from learngene.shipping.plan import Plan, make_plan
from learngene.shipping.run import MODELS, exported, keep_model, train_all, training_steps
from learngene.system.environment import environment
from learngene.system.errors import LearngeneError
from learngene.system.files import refuse_foreign, refuse_full_disk, write_file
from learngene.system.processes import stopping
from learngene.system.speech import announce, say
from learngene.vits.shape import ViTShape
from learngene.vits.speed import latency

RECIPE, PLAN, RESULT, PAGE, TIMES = "ship.yaml", "plan.json", "result.json", "index.html", "sessions.json"


def ship(
    data: Data,
    *,
    out: str | Path = "shipped",
    sizes: list[int] | None = None,
    max_latency: list[float] | None = None,
    max_size: list[float] | None = None,
    runtime: str | None = None,
    teacher: str | None = None,
    hours: float | None = None,
    budget_macs: float | None = None,
    method: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Makes models of several sizes for a data set: plans, trains, judges, exports, and writes one page.

    Args:
        data: Where the images are, or a whole data section.
        out: Folder of the recipe, the models, the runs, the result and the page. The same call continues a stopped one.
        sizes: Most parameters of each model; 0.2, 0.6 and 1.5 million by default.
        max_latency: Most milliseconds per image on this machine, for a model each.
        max_size: Most megabytes of weights, for a model each.
        runtime: Whose milliseconds count, as for ``OnDevice``; eager timm by default.
        teacher: Name or folder of a timm model; none by default.
        hours: For everything; 1 by default.
        budget_macs: Instead, multiply-adds of all training.
        method: How the models are made; what measured comparisons advise by default.
        seed: Of everything random.
        dry_run: Whether to plan only; nothing is written.
        show: Whether to print plan and progress.

    Returns:
        What ``result.json`` has; of a dry run, the plan.

    Raises:
        LearngeneError: If the images, the sizes or the budget will not do, before anything is trained.
    """
    asked = recipe_of(
        ShipRecipe,
        data=data_fields(data),
        out=out,
        sizes=sizes,
        max_latency=max_latency,
        max_size=max_size,
        runtime=runtime,
        teacher=teacher,
        hours=hours,
        budget_macs=budget_macs,
        method=method,
        seed=seed,
    )
    return run(begun(asked), dry_run=dry_run, show=show)


def begun(asked: ShipRecipe) -> ShipRecipe:
    """The recipe that a folder has, if it was begun with the same wishes; else what is asked.

    Raises:
        LearngeneError: If it was begun with others.
    """
    path = asked.out / RECIPE
    refuse_foreign(asked.out, RECIPE)
    if not path.exists():
        return asked
    there = load(path)
    differing = [key for key, value in asked.asked.items() if key != "data" and there.asked[key] != value]
    differing += ["data.source"] if there.data.names != asked.data.names else []
    differing += ["method"] if asked.method not in (None, there.method) else []
    if differing:
        raise LearngeneError(
            f"{path} was begun with another {differing[0]}; choose another --out, or change that file and run "
            f"`learngene ship {path}`"
        )
    return there


def load(path: Path, overrides: list[str] | None = None) -> ShipRecipe:
    """Reads a recipe of ``ship``; its folder is that of the file, unless it says another."""
    fields = read_fields(path, overrides or [])
    if path.name == RECIPE:
        fields.setdefault("out", str(path.parent))
    recipe = build_recipe({"kind": "ship", **fields}, where=str(path))
    if not isinstance(recipe, ShipRecipe):
        raise LearngeneError(f"{path}: a {recipe.kind} recipe; run it with `learngene {recipe.kind}`")
    return recipe


def run(
    recipe: ShipRecipe,
    *,
    dry_run: bool = False,
    show: bool = True,
    start: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Runs a recipe of ``ship``, or goes on with it; see ``ship``.

    Args:
        recipe: With its choices or without.
        dry_run: Whether to plan only.
        show: Whether to print plan and progress.
        start: When the command began, by ``clock``.
        clock: What the budget is counted in.
    """
    start = clock() if start is None else start
    refuse_foreign(recipe.out, RECIPE)
    splits = open_splits(recipe.data)
    plan = planned(recipe, splits, start, clock)
    recipe = plan.recipe
    on = OnDevice(recipe.runtime) if recipe.runtime else None
    if on is not None:  # before anything is trained: it may not be installed
        on.prepare([model.shape for model in (recipe.models or {}).values()])
    if show and dry_run:
        say("\n".join(told(plan, splits)), plan=plan.entry())
    elif show:
        for line in told(plan, splits):
            announce(line)
    if dry_run:
        return plan.entry()
    refuse_full_disk(recipe.out, sum(step.disk for step in plan.steps))
    _write_recipe(plan)
    sessions = _sessions(recipe.out)
    spent: dict[str, float] = {}
    try:
        with stopping(lambda: f"{recipe.out}"):
            trained = train_all(recipe, splits, show=show, say=announce if show else None)
            spent = {name: each.seconds for name, each in trained.items()}
            models, said = [], {}
            for name, model in (recipe.models or {}).items():
                folder = keep_model(recipe, name, trained[name])
                onnx = exported(folder)
                said[name] = judged(folder, recipe.data, splits.val)
                models.append(
                    {
                        "name": name,
                        "shape": model.shape.to_dict(),
                        "params": model.shape.params(),
                        "macs": model.shape.macs(),
                        "bytes": (folder / "model.safetensors").stat().st_size,
                        "onnx_bytes": onnx.stat().st_size if onnx else None,
                        **said[name].entry(),
                    }
                )
            distances = behind(said)
            shapes = [model.shape for model in (recipe.models or {}).values()]
            for each, milliseconds in zip(models, _latencies(shapes, on), strict=True):
                each["latency_ms"] = milliseconds
                each["behind"] = distances[each["name"]]
    finally:
        sessions.append(round(clock() - start, 1))
        _write_json(recipe.out / TIMES, sessions)
    result = {
        "kind": "ship",
        **plan.entry(),
        "models": models,
        "spent": {"steps": {name: round(each, 1) for name, each in spent.items()}, "sessions": sessions},
        "environment": environment(),
    }
    _write_json(recipe.out / RESULT, result)
    write_ship_page(recipe.out / PAGE, result, recipe, said, splits.val)
    if show:
        _say_result(recipe.out, result)
    return result


def _say_result(out: Path, result: Mapping[str, Any]) -> None:
    for each in result["models"]:
        (low, high), said = each["interval"], {"measure": "top-1", "score": each["top1"], "params": each["params"]}
        text = f"{each['name']}: top-1 {each['top1']:.1f} % ({low:.1f} to {high:.1f})"
        say(text, path=out / MODELS / each["name"], **said)
    seconds = sum(result["spent"]["sessions"])
    say(f"{verdict(result)}\n{seconds:.0f} s in all; {out / PAGE}", path=out / PAGE, seconds=seconds)


def planned(recipe: ShipRecipe, splits: Splits, start: float, clock: Callable[[], float] = time.perf_counter) -> Plan:
    """The plan that a folder has of a recipe, or a new one; see ``run``."""
    return _plan_of(recipe) or make_plan(recipe, splits, look(splits), clock=clock, used=clock() - start)


def told(plan: Plan, splits: Splits) -> list[str]:
    """A plan in lines, with what is there of it already."""
    return plan.told([step.name for step in training_steps(plan.recipe, splits, show=False) if step.found()])


def _plan_of(recipe: ShipRecipe) -> Plan | None:
    """The plan that was made of a recipe with all choices; None if there is none, or of another recipe."""
    path = recipe.out / PLAN
    if recipe.models is None or not path.exists():
        return None
    entry = json.loads(path.read_text())
    return Plan.of(recipe, entry) if entry["recipe"] == recipe.plain() else None


def _write_recipe(plan: Plan) -> None:
    text = yaml.safe_dump(plan.recipe.plain(), sort_keys=False)
    write_file(plan.recipe.out / RECIPE, lambda temporary: temporary.write_text(text))
    _write_json(plan.recipe.out / PLAN, plan.entry())


def _latencies(shapes: Sequence[ViTShape], on: OnDevice | None) -> list[float]:
    """Milliseconds an image: in a runtime, or of eager timm the least of three rounds in which all are timed."""
    if on is not None:
        return [round(on.latency(shape), 3) for shape in shapes]
    rounds = [[latency(shape) for shape in shapes] for _ in range(3)]
    return [round(min(times), 2) for times in zip(*rounds, strict=True)]


def _sessions(out: Path) -> list[float]:
    """Seconds of the sessions before this one."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # times alone: a damaged file is as good as none
        return [float(seconds) for seconds in json.loads((out / TIMES).read_bytes())]
    return []


def _write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    write_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))
