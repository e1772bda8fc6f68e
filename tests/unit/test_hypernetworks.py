"""Hypernetworks as genes: their size, what they make of any shape and task, and what is refused."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import learngene
from hyper import HYPER, PICO, TASK, hyper_gene, task_of, task_vector, token_shape
from learngene import Budget, ViTShape, plan, save_descendant
from learngene.genes.gene import Learngene
from learngene.making.hyper.meta import MetaBatch
from learngene.methods import method
from learngene.methods.tal.ranges import RANGES, limits, sample_size, sizes_of
from learngene.methods.tal.task_embedding import TaskEmbedding
from learngene.recipe.hyper import Hyper
from learngene.system.errors import LearngeneError, ShapeError
from pico import batch

every_network = pytest.mark.parametrize("name", HYPER)

SHAPES: dict[str, dict[str, Any]] = {
    "as trained": {},
    "other trained size": {"depth": 3, "embed_dim": 24, "num_heads": 3},
    "deeper and wider": {"depth": 5, "embed_dim": 32, "num_heads": 8},
    "classes": {"num_classes": 11},
    "no head": {"num_classes": 0},
    "larger images": {"img_size": 16},
    "other patches": {"patch_size": 2},
    "other ratio": {"mlp_ratio": 3.0},
    "grey": {"in_chans": 1},
}


def quiet_expand(gene: Learngene, shape: ViTShape, **options: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gene.expand(shape, **options)


# -- what a gene holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("logah", {}, 21.40),
        ("tal", {}, 22.39),
        ("logah", {"size": "tiny"}, 2.54),
        ("tal", {"size": "tiny"}, 2.83),
        ("logah", {"size": "laptop"}, 1.6),
        ("tal", {"size": "laptop"}, 1.9),
        ("ghn3", {"size": "tiny"}, 6.9),
    ],
)
def test_the_published_sizes(name: str, settings: dict[str, Any], published: float) -> None:
    """The fixed row of the class token is not counted."""
    kind = method(name, settings)
    sizes = kind.gene_tensors(token_shape())
    fixed = [key for key in sizes if kind.fixed(key)]
    count = sum(math.prod(size) for key, size in sizes.items() if key not in fixed) / 1e6
    assert fixed == ["class_position"]
    assert round(count, 2 if round(published, 1) != published or published > 20 else 1) == published


@every_network
def test_a_fresh_network_starts_as_published(name: str) -> None:
    gene = Learngene(method(name.partition("-")[0], {**HYPER[name], "hid": 64, "encoder_heads": 4}), token_shape())
    t = gene.tensors()
    assert t["encoder.types"].std().item() == pytest.approx(64**-0.5, rel=0.15)
    assert t["encoder.distances"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert t["class_position"].std().item() == pytest.approx(0.02, rel=0.05)
    assert t["encoder.layers.0.fc1.weight"].std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert torch.equal(t["encoder.norm.weight"], torch.ones(64))
    if name == "tal":
        assert not any(
            t[f"encoder.layers.0.{kind}.{part}"].any() for kind in ("scale", "shift") for part in ("weight", "bias")
        )
    if name == "ghn3":
        assert not t["decoder.conv2.bias"].any()
        assert t["decoder.conv2.weight"].std().item() == pytest.approx(1 / 5 / math.sqrt(3 * 512), rel=0.05)


@pytest.mark.parametrize("task", [None, task_vector()], ids=["no task", "task"])
@every_network
def test_gradients_reach_every_trained_tensor(name: str, task: Any) -> None:
    """Vectors of several sizes and two patch sides are needed for all of the tables' use; task layers need a task."""
    if task is not None and name != "tal":
        pytest.skip("has no task layers")
    gene = hyper_gene(name)
    images = batch(gene.shape)
    weights = gene.weights(task=task)
    logits = torch.func.functional_call(gene.skeleton(), weights, (images,), strict=True)
    logits.square().sum().backward()
    untouched = {key for key, value in gene.tensors().items() if value.grad is None or not value.grad.any()}
    tasks = {key for key in gene.tensors() if ".scale." in key or ".shift." in key}
    assert untouched - {"decoder.expand.bias"} == {"class_position"} | (set() if task is not None else tasks)
    assert not gene.tensors()["class_position"].requires_grad


