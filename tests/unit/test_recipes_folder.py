"""The recipes under ``recipes/``: they load, say what to expect, and match the papers' tables."""

import importlib
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_paper_tables import LSAMD_2, TI, B, S, at_precision

from learngene.methods import method
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.hyper import Guidance
from learngene.recipe.loading import load_recipe
from learngene.recipe.search import Selection
from learngene.system.errors import RecipeError
from learngene.vits.shape import ViTShape

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "recipes" / "paper"
ALL = sorted(ROOT.glob("recipes/**/*.yaml"))
RECIPES = [path for path in ALL if not path.name.startswith("_")]
MODELS = [path for path in RECIPES if path.is_relative_to(PAPER) and path.parent.name != "compare"]
BY_HAND = ("pool/sn-net", "lsamd/search")
LSAMD_RATES = {
    **{"cifar100": 5e-4, "cifar10": 5e-4, "tiny-imagenet": 5e-4, "inat2019": 5e-5, "food101": 1e-5, "cars196": 1e-5},
    **{"flowers102": 1e-4, "pets": 1e-4, "dtd": 1e-5, "caltech101": 1e-5},
}
LSAMD_SEARCH_RATES = {
    **{"cifar100": 5e-4, "cifar10": 1e-6, "tiny-imagenet": 1e-5, "inat2019": 1e-5, "food101": 1e-5, "cars196": 5e-4},
    **{"flowers102": 5e-4, "pets": 1e-5, "dtd": 1e-4, "caltech101": 1e-5, "ade20k": 1e-5, "voc12": 1e-5},
}
LSAMD_DESCENDANTS = [(name, depth) for name in LSAMD_RATES for depth in (range(5, 16) if name == "cifar100" else (8,))]
TAL_TASKS = {
    **{"aircraft": 100, "cifar100": 100, "daimlerpedcls": 2, "dtd": 47, "gtsrb": 43, "omniglot": 1623, "svhn": 10},
    **{"ucf101": 101, "vgg-flowers": 102},
}
TAL_UNSEEN = ("fashion-mnist", "fer2013", "ham10000")
TAL_STAGE_1 = ("tal", "tal-code", "tal-paper", "tal-no-ancestry", "tal-no-task", "logah")
TAL_STAGE_2 = {"tal": "tal", "v3": None, "v4": "logah"} | {
    name: name for name in ("tal-no-ancestry", "tal-no-task")
}  # decathlon-NAME from imagenet-NAME
TAL_GUIDED = {"tal": "default", "tal-code": "code", "tal-paper": "paper", "tal-no-task": "default"}
TAL_RECIPES = {f"tal/imagenet-{name}" for name in TAL_STAGE_1} | {f"tal/decathlon-{name}" for name in TAL_STAGE_2}
TAL_RECIPES |= {f"tal/{name}-{task}" for name in ("ghn3", "v1", "v2") for task in TAL_TASKS}
TAL_RECIPES |= {f"tal/des-{size}-{task}" for size in ("ti-03", "s-06") for task in (*TAL_TASKS, *TAL_UNSEEN)}
TAL_RECIPES |= {"tal/des-ti-12-imagenet", "tal/des-s-12-imagenet"}
BASES = sorted(PAPER.rglob("_*.yaml"))
AUXILIARY = {
    f"{name}/aux-{size}": (name, size)
    for name, sizes in (("tleg", ("ti", "s", "b")), ("sws", ("s", "b")))
    for size in sizes
}
DEIT_B = ViTShape.named("deit_base_patch16_224", class_token=True)
# Sizes in the tables; an S with more than 12 layers is only in SWS Figure 4.
PRINTED = {"ti": TI, "s": S, "b": B}
TLEG_DEPTHS = {"ti": (3, 6, 9, 12), "s": range(3, 13), "b": range(3, 13)}
SWS_DEPTHS = {"s": range(6, 16), "b": range(6, 16)}
DESCENDANTS = [
    (name, size, depth)
    for name, depths in (("tleg", TLEG_DEPTHS), ("sws", SWS_DEPTHS))
    for size in depths
    for depth in depths[size]
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def header(path: Path) -> str:
    """The comment lines at the top of a file."""
    lines = path.read_text().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def generator() -> ModuleType:
    sys.path.insert(0, str(PAPER))
    return importlib.import_module("generate")


def load(path: str, **arguments: Any) -> Any:
    return load_recipe(ROOT / "recipes" / f"{path}.yaml", data=Path("image-sets"), **arguments)


def auxiliary(name: str, size: str) -> CondenseRecipe:
    return load(f"paper/{name}/aux-{size}")


def tal(name: str) -> Any:
    return load(f"paper/tal/{name}")


def descendant(name: str, size: str, depth: int) -> FinetuneRecipe:
    return load(f"paper/{name}/des-{size}-{depth:02d}")


# -- every recipe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_a_recipe_loads_and_its_header_says_what_to_expect(path: Path) -> None:
    load_recipe(path, data=Path("image-sets"))
    for word in ("Expected", "Cost", "Source"):
        assert word in header(path), f"{relative(path)}: no '{word}' in the header"


# -- the paper's recipes -----------------------------------------------------------------------------------


def test_every_model_of_the_imagenet_tables_has_a_recipe_and_nothing_else_is_there() -> None:
    expected = {f"{name}/des-{size}-{depth:02d}" for name, size, depth in DESCENDANTS} | set(AUXILIARY)
    expected |= {"pool/pool-12", "pool/pool-18", *BY_HAND}
    expected |= {f"lsamd/des-{name}-{depth:02d}" for name, depth in LSAMD_DESCENDANTS}
    assert len(expected) == 24 + 3 + 20 + 2 + 3 + 20 + 1
    expected |= TAL_RECIPES | {f"{name}/aux-{size}" for name in ("wave", "sweet") for size in ("ti", "s", "b")}
    expected |= {"lets/aux", "lets/des-h06-12", "lets/des-h12-12", "fine/aux-ti", "fine/aux-s"}
    expected |= {f"chebyshev/genes-{genes:02d}" for genes in (1, 2, 4, 8, 12)}
    expected |= {f"chebyshev/basis-{basis}" for basis in ("chebyshev", "taylor", "fourier", "legendre")}
    assert len(TAL_RECIPES) == 6 + 5 + 3 * 9 + 2 * (9 + 3) + 2
    there = {str(p.relative_to(PAPER).with_suffix("")) for p in MODELS}
    assert there == expected


def test_the_files_are_what_the_generator_writes() -> None:
    rendered = generator().render()
    files = {p.relative_to(PAPER).as_posix(): p.read_text() for p in MODELS}
    for name in BY_HAND:
        del files[f"{name}.yaml"]
    assert files.keys() == rendered.keys()
    assert [name for name in files if files[name] != rendered[name]] == []


@pytest.mark.parametrize("path", BASES, ids=relative)
def test_a_base_is_no_recipe_by_itself_and_says_so(path: Path) -> None:
    assert "not a recipe by itself" in header(path)
    with pytest.raises(RecipeError, match="required, but missing"):
        load_recipe(path)


@pytest.mark.parametrize(("name", "size", "depth"), DESCENDANTS)
def test_a_descendant_has_the_size_of_the_table_its_gene_and_its_training(name: str, size: str, depth: int) -> None:
    aux, des = auxiliary(name, size), descendant(name, size, depth)
    train = des.train
    lr, min_lr = {"tleg": (5e-4, 1e-5), "sws": ({"s": 5e-5, "b": 1e-5}.get(size), 1e-6)}[name]
    assert (train.lr, train.schedule.min_lr) == (lr, min_lr)
    assert (train.schedule.warmup_epochs, train.drop_path, train.batch_size) == (0, 0.1, 512)
    assert des.model == f"{aux.out}.safetensors"
    shape = ViTShape.from_dict(des.shape)
    assert shape.depth == depth
    method(aux.method, aux.settings).refuse(aux.shape, shape, **des.options)
    assert f"{shape.params():,} parameters" in header(PAPER / name / f"des-{size}-{depth:02d}.yaml")
    if depth not in PRINTED[size]:
        return
    params, flops = PRINTED[size][depth]
    assert at_precision(Fraction(shape.macs_fvcore(), 10**9), flops) == flops
    misprint = (size, depth) in {("ti", 6), ("s", 12)}  # of TLEG Table 1
    assert (at_precision(Fraction(shape.params(), 10**6), params) == params) is not misprint


@pytest.mark.parametrize(("name", "size"), AUXILIARY.values(), ids=AUXILIARY)
def test_an_auxiliary_model_is_the_papers(name: str, size: str) -> None:
    recipe = auxiliary(name, size)
    heads = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}[size]
    assert (recipe.method, recipe.shape.embed_dim, recipe.shape.num_heads) == (name, *heads)
    assert recipe.shape.depth == {"tleg": 12, "sws": 16}[name]
    assert recipe.ancestry.source == "levit_384.fb_dist_in1k"
    assert recipe.distill.alpha == 1.0
    assert recipe.settings == ({"stages": [3, 3, 4, 3, 3]} if name == "sws" else {})
    train = recipe.train
    assert (train.lr, train.batch_size, train.lr_batch) == (5e-4, 512, 512)
    assert train.drop_path == {"tleg": 0.0, "sws": 0.1}[name]
    assert (train.schedule.warmup_epochs, train.schedule.min_lr) == (5, 1e-5)


