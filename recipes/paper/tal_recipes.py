"""The recipes of TAL, of LoGAH and GHN-3 beside it, and of their descendants."""

from collections.abc import Mapping

from common import IMAGENET, IMAGES, SIZES, UNFLIPPED, Fields, recipe_text, size_and_cost, stored_numbers
from printed import DECATHLON, TAL_1, TAL_2, TAL_3, UNSEEN

from learngene.methods import method
from learngene.methods.tal.ranges import RANGES
from learngene.vits.shape import NAMED, ViTShape

TAL_ANCESTRY = "vit_base_patch16_224.orig_in21k_ft_in1k"
TAL_TEACHER = ViTShape.named("deit_base_patch16_224", class_token=True)  # in size
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


def tal_recipes() -> dict[str, str]:
    """The text of every recipe by its path under ``recipes/paper``."""
    files = {f"tal/{name}.yaml": _tal_stage1(name) for name in TAL_STAGE_1}
    for task in DECATHLON:
        files |= {f"tal/{name}-{task}.yaml": _tal_single(name, task) for name in ("ghn3", "v1", "v2")}
    files |= {f"tal/{name}.yaml": _tal_tune(name) for name in TAL_TUNED}
    files |= {f"tal/des-{size}-12-imagenet.yaml": _tal_imagenet(size) for size in TAL_1}
    for size, depth in (("ti", 3), ("s", 6)):
        for task in (*DECATHLON, *UNSEEN):
            files[f"tal/des-{size}-{depth:02d}-{task}.yaml"] = _tal_descendant(size, depth, task)
    return files


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
    stored = stored_numbers(method(kind, {"size": "published"}), TAL_TEACHER)
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
{size_and_cost(shape, TAL_EPOCHS)}
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
{size_and_cost(shape, 100, images=images)}
Source: paper: epochs. LoGAH's script: the rest; see _des.yaml.{how}"""
    fields["data"] = data
    train = {"epochs": 100} | ({"augment": UNFLIP} if task in UNFLIPPED else {})
    return _tal_recipe("finetune", f"des-{size}-{depth:02d}-{task}", "_des", header, fields, train)


def _tal_recipe(kind: str, name: str, base: str, header: str, fields: Fields, train: Fields, out: str = "") -> str:
    images = IMAGENET if "imagenet" in name else "--data FOLDER"
    return recipe_text(kind, f"tal/{name}", header, fields, train, images, base, f"tal-{out or name}")