# -- every emitted shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for at, name in enumerate(HYPER) for i, what in enumerate(SHAPES) if name == "tal" or i % 3 == at],
)
def test_a_predicted_model_trains_and_stock_timm_loads_it(name: str, what: str, tmp_path: Path) -> None:
    gene = hyper_gene(name)
    shape = token_shape(**SHAPES[what])
    options = {"task": task_vector()} if name == "tal" else {}
    model = quiet_expand(gene, shape, **options)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shape.all_params()
    assert model.learngene["fresh"] == []
    assert model.learngene["layers"] == ["predicted"] * shape.depth
    own = {value.untyped_storage().data_ptr() for value in gene.parameters()}
    memory = [value.untyped_storage() for value in model.parameters()]
    assert own.isdisjoint(storage.data_ptr() for storage in memory)
    assert sum(storage.nbytes() for storage in memory) == 4 * sum(value.numel() for value in model.parameters())
    images = batch(shape)
    logits = model(images)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    save_descendant(model, tmp_path / "des")
    stock = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True).eval()
    assert torch.equal(stock(images), logits)
    assert all(torch.equal(value, stock.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"depth": 4, "num_classes": 7}], ids=str)
@every_network
def test_the_auxiliary_model_is_the_descendant_at_its_shape(name: str, changes: dict[str, Any]) -> None:
    gene = hyper_gene(name)
    shape = token_shape(**changes)
    images = batch(shape)
    assert torch.equal(gene(images, shape), quiet_expand(gene, shape)(images))
    if not changes:
        assert torch.equal(gene(images), gene(images, shape))


@every_network
def test_two_predictions_are_the_same(name: str) -> None:
    gene = hyper_gene(name)
    torch.manual_seed(1)
    one = gene.weights()
    torch.manual_seed(2)
    other = gene.weights()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(one["pos_embed"][0, 0], gene.tensors()["class_position"][:16])
    assert not one["cls_token"].any()
    wide = gene.weights(token_shape(embed_dim=32))
    assert torch.equal(wide["pos_embed"][0, 0, :16], one["pos_embed"][0, 0])


@every_network
def test_a_network_survives_its_file(name: str, tmp_path: Path) -> None:
    gene = hyper_gene(name)
    entry = {"task": "birds", "source": ["birds"], "classes": list(task_of().classes), "top1": 20.0}
    entry |= {"mean": [0.5], "std": [0.5]} | ({"embedding": task_of().to_dict()} if name == "tal" else {})
    gene.metadata = {"tasks": [entry]}
    gene.save(tmp_path / "g.safetensors")
    loaded = learngene.load(tmp_path / "g.safetensors")
    assert loaded.method == gene.method
    assert all(torch.equal(value, loaded.tensors()[key]) for key, value in gene.tensors().items())
    for shape in (gene.shape, token_shape(depth=3, embed_dim=24, num_heads=3)):
        one, other = (quiet_expand(each, shape).state_dict() for each in (gene, loaded))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    if name == "tal":
        assert loaded.tasks() == {"birds": task_of()}
        model = loaded.expand(task="birds")
        assert torch.equal(
            model.head.weight, gene.weights(token_shape(num_classes=5), task=task_vector())["head.weight"]
        )
        assert (model.num_classes, model.learngene["options"]) == (5, {"task": "birds"})
        assert model.learngene["class_names"] == [f"class{i}" for i in range(5)]


