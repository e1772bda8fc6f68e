"""The command line. Every command imports what it needs inside, so that those without torch answer at once."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from learngene._version import __version__
from learngene.errors import LearngeneError, RecipeError
from learngene.shape import MAX_DEPTH

app = typer.Typer(
    name="learngene",
    help="Condense one large Vision Transformer into a small learngene; expand it into timm ViTs of any depth.",
    no_args_is_help=True,
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
Data = Annotated[list[str], typer.Option(help="digits, folder, tar or timm data set name; several are one set")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    if version:
        print(f"learngene {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="where the page, plot and results go")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="same seed, same table", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Condense a digits classifier into two genes and compare ViTs of six depths, in about two minutes."""
    from learngene.demo import run_demo

    run_demo(out, seed)


@app.command()
def condense(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Run a condense recipe: ancestry and data in, gene file out. The same command continues a stopped run."""
    from learngene.recipe import CondenseRecipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if not isinstance(loaded, CondenseRecipe):
        raise RecipeError(f"{recipe}: a {loaded.kind} recipe; run it with `learngene {loaded.kind}`")
    from learngene.condensing import run

    done = run(loaded)
    _say(f"{done.path}: top-1 {done.result.final.top1:.2f} % at the auxiliary shape, {done.result.updates} steps")
    _say(f"next: learngene plan {done.path}")


@app.command()
def plan(
    gene: GeneFile,
    max_params: Annotated[str | None, typer.Option(help="parameters, for example 10M")] = None,
    max_macs: Annotated[str | None, typer.Option(help="multiply-adds of one image, for example 2G")] = None,
    max_latency: Annotated[float | None, typer.Option(help="milliseconds per forward pass on this machine")] = None,
    batch_size: Annotated[int, typer.Option(help="images per pass for the latency")] = 1,
    device: Annotated[str, typer.Option(help="where the latency is measured: cpu or cuda")] = "cpu",
    num_classes: Annotated[int | None, typer.Option(help="classes of the task")] = None,
    img_size: Annotated[int | None, typer.Option(help="image side of the task in pixels")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="show which gene layer feeds which layer")] = False,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """List the shapes of a gene that fit a budget, best first. Limits combine."""
    from learngene.budget import Budget
    from learngene.budget import plan as make_plan

    budget = Budget(_number(max_params), _number(max_macs), max_latency, batch_size, device)
    found = make_plan(gene, budget, num_classes=num_classes, img_size=img_size, **_choices(options))
    if as_json:
        rows = [{**vars(c), "shape": c.shape.to_dict()} for c in found]
        print(json.dumps(rows, indent=2))
    elif not found:
        raise LearngeneError(f"{gene}: no shape fits this budget; the smallest is shown by `learngene plan {gene}`")
    else:
        for c in found:
            time = f"  {c.latency:8.2f} ms" if c.latency is not None else ""
            beyond = "  deeper than the auxiliary model" if c.beyond_auxiliary else ""
            print(f"depth {c.shape.depth:3d}  {c.params / 1e6:9.3f} M params  {c.macs / 1e9:9.4f} G macs{time}{beyond}")
            if explain:
                for number, line in enumerate(c.layers, start=1):
                    print(f"    layer {number:2d}: {line}")
        task = {"--num-classes": num_classes, "--img-size": img_size}
        flags = [f"{flag} {value}" for flag, value in task.items() if value is not None]
        flags += [f"--set {option}" for option in options or []]
        print(" ".join(["next: learngene expand", str(gene), f"--depth {found[0].shape.depth}", *flags, "--out DIR"]))


@app.command()
def expand(
    gene: GeneFile,
    out: Annotated[Path, typer.Option(help="descendant folder to write")],
    depth: Annotated[int | None, typer.Option(help="layers; the auxiliary depth by default")] = None,
    num_classes: Annotated[int | None, typer.Option(help="classes; a new head if they differ")] = None,
    img_size: Annotated[int | None, typer.Option(help="image side; position embeddings are resampled")] = None,
    ending: Annotated[str | None, typer.Option(help="aligned (norm, pool) or official (pool, norm)")] = None,
    layers: Annotated[str | None, typer.Option(help="fill only these layers, for example 1-3 or 1,4")] = None,
    modules: Annotated[str | None, typer.Option(help="fill only these modules, for example msa,mlp")] = None,
    seed: Annotated[int, typer.Option(help="of whatever starts fresh", min=0, max=2**63 - 1)] = 0,
    verify: Annotated[bool, typer.Option(help="check every byte of the gene")] = True,
    options: Options = None,
) -> None:
    """Make a timm model of any depth from a gene and write it as a descendant folder."""
    import time

    import timm.models.vision_transformer  # noqa: F401 - loaded here so that its import is not timed below

    from learngene.descendant import save_descendant
    from learngene.gene import Learngene

    start = time.perf_counter()
    loaded = Learngene.load(gene, verify_content=verify)
    changes = {"depth": depth, "num_classes": num_classes, "img_size": img_size, "ending": ending}
    shape = loaded.shape.replace(**{key: value for key, value in changes.items() if value is not None})
    model = loaded.expand(
        shape,
        layers=_layers(layers) if layers else None,
        modules=modules.split(",") if modules else None,
        seed=seed,
        **_choices(options),
    )
    seconds = time.perf_counter() - start
    save_descendant(model, out)
    print(f"{out}: {shape}, {shape.params() / 1e6:.3f} M params, expanded in {seconds:.3f} s")
    if fresh := model.learngene["fresh"]:
        print(f"{len(fresh)} tensors start fresh, the first is {fresh[0]}")
    print(f"next: learngene finetune --model {out} --data DATA --out RUN   (or: learngene eval {out} --data DATA)")


@app.command()
def finetune(
    recipe: Annotated[Path | None, typer.Argument(help="recipe (.yaml); or use --model and --data")] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="gene file, descendant folder, or scratch")] = None,
    data: Annotated[list[str] | None, typer.Option(help="digits, folder, tar or timm data set name")] = None,
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
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
    _say(f"{done.path}: top-1 {done.untuned.top1:.2f} % untuned, {done.result.final.top1:.2f} % fine-tuned")
    _say(f"next: learngene export {done.path} --out MODEL.onnx")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="descendant folder, gene file, or timm name with pretrained weights")],
    data: Data,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    depth: Annotated[int | None, typer.Option(help="layers to expand from a gene")] = None,
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
        classifier: Any = Learngene.load(model).expand(depth)
    elif depth is not None:
        raise LearngeneError(f"--depth {depth}: only a gene file can be expanded, and {model} is none")
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


@app.command()
def info(
    gene: GeneFile,
    verify: Annotated[bool, typer.Option("--verify", help="check every byte")] = False,
    as_json: Json = False,
) -> None:
    """Show what a gene file is and where it comes from."""
    from learngene.genefile import read_header
    from learngene.genefile import verify as verify_content

    header = read_header(gene)
    if verify:
        verify_content(header)
    if as_json:
        print(json.dumps({**header.metadata, "stored_params": header.stored_params}, indent=2))
        return
    meta = header.metadata
    ancestry, accuracy, training = (meta.get(key, {}) for key in ("ancestry", "accuracy", "training"))
    rows = {
        "method": f"{header.method.title} ({header.method.paper})",
        "settings": ", ".join(f"{key}={value}" for key, value in meta["settings"].items()),
        "auxiliary shape": str(header.shape),
        "stored": f"{header.stored_params / 1e6:.3f} M parameters, {header.file_bytes / 1e6:.2f} MB",
        "ancestry": f"{ancestry.get('name', '?')} {ancestry.get('tag', '')} sha256 {ancestry.get('sha256', '?')[:12]}",
        "data": ", ".join(meta.get("data", {}).get("source", ["?"])),
        "classes": f"{header.shape.num_classes}",
        "accuracy": f"top-1 {accuracy['top1']:.2f} %" if accuracy.get("top1") is not None else "not measured",
        "training": f"{training.get('epochs', '?')} epochs, seed {training.get('seed', '?')}",
        "digest": f"{meta['digest']}{' (verified)' if verify else ''}",
    }
    for key, value in rows.items():
        print(f"{key:16s} {value}")
    print(f"next: learngene plan {gene} --max-params 10M")


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check everything about a recipe that can be known before the first step."""
    from learngene.check import check_recipe
    from learngene.recipe import load_recipe

    for line in check_recipe(load_recipe(recipe, overrides or [])):
        print(line)
    print(f"next: learngene {load_recipe(recipe, overrides or []).kind} {' '.join([str(recipe), *(overrides or [])])}")


@app.command()
def methods() -> None:
    """List the methods with their settings and choices."""
    from learngene.methods import METHODS, default_settings, method

    for name, kind in METHODS.items():
        print(f"{name}  {kind.title} ({kind.paper})")
        for setting, default in default_settings(kind).items():
            print(f"    settings.{setting} = {default!r}")
        for option, text in method(name).options.items():
            print(f"    --set {option}=...  {text}")


def main() -> None:
    """Runs the command line: exit code 0 if all went well, 2 with one line if the input was wrong."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    with _one_line(debug):
        sys.exit(app(arguments, prog_name="learngene", standalone_mode=False))


@contextlib.contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    """Turns errors into one line and an exit code, unless the traceback is asked for."""
    try:
        yield
    except LearngeneError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except BrokenPipeError:
        # The reader went away, as `head` does; not an error, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if type(error).__name__ == "InterruptedRun":  # by name, because its module imports torch
            number, where = error.args
            _fail(f"stopped and saved at {where}; the same command continues", 128 + number)
        if debug:
            raise
        if hasattr(error, "format_message"):  # typer's own: an unknown command or flag, a missing argument
            _usage(error)
        _fail(f"{type(error).__name__}: {str(error)[:300]} (a bug; --debug shows where)", 1)


def _usage(error: Any) -> None:
    """Shows the help to who typed nothing, and one line to who typed something wrong."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "learngene"
    if not sys.argv[1:]:
        print(context.get_help() if context else "learngene --help shows the commands")
        sys.exit(2)
    _fail(f"{error.format_message().rstrip('.')}; see {path} --help", 2)


def _say(text: str) -> None:
    """Prints what a training command has to say, once however many processes it runs in."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def _fail(text: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    if rank == "0" or code == 1:
        print(f"learngene: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


def _number(text: str | None) -> float | None:
    """A count with an optional K, M or G, such as 10M or 2.5G."""
    if text is None:
        return None
    scale = {"K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:].upper(), 1.0)
    try:
        return float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        raise LearngeneError(f"'{text}' is not a number such as 10M, 2.5G or 5000") from None


def _layers(text: str) -> list[int]:
    """Layers from a text such as 1-3 or 1,4."""
    out: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if len(numbers) > MAX_DEPTH:
                raise LearngeneError(f"--layers '{text}' names more than {MAX_DEPTH} layers")
            out += numbers
    except ValueError:
        raise LearngeneError(f"--layers '{text}' is not a list such as 1-3 or 1,4") from None
    return out


def _choices(options: list[str] | None) -> dict[str, Any]:
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