@pytest.mark.parametrize(
    ("name", "size", "total"),
    [
        ("tleg", "ti", 150 + 4 * 50),
        ("tleg", "s", 150 + 9 * 35 + 1 * 45),
        ("tleg", "b", 100 + 10 * 40),
        ("sws", "s", 150 + 7 * 10 + 3 * 15),
        ("sws", "b", 100 + 10 * 10),
    ],
)
def test_all_epochs_of_a_size_add_up_to_the_sum_in_the_text(name: str, size: str, total: int) -> None:
    """TLEG "Main Results"; SWS section 4.1 for S, and section 4.2 where it compares its Des-B with TLEG's."""
    depths = {"tleg": TLEG_DEPTHS, "sws": SWS_DEPTHS}[name][size]
    epochs = [descendant(name, size, depth).train.epochs for depth in depths]
    assert auxiliary(name, size).train.epochs + sum(epochs) == total


def test_lets_is_trained_and_tuned_as_its_readme_says() -> None:
    gene = load("paper/lets/aux")
    kind = method(gene.method, gene.settings)
    assert kind.gene_tensors(gene.shape) == method("lets").gene_tensors(gene.shape)
    assert (gene.train.epochs, gene.train.lr, gene.train.schedule.warmup_epochs, gene.distill.alpha) == (
        300,
        5e-4,
        5,
        1,
    )
    for heads in (6, 12):
        des = load(f"paper/lets/des-h{heads:02d}-12")
        kind.refuse(gene.shape, gene.shape.replace(**des.shape), **des.options)
        assert des.model == f"{gene.out}.safetensors"
        assert (des.train.epochs, des.train.lr, des.train.schedule.min_lr) == (5, 1e-5, 1e-6)


