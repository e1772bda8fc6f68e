"""Writes the recipes of the papers' tables beside itself: ``python recipes/paper/generate.py``.

Accuracies are those of ``printed.py``, epochs of the sections named beside them; sizes and costs are computed; what the
recipes of a folder share is written by hand in its files with ``_``. A test compares the files with ``render()``.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from printed import (
    CHEBYSHEV_BASES,
    CHEBYSHEV_GENES,
    DECATHLON,
    FINE_FID,
    LSAMD_8_LAYERS,
    LSAMD_CIFAR100,
    LSAMD_SETS,
    POOL_TABLES,
    SWS_TABLE_1,
    TAL_1,
    TAL_2,
    TAL_3,
    TLEG_TABLE_1,
    UNSEEN,
)

from learngene.methods import Method, method
from learngene.methods.pool import Pool
from learngene.methods.tal.ranges import RANGES
from learngene.vits.shape import NAMED, ViTShape

Fields = Mapping[str, object]

IMAGES = 1_281_167  # training images of ImageNet-1K
IMAGENET = "data.source=/path/to/imagenet"  # of the commands in headers
TEACHER_MACS = 2_351_786_880  # LeViT-384 at 224 pixels, as torch's FlopCounterMode counts timm's levit_384
REGNET_MACS = 15_911_510_272  # RegNetY-16GF, timm's regnety_160, counted alike

SIZES = {"ti": "deit_tiny_patch16_224", "s": "deit_small_patch16_224", "b": "deit_base_patch16_224"}

AUX_EXPECTED = {
    ("tleg", "ti"): "top-1 printed in neither paper; judge it by its descendants (TLEG Table 1).",
    ("tleg", "s"): "top-1 printed in neither paper; judge it by its descendants (TLEG Table 1).",
    ("tleg", "b"): "top-1 76.7 (SWS Table 5, row TLEG).",
    ("sws", "s"): "top-1 78.7 (SWS Table 6; 76.4 after 100 epochs).",
    ("sws", "b"): "top-1 80.9 (SWS Table 5, row MS-WS6).",
}
AUX_EPOCHS = {"ti": 150, "s": 150, "b": 100}  # TLEG "Main Results"; SWS section 4.1 for S and B
TLEG_DES_EPOCHS = {"ti": 50, "s": 35, "b": 40}  # TLEG "Main Results", which gives the 11-layer Des-S 45
SWS_RATE = {"s": "5.0e-5", "b": "1.0e-5"}  # the authors' commands, which exist for 12 layers

LEVIT, LAST_NORM = "which LeViT-384 weights; see _aux.yaml.", "the final norm before the pooling; see _des.yaml."
SOURCES = {
    ("tleg", "aux"): f"""paper: epochs (Main Results), LeViT-384. Authors' command: depth, alpha, drop path.
Defaults of their code: lr, warm-up. Ours: {LEVIT}""",
    ("sws", "aux"): f"""paper: epochs, stages, LeViT-384 (section 4.1). Authors' command: alpha, lr, warm-up.
Default of their code: drop path. Ours: {LEVIT}""",
    ("tleg", "des"): f"""paper: epochs (Main Results). Authors' command: no warm-up.
Defaults of their code: lr, min_lr, drop path. Ours: {LAST_NORM}""",
    ("sws", "des"): f"""paper: epochs (section 4.1). Authors' command, for 12 layers only: lr, min_lr, no warm-up.