@pytest.mark.filterwarnings("ignore:tal. task birds has 5 classes:UserWarning")
def test_a_task_may_be_a_name_an_embedding_or_numbers() -> None:
    gene = hyper_gene("tal")
    gene.metadata = {"tasks": [{"task": "birds", "embedding": task_of().to_dict()}]}
    expected = gene.weights(task=task_vector())
    for task in ("birds", task_of()):
        found = gene.weights(task=task)
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert gene.expand(task=task_of(), num_classes=9).num_classes == 9
    assert gene.expand(3, task=task_of()).num_classes == 5
    assert gene.expand(gene.shape, task=task_of()).num_classes == 3


# -- ranges ------------------------------------------------------------------------------------------------


def published(name: str, depth: int) -> range:
    """The widths of a depth."""
    first, middle, last, step = {
        "vits-1k": ((384, 512), (256, 384), (128, 256), 32),
        "vits-1k-tal": ((192, 512), (256, 512), (256, 768), 32),
        "vits+-1k": ((192, 768), (192, 768), (192, 768), 64),
        "laptop": ((64, 192), (64, 192), (64, 192), 32),
    }[name]
    low, high = first if depth == 3 else middle if depth < 6 else last
    return range(low, high + 1, step)


@pytest.mark.parametrize("name", RANGES)
def test_drawn_sizes_are_those_of_the_generators(name: str) -> None:
    source = random.Random(0)
    drawn = [sample_size(name, source) for _ in range(6000)]
    deepest = 9 if name.startswith("vits-1k") else 12
    assert {depth for depth, _, _ in drawn} == set(range(3, deepest + 1))
    for depth, width, heads in drawn:
        assert width in published(name, depth)
        choices = (3, 6, 12) if width % 12 == 0 else (3, 6) if width % 6 == 0 else (3,) if width % 3 == 0 else (4, 8)
        assert heads in choices
        assert width % heads == 0
    assert set(drawn) == set(sizes_of(name))
    shares = [sum(depth == d for depth, _, _ in drawn) / len(drawn) for d in range(3, deepest + 1)]
    assert max(shares) - min(shares) < 0.05  # depths are drawn evenly, however many widths they have
    widths = published(name, 3)
    threes = [width for depth, width, _ in drawn if depth == 3]
    assert max(abs(threes.count(w) / len(threes) - 1 / len(widths)) for w in widths) < 0.08


def test_a_list_of_sizes_is_drawn_evenly() -> None:
    source = random.Random(0)
    drawn = [sample_size(((2, 16, 2), (3, 24, 3)), source) for _ in range(400)]
    assert set(drawn) == {(2, 16, 2), (3, 24, 3)}
    assert 150 < drawn.count((2, 16, 2)) < 250
    assert limits(((2, 16, 2), (3, 24, 3))) == ((2, 3), (16, 24))


def test_meta_batches_stay_in_their_range() -> None:
    gene = hyper_gene("logah", {"architectures": "laptop", "expansion": 2048})
    meta = MetaBatch(gene, Hyper(meta_batch=5))
    meta.num_classes = 7
    known, seen = set(sizes_of("laptop")), set()
    for seed in range(20):
        torch.manual_seed(seed)
        meta.draw()
        sizes = [(shape.depth, shape.embed_dim, shape.num_heads) for shape in meta.shapes]
        assert len(sizes) == 5
        assert set(sizes) <= known
        assert all(shape == gene.shape.replace(depth=d, embed_dim=w, num_heads=h, num_classes=7)
                   for shape, (d, w, h) in zip(meta.shapes, sizes, strict=True))  # fmt: skip
        seen |= set(sizes)
        torch.manual_seed(seed)
        meta.draw()
        assert [(shape.depth, shape.embed_dim, shape.num_heads) for shape in meta.shapes] == sizes
    assert len(seen) > 30


