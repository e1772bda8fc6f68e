"""Commands that extract genes, look at them and expand them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from learngene.cli.app import (
    Architecture,
    Explain,
    Followed,
    GeneFile,
    Json,
    ModelArgs,
    Options,
    Preprocessing,
    Pretrained,
    State,
    ancestry_of,
    app,
    choices,
    explain_layers,
    layer_list,
    suggest,
)
from learngene.system.errors import LearngeneError
from learngene.system.speech import say


@app.command(cls=Followed)
def extract(
    ancestry: Annotated[str, typer.Argument(help="a trained ViT: timm name, folder or checkpoint file")],
    method: Annotated[str, typer.Option(help="see `learngene methods`, for example vanilla-lg or lsamd")],
    out: Annotated[Path, typer.Option(help="gene file to write (.safetensors)")],
    data: Annotated[list[str] | None, typer.Option(help="images to rank neurons on, for weight-subcloning")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="a setting, for example last=3")] = None,
    architecture: Architecture = None,
    model_args: ModelArgs = None,
    state: State = None,
    preprocessing: Preprocessing = None,
    pretrained: Pretrained = True,
    dtype: Annotated[str, typer.Option(help="storage type: float32, bfloat16 or float16")] = "float32",
) -> None:
    """Turn a trained ViT into a gene file as it is, without training."""
    from learngene.genes.gene_file import refuse_foreign_gene
    from learngene.making.extract import extract as make_gene
    from learngene.making.extract import refuse_method
    from learngene.system.files import refuse_read_only

    if out.suffix != ".safetensors":
        raise LearngeneError(f"--out {out}: genes are .safetensors files; end the name so")
    refuse_read_only(out.parent)
    refuse_foreign_gene(out)
    refuse_method(method, choices(settings), with_data=bool(data))
    teacher = ancestry_of(ancestry, architecture, model_args, state, preprocessing, pretrained)
    gene = make_gene(teacher, method=method, settings=choices(settings), data=data or None)
    gene.save(out, dtype=dtype)
    stored = sum(parameter.numel() for parameter in gene.parameters())
    text = f"{out}: {method}, {stored / 1e6:.3f} M parameters, {out.stat().st_size / 1e6:.2f} MB"
    say(text, path=out, params=stored, bytes=out.stat().st_size)
    suggest("plan", out)


@app.command()
def expand(
    gene: GeneFile,
    out: Annotated[Path, typer.Option(help="descendant folder to write")],
    depth: Annotated[int | None, typer.Option(help="layers; the auxiliary depth by default")] = None,
    embed_dim: Annotated[int | None, typer.Option(help="width, for methods that can change it")] = None,
    num_heads: Annotated[int | None, typer.Option(help="heads; by default as many as keep their width")] = None,
    path: Annotated[str | None, typer.Option(help="of a pool: 192:1-4+768:5-6, or blocks of each row: 4+2")] = None,
    num_classes: Annotated[int | None, typer.Option(help="classes; a new head if they differ")] = None,
    img_size: Annotated[int | None, typer.Option(help="image side; position embeddings are resampled")] = None,
    ending: Annotated[str | None, typer.Option(help="aligned (norm, pool) or official (pool, norm)")] = None,
    layers: Annotated[str | None, typer.Option(help="fill only these layers, for example 1-3 or 1,4")] = None,
    modules: Annotated[str | None, typer.Option(help="fill only these modules, for example msa,mlp")] = None,
    task: Annotated[
        str | None, typer.Option(help="tal: a task the gene was tuned on, or images of another, to predict for")
    ] = None,
    ancestry: Annotated[str | None, typer.Option(help="tal: of a --task's images, if it is not where it was")] = None,
    segment: Annotated[bool, typer.Option("--segment", help="a head with --num-classes for every pixel")] = False,
    bridge: Annotated[
        bool, typer.Option("--bridge", help="the head gives the teacher's output (of features.keep_bridge)")
    ] = False,
    seed: Annotated[int, typer.Option(help="of whatever starts fresh", min=0, max=2**63 - 1)] = 0,
    verify: Annotated[bool, typer.Option(help="check every byte of the gene")] = True,
    explain: Explain = False,
    options: Options = None,
) -> None:
    """Make a timm model of any depth, or of a pool's path, from a gene and write it as a descendant folder."""
    import time

    from learngene.genes.expansion import with_heads
    from learngene.genes.gene_file import read_header

    if segment and num_classes is None:
        raise LearngeneError("--segment: say how many classes the masks have with --num-classes")
    if bridge and (segment or num_classes is not None):
        other = "--segment" if segment else "--num-classes"
        raise LearngeneError(f"--bridge: the head gives the teacher's output and has no classes; leave {other} out")
    if path is not None and (depth, embed_dim, num_heads) != (None, None, None):
        raise LearngeneError("--path says depth, width and heads; leave --depth, --embed-dim and --num-heads out")
    loaded: Any
    header = read_header(gene)
    chosen = choices(options)
    as_model = segment or bridge or task is not None or "task" in chosen or bool(header.shape.arch)
    if as_model:
        import timm.models.vision_transformer  # noqa: F401 - loaded here so that its import is not timed below

        from learngene.genes.gene import Learngene

        loaded = Learngene.load(gene, verify_content=verify)
    else:
        from learngene.genes.array_gene import ArrayGene

        loaded = ArrayGene(header, verify_content=verify)
    if "task" in chosen and loaded.method.task_aware:
        if task is not None:
            raise LearngeneError("--task: given twice, here and with --set task; leave one out")
        task = str(chosen.pop("task"))
    if task is not None:
        from learngene.making.hyper.embedding import task_of

        chosen["task"] = task_of(loaded, task, ancestry)
        num_classes = len(chosen["task"].classes) if num_classes is None else num_classes
    elif ancestry is not None:
        raise LearngeneError("--ancestry: only needed for the images of --task; leave it out")
    shape = loaded.shape if path is None else loaded.method.named_shape(loaded.shape, path)
    changes: dict[str, Any] = {"depth": depth, "embed_dim": embed_dim, "num_heads": num_heads}
    changes |= {"num_classes": num_classes, "img_size": img_size, "ending": ending}
    shape = shape.replace(**with_heads(loaded, {key: value for key, value in changes.items() if value is not None}))
    filled: dict[str, Any] = {
        "layers": layer_list(layers) if layers else None,
        "modules": modules.split(",") if modules else None,
    }
    filled |= {"bridge": True} if bridge else {}
    if not as_model and loaded.needs_torch(shape, **filled, **chosen):
        import torch  # noqa: F401 - loaded here so that its import is not timed below
    start = time.perf_counter()
    model = loaded.expand(shape, seed=seed, **filled, **chosen)
    shape = shape.replace(num_classes=model.learngene["shape"]["num_classes"])
    params = shape.params()
    if segment:
        from learngene.vits.segmenter import segment as with_head

        model = with_head(model, shape.num_classes, seed=seed)
        params = sum(parameter.numel() for parameter in model.parameters())
    seconds = time.perf_counter() - start
    if as_model:
        from learngene.vits.descendant_folder import save_descendant

        save_descendant(model, out)
    else:
        model.save(out)
    kind = " for every pixel" if segment else ""
    print(f"{out}: {shape}{kind}, {params / 1e6:.3f} M params, expanded in {seconds:.3f} s")
    fresh = model.learngene["fresh"]
    if explain:
        names = list(shape.all_params())
        tensors = [{name for name in names if name.startswith(f"blocks.{layer}.")} for layer in range(shape.depth)]
        # Nothing feeds a layer that --layers or --modules left out.
        texts = zip(model.learngene["layers"], tensors, strict=True)
        explain_layers(["fresh" if names <= set(fresh) else text for text, names in texts])
    if segment:
        print("the head for pixels starts fresh")
    if fresh:
        print(f"{len(fresh)} tensors start fresh, the first is {fresh[0]}")
    made = quote(str(out))
    if bridge:
        print(f"next: learngene eval {made} --data DATA --text-features FILE.safetensors")
        return
    features = "" if shape.num_classes else " --knn"  # without a head there is nothing else to judge
    also = f"(or: learngene eval {made} --data DATA{features})"
    print(f"next: learngene finetune --model {made} --data DATA --out RUN   {also}")


