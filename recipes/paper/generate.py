"""Writes the recipes of the papers' tables beside itself: ``python recipes/paper/generate.py``.

Accuracies are those of ``printed.py``, epochs of the sections named beside them; sizes and costs are computed; what the
recipes of a folder share is written by hand in its files with ``_``. A test compares the files with ``render()``.
"""

from pathlib import Path

from common import IMAGES, SIZES, Fields, recipe_text, size_and_cost, stored_numbers
from printed import (
    CHEBYSHEV_BASES,
    CHEBYSHEV_GENES,
    FINE_FID,
    LSAMD_8_LAYERS,
    LSAMD_CIFAR100,
    LSAMD_SETS,
    POOL_TABLES,
    SWS_TABLE_1,
    TLEG_TABLE_1,
)
from tal_recipes import tal_recipes

from learngene.methods import method
from learngene.methods.pool import Pool
from learngene.vits.shape import NAMED, ViTShape

TEACHER_MACS = 2_351_786_880  # LeViT-384 at 224 pixels, as torch's FlopCounterMode counts timm's levit_384
REGNET_MACS = 15_911_510_272  # RegNetY-16GF, timm's regnety_160, counted alike

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
    return files | tal_recipes()


def _auxiliary(name: str, size: str) -> str:
    shape = ViTShape.named(SIZES[size], depth={"tleg": 12, "sws": 16}[name])
    stored = stored_numbers(method(name), shape)
    note = {("tleg", "ti"): NO_COMMAND, ("sws", "s"): HEADS}.get((name, size), "")
    header = f"""\
Aux-{size.capitalize()} of {name.upper()}, {shape.depth} layers: condenses the gene.
Expected: {AUX_EXPECTED[name, size]}
{size_and_cost(shape, AUX_EPOCHS[size], stored, TEACHER_MACS)}
Source: {SOURCES[name, "aux"]}{note}"""
    fields = {"shape": {"named": SIZES[size], "depth": shape.depth}}
    return recipe_text("condense", f"{name}/aux-{size}", header, fields, {"epochs": AUX_EPOCHS[size]})


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
{size_and_cost(shape, int(str(train["epochs"])))}
Source: {SOURCES[name, "des"]}{note}"""
    model = f"runs/{name}-aux-{size}.safetensors  # made by aux-{size}.yaml"
    fields = {"model": model, "shape": NAMED[SIZES[size]] | {"depth": depth}}
    return recipe_text("finetune", f"{name}/des-{size}-{depth:02d}", header, fields, train)


def _templates(name: str, size: str) -> str:
    shape, (what, said, ours) = ViTShape.named(SIZES[size], depth=12), TEMPLATES[name]
    header = f"""\
{name.upper()}'s gene at the size of DeiT-{size.capitalize()}: {what}.
Expected: unknown; the figures of its tables are not available to us, and none is claimed to be reproduced.
{size_and_cost(shape, 150, stored_numbers(method(name), shape), TEACHER_MACS)}
Source: {said}
Ours: {ours}, and the training defaults, as no code could be had."""
    fields = {"method": name, "ancestry": {"source": "levit_384.fb_dist_in1k"}, "shape": {"named": SIZES[size]}}
    return recipe_text("condense", f"{name}/aux-{size}", header, fields, {"epochs": 150}, base="../_imagenet")


def _chebyshev(genes: int, basis: str = "") -> str:
    """A number of genes after all stages up to it; or 12 in one stage, as functions of a basis."""
    shape, stages = ViTShape.named(SIZES["b"], depth=12), list(CHEBYSHEV_GENES).index(genes) + 1
    top1, place = CHEBYSHEV_GENES[genes], "number of genes"
    if basis:
        top1, place, stages = CHEBYSHEV_BASES[basis], "choice of basis", 1
    settings: dict[str, object] = {"genes": genes} | ({"basis": basis} if basis else {})
    epochs, function = stages * CHEBYSHEV_EPOCHS, (basis or "chebyshev").capitalize()
    stored = stored_numbers(method("chebyshev", settings), shape)
    header = f"""\