Default of their code: drop path. Ours: {LAST_NORM}""",
}
NO_COMMAND = "\nNo command is published for Ti: that of S is used."
HEADS = "\n6 heads as DeiT-S; the authors' Aux-S has 12, unlike its own descendants."
FIVE_EPOCHS = "\nSection 4.2 counts 5 epochs per Des-B in its 6.6x and 10 in its comparison with TLEG."


POOL_EPOCHS, PATH_EPOCHS, ANCHOR_EPOCHS = 100, 50, 150  # "Training Details"

TEMPLATES = {
    "wave": (
        "12 templates of 64 x 64 for each kind of matrix",
        "paper: 150 epochs, KL and cross-entropy, a pretrained teacher.",
        "which teacher, tiles as wide as a head, 12 of them",
    ),
    "sweet": ("a core of 24 matrices", "paper: the product.", "a teacher and its loss, epochs as WAVE, all ranks"),
}

CHEBYSHEV_EPOCHS = 100  # of every stage

LETS_AUX = ViTShape(embed_dim=768, num_heads=12, depth=16)
LETS_SOURCE = "Source: authors' README and defaults: "

LSAMD_EPOCHS = 50  # "LSAMD vs. PF"

UNFLIPPED = ("gtsrb", "omniglot", "svhn")  # without flips and colours in the authors' code
TAL_ANCESTRY = "vit_base_patch16_224.orig_in21k_ft_in1k"
TAL_TEACHER = ViTShape.named("deit_base_patch16_224", class_token=True)  # in size


def render() -> dict[str, str]:
    """The text of every recipe by its path under ``recipes/paper``."""
    files = {f"{name}/aux-{size}.yaml": _auxiliary(name, size) for name, size in AUX_EXPECTED}
    for size, rows in TLEG_TABLE_1.items():
        files |= {f"tleg/des-{size}-{depth:02d}.yaml": _tleg_descendant(size, depth) for depth in rows}
    for size in SWS_RATE:
        files |= {f"sws/des-{size}-{depth:02d}.yaml": _sws_descendant(size, depth) for depth in SWS_TABLE_1}
    files |= {f"pool/pool-{2 * depth}.yaml": _pool(depth) for depth in POOL_TABLES}
    files |= {f"{name}/aux-{size}.yaml": _templates(name, size) for name in TEMPLATES for size in SIZES}
    files |= {f"chebyshev/genes-{genes:02d}.yaml": _chebyshev(genes) for genes in CHEBYSHEV_GENES}
    files |= {f"chebyshev/basis-{basis}.yaml": _chebyshev(12, basis) for basis in CHEBYSHEV_BASES}
    files |= {f"fine/aux-{size}.yaml": _fine(size) for size in ("ti", "s")}
    files |= {"lets/aux.yaml": _lets()} | {
        f"lets/des-h{heads:02d}-12.yaml": _lets_descendant(heads) for heads in (6, 12)
    }
    files |= {f"lsamd/des-cifar100-{depth:02d}.yaml": _lsamd_descendant("cifar100", depth) for depth in LSAMD_CIFAR100}
    others = (name for name in LSAMD_SETS if name != "cifar100")
    files |= {f"lsamd/des-{name}-08.yaml": _lsamd_descendant(name, 8) for name in others}
    files |= {f"tal/{name}.yaml": _tal_stage1(name) for name in TAL_STAGE_1}
    for task in DECATHLON:
        files |= {f"tal/{name}-{task}.yaml": _tal_single(name, task) for name in ("ghn3", "v1", "v2")}
    files |= {f"tal/{name}.yaml": _tal_tune(name) for name in TAL_TUNED}
    files |= {f"tal/des-{size}-12-imagenet.yaml": _tal_imagenet(size) for size in TAL_1}
    for size, depth in (("ti", 3), ("s", 6)):
        for task in (*DECATHLON, *UNSEEN):
            files[f"tal/des-{size}-{depth:02d}-{task}.yaml"] = _tal_descendant(size, depth, task)
    return files


def _auxiliary(name: str, size: str) -> str:
    shape = ViTShape.named(SIZES[size], depth={"tleg": 12, "sws": 16}[name])
    stored = _stored(method(name), shape)
    note = {("tleg", "ti"): NO_COMMAND, ("sws", "s"): HEADS}.get((name, size), "")
    header = f"""\