@app.command()
def info(
    gene: Annotated[Path, typer.Argument(help="gene file (.safetensors) or descendant folder")],
    verify: Annotated[bool, typer.Option("--verify", help="check every byte")] = False,
    as_json: Json = False,
) -> None:
    """Show what a gene file, or a descendant folder, is and where it comes from."""
    from learngene.genes.gene_file import read_header
    from learngene.genes.gene_file import verify as verify_content
    from learngene.genes.plan import plan as make_plan

    if (gene / "learngene.json").is_file():
        _descendant_info(gene, as_json=as_json)
        return
    header = read_header(gene)
    if verify:
        verify_content(header)
    if as_json:
        print(json.dumps({**header.metadata, "stored_params": header.stored_params}, indent=2))
        return
    meta = header.metadata
    searched, tuned = meta.get("search", {}).get("tasks", []), meta.get("tasks", [])
    ancestry, accuracy, training = (meta.get(key, {}) for key in ("ancestry", "accuracy", "training"))
    names = [ancestry.get("name"), ancestry.get("tag"), f"sha256 {ancestry.get('sha256', '?')[:12]}"]
    bridge, start = meta.get("bridge"), meta.get("start")
    rows = {
        "method": f"{header.method.title} ({header.method.paper})",
        "settings": ", ".join(f"{key}={value}" for key, value in meta["settings"].items()),
        "auxiliary shape": str(header.shape),
        "stored": f"{header.stored_params / 1e6:.3f} M parameters, {header.file_bytes / 1e6:.2f} MB",
        "ancestry": " ".join(filter(None, names)) if ancestry.get("name") else "none",
        "data": ", ".join(meta.get("data", {}).get("source", [])) or "none",
        "classes": str(header.shape.num_classes),
        "paths": f"{len(meta['paths'])}, see `learngene plan`" if meta.get("paths") else None,
        "shapes": _shapes(meta.get("shapes", [])),
        "start": f"templates of gene {start['digest']}, scalers {start['scalers']}" if start else None,
        "search": f"{len(searched)} data sets, see `learngene picture`" if searched else None,
        "tasks": ", ".join(f"{each['task']} {each['top1']:.1f} %" for each in tuned) if tuned else None,
        "bridge": f"to the output of {bridge['teacher']['name']}, {bridge['width']} numbers" if bridge else None,
        "agreement": ", ".join(f"{key} {value:.2f}" for key, value in meta.get("agreement", {}).items()) or None,
        "accuracy": f"top-1 {accuracy['top1']:.2f} %" if accuracy.get("top1") is not None else "not measured",
        "training": f"{training.get('epochs', '?')} epochs, seed {training.get('seed', '?')}" if training else "none",
        "digest": f"{meta['digest']}{' (verified)' if verify else ''}",
    }
    for key, value in rows.items():
        if value is not None:
            print(f"{key:16s} {value}")
    most = next(iter(make_plan(header)), None)
    size = ["--max-params", f"{math.ceil(most.params / 1e4) / 100:g}M"] if most else []
    suggest("plan", gene, *size)