DeiT-B of 12 layers from {genes} gene{"s" * (genes > 1)}, coefficients of {function} functions of depth.
Expected: top-1 {top1:.2f} (ablation of the {place}).
{size_and_cost(shape, epochs, stored, REGNET_MACS, taught_by="RegNet-16GF")}
Source: paper: genes, basis, {CHEBYSHEV_EPOCHS} epochs a stage, a RegNet-16GF, cross-entropy and KL.
Ours: genes are trained together, for the epochs of all stages up to their number, of which the paper trains each with
the genes of those before frozen; which RegNet weights; the training defaults."""
    name, fields = f"chebyshev/{f'basis-{basis}' if basis else f'genes-{genes:02d}'}", {"method": "chebyshev"}
    fields |= {"settings": settings, "ancestry": {"source": "regnety_160.deit_in1k"}, "shape": {"named": SIZES["b"]}}
    return recipe_text("condense", name, header, fields, {"epochs": epochs}, base="../_imagenet")


def _fine(size: str) -> str:
    shape = ViTShape.named(SIZES[size], depth=12)
    printed = "; ".join(f"{depth} layers: {fine} ({tleg})" for depth, (fine, tleg) in FINE_FID.items())
    header = f"""\
FINE's gene at the size of DeiT-{size.capitalize()}: bases as wide as the model, and scales for 12 layers.
Expected: unknown for DeiT. For DiT-B, which is not in this library, FID of FINE (of TLEG) by depth is printed:
{printed}.
{size_and_cost(shape, 150, stored_numbers(method("fine"), shape), TEACHER_MACS)}
Source: paper: the product, which layers share what.
Ours: rank, teacher, loss, epochs and the training defaults; its own are those of DiT."""
    fields = {"method": "fine", "ancestry": {"source": "levit_384.fb_dist_in1k"}, "shape": {"named": SIZES[size]}}
    return recipe_text("condense", f"fine/aux-{size}", header, fields, {"epochs": 150}, base="../_imagenet")


def _lets() -> str:
    header = f"""\
LeTs's gene: a ViT of 8 layers, width 384, with what makes it 16 layers of width 768.
Expected: unknown; its tables are pictures whose figures are not available to us.
{size_and_cost(LETS_AUX, 300, stored_numbers(method("lets"), LETS_AUX), TEACHER_MACS)}
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
    return recipe_text("condense", "lets/aux", header, fields, train, base="../_imagenet")


def _lets_descendant(heads: int) -> str:
    shape = LETS_AUX.replace(embed_dim=64 * heads, num_heads=heads, depth=12)
    header = f"""\
Des-H{heads}-L12 from the gene of LeTs, by the default order, which gives the lists of the authors' README.
Expected: unknown; its tables are pictures whose figures are not available to us.
{size_and_cost(shape, 5)}
{LETS_SOURCE}epochs, rates, no warm-up, drop path. The paper tunes for 1 epoch.
Ours: the final norm before the pooling, as in the auxiliary model."""
    fields = {
        "model": "runs/lets-aux.safetensors  # made by aux.yaml",
        "shape": {"embed_dim": shape.embed_dim, "num_heads": heads, "depth": 12},
    }
    train = {"epochs": 5, "lr": "1.0e-5", "drop_path": 0.1, "schedule": "{warmup_epochs: 0, min_lr: 1.0e-6}"}
    return recipe_text("finetune", f"lets/des-h{heads:02d}-12", header, fields, train, base="../_imagenet")


def _pool(depth: int) -> str:
    auxiliary = ViTShape.named(SIZES["b"], depth=depth, class_token=True)
    teacher, kind = auxiliary.replace(depth=12).macs(), Pool()
    paths = list(kind.paths(auxiliary))
    mean = sum(path.macs() for path in paths) // len(paths)
    rows = [3 * row.macs() + teacher for row in kind.row_shapes(auxiliary)]
    total = IMAGES * (POOL_EPOCHS * sum(rows) + PATH_EPOCHS * 3 * mean)
    stored = stored_numbers(kind, auxiliary)
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
    return recipe_text("condense", f"pool/pool-{2 * depth}", header, fields, {"epochs": POOL_EPOCHS})


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
{size_and_cost(shape, LSAMD_EPOCHS, images=images)}
Source: paper: rate (Table 5), epochs, batch, polynomial decay. Ours: the rest; see _des.yaml."""
    timm_name = name.startswith("cifar")
    fields = {
        "model": "runs/lsamd.safetensors  # made by search.yaml",
        "shape": {"depth": depth},
        "data": {"source": f"torch/{name}" if timm_name else name},
    }
    given = f"data.root=/path/to/{name} data.download=true" if timm_name else f"data.source=/path/to/{name}"
    return recipe_text("finetune", f"lsamd/des-{name}-{depth:02d}", header, fields, {"lr": rate}, given)


if __name__ == "__main__":
    for file, text in render().items():
        (Path(__file__).parent / file).write_text(text)
