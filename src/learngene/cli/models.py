"""Commands that work on models: fine-tune, evaluate, export."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from learngene.cli.app import Data, Json, Options, Overrides, app, choices, say
from learngene.system.errors import LearngeneError, RecipeError


@app.command()
def finetune(
    recipe: Annotated[Path | None, typer.Argument(help="recipe (.yaml); or use --model and --data")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="gene file, descendant folder, or scratch")] = None,
    data: Annotated[list[str] | None, typer.Option(help="digits, folder, tar or data set name")] = None,
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
    path: Annotated[str | None, typer.Option(help="path to expand from a pool's gene, such as 4+2")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the data")] = None,
    preset: Annotated[str | None, typer.Option(help="training preset: deit, official or laptop")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder")] = None,
) -> None:
    """Fine-tune a descendant as an ordinary model. The same command continues a stopped run."""
    from learngene.recipe.finetune import FinetuneRecipe
    from learngene.recipe.loading import build_recipe, load_recipe

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
        from learngene.recipe.loading import apply_overrides

        if model is None or not data:
            raise RecipeError("finetune: give a recipe, or --model and --data")
        loaded = build_recipe(apply_overrides({"kind": "finetune"}, given), where="flags")
    else:
        loaded = load_recipe(recipe, given)
    if not isinstance(loaded, FinetuneRecipe):
        raise RecipeError(f"{recipe}: a {loaded.kind} recipe; run it with `learngene {loaded.kind}`")
    from learngene.making.finetune import run

    done = run(loaded)
    untuned, tuned = done.untuned, done.result.final
    say(f"{done.path}: {tuned.label} {untuned.main:.2f} % untuned, {tuned.main:.2f} % fine-tuned")
    say(f"next: learngene export {quote(str(done.path))} --out MODEL.onnx")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="descendant folder, gene file, or timm name with pretrained weights")],
    data: Data,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
    path: Annotated[str | None, typer.Option(help="path to expand from a pool's gene, such as 4+2")] = None,
    options: Options = None,
    root: Annotated[Path | None, typer.Option(help="where a data set given by name lies")] = None,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="count and leave out broken images")] = False,
    ignore_index: Annotated[int, typer.Option(help="masks: the value of pixels that are not judged")] = 255,
    mask_classes: Annotated[
        str | None,
        typer.Option(help="masks: number of the classes, or their names with commas; the model's by default"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure top-1, top-5 and loss on a split; on images with masks mean IoU, pixel accuracy and loss."""
    from learngene.genes.ancestry import Ancestry
    from learngene.genes.gene import Learngene
    from learngene.making.finetune import data_section, mask_names
    from learngene.making.finetune import evaluate as score
    from learngene.training.scores import Accuracy

    fields: dict[str, Any] = {"source": list(data), "skip_corrupt": skip_corrupt, "ignore_index": ignore_index}
    if root is not None:
        fields["root"] = str(root)
    if mask_classes is not None:
        fields["mask_classes"] = int(mask_classes) if mask_classes.isdecimal() else mask_classes.split(",")
    section = data_section(fields)
    if Path(model).is_file() or Path(model).suffix == ".safetensors":
        classifier: Any = Learngene.load(model).expand(path if path is not None else depth, **choices(options))
    elif depth is not None or path is not None:
        given = f"--depth {depth}" if path is None else f"--path {path}"
        raise LearngeneError(f"{given}: only a gene file can be expanded, and {model} is none")
    else:
        classifier = Ancestry(model).model
    result = score(classifier, section, split=split)
    if not isfinite(result.loss):
        raise LearngeneError(f"{model}: its outputs are not finite numbers, so that its scores mean nothing")
    names = mask_names(classifier, section)
    if as_json:
        classes = {} if isinstance(result, Accuracy) else {"classes": names}
        print(json.dumps({**vars(result), **classes}))
        return
    if isinstance(result, Accuracy):
        found = f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %"
    else:
        found = f"mean IoU {result.miou:.2f} %, pixel accuracy {result.pixel_accuracy:.2f} %"
    print(f"{model} on {' + '.join(data)} ({split}): {found}, loss {result.loss:.4f}, {result.images} images")
    if not isinstance(result, Accuracy):
        for name, iou in zip(names, result.ious, strict=True):
            print(f"    {name:24s} " + ("does not occur" if iou is None else f"IoU {iou:6.2f} %"))


@app.command()
def export(
    descendant: Annotated[Path, typer.Argument(help="descendant folder")],
    out: Annotated[Path, typer.Option(help="ONNX file to write")],
) -> None:
    """Write an ONNX file, run it again at batch 1 and 3 and compare the logits."""
    from learngene.vits.descendant_folder import load_descendant
    from learngene.vits.onnx_export import export_onnx

    difference = export_onnx(load_descendant(descendant), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, logits agree at batch 1 and 3 within {difference:.1g}")