def _descendant_info(folder: Path, *, as_json: bool) -> None:
    """Shows what a descendant folder says of itself, whose record is compared with its digest always."""
    from learngene.system.quantities import size_in_words
    from learngene.vits.descendant_folder import read_record, weight_file
    from learngene.vits.stitched_shape import shape_from

    record, weights = read_record(folder) or {}, weight_file(folder)
    if as_json:
        print(json.dumps(record, indent=2))
        return
    shape = shape_from(record["shape"]) if "shape" in record else None
    tuned, names = record.get("finetuned", {}), record.get("class_names") or []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    top1 = tuned.get("accuracy", {}).get("top1")
    rows = {
        "descendant of": f"{record['method']} gene {record.get('gene') or ''}".rstrip() if "method" in record else None,
        "shape": str(shape) if shape else None,
        "size": f"{shape.params() / 1e6:.3f} M parameters, {shape.macs() / 1e9:.4f} G macs" if shape else None,
        "stored": size_in_words(weights.stat().st_size) if weights else "no weights",
        "classes": f"{len(names)} ({shown})" if names else None,
        "fine-tuned": f"on {', '.join(tuned['data'])}, {tuned['train']['epochs']} epochs" if tuned else "no",
        "accuracy": f"top-1 {top1:.2f} %" if top1 is not None else None,
    }
    for key, value in rows.items():
        if value is not None:
            print(f"{key:16s} {value}")
    suggest("eval", folder, "--data", "DATA")


def _shapes(entries: list[dict[str, Any]]) -> str | None:
    """The shapes that a gene was measured at, worst and best first."""
    if not entries:
        return None
    from learngene.genes.shape_scores import score_of, size_of

    name, called = score_of(entries)
    ends = [one(entries, key=lambda entry: float(entry[name])) for one in (min, max)]
    texts = [f"{called} {entry[name]:.2f} % at {size_of(entry)}" for entry in ends]
    return f"{len(entries)} measured, {' to '.join(texts)}, see `learngene plan`"


@app.command()
def methods(
    families: Annotated[
        bool, typer.Option("--families", help="List instead which families of timm work as what, as tried.")
    ] = False,
) -> None:
    """List the methods with their settings and choices."""
    from learngene.methods import METHODS, default_settings, method

    if families:
        from learngene.vits.families import families_table

        print("\n".join(families_table()))
        return
    for name, kind in METHODS.items():
        print(f"{name}  {kind.title} ({kind.paper})")
        for setting, default in default_settings(kind).items():
            print(f"    settings.{setting} = {default!r}")
        for option, text in method(name).options.items():
            print(f"    --set {option}=...  {text}")
        makes = " or ".join(f"learngene {origin}" for origin in kind.origins) or "none needed"
        print(f"    gene: {makes}")