def test_chebyshev_genes_are_the_papers() -> None:
    """Five stages of 100 epochs; the ablation of the basis is one of them."""
    genes = {count: load(f"paper/chebyshev/genes-{count:02d}") for count in (1, 2, 4, 8, 12)}
    assert [recipe.train.epochs for recipe in genes.values()] == [100, 200, 300, 400, 500]
    assert {recipe.settings["genes"]: recipe.shape.depth for recipe in genes.values()} == dict.fromkeys(genes, 12)
    assert {recipe.distill.alpha for recipe in genes.values()} == {0.5}
    for basis, top1 in (("taylor", "74.80"), ("chebyshev", "77.73"), ("fourier", "77.09"), ("legendre", "73.13")):
        recipe = load(f"paper/chebyshev/basis-{basis}")
        assert (recipe.settings, recipe.train.epochs) == ({"genes": 12, "basis": basis}, 100)
        assert f"top-1 {top1} (" in header(PAPER / "chebyshev" / f"basis-{basis}.yaml")


@pytest.mark.parametrize("depth", [6, 9])
def test_a_pool_is_the_papers(depth: int) -> None:
    """Learngene Pool, "Implementation Setting"."""
    recipe = load_recipe(PAPER / "pool" / f"pool-{2 * depth}.yaml")
    assert (recipe.method, recipe.settings, recipe.shape.depth) == ("pool", {"rows": [192, 768]}, depth)
    assert recipe.ancestry.source.startswith("deit_base_patch16_224")
    assert (recipe.distill.alpha, recipe.distill.temperature) == (0.9, 1.0)
    rows, paths = recipe.row_train(), recipe.path_train()
    assert (rows.epochs, paths.epochs) == (100, 50)
    assert {(train.batch_size, train.lr, train.lr_batch) for train in (rows, paths)} == {(128, 5e-4, None)}


