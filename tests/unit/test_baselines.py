"""The baselines: which layers each takes, from where, and what it refuses."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from learngene import Budget, ViTShape, plan, scratch
from learngene.genes.gene import Learngene
from learngene.methods import KINDS, METHODS, method
from learngene.methods.base import Method
from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.fresh_weights import init_value
from learngene.vits.shape import MODULE_PARAMS
from pico import batch, pico_gene, pico_shape, random_tensors

PARAMS = [name for names in MODULE_PARAMS.values() for name in names]


def stored(name: str, shape: ViTShape, *prefixes: str, **settings: Any) -> int:
    """Parameters of a gene, or of its tensors with these prefixes."""
    sizes = method(name, settings).gene_tensors(shape)
    return sum(math.prod(size) for key, size in sizes.items() if key.startswith(prefixes or ("",)))


def assert_layers(gene: Learngene, shape: ViTShape, sources: list[str | None], **options: Any) -> None:
    """Every layer is a copy of the gene's layer of that name; those without one start fresh and are listed."""
    model = gene.expand(shape, **options)
    assert model.learngene["layers"] == [source or "fresh" for source in sources]
    state, fresh = model.state_dict(), set(model.learngene["fresh"])
    for i, source in enumerate(sources):
        for name in PARAMS:
            key = f"blocks.{i}.{name}"
            assert (key in fresh) == (source is None), key
            assert source is None or torch.equal(state[key], gene.tensors()[f"{source}.{name}"]), key


# -- the registry ------------------------------------------------------------------------------------------


def test_every_method_is_registered_once_under_its_name() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) == len(METHODS)
    assert all(METHODS[kind.name] is kind and issubclass(kind, Method) for kind in KINDS)
    assert all(isinstance(method(name), Method) for name in METHODS)


def test_every_method_says_how_its_gene_is_made() -> None:
    made = {name: method(name).origins for name in METHODS}
    trained = {"tleg", "sws", "pool", "sn-net", "share-init", "mini-init", "distilled", "tal", "logah", "ghn3"}
    trained |= {"nested-slices", "chebyshev", "fine", "wave", "any-size", "sweet", "lets"}
    taken = {"vanilla-lg", "weight-selection", "weight-subcloning"}
    assert {name for name, origins in made.items() if origins == ("condense",)} == trained
    assert {name for name, origins in made.items() if origins == ("extract",)} == taken
    assert {name for name, origins in made.items() if origins == ("condense", "extract")} == {"simple-lg", "pre-fin"}
    assert (made["lsamd"], made["scratch"]) == (("extract", "search"), ())
    assert method("lsamd").made_by == "its gene is made by `learngene extract` or `learngene search`"
    assert [name for name in METHODS if method(name).needs_data] == ["weight-subcloning"]


@pytest.mark.slow
def test_listing_methods_imports_no_torch() -> None:
    program = (
        "import sys, json; from learngene.methods import METHODS, method; from learngene.vits.shape import ViTShape; "
        "[method(name).gene_tensors(ViTShape()) for name in METHODS]; print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


# -- Scratch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"depth": 7, "embed_dim": 24, "num_classes": 5}, {"class_token": True}])
def test_scratch_is_what_the_library_starts_from(changes: dict[str, Any]) -> None:
    """And both draw every tensor in timm's order from one seed."""
    shape = pico_shape(**changes)
    model, library = pico_gene("scratch").expand(shape, seed=5), scratch(shape, 5).state_dict()
    generator, sizes = torch.Generator().manual_seed(5), shape.all_params()
    expected = {name: init_value(name, sizes, generator) for name in sizes}
    assert model.learngene["fresh"] == list(shape.all_params())
    assert model.learngene["layers"] == ["fresh"] * shape.depth
    assert model.state_dict().keys() == expected.keys() == library.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert torch.equal(value, library[name]), name


def test_scratch_stores_nothing_and_makes_any_width() -> None:
    assert method("scratch").gene_tensors(pico_shape()) == {}
    assert pico_gene("scratch").weights(pico_shape(embed_dim=64, num_heads=8, patch_size=2)) == {}
    with pytest.raises(LearngeneError, match="scratch: expansion options: unknown key 'seeds'"):
        pico_gene("scratch").expand(3, seeds=1)


# -- what genes store --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "parts", "tiny", "small"),
    [
        ("share-init", 12, ("shared.", "patch_embed."), 0.6, 2.1),
        ("vanilla-lg", 12, ("",), 1.3, 5.3),  # three layers and nothing else; the paper prints 1.4 for tiny
        ("pre-fin", 6, ("layer", "pos_embed", "patch_embed.", "norm."), 2.9, 11.0),
    ],
)
def test_genes_store_what_table_2_of_tleg_counts(
    name: str, depth: int, parts: tuple[str, ...], tiny: float, small: float
) -> None:
    for width, printed in (("tiny", tiny), ("small", small)):
        shape = ViTShape.named(f"deit_{width}_patch16_224", depth=depth)
        assert round(stored(name, shape, *parts) / 1e6, 1) == printed