Aux-{size.capitalize()} of {name.upper()}, {shape.depth} layers: condenses the gene.
Expected: {AUX_EXPECTED[name, size]}
{_size_and_cost(shape, AUX_EPOCHS[size], stored, TEACHER_MACS)}
Source: {SOURCES[name, "aux"]}{note}"""
    fields = {"shape": {"named": SIZES[size], "depth": shape.depth}}
    return _recipe("condense", f"{name}/aux-{size}", header, fields, {"epochs": AUX_EPOCHS[size]})


def _tleg_descendant(size: str, depth: int) -> str:
    scratch, tleg = TLEG_TABLE_1[size][depth]
    epochs = 45 if (size, depth) == ("s", 11) else TLEG_DES_EPOCHS[size]
    expected = f"top-1 {tleg} (TLEG Table 1; {scratch} from scratch in 100 epochs, same row)."
    return _descendant("tleg", size, depth, expected, NO_COMMAND if size == "ti" else "", {"epochs": epochs})


def _sws_descendant(size: str, depth: int) -> str:
    tuned = "\nThe tuned top-1 is only drawn, in SWS Figure 4; the text says better than from scratch"
    if size == "b":
        scratch, untuned = SWS_TABLE_1[depth]
        expected = f"top-1 {untuned} untuned, {scratch} from scratch in 100 epochs (SWS Table 1"
        other = TLEG_TABLE_1["b"].get(depth, (scratch,))[0]
        expected += f"; TLEG Table 1: {other})." if other != scratch else ")."
        tuned += ", after 1 epoch already" if depth >= 10 else ""
    elif depth in TLEG_TABLE_1["s"]:
        scratch = TLEG_TABLE_1["s"][depth][0]
        expected = f"top-1 above {scratch}, this model's from scratch in 100 epochs (TLEG Table 1)."
    else:
        expected = "top-1 above training from scratch, which neither paper prints for this model."
    train = {"epochs": 15 if size == "s" and depth >= 13 else 10, "lr": SWS_RATE[size]}
    return _descendant("sws", size, depth, f"{expected}{tuned}.", FIVE_EPOCHS if size == "b" else "", train)


def _descendant(name: str, size: str, depth: int, expected: str, note: str, train: Fields) -> str:
    shape = ViTShape.named(SIZES[size], depth=depth)
    where = {"tleg": "TLEG Table 1", "sws": "SWS Figure 4"}[name]
    header = f"""\
Des-{size.capitalize()} with {depth} layers from the gene of {name.upper()}: one model of {where}.
Expected: {expected}
{_size_and_cost(shape, int(str(train["epochs"])))}
Source: {SOURCES[name, "des"]}{note}"""
    model = f"runs/{name}-aux-{size}.safetensors  # made by aux-{size}.yaml"
    fields = {"model": model, "shape": NAMED[SIZES[size]] | {"depth": depth}}
    return _recipe("finetune", f"{name}/des-{size}-{depth:02d}", header, fields, train)


def _templates(name: str, size: str) -> str:
    shape, (what, said, ours) = ViTShape.named(SIZES[size], depth=12), TEMPLATES[name]
    header = f"""\
{name.upper()}'s gene at the size of DeiT-{size.capitalize()}: {what}.
Expected: unknown; the figures of its tables are not available to us, and none is claimed to be reproduced.
{_size_and_cost(shape, 150, _stored(method(name), shape), TEACHER_MACS)}
Source: {said}
Ours: {ours}, and the training defaults, as no code could be had."""
    fields = {"method": name, "ancestry": {"source": "levit_384.fb_dist_in1k"}, "shape": {"named": SIZES[size]}}
    return _recipe("condense", f"{name}/aux-{size}", header, fields, {"epochs": 150}, base="../_imagenet")


def _chebyshev(genes: int, basis: str = "") -> str:
    """A number of genes after all stages up to it; or 12 in one stage, as functions of a basis."""
    shape, stages = ViTShape.named(SIZES["b"], depth=12), list(CHEBYSHEV_GENES).index(genes) + 1
    top1, place = CHEBYSHEV_GENES[genes], "number of genes"
    if basis:
        top1, place, stages = CHEBYSHEV_BASES[basis], "choice of basis", 1
    settings: dict[str, object] = {"genes": genes} | ({"basis": basis} if basis else {})
    epochs, function = stages * CHEBYSHEV_EPOCHS, (basis or "chebyshev").capitalize()
    header = f"""\
DeiT-B of 12 layers from {genes} gene{"s" * (genes > 1)}, coefficients of {function} functions of depth.
Expected: top-1 {top1:.2f} (ablation of the {place}).
{_size_and_cost(shape, epochs, _stored(method("chebyshev", settings), shape), REGNET_MACS, taught_by="RegNet-16GF")}
Source: paper: genes, basis, {CHEBYSHEV_EPOCHS} epochs a stage, a RegNet-16GF, cross-entropy and KL.
Ours: genes are trained together, for the epochs of all stages up to their number, of which the paper trains each with
the genes of those before frozen; which RegNet weights; the training defaults."""
    name, fields = f"chebyshev/{f'basis-{basis}' if basis else f'genes-{genes:02d}'}", {"method": "chebyshev"}
    fields |= {"settings": settings, "ancestry": {"source": "regnety_160.deit_in1k"}, "shape": {"named": SIZES["b"]}}
    return _recipe("condense", name, header, fields, {"epochs": epochs}, base="../_imagenet")


def _fine(size: str) -> str:
    shape = ViTShape.named(SIZES[size], depth=12)
    printed = "; ".join(f"{depth} layers: {fine} ({tleg})" for depth, (fine, tleg) in FINE_FID.items())
    header = f"""\