def test_plan_lists_the_trained_sizes() -> None:
    gene = hyper_gene("logah", {"architectures": "laptop", "expansion": 2048})
    found = [(c.shape.depth, c.shape.embed_dim, c.shape.num_heads) for c in plan(gene, Budget())]  # type: ignore[union-attr]
    assert sorted(found) == sorted(sizes_of("laptop"))
    small = plan(gene, Budget(max_params=1e6))
    assert 0 < len(small) < len(found)
    assert all(candidate.params <= 1e6 for candidate in small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "logah: depth 4 is outside the 2 to 3 that this hypernetwork was trained for"),
        ({"depth": 1}, "depth 1 is outside the 2 to 3"),
        ({"embed_dim": 32}, "embed_dim 32 is outside the 16 to 24"),
        ({"embed_dim": 12, "num_heads": 3}, "embed_dim 12 is outside the 16 to 24"),
        ({"patch_size": 2}, "patch_size 2 is not the 4"),
        ({"img_size": 12}, "img_size 12 is not the 8"),
        ({"mlp_ratio": 4.0}, "mlp_ratio 4.0 is not the 2.0"),
        ({"in_chans": 1}, "in_chans 1 is not the 3"),
    ],
    ids=str,
)
def test_what_was_never_trained_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        hyper_gene("logah").expand(token_shape(**changes))


def test_tal_without_a_task_says_so() -> None:
    with pytest.warns(UserWarning, match="tal: no task is given, so the weights are those of no task in particular"):
        hyper_gene("tal").expand()
    hyper_gene("tal").expand(task=task_vector())  # silent: warnings are errors
    hyper_gene("logah").expand(num_classes=9)


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False}, "predicts ViTs with a class token; set shape.class_token=true"),
        ({"num_classes": 8193}, "8193 classes are beyond its vocabulary; use 8192 or less"),
        ({"embed_dim": 8194, "num_heads": 2}, "embed_dim 8194 is beyond its vocabulary; use 8192 or less"),
    ],
    ids=str,
)
@every_network
def test_a_shape_that_cannot_be_predicted_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    gene = hyper_gene(name)
    for make in (gene.expand, gene.weights):
        with pytest.raises(ShapeError, match=f"{gene.method.name}: {message}"):
            make(token_shape(**changes))
    with pytest.raises(ShapeError, match=message):
        Learngene(gene.method, token_shape(**changes))


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({"embed_dim": 72, "num_heads": 3}, 576),
        ({"embed_dim": 24, "num_heads": 3, "mlp_ratio": 6.0}, 384),
        ({"num_classes": 150}, 400),
        ({"img_size": 80}, 320),
        ({"embed_dim": 40, "patch_size": 8}, 320),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["logah", "logah-transposed"])