@pytest.mark.parametrize(("name", "depth"), LSAMD_DESCENDANTS)
def test_a_descendant_of_lsamd_is_trained_as_the_paper_does(name: str, depth: int) -> None:
    """LSAMD Tables 2 and 5, "Hyper-parameters and Hardware"."""
    path = PAPER / "lsamd" / f"des-{name}-{depth:02d}.yaml"
    recipe = load_recipe(path)
    train = recipe.train
    assert (train.lr, train.lr_batch, train.batch_size, train.epochs) == (LSAMD_RATES[name], None, 128, 50)
    assert (train.schedule.kind, train.schedule.power, train.schedule.min_lr) == ("poly", 0.9, 0)
    assert (recipe.model, recipe.shape) == ("runs/lsamd.safetensors", {"depth": depth})
    method("lsamd").refuse(DEIT_B, DEIT_B.replace(depth=depth), **recipe.options)
    if name == "cifar100":
        shape = DEIT_B.replace(depth=depth, num_classes=100)
        assert f"{shape.params():,} parameters" in header(path)
        params, _ = LSAMD_2[depth]
        assert at_precision(Fraction(shape.params_without_positions(), 10**6), params) == params


def test_the_search_of_lsamd_is_the_papers() -> None:
    """LSAMD Tables 5 and 6, "Hyper-parameters and Hardware"; its comparison says the same."""
    recipe = load("paper/lsamd/search")
    assert recipe.tau == 6
    assert (recipe.select.rule, recipe.routing.noise, recipe.routing.route) == ("threshold", "gaussian", "batch")
    trains = {name: recipe.task(name).train for name in recipe.tasks}
    assert {name: train.lr for name, train in trains.items()} == LSAMD_SEARCH_RATES
    assert recipe.tasks.keys() == LSAMD_RATES.keys() | {"ade20k", "voc12"}
    for train in trains.values():
        assert (train.epochs, train.batch_size, train.lr_batch, train.drop_path) == (50, 128, None, 0)
        assert (train.schedule.kind, train.schedule.min_lr, train.schedule.warmup_epochs) == ("poly", 0, 0)
    assert load("paper/lsamd/des-cifar100-08").model == f"{recipe.out}.safetensors"
    compare = load("paper/compare/lsamd")
    contender = compare.contenders["lsamd"]
    own = {name.replace("flowers102", "flowers"): rate for name, rate in LSAMD_SEARCH_RATES.items()}
    rate = contender.train["lr"]
    assert {name: contender.search.rates.get(name, rate) for name in contender.search.tasks} == own
    assert (contender.search.select, contender.search.routing) == (Selection(preset="paper"), recipe.routing)
    for name, (_, images, classes) in generator().LSAMD_SETS.items():
        size = compare.sizes[name.replace("flowers102", "flowers")]
        assert (size.images, size.classes) == (images, classes), name