FINE's gene at the size of DeiT-{size.capitalize()}: bases as wide as the model, and scales for 12 layers.
Expected: unknown for DeiT. For DiT-B, which is not in this library, FID of FINE (of TLEG) by depth is printed:
{printed}.
{_size_and_cost(shape, 150, _stored(method("fine"), shape), TEACHER_MACS)}
Source: paper: the product, which layers share what.
Ours: rank, teacher, loss, epochs and the training defaults; its own are those of DiT."""
    fields = {"method": "fine", "ancestry": {"source": "levit_384.fb_dist_in1k"}, "shape": {"named": SIZES[size]}}
    return _recipe("condense", f"fine/aux-{size}", header, fields, {"epochs": 150}, base="../_imagenet")


def _lets() -> str:
    header = f"""\
LeTs's gene: a ViT of 8 layers, width 384, with what makes it 16 layers of width 768.
Expected: unknown; its tables are pictures whose figures are not available to us.
{_size_and_cost(LETS_AUX, 300, _stored(method("lets"), LETS_AUX), TEACHER_MACS)}
{LETS_SOURCE}teacher, loss, epochs, warm-up, drop path. The paper calls 200 epochs a
variant, and so trained for another number. Ours: which LeViT-384 weights; the final norm before the pooling
(shape.ending=official for the authors' order)."""
    fields = {
        "method": "lets",
        "settings": {"width": 384, "sources": 8, "share": 2},
        "ancestry": {"source": "levit_384.fb_dist_in1k"},
        "distill": {"preset": "lets-official"},
        "shape": {"embed_dim": 768, "num_heads": 12, "depth": 16},
    }
    train = {"epochs": 300, "drop_path": 0.1, "schedule": "{warmup_epochs: 5}"}
    return _recipe("condense", "lets/aux", header, fields, train, base="../_imagenet")


def _lets_descendant(heads: int) -> str:
    shape = LETS_AUX.replace(embed_dim=64 * heads, num_heads=heads, depth=12)
    header = f"""\
Des-H{heads}-L12 from the gene of LeTs, by the default order, which gives the lists of the authors' README.
Expected: unknown; its tables are pictures whose figures are not available to us.
{_size_and_cost(shape, 5)}
{LETS_SOURCE}epochs, rates, no warm-up, drop path. The paper tunes for 1 epoch.
Ours: the final norm before the pooling, as in the auxiliary model."""
    fields = {
        "model": "runs/lets-aux.safetensors  # made by aux.yaml",
        "shape": {"embed_dim": shape.embed_dim, "num_heads": heads, "depth": 12},
    }
    train = {"epochs": 5, "lr": "1.0e-5", "drop_path": 0.1, "schedule": "{warmup_epochs: 0, min_lr: 1.0e-6}"}
    return _recipe("finetune", f"lets/des-h{heads:02d}-12", header, fields, train, base="../_imagenet")


def _pool(depth: int) -> str:
    auxiliary = ViTShape.named(SIZES["b"], depth=depth, class_token=True)
    teacher, kind = auxiliary.replace(depth=12).macs(), Pool()
    paths = list(kind.paths(auxiliary))
    mean = sum(path.macs() for path in paths) // len(paths)
    rows = [3 * row.macs() + teacher for row in kind.row_shapes(auxiliary)]
    total = IMAGES * (POOL_EPOCHS * sum(rows) + PATH_EPOCHS * 3 * mean)
    stored = _stored(kind, auxiliary)
    printed = [f"{blocks}: {pool} ({sn_net})" for blocks, (sn_net, pool) in POOL_TABLES[depth].items()]
    expected = ", ".join(printed[:4]) + ",\n" + ", ".join(printed[4:])
    header = f"""\
Pool({2 * depth}): rows of {depth} blocks at 192 and 768, distilled from DeiT-B, then {len(paths)} paths tuned together.
Expected top-1 by blocks taken of each row (SN-Net at equal storage), Table {1 if depth == 6 else 2}:
{expected}.
Size: {stored:,} parameters for all paths.
Cost: {total:.2e} multiply-adds = {IMAGES:,} images x ({POOL_EPOCHS} epochs x ({sum(rows) / 1e9:.1f} for both rows and
their teacher) + {PATH_EPOCHS} epochs x 3 x {mean / 1e9:.2f} for a path of average size) G.
Source: paper: rows, points, epochs, batch, rate. Authors' code: alpha; see _aux.yaml."""
    fields = {"shape": {"named": SIZES["b"], "depth": depth, "class_token": "true"}}
    return _recipe("condense", f"pool/pool-{2 * depth}", header, fields, {"epochs": POOL_EPOCHS})


def _lsamd_descendant(name: str, depth: int) -> str:
    rate, images, classes = LSAMD_SETS[name]
    shape = ViTShape.named(SIZES["b"], depth=depth, class_token=True, num_classes=classes)
    top1 = LSAMD_CIFAR100[depth] if name == "cifar100" else LSAMD_8_LAYERS.get(name)
    if top1 is None:
        expected = "no figure is printed for this data set."
    else:
        expected = f"top-1 {top1:.2f} (LSAMD Table {1 if name == 'pets' else 2})."
    if (name, depth) in {("cifar100", 6), ("cifar100", 7)}:
        expected += f"\nTable 1 prints {82.77 if depth == 6 else 84.38} for the same model; see _des.yaml."
    header = f"""\
Descendant with {depth} layers from the gene of LSAMD on {name}.
Expected: {expected}
{_size_and_cost(shape, LSAMD_EPOCHS, images=images)}
Source: paper: rate (Table 5), epochs, batch, polynomial decay. Ours: the rest; see _des.yaml."""
    timm_name = name.startswith("cifar")
    fields = {
        "model": "runs/lsamd.safetensors  # made by search.yaml",
        "shape": {"depth": depth},
        "data": {"source": f"torch/{name}" if timm_name else name},
    }
    given = f"data.root=/path/to/{name} data.download=true" if timm_name else f"data.source=/path/to/{name}"
    return _recipe("finetune", f"lsamd/des-{name}-{depth:02d}", header, fields, {"lr": rate}, given)


# -- TAL: what differs from its _gene.yaml, _tune.yaml and _des.yaml ------------------------------------------------

# name: (title, method, guidance, what to expect).
TAL_STAGE_1 = {
    "imagenet-tal": (
        "Stage 1 of TAL: a hypernetwork learns ImageNet under its ancestry.",
        *("tal", "default", "top-1 26.20 for 12-Ti and 23.28 for 12-S, untrained (TAL Table 1)."),
    ),
    "imagenet-tal-code": (
        "Stage 1 of TAL with guidance as the authors' code has it: divided by 1000 classes, through a random matrix.",
        *("tal", "code", "top-1 26.20 for 12-Ti and 23.28 for 12-S, untrained (TAL Table 1)."),
    ),
    "imagenet-tal-paper": (
        "Stage 1 of TAL with guidance as equation 4 is printed: student first, no temperature, channel by channel.",
        *("tal", "paper", "nothing is printed for this reading; imagenet-tal-code.yaml is what was run, most likely."),
    ),
    "imagenet-tal-no-ancestry": (
        "Stage 1 of TAL without its ancestry, for the ablation of TAL Table 7.",
        *("tal", "none", "what imagenet-logah.yaml gives: in stage 1 both are the same network."),
    ),
    "imagenet-tal-no-task": (
        "Stage 1 of TAL without task layers, for the ablation of TAL Table 7: LoGAH under TAL's ancestry.",
        *("logah", "default", "what imagenet-tal.yaml gives: in stage 1 both are the same network."),
    ),
    "imagenet-logah": (
        "LoGAH on ImageNet: LoGAH v1 there, and where LoGAH v2 and v4 start.",
        *("logah", "none", "top-1 22.79 for 12-Ti and 16.78 for 12-S, untrained (TAL Table 1)."),
    ),
}
# name: (title, gene or None, method, what to expect).
TAL_TUNED = {
    "decathlon-tal": (
        "Stage 2 of TAL: the hypernetwork of stage 1 is tuned on nine tasks of the Decathlon.",
        *("imagenet-tal", "tal", "mean top-1 53.37 over six descendants, untrained (TAL Tables 2 and 5)."),
    ),
    "decathlon-v3": (
        "LoGAH v3: a fresh hypernetwork on nine tasks of the Decathlon, without task layers.",
        *(None, "logah", "mean top-1 34.48 over six descendants, untrained (TAL Table 5)."),
    ),
    "decathlon-v4": (
        "LoGAH v4: as TAL, on ImageNet first and then nine tasks, but without guidance and without task layers.",
        *("imagenet-logah", "logah", "mean top-1 49.23 over six descendants, untrained (TAL Table 5)."),
    ),
    "decathlon-tal-no-task": (
        "TAL without task layers (w/o TSL in TAL Table 7).",
        *("imagenet-tal-no-task", "logah", "mean top-1 40.71 over six descendants, untrained (TAL Table 7)."),
    ),
    "decathlon-tal-no-ancestry": (
        "TAL without its ancestry in stage 1 (w/o ans-net in TAL Table 7); the task embeddings are still its features.",
        *("imagenet-tal-no-ancestry", "tal", "mean top-1 46.80 over six descendants, untrained (TAL Table 7)."),
    ),
}
TAL_EPOCHS, TUNED_EPOCHS = 75, 100  # "Training Details"; the paper does not say for LoGAH v3
SINGLE_EPOCHS = {"ghn3": 300, "v1": 300, "v2": 100}  # "Training Details"; the paper does not say for GHN-3
UNFLIP = "{hflip: 0, color_jitter: 0}"


def _mean_macs(classes: int) -> int:
    """Multiply-adds of a ViT as vits-1k draws them: first the depth, evenly, then the width."""
    base = ViTShape.named("deit_tiny_patch16_224", class_token=True, num_classes=classes)
    depths = []
    for band in RANGES["vits-1k"]:
        for depth in range(band.depths[0], band.depths[1] + 1):
            widths = range(band.widths[0], band.widths[1] + 1, band.step)
            macs = [base.replace(depth=depth, embed_dim=width, num_heads=1).macs() for width in widths]
            depths.append(sum(macs) // len(macs))
    return sum(depths) // len(depths)


def _tal_size_and_cost(kind: str, epochs: int, counts: Mapping[int, int], teacher: int = 0) -> str:
    """Size of a hypernetwork, and cost of the ViTs it trains; predicting them costs little. Counts: per classes."""
    stored = _stored(method(kind, {"size": "published"}), TAL_TEACHER)
    images = sum(counts.values())
    mean = sum(_mean_macs(classes) * count for classes, count in counts.items()) // images
    guide = f" + {teacher / 1e9:.3f} for the ancestry" * bool(teacher)
    return f"""\
Size: {stored:,} parameters, of which 8,192 are fixed.
Cost: {epochs * images * (3 * mean + teacher):.2e} multiply-adds = {epochs} epochs x {images:,} images x (3 x \
{mean / 1e9:.3f}{guide}) G."""


def _tal_stage1(name: str) -> str:
    title, kind, guidance, expected = TAL_STAGE_1[name]
    teacher = 0 if guidance == "none" else TAL_TEACHER.macs()
    header = f"""\
{title}
Expected: {expected}
{_tal_size_and_cost(kind, TAL_EPOCHS, {1000: IMAGES}, teacher)}
Source: paper: epochs, rate, weight decay, penalty. Authors' code: the rest; see _gene.yaml."""
    fields: dict[str, object] = {"method": kind}
    if kind == "tal":
        fields["settings"] = {"task_dim": 768}
    if teacher:
        fields["ancestry"] = {"source": TAL_ANCESTRY}
    fields["hyper"] = {"guidance": f"{{preset: {guidance}}}"}
    return _tal_recipe("condense", name, "_gene", header, fields, {"epochs": TAL_EPOCHS})


def _tal_single(name: str, task: str) -> str:
    column, images, classes = DECATHLON[task]
    place = list(DECATHLON).index(task)
    epochs, kind = SINGLE_EPOCHS[name], "ghn3" if name == "ghn3" else "logah"
    title = {"ghn3": "GHN-3", "v1": "LoGAH v1", "v2": "LoGAH v2, from imagenet-logah.yaml,"}[name]
    source = "paper: rate, weight decay, penalty" + ", epochs" * (name != "ghn3")
    ours = " Ours: 300 epochs, and all else as for LoGAH v1, since the paper says nothing of GHN-3." * (name == "ghn3")
    header = f"""\
{title} on {task} alone.
Expected: top-1 {TAL_2[name, "3-Ti"][place]:.2f} for 3-Ti and {TAL_2[name, "6-S"][place]:.2f} for 6-S, untrained \
(TAL Table 2, {column}).
{_tal_size_and_cost(kind, epochs, {classes: images})}
Source: {source}. Authors' code: the rest; see {"_tune" if name == "v2" else "_gene"}.yaml.{ours}"""
    where = f"decathlon-{task}-{name}"
    if name == "v2":
        fields: dict[str, object] = {"gene": "runs/tal-imagenet-logah.safetensors  # made by imagenet-logah.yaml"}
        fields["tasks"] = _tal_tasks(task)
        return _tal_recipe("tune", f"v2-{task}", "_tune", header, fields, {"epochs": epochs}, where)
    fields = {"method": kind, "data": {"source": f"decathlon/{task}", "root": "$DATA", "img_size": 224}}
    train: dict[str, object] = {"epochs": epochs}
    train["augment"] = "{scale: null, hflip: 0, color_jitter: 0}" if task in UNFLIPPED else "{scale: null}"
    return _tal_recipe("condense", f"{name}-{task}", "_gene", header, fields, train, where)


def _tal_tune(name: str) -> str:
    title, gene, kind, expected = TAL_TUNED[name]
    counts: dict[int, int] = {}
    for _, images, classes in DECATHLON.values():
        counts[classes] = counts.get(classes, 0) + images
    note = " Ours: its epochs, which the paper does not say." * (gene is None)
    header = f"""\
{title}
Expected: {expected}
{_tal_size_and_cost(kind, TUNED_EPOCHS, counts)}
Source: paper: tasks, temperature, rate, weight decay, penalty{", epochs" * bool(gene)}. Authors' code: the rest; see
_tune.yaml.{note}"""
    fields: dict[str, object] = {"gene": f"runs/tal-{gene}.safetensors  # made by {gene}.yaml"}
    if not gene:
        settings = {"size": "published", "architectures": "vits-1k"}
        shape = {"named": SIZES["s"], "depth": 6, "class_token": "true"}
        fields = {"method": kind, "settings": settings, "shape": shape}
    if kind == "tal":
        fields["ancestry"] = {"source": TAL_ANCESTRY}
    fields["tasks"] = _tal_tasks(*DECATHLON)
    return _tal_recipe("tune", name, "_tune", header, fields, {"epochs": TUNED_EPOCHS})


def _tal_tasks(*names: str) -> str:
    lines = []
    for name in names:
        place = f"source: decathlon/{name}, root: $DATA, workers: 10"
        lines += [f"  {name}:", f"    data: {{{place}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}"]
        if name in UNFLIPPED:
            lines += [f"    augment: {UNFLIP}  # authors' code"]
    return "\n" + "\n".join(lines)


def _tal_imagenet(size: str) -> str:
    untrained, trained, random = TAL_1[size]
    shape = ViTShape.named(SIZES[size], class_token=True)
    header = f"""\
A ViT of 12 layers predicted by imagenet-tal.yaml, and then trained on ImageNet: 12-{size.capitalize()} of TAL Table 1.
Expected: top-1 {untrained:.2f} untrained and {trained:.2f} after 75 epochs; {random} from random weights.
{_size_and_cost(shape, TAL_EPOCHS)}
Source: paper: epochs. LoGAH's script: the rest; see _des.yaml. Its rate falls by 3 % per epoch on ImageNet, which no
schedule here does: a cosine stands in. Ours: random crops, as in stage 1."""
    fields: dict[str, object] = {
        "model": "runs/tal-imagenet-tal.safetensors  # made by imagenet-tal.yaml",
        "shape": NAMED[SIZES[size]] | {"depth": 12},
        "data": {"source": "imagenet"},
    }
    train = {"epochs": TAL_EPOCHS, "augment": "{scale: [0.08, 1.0]}"}
    return _tal_recipe("finetune", f"des-{size}-12-imagenet", "_des", header, fields, train)


def _tal_descendant(size: str, depth: int, task: str) -> str:
    label = f"{depth}-{size.capitalize()}"
    images, classes = UNSEEN[task][:2] if task in UNSEEN else DECATHLON[task][1:]
    shape = ViTShape.named(SIZES[size], depth=depth, class_token=True, num_classes=classes)
    if task in UNSEEN:
        early, late = UNSEEN[task][2][label]
        expected = f"top-1 {early:.2f} after train.epochs=5 and {late:.2f} after 100 (TAL Table 4)."
        fields: dict[str, object] = {"model": f"runs/tal-{label.lower()}-{task}"}
        sizes = f"--depth {depth} --embed-dim {shape.embed_dim} --num-heads {shape.num_heads}"
        first = (
            f"learngene expand runs/tal-decathlon-tal.safetensors {sizes} \\\n    --task $DATA/{task} --out {{}}, then"
        )
        how = f"\nTAL was not tuned on this task: it predicts for the mean features of its images.\nRun: {first}\n  "
        how = how.format(fields["model"])
        data: dict[str, object] = {"source": f"$DATA/{task}"}
    else:
        place = list(DECATHLON).index(task)
        trained, random = TAL_3["TAL", label][place], TAL_3["RandInit", label][place]
        expected = f"top-1 {trained:.2f}; {random:.2f} from random weights in 200 epochs (TAL Table 3)."
        fields = {
            "model": "runs/tal-decathlon-tal.safetensors  # made by decathlon-tal.yaml",
            "shape": NAMED[SIZES[size]] | {"depth": depth},
            "options": {"task": task},
        }
        data, how = {"source": f"decathlon/{task}", "root": "$DATA"}, "\nRun: "
    header = f"""\
{label} predicted by TAL for {task}, and then trained on it.
Expected: {expected}
{_size_and_cost(shape, 100, images=images)}
Source: paper: epochs. LoGAH's script: the rest; see _des.yaml.{how}"""
    fields["data"] = data
    train = {"epochs": 100} | ({"augment": UNFLIP} if task in UNFLIPPED else {})
    return _tal_recipe("finetune", f"des-{size}-{depth:02d}-{task}", "_des", header, fields, train)


def _tal_recipe(kind: str, name: str, base: str, header: str, fields: Fields, train: Fields, out: str = "") -> str:
    images = IMAGENET if "imagenet" in name else "--data FOLDER"
    return _recipe(kind, f"tal/{name}", header, fields, train, images, base, f"tal-{out or name}")


def _stored(kind: Method, shape: ViTShape) -> int:
    return sum(math.prod(tensor) for tensor in kind.gene_tensors(shape).values())


def _size_and_cost(
    shape: ViTShape,
    epochs: int,
    stored: int = 0,
    teacher: int = 0,
    images: int = IMAGES,
    taught_by: str = "LeViT-384",
) -> str:
    # A backward pass costs two forward passes; the ancestry only runs forward.
    total = (3 * shape.macs() + teacher) * images * epochs
    gene = f" ({stored:,} in the gene)" * bool(stored)
    per_image = f"3 x {shape.macs() / 1e9:.3f}" + f" + {teacher / 1e9:.3f} for {taught_by}" * bool(teacher)
    return f"""\
Size: {shape.params():,} parameters{gene}, {shape.macs() / 1e9:.3f} G multiply-adds per image.
Cost: {total:.2e} multiply-adds = {epochs} epochs x {images:,} images x ({per_image}) G."""


def _recipe(
    kind: str,
    path: str,
    header: str,
    fields: Fields,
    train: Fields,
    images: str = IMAGENET,
    base: str = "",
    out: str = "",
) -> str:
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    run = f"learngene {kind} recipes/paper/{path}.yaml {images}"
    if lines[-1].endswith(("Run:", "#")):
        lines[-1] += f" {run}" if lines[-1].endswith("Run:") else f"   {run}"
    else:
        lines += [f"# Run: {run}"]
    lines += [f"extends: {base or ('_aux' if kind == 'condense' else '_des')}.yaml"]
    for key, value in fields.items():
        inner = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else ""
        lines += [f"{key}: {{{inner}}}" if inner else f"{key}:{'' if str(value).startswith(chr(10)) else ' '}{value}"]
    lines += ["train:", *(f"  {key}: {value}" for key, value in train.items())]
    return "\n".join([*lines, f"out: runs/{out or path.replace('/', '-')}"]) + "\n"


if __name__ == "__main__":
    for file, text in render().items():
        (Path(__file__).parent / file).write_text(text)
