"""Commands that plan: which shapes fit, with a gene or without one, here or in the time of a device."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from learngene.cli.app import (
    Explain,
    Followed,
    GeneFile,
    Json,
    Options,
    app,
    choices,
    explain_layers,
    say_start,
    suggest,
)
from learngene.system.errors import LearngeneError
from learngene.system.speech import say

if TYPE_CHECKING:
    from learngene.devices.measure import OnDevice
    from learngene.genes.plan import Budget
    from learngene.vits.stitched_shape import Shape


SHOWN = 5
"""Most smaller models that are listed of a descendant."""


@app.command()
def plan(
    gene: Annotated[Path | None, typer.Argument(help="gene file, or descendant folder; none with --sizes")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="without a gene: a shape for each of so many parameters, such as 0.2M,0.6M")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="parameters, for example 10M")] = None,
    max_macs: Annotated[str | None, typer.Option(help="multiply-adds of one image, for example 2G")] = None,
    max_latency: Annotated[float | None, typer.Option(help="milliseconds per forward pass on this machine")] = None,
    max_size: Annotated[
        float | None, typer.Option(help="megabytes of weights in float32; with a runtime of its files in the precision")
    ] = None,
    max_memory: Annotated[float | None, typer.Option(help="megabytes at the peak, with a runtime")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="measure in onnxruntime, openvino, executorch, torch or torch-compile instead of eager timm"),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="of --runtime: fp32, fp16, bf16 or int8")] = None,
    threads: Annotated[int | None, typer.Option(help="of --runtime; its own choice by default")] = None,
    latency_file: Annotated[
        Path | None, typer.Option(help="measured elsewhere, by the program of `learngene measure-on-device`")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="images per pass for the latency; 1 by default")] = None,
    device: Annotated[str, typer.Option(help="where the latency is measured: cpu or cuda")] = "cpu",
    num_classes: Annotated[int | None, typer.Option("--num-classes", "--classes", help="classes of the task")] = None,
    img_size: Annotated[int | None, typer.Option(help="image side of the task in pixels")] = None,
    images: Annotated[int, typer.Option(help="--sizes: training images of the epoch that is foretold", min=1)] = 10_000,
    measure: Annotated[bool, typer.Option(help="--sizes: train each shape for a second to see how fast it is")] = True,
    explain: Explain = False,
    options: Options = None,
    as_json: Json = False,
) -> None:
    """List the shapes of a gene that fit a budget, best first, or without a gene one shape for every size.

    Limits combine. With --sizes width, depth, heads and patch follow the published families of ViTs. Of a descendant
    folder it tells size and latency, and which smaller ones its gene makes, if that lies near.
    """
    from learngene.genes.gene_file import read_header
    from learngene.genes.plan import Budget, misfit
    from learngene.genes.plan import plan as make_plan
    from learngene.system.quantities import amount
    from learngene.vits.descendant_folder import PROVENANCE

    if gene is not None and (gene / PROVENANCE).is_file():
        limits: dict[str, Any] = {"--max-params": max_params, "--max-macs": max_macs, "--max-latency": max_latency}
        limits |= {"--max-size": max_size, "--max-memory": max_memory, "--sizes": sizes}
        limits |= {"--runtime": runtime, "--latency-file": latency_file, "--precision": precision, "--threads": threads}
        limits |= {"--batch-size": batch_size, "--img-size": img_size, "--num-classes": num_classes}
        limits |= {"--device": None if device == "cpu" else device}
        limits |= {"--explain": explain or None, "--set": options or None}
        for flag, value in limits.items():
            if value is not None:
                raise LearngeneError(f"{flag}: {gene} is one model, of one size; plan its gene")
        _plan_descendant(gene, measure=measure, as_json=as_json)
        return
    params, macs = (None if text is None else amount(text) for text in (max_params, max_macs))
    on = _device(runtime, precision, threads, batch_size, device, latency_file)
    budget = Budget(params, macs, max_latency, 1 if batch_size is None else batch_size, device, max_size, max_memory)
    if gene is None or sizes is not None:
        if latency_file is not None or max_memory is not None:
            raise LearngeneError("--latency-file and --max-memory: need a gene, whose sizes were measured")
        if on is not None and max_latency is None:
            raise LearngeneError("--runtime: without a gene it is for --max-latency; give that, too")
        _plan_sizes(gene, sizes, budget, on, img_size, num_classes, images=images, measure=measure, as_json=as_json)
        return
    task = {"num_classes": num_classes, "img_size": img_size, "on": on, **choices(options)}
    found = make_plan(gene, budget, **task)
    fits = f"{on.found}: {on.found.told()}" if on is not None and on.found is not None else ""
    if not found:
        why = misfit(gene, budget, **task)
        raise LearngeneError(f"{gene}: no shape fits this budget; {why}")
    if as_json:
        print(json.dumps([{**vars(one), "shape": one.shape.to_dict()} for one in found], indent=2))
        if fits:
            print(fits, file=sys.stderr)
        return
    header = read_header(gene)
    for one in found:
        time = f"  {one.latency:8.2f} ms" if one.latency is not None else ""
        beyond = "  deeper than the auxiliary model" if one.beyond_auxiliary else ""
        beyond = f"  {one.outside}" if one.outside else beyond
        size = f"{one.params / 1e6:9.3f} M params  {one.macs / 1e9:9.4f} G macs"
        size += f"  {one.size:8.2f} MB" if one.size is not None else ""
        size += f"  {one.memory:8.1f} MB of memory" if one.memory is not None else ""
        top1 = f"  top-1 {one.top1:6.2f} %" if one.top1 is not None else ""
        top1 += f"  neighbours in common {one.neighbours:6.2f} %" if one.neighbours is not None else ""
        known = f"  {one.known}" if one.known else ""
        print(f"{header.method.label(header.shape, one.shape)}  {size}{time}{top1}{known}{beyond}")
        if explain:
            explain_layers(one.layers)
    if fits:
        print(fits)
    given = {"--num-classes": num_classes, "--img-size": img_size}
    flags = [str(part) for flag, value in given.items() if value is not None for part in (flag, value)]
    flags += [part for option in options or [] for part in ("--set", option)]
    tasks = [each["task"] for each in header.metadata.get("tasks", []) if "embedding" in each]
    if tasks and "task" not in choices(options):
        flags += ["--task", tasks[0]]
    suggest("expand", gene, *header.method.flags(header.shape, found[0].shape).split(), *flags, "--out", "DIR")


def _plan_sizes(
    gene: Path | None,
    sizes: str | None,
    budget: Budget,
    on: OnDevice | None,
    img_size: int | None,
    num_classes: int | None,
    *,
    images: int,
    measure: bool,
    as_json: bool,
) -> None:
    """Says what models of some sizes would be like, before there is a gene."""
    from learngene.genes.plan_sizes import plan_sizes
    from learngene.system.quantities import amount, size_in_words, time_in_words

    if gene is not None:
        raise LearngeneError(f"--sizes: plans without a gene; leave {gene} out, or give --max-params for each size")
    if img_size is None or num_classes is None or (sizes is None and budget == type(budget)()):
        raise LearngeneError(
            "plan: give a gene file, or without one --sizes, --img-size and --num-classes, such as "
            "`learngene plan --sizes 0.2M,0.6M --img-size 64 --num-classes 7`"
        )
    asked = [budget] if sizes is None else [replace(budget, max_params=amount(size)) for size in sizes.split(",")]
    found = plan_sizes(asked, img_size=img_size, num_classes=num_classes, measure=measure, on=on)
    if as_json:
        print(json.dumps([{**asdict(one), "shape": one.shape.to_dict()} for one in found], indent=2))
        return
    print(f"{img_size} px, patches of {found[0].shape.patch_size}, {num_classes} classes; at most:")
    for one in found:
        size = f"{one.params / 1e6:9.3f} M params  {one.macs / 1e9:9.4f} G macs  {size_in_words(one.stored_bytes):>9s}"
        time = f"  {one.latency:8.2f} ms" if one.latency is not None else ""
        seconds = one.epoch_seconds(images)
        time += f"  {time_in_words(seconds)} an epoch" if seconds else ""
        print(f"{' '.join(one.budget.told):>14s}  {one.shape.size:32s}{size}{time}")
    if measure:
        print(f"an epoch is of {images} images, here and now; reading them and evaluation come on top")
    if on is not None:
        print(f"milliseconds are those of {on.found}")


def _plan_descendant(folder: Path, *, measure: bool, as_json: bool) -> None:
    """Says what a descendant takes, and which smaller ones there are of its gene."""
    from learngene.genes.descendant_plan import plan_descendant

    found = plan_descendant(folder, measure=measure)
    if as_json:
        print(json.dumps(found.entry(), indent=2))
        return
    time = f"  {found.latency:8.2f} ms" if found.latency is not None else ""
    size = f"{found.shape.params() / 1e6:9.3f} M params  {found.shape.macs() / 1e9:9.4f} G macs  {found.size:8.2f} MB"
    print(f"{_named(found.shape)}  {size}{time}")
    if found.gene is None:
        near = f"its gene ({found.digest}) is not near; `learngene plan GENE` lists what else it makes"
        print(near if found.digest else "it was made from no gene")
        return
    least = "none" if not found.smaller else f"{len(found.smaller)}, the largest first"
    print(f"smaller ones of {found.gene}: {least}")
    for one in found.smaller[:SHOWN]:
        print(f"{_named(one.shape)}  {one.params / 1e6:9.3f} M params  {one.macs / 1e9:9.4f} G macs")
    if found.smaller:
        flags = found.header.method.flags(found.header.shape, found.smaller[0].shape).split() if found.header else []
        suggest("expand", found.gene, *flags, "--out", "DIR")


def _named(shape: Shape) -> str:
    return getattr(shape, "size", None) or str(shape)


def _device(
    runtime: str | None,
    precision: str | None,
    threads: int | None,
    batch_size: int | None,
    device: str,
    latency_file: Path | None,
) -> OnDevice | None:
    """The runtime that the flags name, if they do."""
    if runtime is None and latency_file is None:
        for flag, value in (("--precision", precision), ("--threads", threads)):
            if value is not None:
                raise LearngeneError(f"{flag}: is of a runtime; say which with --runtime")
        return None
    from learngene.devices.measure import OnDevice

    if device != "cpu":
        raise LearngeneError(f"--device {device}: runtimes are measured on the CPU; leave it out")
    if latency_file is not None:
        if (runtime, precision, threads, batch_size) != (None, None, None, None):
            raise LearngeneError(
                "--latency-file: says runtime, precision, threads and batch size itself; leave those flags out"
            )
        return OnDevice.read(latency_file)
    return OnDevice(str(runtime), precision=precision or "fp32", threads=threads, batch_size=batch_size or 1)


@app.command("measure-on-device", cls=Followed)
def measure_on_device(
    gene: GeneFile,
    out: Annotated[Path, typer.Option(help="folder to write, to be taken to the device")],
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, openvino, executorch, torch or torch-compile")
    ] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="of the runtime there; its own choice by default")] = None,
    batch_size: Annotated[int, typer.Option(help="images per pass")] = 1,
    num_classes: Annotated[int | None, typer.Option("--num-classes", "--classes", help="classes of the task")] = None,
    img_size: Annotated[int | None, typer.Option(help="image side of the task in pixels")] = None,
) -> None:
    """Write a program and a few models that time a gene's sizes where there is a runtime and no learngene."""
    from learngene.devices.measure import measure_on_device as write

    say_start("measure-on-device", str(out))
    how: dict[str, Any] = {"runtime": runtime, "precision": precision, "threads": threads, "batch_size": batch_size}
    files = write(gene, out, **how, num_classes=num_classes, img_size=img_size)
    size = sum((out / file).stat().st_size for file in files) / 1e6
    text = f"{out}: measure.py and {len(files)} models, {size:.1f} MB; it needs Python and {runtime} alone"
    say(text, path=out, models=len(files))
    say("there: python measure.py > latency.json")
    suggest("plan", gene, "--latency-file", "latency.json", "--max-latency", "MS")