def test_factors_that_are_too_small_are_refused(name: str, changes: dict[str, Any], need: int) -> None:
    shape = token_shape(**changes)
    message = (
        f"factors of 256 rows are too small for the widest weight of .*needs {need}; set settings.expansion={need} or"
    )
    with pytest.raises(ShapeError, match=message):
        hyper_gene(name).weights(shape)
    with pytest.raises(ShapeError, match=f"factors of {need - 1} rows"):
        hyper_gene(name, {"expansion": need - 1}).weights(shape)
    weights = hyper_gene(name, {"expansion": need}).weights(shape)
    assert {key: tuple(value.shape) for key, value in weights.items()} == shape.all_params()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("logah", {"size": "publishd"}, "logah: unknown size 'publishd'; did you mean 'published'"),
        ("logah", {"size": 3}, "unknown size '3'"),
        ("logah", {"hid": 30}, "hid 30 must be divisible by 4 and by encoder_heads 16"),
        ("logah", {"hid": 36, "encoder_heads": 8}, "hid 36 must be divisible by 4 and by encoder_heads 8"),
        ("logah", {"encoder_layers": 10**8}, "encoder_layers 100000000 is more than 10000"),
        ("logah", {"rank": 0}, "rank must be a positive integer, not 0"),
        ("logah", {"expansion": True}, "expansion must be a positive integer, not True"),
        ("ghn3", {"max_shape": -1}, "max_shape must be a positive integer, not -1"),
        ("logah", {"vocabulary": 2.5}, "vocabulary must be a positive integer, not 2.5"),
        ("logah", {"layout": "offical"}, "unknown layout 'offical'; did you mean 'official'"),
        ("logah", {"task_dim": 768}, "logah: has no task layers; leave task_dim out, or use method tal"),
        ("ghn3", {"task_dim": 4}, "ghn3: has no task layers"),
        ("tal", {"task_dim": 0}, "tal: task_dim must be a positive integer, not 0"),
        ("tal", {"task_dim": None}, "tal: task_dim must be a positive integer, not None"),
        ("tal", {"architectures": "vits-2k"}, "architectures: unknown range 'vits-2k'; did you mean 'vits-1k"),
        ("tal", {"architectures": []}, "architectures: must be one of vits-1k, .*or a list"),
        ("tal", {"architectures": 7}, "architectures: must be one of"),
        ("tal", {"architectures": [[3, 16]]}, r"architectures: \[3, 16\] is no size"),
        ("tal", {"architectures": [{"depth": 3, "embed_dim": 16}]}, "is no size; give depth, embed_dim and num_heads"),
        ("tal", {"architectures": ["abc"]}, "'abc' is no size"),
        ("tal", {"architectures": [[3, 16, 0]]}, "is no size"),
        ("tal", {"architectures": [[3, 16, True]]}, "is no size"),
        ("tal", {"architectures": [[3, 16, 3]]}, "embed_dim 16 is not divisible by num_heads 3"),
        ("tal", {"hidden": 3}, "unknown key 'hidden'"),
        ("tal", {"attention_node": "yes"}, "tal: attention_node must be true or false, not 'yes'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        method(name, settings)


def test_sizes_may_be_mappings() -> None:
    kind: Any = method("tal", {**PICO, "architectures": [{"depth": 2, "embed_dim": 16, "num_heads": 2}, [3, 24, 3]]})
    assert kind.architectures == PICO["architectures"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("bird", "gene: no task 'bird'; it was tuned on birds. For another task give its images"),
        (
            task_of(ancestry="b" * 64),
            "task birds: its embedding is of another ancestry .sha256 bbbbbbbbbbbb. than this",
        ),
        (task_of(vector=torch.zeros(5)), "task: an embedding of shape .5,., but this gene takes 6 numbers"),
        (torch.zeros(2, TASK), "task: an embedding of shape .2, 6., but this gene takes 6 numbers"),
        (torch.full((TASK,), math.nan), "task: its embedding is not finite"),
    ],
    ids=["unknown", "another ancestry", "another size", "two", "nan"],
)
def test_a_task_that_does_not_fit_is_refused(task: Any, message: str) -> None:
    gene = hyper_gene("tal")
    gene.metadata = {"ancestry": {"sha256": "a" * 64}, "tasks": [{"task": "birds", "embedding": task_of().to_dict()}]}
    makes: tuple[Callable[..., Any], ...] = (gene.expand, gene.weights)
    for make in makes:
        with pytest.raises(LearngeneError, match=message):
            make(task=task)


@pytest.mark.parametrize("name", ["logah", "ghn3"])
def test_a_task_free_network_refuses_a_task(name: str) -> None:
    for task in (task_vector(), "birds"):
        with pytest.raises(LearngeneError, match=f"task: a gene of {name} predicts for no task; leave it out"):
            hyper_gene(name).expand(task=task)


def test_an_embedding_is_read_as_it_was_written() -> None:
    written = task_of().to_dict()
    assert TaskEmbedding.from_dict(written) == task_of()
    assert TaskEmbedding.from_dict({**written, "vector": list(written["vector"])}) == task_of()
    with pytest.raises(LearngeneError, match="does not match its fingerprint"):
        TaskEmbedding.from_dict({**written, "vector": [0.0] * TASK})
    for vector in ((), (1.0, math.nan), (math.inf,)):
        with pytest.raises(LearngeneError, match="task birds: its embedding is empty or not finite; compute it again"):
            TaskEmbedding("birds", vector, "a", "b", 3, ("x", "y"), {})
    with pytest.raises(LearngeneError, match="an entry is missing or of the wrong type"):
        TaskEmbedding.from_dict({key: value for key, value in written.items() if key != "classes"})
