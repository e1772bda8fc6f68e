"""Running a plan: each step in a folder of its own whose name says what decides it, found again if it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learngene.data.splits import Splits
from learngene.making import condense, finetune
from learngene.making.steps import Say, Step, gene_path, run_steps
from learngene.recipe.content_hash import short_hash
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.sections import Train
from learngene.recipe.ship import FRESH, ShipRecipe
from learngene.shipping.plan import TEACHER
from learngene.training.record import read_result
from learngene.vits.descendant_folder import copy_descendant

RUNS, MODELS = "runs", "models"


@dataclass(frozen=True)
class Trained:
    """A gene or a model that was trained.

    Attributes:
        path: The gene file, or the folder of the model.
        run: Its run folder.
        seconds: Of its training, over all restarts.
    """

    path: Path
    run: Path
    seconds: float


def training_steps(recipe: ShipRecipe, images: Splits, *, show: bool) -> list[Step[Trained]]:
    """The steps that train something, each after what it needs."""
    genes: dict[str, Step[Trained]] = {}
    teacher, asked = None, recipe.ancestry
    if asked is not None and asked.train is not None:
        given: dict[str, Any] = {"model": asked.source, "pretrained": asked.pretrained}
        teacher = _tuned(recipe, TEACHER, asked.train, images, show, **given)
    for name in recipe.genes:
        plain = recipe.gene_recipe(name, Path(name), Path(teacher.path.parent.name) if teacher else None)
        gene = recipe.gene_recipe(
            name, recipe.out / RUNS / f"{name}-{short_hash(plain)}", teacher.path if teacher else None
        )

        def condensed(gene: condense.CondenseRecipe = gene) -> Trained:
            condense.run(gene, images=images, show=show)
            return _there(gene_path(gene.out), gene.out)

        genes[name] = _step(name, gene_path(gene.out), gene.out, condensed, [teacher] if teacher else [])
    steps = [*([teacher] if teacher else []), *genes.values()]
    for name, model in (recipe.models or {}).items():
        needed = [genes[model.start]] if model.start in genes else []
        start: dict[str, Any] = {"model": str(needed[0].path) if needed else FRESH, "shape": model.shape.to_dict()}
        steps.append(_tuned(recipe, name, model.train, images, show, needs=needed, **start))
    return steps


def _tuned(
    recipe: ShipRecipe,
    name: str,
    train: Train,
    images: Splits,
    show: bool,
    *,
    needs: Sequence[Step[Trained]] = (),
    **start: Any,
) -> Step[Trained]:
    """A model that is fine-tuned, or trained from nothing."""
    tune = FinetuneRecipe(data=recipe.data, train=train, out=Path(name), **start)
    plain = tune.model_copy(update={"model": Path(tune.model).name})  # wherever the folder lies
    out = recipe.out / RUNS / f"{name}-{short_hash(plain)}"
    tune = tune.model_copy(update={"out": out})

    def tuned() -> Trained:
        finetune.run(tune, images=images, show=show)
        return _there(out / "descendant", out)

    return _step(name, out / "descendant", out, tuned, needs)


def _step(
    name: str, path: Path, run: Path, make: Callable[[], Trained], needs: Sequence[Step[Trained]] = ()
) -> Step[Trained]:
    def found() -> Trained | None:
        return _there(path, run) if path.exists() and read_result(run) else None

    return Step(name, path, make, found, needs, lambda outcome: str(outcome.path))


def _there(path: Path, run: Path) -> Trained:
    result = read_result(run)
    assert result is not None
    return Trained(path, run, result.seconds)


def train_all(recipe: ShipRecipe, images: Splits, *, show: bool, say: Say | None) -> dict[str, Trained]:
    """Trains what is missing; what is there is kept. By name of the step."""
    out = {}
    for step, outcome in run_steps(training_steps(recipe, images, show=show), say=say):
        out[step.name] = outcome
    return out


def keep_model(recipe: ShipRecipe, name: str, trained: Trained) -> Path:
    """Copies a model to where it is easy to find, as a folder that stock timm loads."""
    path = recipe.out / MODELS / name
    copy_descendant(trained.path, path)
    return path


def exported(path: Path) -> Path | None:
    """Writes the ONNX file of a model folder beside it; None where the extra is not installed."""
    from importlib.util import find_spec

    from learngene.devices.export import export
    from learngene.vits.descendant_folder import load_descendant

    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return None
    onnx = path.with_name(f"{path.name}.onnx")
    newest = (path / "model.safetensors").stat().st_mtime
    if not (onnx.exists() and onnx.stat().st_mtime >= newest):
        export(load_descendant(path), onnx)
    return onnx