def test_the_protocols_of_lsamd_have_the_same_names_where_claims_need_them() -> None:
    laptop, gpu, paper = (load(f"{scale}/compare/lsamd") for scale in ("laptop", "gpu", "paper"))
    for field in ("tasks", "shapes", "contenders", "budgets"):
        assert getattr(gpu, field).keys() == getattr(laptop, field).keys()
        assert field == "tasks" or getattr(paper, field).keys() == getattr(laptop, field).keys()
    assert paper.tasks.keys() > laptop.tasks.keys()


def test_the_laptops_search_has_the_tasks_of_its_comparison() -> None:
    names = ("lsamd/search", "compare/lsamd", "ancestry/cifar100-vit")
    search, compare, ancestry = (load(f"laptop/{name}") for name in names)
    assert {name: task.data for name, task in search.tasks.items()} == compare.tasks
    rate = compare.train("condense", compare.contenders["lsamd"].train).lr
    assert all(search.task(name).train.lr == rate for name in search.tasks)
    assert load("laptop/lsamd/descendant").model == f"{search.out}.safetensors"
    assert search.ancestry.source == f"{ancestry.out}/descendant"
    assert {**ViTShape.from_dict(compare.shape).to_dict(), "num_classes": 0} == {
        **ViTShape.from_dict(ancestry.shape).to_dict(),
        "num_classes": 0,
    }


def test_the_accuracies_of_lsamd_are_the_printed_ones() -> None:
    printed = [80.93, 81.24, 82.25, 83.78, 84.63, 85.40, 85.52, 83.86, 77.64, 86.18, 85.77]
    assert list(generator().LSAMD_CIFAR100.values()) == printed
    assert generator().LSAMD_SETS.keys() == LSAMD_RATES.keys()
    assert "top-1 80.90 (LSAMD Table 1)" in header(PAPER / "lsamd" / "des-pets-08.yaml")


def test_hypernetworks_are_trained_as_the_paper_of_tal_does_and_differ_in_nothing_else() -> None:
    """TAL, "Training Details", and its authors' commands."""
    trains = set()
    for name in sorted(TAL_RECIPES):
        recipe = tal(name.removeprefix("tal/"))
        if isinstance(recipe, FinetuneRecipe):
            assert (recipe.train.lr, recipe.train.batch_size, recipe.train.clip_grad) == (4e-5, 32, 5)
            continue
        train, hyper = recipe.train, recipe.hyper
        assert (hyper.penalty, hyper.meta_batch) == (3e-5, 1)
        trains.add(train.model_copy(update={"epochs": 1, "augment": None}))
        assert train.augment.smoothing == 0.1
    assert len(trains) == 1
    (train,) = trains
    assert (train.lr, train.lr_batch, train.batch_size, train.weight_decay) == (3e-4, None, 512, 1e-2)
    assert (train.clip_grad, train.schedule.warmup_epochs, train.schedule.warmup_lr) == (5, 5, 1e-5)


@pytest.mark.parametrize("name", TAL_STAGE_1)
def test_stage_1_of_tal_is_guided_where_it_says_so(name: str) -> None:
    recipe = tal(f"imagenet-{name}")
    assert recipe.hyper.guidance == Guidance(preset=TAL_GUIDED.get(name, "none"))
    assert recipe.train.epochs == 75
    task_layers = name not in ("tal-no-task", "logah")
    assert recipe.method == ("tal" if task_layers else "logah")
    kind = method(recipe.method, recipe.settings)
    assert (kind.task_dim, kind.size, kind.architectures) == (768 * task_layers, "published", "vits-1k")
    if recipe.ancestry is not None:
        assert recipe.ancestry.source == "vit_base_patch16_224.orig_in21k_ft_in1k"


