"""Commands that check a recipe, or run it: condense, search, tune, fine-tune."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from learngene.cli.app import (
    Architecture,
    DataFolder,
    Depth,
    Executor,
    Followed,
    ModelArgs,
    Overrides,
    PoolPath,
    Processes,
    RecipeFile,
    State,
    app,
    call_of,
    mapping,
    read_recipe,
    require_kind,
    say_start,
    suggest,
)
from learngene.system.errors import LearngeneError, RecipeError
from learngene.system.speech import say

if TYPE_CHECKING:
    from learngene.making.steps import MadeGene
    from learngene.recipe.finetune import FinetuneRecipe
    from learngene.recipe.genes import GenesRecipe
    from learngene.recipe.loading import Recipe

Command = TypeVar("Command", bound=Callable[..., None])


@app.command(cls=Followed)
def condense(recipe: RecipeFile, overrides: Overrides = None, data: DataFolder = None) -> None:
    """Run a condense recipe: ancestry and data in, gene file out. The same command continues a stopped run."""
    from learngene.recipe.condense import CondenseRecipe
    from learngene.recipe.genes import GenesRecipe
    from learngene.recipe.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [], data)
    if isinstance(loaded, GenesRecipe):
        _condense_together(loaded)
        return
    loaded = require_kind(CondenseRecipe, loaded, recipe)
    say_start(f"condense {loaded.method}", f"run folder {loaded.out}")
    from learngene.making.condense import run

    _say_condensed(run(loaded))


def _condense_together(recipe: GenesRecipe) -> None:
    for name, one in recipe.genes.items():
        say_start(f"condense {name} ({one.method})", f"run folder {one.out}")
    from learngene.making.together import SomeGenesFailedError, run_together

    failed = None
    try:
        made = run_together(recipe)
    except SomeGenesFailedError as error:
        made, failed = error.made, error
    for done in made.values():
        _say_condensed(done)
    if failed:
        raise failed


def _say_condensed(done: MadeGene) -> None:
    score, steps = done.result.final, done.result.updates
    say(
        f"{done.path}: {score.label} {score.main:.2f} % at the auxiliary shape, {steps} steps",
        **{"path": done.path, "measure": score.label, "score": score.main, "steps": steps},
    )
    suggest("plan", done.path)


@app.command(cls=Followed)
def targets(
    recipe: RecipeFile,
    overrides: Overrides = None,
    data: DataFolder = None,
    processes: Processes = 1,
    executor: Executor = "local",
    again: Annotated[bool, typer.Option("--again", help="read all that is stored, make damaged files again")] = False,
) -> None:
    """Store what the teachers of a condense recipe say, ahead of training: distill.replay says where."""
    from learngene.recipe.condense import CondenseRecipe
    from learngene.recipe.genes import GenesRecipe
    from learngene.recipe.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [], data)
    if not isinstance(loaded, GenesRecipe):
        loaded = require_kind(CondenseRecipe, loaded, recipe)
    from learngene.making.targets import write_targets
    from learngene.system.quantities import size_in_words

    for one in write_targets(loaded, processes=processes, executor=executor, again=again):
        stored = f"{', '.join(one.forms)} of {one.views} views, {size_in_words(one.size)}"
        each = f"{one.size / one.views:.0f} bytes a view; {size_in_words(one.added)} are new"
        say(f"{one.folder}: {stored}, {each}", path=one.folder, views=one.views, bytes=one.size, new_bytes=one.added)
    suggest(*call_of("condense", recipe, overrides, data))


@app.command(cls=Followed)
def search(
    recipe: RecipeFile,
    overrides: Overrides = None,
    data: DataFolder = None,
    processes: Processes = 1,
    executor: Executor = "local",
) -> None:
    """Run a search recipe: the blocks of a ViT that many data sets share become a gene. Continues a stopped run."""
    from learngene.recipe.search import SearchRecipe

    loaded = read_recipe(SearchRecipe, recipe, overrides, data)
    from learngene.making.search.make import run
    from learngene.making.steps import gene_path

    record, path = run(loaded, processes=processes, executor=executor).metadata["search"], gene_path(loaded.out)
    used = " ".join(f"{layer}:{count}" for layer, count in enumerate(record["usage"], start=1))
    say(f"base blocks of layers, by how many of {len(record['tasks'])} data sets they are used: {used}")
    layers = record["layers"]
    say(f"{path}: blocks {', '.join(map(str, layers))}; map in {loaded.out}/usage.png", path=path, layers=layers)
    suggest("plan", path)


@app.command(cls=Followed)
def tune(recipe: RecipeFile, overrides: Overrides = None, data: DataFolder = None) -> None:
    """Run a tune recipe: a hypernetwork learns several tasks (stage 2 of TAL). Continues a stopped run."""
    from learngene.recipe.tune import TuneRecipe

    loaded = read_recipe(TuneRecipe, recipe, overrides, data)
    from learngene.making.hyper.tune import run

    done = run(loaded)
    for entry in done.gene.metadata["tasks"]:
        say(f"{entry['task']}: top-1 {entry['top1']:.2f} % untuned at the auxiliary shape")
    score, steps = done.result.final.main, done.result.updates
    said = {"path": done.path, "measure": "mean top-1", "score": score, "steps": steps}
    say(f"{done.path}: mean top-1 {score:.2f} %, {steps} steps", **said)
    suggest("plan", done.path)


def finetune_recipe(
    recipe: Annotated[Path | None, typer.Argument(help="recipe (.yaml); or use --model and --data")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="gene, folder, checkpoint, timm name, or scratch")] = None,
    data: Annotated[list[str] | None, typer.Option(help="digits, folder, tar or data set name")] = None,
    architecture: Architecture = None,
    model_args: ModelArgs = None,
    state: State = None,
    embed_dim: Annotated[int | None, typer.Option(help="width to expand from a gene that can change it")] = None,
    depth: Depth = None,
    path: PoolPath = None,
    preset: Annotated[str | None, typer.Option(help="training preset: deit, official or laptop")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the data")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images per step")] = None,
    lr: Annotated[float | None, typer.Option(help="highest learning rate")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of weights, not of biases and norms")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="epochs in which the rate rises")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8: round in training as an int8 file will")] = None,
    seed: Annotated[int | None, typer.Option(help="of everything random")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder")] = None,
) -> FinetuneRecipe:
    """The recipe that a file, ``key.sub=value`` and flags give together; what two of them say is refused."""
    from learngene.recipe.finetune import FinetuneRecipe
    from learngene.recipe.loading import apply_overrides, build_recipe

    given = list(overrides or [])
    if recipe is not None and "=" in str(recipe) and not recipe.exists():
        recipe, given = None, [str(recipe), *given]
    flags: dict[str, Any] = {
        "model": model,
        "architecture": architecture,
        "model_args": mapping("--model-args", model_args) or None,
        "state": state,
        "shape.embed_dim": embed_dim,
        "shape.depth": depth,
        "shape.path": path,
        "train.preset": preset,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.weight_decay": weight_decay,
        "train.schedule.warmup_epochs": warmup_epochs,
        "train.quantize": quantize,
        "train.seed": seed,
        "data.source": data or None,
        "out": str(out) if out else None,
    }
    said = {assignment.partition("=")[0] for assignment in given}
    for key, value in flags.items():
        if value is not None and key in said:
            flag = "--data" if key == "data.source" else f"--{key.rpartition('.')[2].replace('_', '-')}"
            raise RecipeError(f"{flag} and {key}= say the same; leave one out")
    given += [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    if recipe is not None:
        return read_recipe(FinetuneRecipe, recipe, given, None)
    fields = apply_overrides({"kind": "finetune"}, given)
    if not {"model", "data"} <= fields.keys():
        raise RecipeError("finetune: give a recipe, or --model and --data")
    return require_kind(FinetuneRecipe, build_recipe(fields, where="flags"), "flags")


def _takes_what(other: Callable[..., Any]) -> Callable[[Command], Command]:
    """Gives a command the arguments of a function, which it gets by name."""

    def give(command: Command) -> Command:
        command.__annotations__ = get_type_hints(other, localns={"FinetuneRecipe": Any}, include_extras=True)
        kinds = command.__annotations__
        shown = [one.replace(annotation=kinds[one.name]) for one in signature(other).parameters.values()]
        command.__signature__ = Signature(shown)  # type: ignore[attr-defined]
        return command

    return give


@app.command(cls=Followed)
@_takes_what(finetune_recipe)
def finetune(**flags: Any) -> None:
    """Fine-tune a descendant as an ordinary model. The same command continues a stopped run."""
    loaded = finetune_recipe(**flags)
    say_start(f"finetune {loaded.model}", f"run folder {loaded.out}")
    from learngene.making.finetune import run
    from learngene.training.scores import Accuracy

    done = run(loaded)
    untuned, tuned = done.untuned, done.result.final
    say(
        f"{done.path}: {tuned.label} {untuned.main:.2f} % untuned, {tuned.main:.2f} % fine-tuned",
        **{"path": done.path, "measure": tuned.label, "score": tuned.main, "untuned": untuned.main},
    )
    for line in tuned.report.told() if isinstance(tuned, Accuracy) and tuned.report else ():
        say(f"    {line}")
    suggest("export", done.path, "--out", "MODEL.onnx")


@app.command(cls=Followed)
def index(
    source: Annotated[str, typer.Argument(help="folder of webdataset shards, at any depth; or hfids/NAME, a stream")],
    out: Annotated[
        Path | None, typer.Option(help="hfids: folder of the shards that the stream is written into")
    ] = None,
    image: Annotated[str | None, typer.Option(help="hfids: column of images, where there are several")] = None,
    label: Annotated[str | None, typer.Option(help="hfids: column of classes, where there are several")] = None,
    processes: Annotated[int, typer.Option(help="processes that read shards at the same time", min=1, max=256)] = 1,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="count and leave out damaged shards")] = False,
) -> None:
    """Write the index of webdataset shards, by which they are read in any order. Once, and after any change of them.

    hfids/NAME is a data set of Hugging Face's, on the hub or in a folder, in Parquet or otherwise: it is read once, as
    a stream, into shards. The same command goes on with a stopped one.
    """
    from learngene.data.shard_index import INDEX, write_index
    from learngene.data.streams import write_shards
    from learngene.data.timm_sets import STREAMED

    if source.startswith(STREAMED):
        if out is None:
            raise LearngeneError(f"{source}: say with --out where its shards shall be written")
        if skip_corrupt:
            raise LearngeneError("--skip-corrupt: is of shards; a stream is read whole or not at all")
        folder = out
        made = write_shards(source.removeprefix(STREAMED), out, image=image, label=label, processes=processes)
    else:
        for flag, value in (("--out", out), ("--image", image), ("--label", label)):
            if value is not None:
                raise LearngeneError(f"{flag}: is of {STREAMED}NAME; shards are indexed where they lie and as they are")
        folder = Path(source)
        made = write_index(folder, processes=processes, skip_corrupt=skip_corrupt)
    classes = "no classes" if made.classes is None else f"{len(made.classes)} classes"
    counts = {"shards": len(made.shards), "images": int(made.first[-1]), "classes": len(made.classes or ())}
    told = f"{folder / INDEX}: {counts['shards']} shards, {counts['images']} images, {classes}"
    say(told, path=folder / INDEX, **counts, without_image=made.imageless, damaged=made.left)
    if made.imageless:
        say(f"left out: {made.imageless} samples without an image")
    if made.left:
        say(f"left out: {len(made.left)} damaged shards ({', '.join(made.left)})")
    say(f"in a recipe: data.source=wds/{folder.as_posix()}")


@app.command()
@_takes_what(finetune_recipe)
def check(**flags: Any) -> None:
    """Check everything about a recipe that can be known before the first step, or about finetune's flags.

    With a recipe --data is the folder that it calls $DATA.
    """
    from learngene.recipe.loading import load_recipe

    path, overrides, folder = flags["recipe"], flags["overrides"] or [], flags["data"] or []
    of_file = all(value in (None, []) for key, value in flags.items() if key not in ("recipe", "overrides", "data"))
    if of_file and path is not None and len(folder) < 2 and ("=" not in str(path) or path.exists()):
        loaded: Recipe = load_recipe(path, overrides, Path(folder[0]) if folder else None)
        if folder and loaded.kind == "finetune":  # whose --data names images
            loaded = finetune_recipe(**flags)
    else:
        loaded = finetune_recipe(**flags)
    from learngene.cli.check import check_recipe

    for line in check_recipe(loaded):
        print(line)
    suggest(loaded.kind, *sys.argv[sys.argv.index("check") + 1 :])
