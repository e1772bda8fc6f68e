"""The application, and what its commands share: their arguments, how they read recipes and how they speak."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperOption

from learngene.system.errors import LearngeneError, RecipeError
from learngene.system.speech import say, speech, tell
from learngene.vits.shape import MAX_DEPTH

if TYPE_CHECKING:
    from learngene.genes.ancestry import Ancestry
    from learngene.recipe.loading import Recipe

    SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)

app = typer.Typer(
    name="learngene",
    help="Condense one large Vision Transformer into a small learngene; expand it into timm ViTs of any depth.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)

GeneFile = Annotated[Path, typer.Argument(help="gene file (.safetensors)")]
RecipeFile = Annotated[Path, typer.Argument(help="recipe (.yaml)")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, for example train.epochs=5")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="a choice of the method, for example order=front-last-mid"),
]
Data = Annotated[list[str], typer.Option(help="digits, folder, tar or data set name; several are one set")]
DataFolder = Annotated[Path | None, typer.Option("--data", help="folder of image sets that the recipe calls $DATA")]
Depth = Annotated[int | None, typer.Option(help="layers to expand from a gene")]
PoolPath = Annotated[str | None, typer.Option(help="path to expand from a pool's gene, such as 4+2")]
Explain = Annotated[bool, typer.Option("--explain", help="show which gene layer feeds which layer")]
Pretrained = Annotated[bool, typer.Option(help="load a timm name's pretrained weights")]
Architecture = Annotated[str | None, typer.Option(help="of a checkpoint file: timm's name of the model")]
ModelArgs = Annotated[
    str | None, typer.Option(help="of a checkpoint file or timm name: arguments for timm, such as '{img_size: 32}'")
]
State = Annotated[str | None, typer.Option(help="of a checkpoint file: which of its states, such as model")]
Preprocessing = Annotated[
    str | None,
    typer.Option(help="what the weights were trained with, such as '{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}'"),
]
Processes = Annotated[int, typer.Option(help="workers at a time; more may be started elsewhere", min=1, max=256)]
Executor = Annotated[
    str, typer.Option(help="whose workers: local, dask[:ADDRESS], slurm[:KEY=VALUE,...] or ray[:ADDRESS]")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


class Followed(TyperCommand):
    """A command that programs can follow: with ``--json`` it tells progress and outcome in JSON, an object a line."""

    def __init__(self, *arguments: Any, params: list[Any] | None = None, **more: Any) -> None:
        flag = TyperOption(
            param_decls=["--json"],
            is_flag=True,
            expose_value=False,
            callback=lambda _context, _flag, value: setattr(speech, "json", value),
            help="tell progress and outcome in JSON, an object a line",
        )
        super().__init__(*arguments, params=[*(params or []), flag], **more)


def read_recipe(kind: type[SomeRecipe], path: Path, overrides: list[str] | None, data: Path | None) -> SomeRecipe:
    """The recipe of a command, which must be of the command's kind."""
    from learngene.recipe.loading import load_recipe

    return require_kind(kind, load_recipe(path, overrides or [], data), path)


def require_kind(kind: type[SomeRecipe], recipe: Recipe, where: Path | str) -> SomeRecipe:
    """Raises ``RecipeError`` if a recipe is for another command."""
    if not isinstance(recipe, kind):
        raise RecipeError(f"{where}: a {recipe.kind} recipe; run it with `learngene {recipe.kind}`")
    return recipe


def say_start(what: str, where: str) -> None:
    """Says what is about to happen, once the call is known to be one: importing torch and timm takes seconds."""
    if not speech.progress:
        return
    if speech.json:
        tell("start", text=f"{what}: {where}")
    elif os.environ.get("RANK", "0") == "0":
        print(f"{what}: {where}", file=sys.stderr, flush=True)


def call_of(command: str, recipe: Path, overrides: list[str] | None, data: Path | None) -> list[object]:
    """A command as it was called with a recipe."""
    return [command, recipe, *(overrides or []), *(["--data", data] if data else [])]


def suggest(*words: object) -> None:
    """Says which command usually comes next."""
    if speech.progress and not speech.json:
        say(f"next: learngene {shlex.join(map(str, words))}")


def mapping(flag: str, text: str | None) -> dict[str, Any]:
    """The mapping that a flag gives as YAML; an empty one if it is not given."""
    import yaml

    from learngene.recipe.loading import load_yaml

    try:
        out = load_yaml(text or "{}")
    except yaml.YAMLError:
        out = None
    if not isinstance(out, dict):
        raise LearngeneError(f"{flag} '{text}' is not a mapping such as '{{img_size: 32}}'")
    return out


def ancestry_of(
    source: str,
    architecture: str | None,
    model_args: str | None,
    state: str | None,
    preprocessing: str | None,
    pretrained: bool = True,
) -> Ancestry:
    """The model that a command's flags describe, as an ancestry section in a recipe would."""
    from learngene.genes.ancestry import Ancestry
    from learngene.recipe.one_line_faults import validated
    from learngene.recipe.sections import OwnWeights

    arguments = mapping("--model-args", model_args)
    own = validated(OwnWeights, mapping("--preprocessing", preprocessing), "--preprocessing").preprocessing
    return Ancestry(
        source, architecture=architecture, model_args=arguments, pretrained=pretrained, state=state, preprocessing=own
    )


def layer_list(text: str, flag: str = "--layers") -> list[int]:
    """Layers from a text such as 1-3 or 1,4."""
    out: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if len(numbers) > MAX_DEPTH:
                raise LearngeneError(f"{flag} '{text}' names more than {MAX_DEPTH} layers")
            out += numbers
    except ValueError:
        raise LearngeneError(f"{flag} '{text}' is not a list such as 1-3 or 1,4") from None
    return out


def explain_layers(layers: list[str]) -> None:
    """Prints what feeds each layer, one a line."""
    for number, line in enumerate(layers, start=1):
        print(f"    layer {number:2d}: {line}")


def choices(options: list[str] | None) -> dict[str, Any]:
    """The method's choices from ``key=value`` flags; values are JSON where they can be."""
    out: dict[str, Any] = {}
    for option in options or []:
        key, sign, value = option.partition("=")
        if not sign:
            raise LearngeneError(f"--set '{option}' is not of the form key=value")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out
