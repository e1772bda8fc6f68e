"""Commands that work on models: fine-tune, evaluate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from learngene.cli.app import Data, Json, Options, Overrides, app, choices, say
from learngene.errors import LearngeneError, RecipeError


@app.command()
def finetune(
    recipe: Annotated[Path | None, typer.Argument(help="recipe (.yaml); or use --model and --data")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="gene file, descendant folder, or scratch")] = None,
    data: Annotated[list[str] | None, typer.Option(help="digits, folder, tar or timm data set name")] = None,
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
    path: Annotated[str | None, typer.Option(help="path to expand from a pool's gene, such as 4+2")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the data")] = None,
    preset: Annotated[str | None, typer.Option(help="training preset: deit, official or laptop")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder")] = None,
) -> None:
    """Fine-tune a descendant as an ordinary model. The same command continues a stopped run."""
    from learngene.recipe import FinetuneRecipe, build_recipe, load_recipe

    given = list(overrides or [])
    if recipe is not None and "=" in str(recipe) and not recipe.exists():
        recipe, given = None, [str(recipe), *given]
    flags: dict[str, Any] = {
        "model": model,
        "shape.depth": depth,
        "shape.path": path,
        "train.epochs": epochs,
        "train.preset": preset,
    }
    flags |= {"data.source": data or None, "out": str(out) if out else None}
    given += [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if recipe is None:
        from learngene.recipe import apply_overrides

        if model is None or not data:
            raise RecipeError("finetune: give a recipe, or --model and --data")
        loaded = build_recipe(apply_overrides({"kind": "finetune"}, given), where="flags")
    else:
        loaded = load_recipe(recipe, given)
    if not isinstance(loaded, FinetuneRecipe):
        raise RecipeError(f"{recipe}: a {loaded.kind} recipe; run it with `learngene {loaded.kind}`")
    from learngene.finetuning import run

    done = run(loaded)
    say(f"{done.path}: top-1 {done.untuned.top1:.2f} % untuned, {done.result.final.top1:.2f} % fine-tuned")
    say(f"next: learngene export {done.path} --out MODEL.onnx")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="descendant folder, gene file, or timm name with pretrained weights")],
    data: Data,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
    path: Annotated[str | None, typer.Option(help="path to expand from a pool's gene, such as 4+2")] = None,
    options: Options = None,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="count and leave out broken images")] = False,
    as_json: Json = False,
) -> None:
    """Measure top-1, top-5 and loss on a split."""
    from learngene.ancestry import Ancestry
    from learngene.finetuning import data_section
    from learngene.finetuning import evaluate as score
    from learngene.gene import Learngene

    section = data_section({"source": list(data), "skip_corrupt": skip_corrupt})
    if Path(model).is_file() or Path(model).suffix == ".safetensors":
        classifier: Any = Learngene.load(model).expand(path if path is not None else depth, **choices(options))
    elif depth is not None or path is not None:
        given = f"--depth {depth}" if path is None else f"--path {path}"
        raise LearngeneError(f"{given}: only a gene file can be expanded, and {model} is none")
    else:
        classifier = Ancestry(model).model
    result = score(classifier, section, split=split)
    if as_json:
        print(json.dumps(vars(result)))
    else:
        print(
            f"{model} on {' + '.join(data)} ({split}): top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
            f"loss {result.loss:.4f}, {result.images} images"
        )


@app.command()
def export(
    descendant: Annotated[Path, typer.Argument(help="descendant folder")],
    out: Annotated[Path, typer.Option(help="ONNX file to write")],
) -> None:
    """Write an ONNX file, run it again at batch 1 and 3 and compare the logits."""
    from learngene.descendant import load_descendant
    from learngene.export import export_onnx

    difference = export_onnx(load_descendant(descendant), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, logits agree at batch 1 and 3 within {difference:.1g}")
