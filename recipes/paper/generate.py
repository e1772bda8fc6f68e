"""Writes the recipes of the papers' tables beside itself: ``python recipes/paper/generate.py``.

Accuracies and epochs are copied from the tables and sections named beside them; sizes and costs are computed;
what the recipes of a folder share is written by hand in its ``_aux.yaml`` and ``_des.yaml``. A test compares
the files with ``render()``, so change this script and run it again instead of editing them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from learngene.methods import method
from learngene.methods.pool import Pool
from learngene.shape import NAMED, ViTShape

Fields = Mapping[str, object]

IMAGES = 1_281_167  # training images of ImageNet-1K
TEACHER_MACS = 2_351_786_880  # LeViT-384 at 224 pixels, as torch's FlopCounterMode counts timm's levit_384

SIZES = {"ti": "deit_tiny_patch16_224", "s": "deit_small_patch16_224", "b": "deit_base_patch16_224"}

# TLEG Table 1: depth: (top-1 from scratch after 100 epochs, top-1 after TLEG).
TLEG_TABLE_1 = {
    "ti": {3: (45.0, 46.6), 6: (56.9, 58.2), 9: (62.3, 62.5), 12: (65.2, 65.4)},
    "s": {3: (56.2, 57.1), 4: (62.0, 63.7), 5: (67.3, 67.5), 6: (68.7, 69.5), 7: (70.6, 71.1)}
    | {8: (71.7, 72.3), 9: (73.0, 73.2), 10: (73.8, 73.9), 11: (75.5, 75.4), 12: (75.0, 75.1)},
    "b": {3: (65.3, 66.3), 4: (70.4, 71.6), 5: (73.5, 74.4), 6: (75.4, 76.2), 7: (76.5, 77.3)}
    | {8: (77.2, 78.1), 9: (78.0, 78.7), 10: (78.2, 79.1), 11: (79.0, 79.6), 12: (78.6, 79.9)},
}
# SWS Table 1, Des-B: depth: (top-1 from scratch after 100 epochs, top-1 after SWS without any tuning).
SWS_TABLE_1 = {
    **{6: (75.4, 59.9), 7: (76.5, 68.5), 8: (77.2, 74.4), 9: (78.0, 76.5), 10: (78.2, 78.0)},
    **{11: (79.0, 78.9), 12: (79.6, 79.3), 13: (79.0, 80.0), 14: (79.1, 80.1), 15: (79.4, 80.5)},
}
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

SOURCES = {
    ("tleg", "aux"): """paper: epochs (Main Results), LeViT-384. Authors' command: depth, alpha, drop path.
Defaults of their code: lr, warm-up. Ours: which LeViT-384 weights; see _aux.yaml.""",
    ("sws", "aux"): """paper: epochs, stages, LeViT-384 (section 4.1). Authors' command: alpha, lr, warm-up.
Default of their code: drop path. Ours: which LeViT-384 weights; see _aux.yaml.""",
    ("tleg", "des"): """paper: epochs (Main Results). Authors' command: no warm-up.
Defaults of their code: lr, min_lr, drop path. Ours: the final norm before the pooling; see _des.yaml.""",
    (
        "sws",
        "des",
    ): """paper: epochs (section 4.1). Authors' command, for 12 layers only: lr, min_lr, no warm-up.