@pytest.mark.parametrize(("name", "first"), TAL_STAGE_2.items())
def test_stage_2_of_tal_goes_on_from_its_stage_1(name: str, first: str | None) -> None:
    recipe = tal(f"decathlon-{name}")
    assert (recipe.tasks.keys(), recipe.temperature, recipe.train.epochs) == (TAL_TASKS.keys(), 2, 100)
    assert {task for task in TAL_TASKS if recipe.task_train(task).augment.hflip == 0} == {"gtsrb", "omniglot", "svhn"}
    if first is None:
        assert recipe.gene is None
        kind = method(recipe.method or "", recipe.settings)
    else:
        start = tal(f"imagenet-{first}")
        assert str(recipe.gene) == f"{start.out}.safetensors"
        kind = method(start.method, start.settings)
    assert kind.task_aware == (recipe.ancestry is not None)
    base = tal("imagenet-tal")
    for classes in TAL_TASKS.values():
        kind.refuse(base.shape, base.shape.replace(num_classes=classes))


@pytest.mark.parametrize("task", TAL_TASKS)
def test_the_baselines_of_tal_learn_one_task_each(task: str) -> None:
    all_tasks = tal("decathlon-tal")
    augment = all_tasks.task_train(task).augment
    for name, kind, epochs in (("ghn3", "ghn3", 300), ("v1", "logah", 300)):
        recipe = tal(f"{name}-{task}")
        assert (recipe.train.epochs, recipe.train.augment) == (epochs, augment)
        assert (recipe.method, recipe.data.source, recipe.ancestry) == (kind, f"decathlon/{task}", None)
    tuned = tal(f"v2-{task}")
    assert (tuned.train.epochs, tuned.task_train(task).augment) == (100, augment)
    assert {name: entry.data.source for name, entry in tuned.tasks.items()} == {task: f"decathlon/{task}"}
    for size, depth, width in (("ti-03", 3, 192), ("s-06", 6, 384)):
        des = tal(f"des-{size}-{task}")
        assert (des.shape["depth"], des.shape["embed_dim"], des.options) == (depth, width, {"task": task})
        assert (des.model, des.train.augment) == (f"{all_tasks.out}.safetensors", augment)


def test_the_laptops_tal_is_guided_by_its_ancestry_and_tuned_on_its_gene() -> None:
    first, second, ancestry = (load(f"laptop/{name}") for name in ("tal/stage1", "tal/tune", "ancestry/cifar100-vit"))
    assert first.ancestry == second.ancestry
    assert first.ancestry.source == f"{ancestry.out}/descendant"
    assert first.settings["task_dim"] == ancestry.shape["embed_dim"]
    assert str(second.gene) == f"{first.out}.safetensors"
    assert len(second.tasks) >= 6


def test_an_sn_net_is_its_authors() -> None:
    recipe = load("paper/pool/sn-net")
    assert (recipe.pool.guide, recipe.pool.guide_weight, recipe.train.lr) == ("hard", 0.5, 5e-5)
    assert len(recipe.anchors) == len(recipe.settings["rows"]) == 3


def test_every_run_has_its_own_folder() -> None:
    assert len({load_recipe(path, data=Path("image-sets")).out for path in MODELS}) == len(MODELS)


def test_the_images_are_named_on_the_command_line() -> None:
    recipe = load_recipe(PAPER / "tleg" / "des-s-06.yaml", ["data.source=/path/to/imagenet"])
    assert recipe.data.source == "/path/to/imagenet"
    scratch = ["model=scratch", "train.epochs=100", "train.schedule.warmup_epochs=5"]
    assert load_recipe(PAPER / "tleg" / "des-s-06.yaml", scratch).train.schedule.warmup_epochs == 5


def test_the_cost_counts_the_ancestry_as_torch_does() -> None:
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    for name, macs in (("levit_384", generator().TEACHER_MACS), ("regnety_160", generator().REGNET_MACS)):
        with torch.device("meta"):
            teacher = timm.create_model(name).eval()
            with FlopCounterMode(display=False) as counter:
                teacher(torch.zeros(1, 3, 224, 224))
        assert counter.get_total_flops() == 2 * macs