# -- Simple-LG ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [0, 0, 1, 1, 2]),
        ({"order": "front-mid-last"}, [0, 0, 1, 1, 2]),
        ({"order": "front-last-mid"}, [0, 0, 1, 2, 2]),
        ({"order": "2,1,0"}, [0, 1, 1, 2, 2]),
        ({"order": [1, 0, 2]}, [0, 0, 1, 1, 2]),
    ],
    ids=str,
)
def test_simple_lg_repeats_its_layers(options: dict[str, Any], layers: list[int]) -> None:
    assert_layers(pico_gene("simple-lg", depth=3), pico_shape(depth=5), [f"layer{i}" for i in layers], **options)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (4, {}, "depth 4 is below the 5"),
        (6, {"order": "front"}, "unknown order 'front'"),
        (6, {"order": [0, 1]}, "must name each of the layers 0 to 4 once"),
        (6, {"assign": "random"}, "simple-lg: expansion options: unknown key 'assign'"),
    ],
    ids=str,
)
def test_what_simple_lg_cannot_make_is_refused(depth: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        pico_gene("simple-lg", depth=5).expand(depth, **options)


# -- Vanilla-LG --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 3, 6])
@pytest.mark.parametrize("depth", [6, 12])
def test_vanilla_lg_puts_the_last_layers_last(last: int, depth: int) -> None:
    gene = pico_gene("vanilla-lg", {"last": last}, depth=6)
    assert_layers(gene, pico_shape(depth=depth), [None] * (depth - last) + [f"layer{i}" for i in range(6 - last, 6)])


@pytest.mark.parametrize("stem", [False, True])
def test_vanilla_lg_carries_stem_and_norm_only_if_asked(stem: bool) -> None:
    gene = pico_gene("vanilla-lg", {"stem": stem, "last": 4})
    fresh = [name for name in gene.expand().learngene["fresh"] if not name.startswith("blocks.")]
    head, rest = ["head.weight", "head.bias"], [*gene.shape.stem_params(), *gene.shape.norm_params()]
    assert fresh == (head if stem else [*rest, *head])


@pytest.mark.parametrize(
    ("settings", "depth", "message"),
    [
        ({}, 2, "depth 2 has no room for the 3 layers of this gene"),
        ({"last": 5}, 4, "the ancestry has 4 layers, fewer than last=5"),
        ({"last": 0}, 4, "last must be a positive integer, not 0"),
        ({"last": True}, 4, "last must be a positive integer, not True"),
        ({"stem": "yes"}, 4, "stem must be true or false, not 'yes'"),
    ],
    ids=str,
)
def test_what_vanilla_lg_cannot_make_is_refused(settings: dict[str, Any], depth: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pico_gene("vanilla-lg", settings).expand(depth)


# -- Pre-Fin and the distilled student ---------------------------------------------------------------------


def placed(first: int, count: int, depth: int) -> list[str | None]:
    """All layers of a model, from one place on."""
    return [f"layer{i - first}" if first <= i < first + count else None for i in range(depth)]


@pytest.mark.parametrize(
    ("depth", "place", "sources"),
    [
        (8, "first", placed(0, 6, 8)),
        (8, "last", placed(2, 6, 8)),
        (8, "middle", placed(1, 6, 8)),
        (12, "first", placed(0, 6, 12)),
        (12, "last", placed(6, 6, 12)),
        (12, "middle", placed(3, 6, 12)),
        (4, "first", [f"layer{i}" for i in (0, 1, 2, 3)]),
        (4, "last", [f"layer{i}" for i in (2, 3, 4, 5)]),
        (4, "middle", [f"layer{i}" for i in (1, 2, 3, 4)]),
        (6, "middle", placed(0, 6, 6)),
        (6, "last", placed(0, 6, 6)),
        (9, "middle", placed(1, 6, 9)),
    ],
)
def test_a_whole_model_is_placed_as_in_figure_4(depth: int, place: str, sources: list[str | None]) -> None:
    assert_layers(
        pico_gene("distilled" if depth % 6 else "pre-fin", depth=6), pico_shape(depth=depth), sources, place=place
    )


@pytest.mark.parametrize("name", ["pre-fin", "distilled"])
def test_without_a_place_only_its_own_depth_can_be_made(name: str) -> None:
    gene = pico_gene(name, depth=6)
    images = batch(gene.shape)
    assert torch.equal(gene.expand()(images), gene(images))
    assert [c.shape.depth for c in plan(gene, Budget())] == [6]
    for depth in (4, 8):
        with pytest.raises(ShapeError, match=f"{name}: this model has 6 layers, not {depth}; the option place"):
            gene.expand(depth)
    with pytest.raises(ShapeError, match="unknown place 'midle'; did you mean 'middle'"):
        gene.expand(8, place="midle")


def test_the_distilled_student_has_a_teacher_and_pre_fin_has_none() -> None:
    assert (method("distilled").distillation, method("pre-fin").distillation) == ("tleg-official", "none")
    shape = pico_shape()
    assert stored("pre-fin", shape) == stored("distilled", shape) == shape.params()


# -- weight subcloning -------------------------------------------------------------------------------------


def activity(shape: ViTShape, seed: int = 0) -> dict[str, Tensor]:
    """Random magnitudes for every neuron."""
    sizes: dict[str, tuple[int, ...]] = {"residual": (shape.embed_dim,)}
    for i in range(shape.depth):
        sizes |= {f"blocks.{i}.heads": (shape.num_heads,), f"blocks.{i}.hidden": (shape.hidden_dim,)}
    return {name: value.abs() for name, value in random_tensors(sizes, seed).items()}


def subcloned(shape: ViTShape, magnitudes: dict[str, Tensor] | None = None) -> tuple[Any, Learngene]:
    """A random ancestry model and its gene."""
    model = pico_gene("pre-fin", **shape.to_dict()).expand()
    kind = method("weight-subcloning")
    return model, Learngene(kind, shape, kind.extract(model.state_dict(), shape, magnitudes or activity(shape)))


@pytest.mark.parametrize(
    "changes", [{}, {"class_token": True}, {"ending": "official"}, {"num_heads": 4, "mlp_ratio": 2.7}], ids=str
)
def test_at_full_size_the_reordered_model_computes_what_the_ancestry_did(changes: dict[str, Any]) -> None:
    shape = pico_shape(**changes)
    model, gene = subcloned(shape)
    images = batch(shape, 4)
    torch.testing.assert_close(gene.expand()(images), model(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gene(images), model(images), rtol=1e-4, atol=1e-5)
    assert not torch.equal(gene.tensors()["layer0.mlp.fc1.weight"], model.blocks[0].mlp.fc1.weight)


def test_without_a_head_the_features_come_in_the_order_of_activity() -> None:
    shape = pico_shape(num_classes=0)
    model, gene = subcloned(shape)
    images, order = batch(shape), activity(shape)["residual"].argsort(descending=True)
    torch.testing.assert_close(gene.expand()(images), model(images)[:, order], rtol=1e-4, atol=1e-5)


def test_the_most_active_neurons_are_kept() -> None:
    """Width 4, two heads of 2, 6 hidden neurons, to half of all; the order of the kept is that of their activity."""
    shape = pico_shape(embed_dim=4, num_heads=2, depth=2, mlp_ratio=1.5)
    magnitudes = {
        "residual": torch.tensor([0.1, 0.3, 0.2, 0.4]),
        "blocks.0.heads": torch.tensor([0.5, 0.6]),
        "blocks.1.heads": torch.tensor([0.6, 0.5]),
        "blocks.0.hidden": torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
        "blocks.1.hidden": torch.tensor([0.1, 0.9, 0.1, 0.8, 0.1, 0.7]),
    }
    model, gene = subcloned(shape, magnitudes)
    state = model.state_dict()
    small = gene.expand(shape.replace(embed_dim=2, num_heads=1), rescale=False).state_dict()
    width, kept = [3, 1], {}
    for layer, head, hidden in ((0, 1, [0, 1, 2]), (1, 0, [1, 3, 5])):
        inside = [2 * head, 2 * head + 1]
        rows = {"attn.qkv": [part * 4 + k for part in range(3) for k in inside], "mlp.fc1": hidden}
        columns = {"attn.proj": inside, "mlp.fc2": hidden}
        for name in PARAMS:
            module, _, kind = name.rpartition(".")
            value = state[f"blocks.{layer}.{name}"][rows.get(module, width)]
            matrix = kind == "weight" and not module.startswith("norm")
            kept[f"blocks.{layer}.{name}"] = value[:, columns.get(module, width)] if matrix else value
    kept |= {"pos_embed": state["pos_embed"][..., width], "head.weight": state["head.weight"][:, width]}
    kept |= {name: state[name][width] for name in ("patch_embed.proj.weight", "norm.weight")}
    for name, value in kept.items():
        assert torch.equal(small[name], value), name


def test_narrowed_linear_layers_are_scaled_by_the_root_of_their_inputs() -> None:
    _, gene = subcloned(pico_shape())
    shape = gene.shape.replace(embed_dim=8, num_heads=1, mlp_ratio=3.0)  # 32 to 24 hidden neurons
    plain, scaled = (gene.expand(shape, **options).state_dict() for options in ({"rescale": False}, {}))
    factors = {"mlp.fc2.weight": math.sqrt(32 / 24), "head.weight": math.sqrt(2)}
    factors |= dict.fromkeys(("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight"), math.sqrt(2))
    for name, value in scaled.items():
        factor = next((f for ending, f in factors.items() if name.endswith(ending)), None)
        expected = plain[name] * factor if factor else plain[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(5, 3, [0, 1, 4]), (5, 2, [0, 4]), (6, 4, [0, 1, 4, 5]), (4, 1, [0]), (12, 7, [0, 1, 2, 3, 9, 10, 11])],
)
def test_the_middle_layers_are_removed(before: int, after: int, kept: list[int]) -> None:
    layers = pico_gene("weight-subcloning", depth=before).expand(after).learngene["layers"]
    assert layers == [f"layer{i}" for i in kept]


def test_a_narrower_descendant_says_how_many_neurons_it_kept() -> None:
    model = pico_gene("weight-subcloning").expand(pico_shape(depth=2, embed_dim=8, num_heads=1))
    assert model.learngene["layers"] == ["layer0, the 8 most active of 16", "layer3, the 8 most active of 16"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"num_heads": 4}, {}, r"heads are kept whole, so embed_dim / num_heads must be 8, not 4"),
        ({"embed_dim": 8}, {}, r"must be 8, not 4"),
        ({"depth": 5}, {}, "depth 5 is beyond the ancestry's 4"),
        ({"embed_dim": 24, "num_heads": 3}, {}, "embed_dim 24 is beyond the ancestry's 16"),
        ({"patch_size": 2}, {}, "has patch_size 4, not 2"),
        ({}, {"rescale": "no"}, "rescale must be true or false, not 'no'"),
        ({}, {"scale": False}, "unknown key 'scale'; did you mean 'rescale'"),
    ],
    ids=str,
)
def test_what_cannot_be_subcloned_is_refused(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    gene = pico_gene("weight-subcloning")
    with pytest.raises(LearngeneError, match=message):
        gene.expand(gene.shape.replace(**changes), **options)