Default of their code: drop path. Ours: the final norm before the pooling; see _des.yaml.""",
}
NO_COMMAND = "\nNo command is published for Ti: that of S is used."
HEADS = "\n6 heads as DeiT-S; the authors' Aux-S has 12, unlike its own descendants."
FIVE_EPOCHS = "\nSection 4.2 counts 5 epochs per Des-B in its 6.6x and 10 in its comparison with TLEG."


# Learngene Pool Tables 1 and 2: blocks of each row: (top-1 of SN-Net at equal storage, top-1 of the pool).
POOL_TABLES = {
    6: {"6+0": (54.37, 57.00), "5+1": (65.66, 63.77), "4+2": (69.47, 70.00), "3+3": (70.33, 72.78)}
    | {"2+4": (71.01, 74.21), "1+5": (70.72, 74.78), "0+6": (67.98, 75.05)},
    9: {"9+0": (56.17, 61.63), "8+1": (65.85, 66.95), "7+2": (68.84, 71.69), "6+3": (70.07, 74.38)}
    | {"5+4": (70.87, 75.69), "4+5": (71.46, 76.42), "3+6": (71.93, 76.95), "2+7": (72.20, 77.13)}
    | {"1+8": (71.85, 77.32), "0+9": (69.11, 77.42)},
}
POOL_EPOCHS, PATH_EPOCHS, ANCHOR_EPOCHS = 100, 50, 150  # "Training Details"

# LSAMD Table 5, column Des-Net, and Table 6: name: (base rate, training images, classes).
LSAMD_SETS = {
    **{"cifar100": ("5.0e-4", 50_000, 100), "cifar10": ("5.0e-4", 50_000, 10)},
    **{"tiny-imagenet": ("5.0e-4", 100_000, 200), "inat2019": ("5.0e-5", 268_243, 1010)},
    **{"food101": ("1.0e-5", 75_750, 101), "cars196": ("1.0e-5", 8_144, 196), "flowers102": ("1.0e-4", 2_040, 102)},
    **{"pets": ("1.0e-4", 3_680, 37), "dtd": ("1.0e-5", 3_760, 47), "caltech101": ("1.0e-5", 6_942, 101)},
}
# LSAMD Table 2, depth: top-1 on CIFAR-100; and with 8 layers on the other sets, Pets from Table 1.
LSAMD_CIFAR100 = {
    **{5: 80.93, 6: 81.24, 7: 82.25, 8: 83.78, 9: 84.63, 10: 85.40, 11: 85.52, 12: 83.86, 13: 77.64, 14: 86.18},
    **{15: 85.77},
}
LSAMD_8_LAYERS = {"cifar10": 96.74, "tiny-imagenet": 73.27, "inat2019": 56.57, "food101": 63.81, "dtd": 58.56}
LSAMD_8_LAYERS |= {"pets": 80.90}
LSAMD_EPOCHS = 50  # "LSAMD vs. PF"


def render() -> dict[str, str]:
    """The text of every recipe by its path under ``recipes/paper``."""
    files = {f"{name}/aux-{size}.yaml": _auxiliary(name, size) for name, size in AUX_EXPECTED}
    for size, rows in TLEG_TABLE_1.items():
        files |= {f"tleg/des-{size}-{depth:02d}.yaml": _tleg_descendant(size, depth) for depth in rows}
    for size in SWS_RATE:
        files |= {f"sws/des-{size}-{depth:02d}.yaml": _sws_descendant(size, depth) for depth in SWS_TABLE_1}
    files |= {f"pool/pool-{2 * depth}.yaml": _pool(depth) for depth in POOL_TABLES}
    files |= {f"lsamd/des-cifar100-{depth:02d}.yaml": _lsamd_descendant("cifar100", depth) for depth in LSAMD_CIFAR100}
    others = (name for name in LSAMD_SETS if name != "cifar100")
    return files | {f"lsamd/des-{name}-08.yaml": _lsamd_descendant(name, 8) for name in others}


def _auxiliary(name: str, size: str) -> str:
    shape = ViTShape.named(SIZES[size], depth={"tleg": 12, "sws": 16}[name])
    stored = sum(math.prod(tensor) for tensor in method(name).gene_tensors(shape).values())
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


def _pool(depth: int) -> str:
    auxiliary = ViTShape.named(SIZES["b"], depth=depth, class_token=True)
    teacher, kind = auxiliary.replace(depth=12).macs(), Pool()
    paths = [kind.shape_of(auxiliary, path) for path in kind.paths(auxiliary)]
    mean = sum(path.macs() for path in paths) // len(paths)
    rows = [3 * row.macs() + teacher for row in kind.row_shapes(auxiliary)]
    total = IMAGES * (POOL_EPOCHS * sum(rows) + PATH_EPOCHS * 3 * mean)
    stored = sum(math.prod(tensor) for tensor in kind.gene_tensors(auxiliary).values())
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


def _size_and_cost(shape: ViTShape, epochs: int, stored: int = 0, teacher: int = 0, images: int = IMAGES) -> str:
    # A backward pass costs two forward passes; the ancestry only runs forward.
    total = (3 * shape.macs() + teacher) * images * epochs
    gene = f" ({stored:,} in the gene)" * bool(stored)
    per_image = f"3 x {shape.macs() / 1e9:.3f}" + f" + {teacher / 1e9:.3f} for LeViT-384" * bool(teacher)
    return f"""\
Size: {shape.params():,} parameters{gene}, {shape.macs() / 1e9:.3f} G multiply-adds per image.
Cost: {total:.2e} multiply-adds = {epochs} epochs x {images:,} images x ({per_image}) G."""


def _recipe(
    kind: str, path: str, header: str, fields: Fields, train: Fields, images: str = "data.source=/path/to/imagenet"
) -> str:
    lines = [f"# {line}" for line in header.splitlines()]
    lines += [f"# Run: learngene {kind} recipes/paper/{path}.yaml {images}"]
    lines += ["extends: _aux.yaml" if kind == "condense" else "extends: _des.yaml"]
    for key, value in fields.items():
        inner = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else ""
        lines += [f"{key}: {{{inner}}}" if inner else f"{key}: {value}"]
    lines += ["train:", *(f"  {key}: {value}" for key, value in train.items())]
    return "\n".join([*lines, f"out: runs/{path.replace('/', '-')}"]) + "\n"


if __name__ == "__main__":
    for file, text in render().items():
        (Path(__file__).parent / file).write_text(text)
