"""Commands that work on models: evaluate, export, draw."""

from __future__ import annotations

import json
import sys
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from learngene.cli.app import (
    Architecture,
    Data,
    Depth,
    Followed,
    Json,
    ModelArgs,
    Options,
    PoolPath,
    Preprocessing,
    Pretrained,
    State,
    ancestry_of,
    app,
    choices,
    layer_list,
)
from learngene.system.errors import LearngeneError, told_of
from learngene.system.speech import say


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="descendant folder, gene, exported or checkpoint file, timm name")],
    data: Data,
    overrides: Annotated[list[str] | None, typer.Argument(help="data.key=value, such as data.max_pixels=1000")] = None,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    depth: Depth = None,
    embed_dim: Annotated[int | None, typer.Option(help="width to expand from a gene that can change it")] = None,
    path: PoolPath = None,
    options: Options = None,
    architecture: Architecture = None,
    model_args: ModelArgs = None,
    state: State = None,
    preprocessing: Preprocessing = None,
    root: Annotated[Path | None, typer.Option(help="where a data set given by name lies")] = None,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="count and leave out broken images")] = False,
    ignore_index: Annotated[int, typer.Option(help="masks: the value of pixels that are not judged")] = 255,
    mask_classes: Annotated[
        str | None,
        typer.Option(help="masks: number of the classes, or their names with commas; the model's by default"),
    ] = None,
    match_classes: Annotated[
        str, typer.Option(help="name: images' classes are the model's of that name; place: of that number")
    ] = "name",
    knn: Annotated[bool, typer.Option("--knn", help="frozen features: 20 nearest training images vote")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="frozen features: a linear classifier is trained")] = False,
    teacher: Annotated[str | None, typer.Option(help="frozen features: nearest images in common with it")] = None,
    baseline: Annotated[str | None, typer.Option(help="another model to compare with on the same images")] = None,
    text_features: Annotated[
        Path | None, typer.Option(help="texts as classes: safetensors file with a row per class; nearest by cosine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure top-1, top-5 and loss on a split; on images with masks mean IoU, pixel accuracy and loss.

    Beside top-1 stands what it is worth: its interval, chance, balanced accuracy, calibration, every class; with
    --baseline how much better the model is than another, such as its teacher.

    With --knn, --linear or --teacher frozen features are judged instead; head and classes do not count. With
    --text-features an image is of the class whose text is nearest to the model's output.
    """
    for text in overrides or []:
        if not text.startswith("data."):
            raise LearngeneError(f"'{text}' is not of the form data.key=value; eval has no other settings")
    if text_features is not None and (knn or linear or teacher is not None):
        raise LearngeneError("--text-features: judges outputs, not features; leave --knn, --linear, --teacher out")
    if baseline is not None and (knn or linear or teacher is not None or text_features is not None):
        raise LearngeneError("--baseline: compares heads; leave --knn, --linear, --teacher and --text-features out")
    from dataclasses import asdict

    from learngene.devices.file_model import FileModel, is_exported
    from learngene.genes.gene import Learngene
    from learngene.making.finetune import data_section, mask_names, open_for
    from learngene.making.finetune import evaluate as score
    from learngene.recipe.loading import apply_overrides
    from learngene.training.scores import Accuracy
    from learngene.vits.checkpoint import is_checkpoint

    fields: dict[str, Any] = {"source": list(data), "skip_corrupt": skip_corrupt, "ignore_index": ignore_index}
    fields["match_classes"] = match_classes
    if root is not None:
        fields["root"] = str(root)
    if mask_classes is not None:
        fields["mask_classes"] = int(mask_classes) if mask_classes.isdecimal() else mask_classes.split(",")
    section = data_section(apply_overrides({"data": fields}, overrides or [])["data"])
    sizes = {key: value for key, value in {"depth": depth, "embed_dim": embed_dim}.items() if value is not None}
    if is_exported(model):
        asked: dict[str, Any] = {
            "--knn": knn,
            "--linear": linear,
            "--teacher": teacher,
            "--text-features": text_features,
            "--path": path,
            "--architecture": architecture,
        }
        asked |= {"--depth": depth, "--embed-dim": embed_dim, "data.img_size": section.img_size}
        for flag, value in asked.items():
            if value not in (None, False):
                raise LearngeneError(f"{flag}: {model} is an exported file, which has one size and no features")
        net: Any = FileModel(model)
    elif not is_checkpoint(model, architecture) and (Path(model).is_file() or Path(model).suffix == ".safetensors"):
        if path is not None and sizes:
            raise LearngeneError("--path says depth, width and heads; leave --depth and --embed-dim out")
        net = Learngene.load(model).expand(
            path if path is not None else sizes or None, bridge=text_features is not None, **choices(options)
        )
    elif sizes or path is not None:
        given = [*(f"--{key.replace('_', '-')} {value}" for key, value in sizes.items()), f"--path {path}"][0]
        raise LearngeneError(f"{given}: only a gene file can be expanded, and {model} is not one")
    else:
        net = ancestry_of(model, architecture, model_args, state, preprocessing).model
    if text_features is not None:
        _zero_shot(model, net, section, text_features, split=split, as_json=as_json)
        return
    if knn or linear or teacher is not None:
        _probe(model, net, section, knn=knn, linear=linear, teacher=teacher, split=split, as_json=as_json)
        return
    images = open_for(net, section, split)
    result = score(net, section, images=images, baseline=baseline)
    if not isfinite(result.loss):
        raise LearngeneError(f"{model}: its outputs are not finite numbers, so its scores mean nothing")
    if not as_json:
        print(f"{images.where}: {split} {images.counted()}", file=sys.stderr)
    classes: list[tuple[str, float | None]] = []
    if isinstance(result, Accuracy):
        scores = _tops(result, net.num_classes)
    else:
        scores = f"mean IoU {result.miou:.2f} %, pixel accuracy {result.pixel_accuracy:.2f} %"
        classes = list(zip(mask_names(net, section), result.ious, strict=True))
    if as_json:
        print(json.dumps(asdict(result) | ({"classes": [name for name, _ in classes]} if classes else {})))
        return
    print(f"{model} on {' + '.join(data)} ({split}): {scores}, loss {result.loss:.4f}, {result.images} images")
    for line in result.report.told() if isinstance(result, Accuracy) and result.report else ():
        print(f"    {line}")
    for name, iou in classes:
        print(f"    {name:24s} " + ("does not occur" if iou is None else f"IoU {iou:6.2f} %"))


def _probe(
    name: str, net: Any, section: Any, *, knn: bool, linear: bool, teacher: str | None, split: str, as_json: bool
) -> None:
    """Judges a model's frozen features, and says what came out."""
    from dataclasses import asdict

    from learngene.making.probe import probe
    from learngene.vits.input_size import input_size

    other = None
    if teacher is not None:
        with told_of("--teacher"):
            other = ancestry_of(teacher, None, None, None, None).model
        height, width = input_size(other)[1:]
        print(f"{teacher}: sees images of {height} x {width} px, as it was trained", file=sys.stderr, flush=True)
    found = probe(net, section, knn=knn, linear=linear, teacher=other, split=split)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    texts = [f"kNN {found.knn:.2f} %"] if found.knn is not None else []
    if found.linear is not None:
        seeds = ", ".join(f"{value:.2f}" for value in found.linear.seeds)
        texts.append(f"linear {found.linear.top1:.2f} % (seeds {seeds}; rate {found.linear.rate:g})")
    if found.neighbours is not None:
        nearest = f"of {found.nearest} nearest"
        texts.append(f"neighbours in common with {teacher} {found.neighbours:.2f} % ({nearest})")
    counts = f"{found.images} images" + (f" by {found.train_images} training images" if knn or linear else "")
    print(f"{name} on {' + '.join(section.sources)} ({split}): {', '.join(texts)}, {counts}")


def _zero_shot(name: str, net: Any, section: Any, texts: Path, *, split: str, as_json: bool) -> None:
    """Judges a model by texts, and says what came out."""
    from dataclasses import asdict

    from learngene.making.zero_shot import TextFeatures, zero_shot

    found = zero_shot(net, section, texts, split=split)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    scores = _tops(found, len(TextFeatures.read(texts).rows))
    print(f"{name} on {' + '.join(section.sources)} ({split}): zero-shot {scores}, {found.images} images")


def _tops(found: Any, classes: int) -> str:
    """Top-1, and top-5 where it says anything: among more than five classes."""
    return f"top-1 {found.top1:.2f} %" + (f", top-5 {found.top5:.2f} %" if classes > 5 else "")


@app.command(cls=Followed)
def export(
    descendant: Annotated[Path, typer.Argument(help="descendant folder; with --grow a gene file")],
    out: Annotated[Path, typer.Option(help="file to write: .onnx, .xml (openvino), .pte (executorch), .pt2 (torch)")],
    to: Annotated[str, typer.Option(help="runtime: onnx, openvino, executorch or torch")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8")] = "fp32",
    batch: Annotated[int, typer.Option(help="largest batch to check; executorch's files take no larger")] = 8,
    data: Annotated[
        list[str] | None, typer.Option(help="images: the val split judges the file, the train split calibrates int8")
    ] = None,
    calibrate: Annotated[int | None, typer.Option(help="int8: images to calibrate on; 128 or all by default")] = None,
    bound: Annotated[
        float | None,
        typer.Option(help="points of accuracy that may be lost (0.5), or without --data percent of other guesses (2)"),
    ] = None,
    keep_worse: Annotated[bool, typer.Option("--keep-worse", help="warn where a file loses more")] = False,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--grow", help="of a gene: a folder with it and a small ONNX graph for each of 3,6,9 or 32x4,64x8"
        ),
    ] = None,
    one_graph: Annotated[bool, typer.Option("--one-graph", help="--grow: one graph, the depth is an input")] = False,
) -> None:
    """Write a model for a runtime, run it there again at batch 1 and another, and compare on real images."""
    if one_graph and sizes is None:
        raise LearngeneError("--one-graph: is of a gene that grows; say with --grow to which depths")
    if sizes is not None:
        if to != "onnx" or precision != "fp32" or batch != 8 or data or calibrate or bound is not None or keep_worse:
            raise LearngeneError("--grow: makes ONNX graphs that compute in fp32; leave out all flags but --out")
        from learngene.devices.grow import grow

        grown = grow(descendant, out, _grown_sizes(sizes), one_graph=one_graph)
        text = f"{out}: gene.safetensors {grown.gene / 1e6:.2f} MB; with all graphs {grown.ratio:.3f} of it"
        say(text, path=out, graphs=dict(grown.graphs))
        for name, length in grown.graphs.items():
            say(f"    {name}: {length / 1e3:.0f} kB, logits as expanded within {grown.differences[name]:.1g}")
        if (out / "index.html").exists():
            say(f"to look at: python -m http.server -d {quote(str(out))}, then http://localhost:8000 in a browser")
        return
    from learngene.devices.export import export as write_file
    from learngene.vits.descendant_folder import load_descendant

    record = write_file(
        load_descendant(descendant),
        out,
        to=to,
        precision=precision,
        batch=batch,
        data={"source": data} if data else None,
        calibrate=calibrate,
        bound=bound,
        keep_worse=keep_worse,
    )
    found = record.agreement
    size = sum(record.files.values()) / 1e6
    say(
        f"{out}: {size:.1f} MB, computed in {record.computed_in}; logits agree at batch 1 and {batch} within "
        f"{found['largest_difference']:.1g}, the guess on {found['top1_agreement']:.1f} % of {found['images']} images",
        **{"path": out, "bytes": sum(record.files.values()), **found},
    )
    if found["score"] is not None:
        say(f"accuracy {found['score']:.2f} %, of the model {found['model_score']:.2f} %")
    for note in record.notes:
        say(f"note: {note}")


def _grown_sizes(text: str) -> list[int | tuple[int, int]]:
    """Depths, such as 3,6 or 3-6, or widths and depths, such as 32x4,64x8."""
    if "x" not in text:
        return [*layer_list(text, "--grow")]
    pairs = [part.split("x") for part in text.split(",")]
    try:
        return [(int(width), int(depth)) for width, depth in pairs]
    except ValueError:
        raise LearngeneError(f"--grow '{text}' is no list of widths and depths such as 32x4,64x8") from None


@app.command()
def picture(
    model: Annotated[str, typer.Argument(help="descendant folder, timm name, checkpoint file, or gene file")],
    out: Annotated[Path, typer.Option(help="PNG to write")],
    pretrained: Pretrained = True,
    architecture: Architecture = None,
    model_args: ModelArgs = None,
    state: State = None,
    path: Annotated[str | None, typer.Option(help="path of a pool to highlight, such as 4+2")] = None,
) -> None:
    """Draw a ViT's layers on a line: the first principal component of each weight over depth (TLEG, Figure 1).

    Of a pool's gene file, draw its rows, its stitches and what its paths scored; of a search's, which blocks
    its data sets took; of a hypernetwork's, its graphs by task (TAL, Figure 5); of a gene that was trained at
    several shapes, what it scored over width and depth.
    """
    if out.suffix != ".png":
        raise LearngeneError(f"--out {out}: pictures are PNG files; end the name in .png")
    if architecture is None and Path(model).suffix == ".safetensors":
        from learngene.cli.pictures.pool import pool_picture
        from learngene.cli.pictures.sizes import sizes_picture
        from learngene.genes.gene_file import read_header
        from learngene.making.search.usage_map import search_picture

        header = read_header(model)
        method = header.method
        if path is not None and method.making != "pool":
            raise LearngeneError(f"--path {path}: {model} is of {method.name}, which has no paths; leave it out")
        if "search" in method.origins:
            search_picture(model, out)
        elif method.making == "hyper":
            from learngene.cli.pictures.tasks import task_picture

            task_picture(model, out)
        elif header.metadata.get("shapes"):
            sizes_picture(header, out)
        else:
            pool_picture(model, out, path)
    elif path is not None:
        raise LearngeneError(f"--path {path}: only the gene file of a pool has paths, and {model} is not one")
    else:
        from learngene.cli.pictures.layers import layer_picture

        layer_picture(ancestry_of(model, architecture, model_args, state, None, pretrained).model, out)
    print(out)
