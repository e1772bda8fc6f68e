"""Expanding: what every method promises of the models it makes."""

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from learngene import ViTShape, save_descendant
from learngene.data.splits import open_splits
from learngene.genes.gene import Learngene
from learngene.making.finetune import starting_model
from learngene.methods import METHODS as KINDS
from learngene.methods import method
from learngene.methods.cutting import Cutting
from learngene.methods.lets import LeTs
from learngene.methods.sweet import SWEET
from learngene.methods.wave import WAVE
from learngene.recipe.finetune import FinetuneRecipe
from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.shape import MODULE_PARAMS
from learngene.vits.stitched_shape import Shape, shape_from
from pico import batch, pico_gene, pico_shape

METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tleg": ("tleg", {}, {}),
    "tleg-partial": ("tleg", {"modules": ("msa", "ln"), "first_layer": 2}, {}),
    "sws": ("sws", {"stages": (2, 1, 1)}, {}),
    "simple-lg": ("simple-lg", {}, {"order": "front-last-mid"}),
    "vanilla-lg": ("vanilla-lg", {}, {}),
    "vanilla-lg-stem": ("vanilla-lg", {"last": 2, "stem": True}, {}),
    "lsamd": ("lsamd", {"layers": (1, 3, 4)}, {}),
    "lsamd-without-stem": ("lsamd", {"layers": (2, 3), "stem": False}, {"expansion": "cyclic", "priority": "first"}),
    "share-init": ("share-init", {}, {}),
    "mini-init": ("mini-init", {"blocks": 2}, {}),
    "chebyshev": ("chebyshev", {"genes": 3, "basis": "fourier"}, {}),
    "fine": ("fine", {"rank": 5}, {}),
    "lets": ("lets", {"width": 8, "sources": 4}, {}),
    "lets-by-rank": ("lets", {"width": 8, "sources": 2, "share": 3, "rank": 3}, {"selection": "bottom-l1"}),
    "weight-selection": ("weight-selection", {}, {}),
    "weight-selection-aligned": ("weight-selection", {"head": False}, {"rule": "aligned"}),
    "weight-subcloning": ("weight-subcloning", {}, {}),
    "nested-slices": ("nested-slices", {}, {}),
    "nested-slices-spaced": ("nested-slices", {"kept_layers": "spaced"}, {}),
    "pre-fin": ("pre-fin", {}, {"place": "middle"}),
    "distilled": ("distilled", {}, {"place": "last"}),
    "pool": ("pool", {"rows": (8, 16)}, {}),
    "pool-without-final-norm": ("pool", {"rows": (8, 16), "final_norm": False}, {}),
    "pool-down": ("pool", {"rows": (8, 16), "direction": "down"}, {}),
    "sn-net": ("sn-net", {"rows": ((8, 2, 1), 16)}, {}),
    "wave": ("wave", {}, {}),
    "wave-outer": ("wave", {"tile": 4, "layout": "outer"}, {}),
    "sweet": ("sweet", {"ranks": (3,)}, {}),
    "any-size": ("any-size", {"tile": 4, "templates": (3,), "layers": 2}, {}),
    "scratch": ("scratch", {}, {}),
}
"""Name, settings and options at expansion."""

WITHOUT_HEAD = ("vanilla-lg", "vanilla-lg-stem", "lsamd", "lsamd-without-stem", "weight-selection-aligned")

SHAPES: dict[str, dict[str, Any]] = {
    "as condensed": {},
    "shallower": {"depth": 3},
    "half as deep": {"depth": 2},
    "deeper": {"depth": 9},
    "official ending": {"depth": 5, "ending": "official"},
    "larger images": {"img_size": 12},
    "smaller images": {"img_size": 4},
    "other classes": {"num_classes": 5},
    "no head": {"num_classes": 0},
    "all at once": {"depth": 5, "ending": "official", "img_size": 16, "num_classes": 7},
    "narrower": {"embed_dim": 8, "num_heads": 1, "depth": 2, "mlp_ratio": 1.5},
    "all at once and narrower": {
        "embed_dim": 8,
        "num_heads": 1,
        "ending": "official",
        "img_size": 16,
        "num_classes": 7,
    },
    "narrow row": {"embed_dim": 8, "num_heads": 1},
    "path": {"path": "8:1-2+16:2-4"},
    "path without final norm": {"path": "8:1-2+16:3-4", "final_norm": False},
    "path down": {"path": "16:1-3+8:4-4"},
    "path, all at once": {"path": "8:1-1+16:1-4", "ending": "official", "img_size": 16, "num_classes": 7},
    "path without head": {"path": "8:1-2+16:2-4", "num_classes": 0},
}


def changed(shape: ViTShape, changes: dict[str, Any]) -> Shape:
    """A shape with some fields changed; ``path`` makes it a stitched one."""
    return shape_from({**shape.to_dict(), **changes})


@functools.cache
def gene_of(key: str) -> Learngene:
    """The gene of an entry of ``METHODS``, shared: no test changes its tensors."""
    return pico_gene(*METHODS[key][:2])


def makes(key: str, changes: dict[str, Any]) -> bool:
    name, settings, options = METHODS[key]
    try:
        method(name, settings).refuse(pico_shape(), changed(pico_shape(), changes), **options)
    except ShapeError:
        return False
    return True


MADE = {key: [what for what, changes in SHAPES.items() if makes(key, changes)] for key in METHODS}
CASES = [(key, what) for number, (key, made) in enumerate(MADE.items()) for what in made
         if len(made) < 9 or (number + list(SHAPES).index(what)) % 3 == 0]  # fmt: skip
"""What is tested: all that a choosy method makes, and of the others every third, another third for the next one."""


def storages(tensors: dict[str, torch.Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]


def saved_and_loaded(model: Any, folder: Path) -> Any:
    """The model as stock timm loads it."""
    save_descendant(model, folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


# -- every emitted shape -----------------------------------------------------------------------------------


def test_most_methods_make_most_shapes() -> None:
    """So that a method that refuses everything is not tested on nothing."""
    made = {key: len(shapes) for key, shapes in MADE.items()}
    assert made.pop("scratch") == len(SHAPES)
    assert made.pop("mini-init") == 6  # the trained depth and half of it
    # Five cases of the wide row, with other classes and images; two of the narrow row; and the paths.
    assert made.pop("pool") == 5 + 2 + 3
    assert made.pop("pool-without-final-norm") == made.pop("pool-down") == 5 + 2 + 1
    assert made.pop("sn-net") == 5 + 3  # its narrow row has another depth
    plain = sum("path" not in changes for changes in SHAPES.values())
    assert made.pop("vanilla-lg") == made.pop("sws") == made.pop("lsamd") == plain - 4  # half as deep, narrower
    assert made.pop("simple-lg") == plain - 5
    assert made.pop("lets") == made.pop("lets-by-rank") == plain - 1  # an MLP of another ratio
    assert made.pop("wave-outer") == made.pop("any-size") == plain
    assert made.pop("sweet") == plain - 1
    assert made.pop("wave") == plain - 1  # an MLP that is no multiple of the tiles
    assert set(made.values()) == {plain - 3}, made
    assert {key for key, _ in CASES} == METHODS.keys()
    assert {what for _, what in CASES} == SHAPES.keys()


@pytest.mark.parametrize(("key", "what"), CASES, ids=[": ".join(case) for case in CASES])
def test_an_expanded_model_follows_from_gene_and_seed_trains_and_stock_timm_loads_it_bit_by_bit(
    key: str, what: str, tmp_path: Path
) -> None:
    gene, options, shape = gene_of(key), METHODS[key][2], changed(pico_shape(), SHAPES[what])
    before = {name: value.clone() for name, value in gene.tensors().items()}
    torch.manual_seed(1)
    drawn = torch.get_rng_state()
    model = gene.expand(shape, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.manual_seed(2)
    again = gene.expand(shape, seed=4, **options).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shape.all_params()
    fresh = model.learngene["fresh"]
    assert gene.weights(shape, **options).keys() == shape.all_params().keys() - set(fresh)
    carried = "head" in gene.method.parts and shape.num_classes == 3
    assert ("head.weight" in fresh) == (shape.num_classes > 0 and not carried)
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    images = batch(shape)
    logits = model(images)
    assert logits.shape == (2, shape.num_classes or shape.embed_dim)
    if not fresh and not options:
        assert torch.equal(gene(images, shape), logits)
    logits.square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    loaded = saved_and_loaded(model, tmp_path / "des")
    assert torch.equal(loaded(images), logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    places = storages(model.state_dict())  # nothing shares memory
    assert len(set(places)) == len(places)
    assert not set(places) & set(storages(gene.tensors()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(before[name], value) for name, value in gene.tensors().items())


OTHER_KINDS = [
    *[(key, {field: value}) for field, value, keys in (
        ("class_token", True, ("tleg", "sws", "pool")),
        ("in_chans", 1, ("share-init", "sws", "pool-without-final-norm")),
        ("mlp_ratio", 2.7, ("weight-selection", "share-init", "sn-net")),
        ("num_heads", 4, ("weight-subcloning", "weight-selection", "pool", "sn-net")),
        ("patch_size", 2, ("tleg", "weight-subcloning", "pool-without-final-norm")),
    ) for key in keys],
]  # fmt: skip


@pytest.mark.parametrize(("key", "changes"), OTHER_KINDS, ids=str)
def test_other_kinds_of_vit_are_made_alike(key: str, changes: dict[str, Any], tmp_path: Path) -> None:
    name, settings, _ = METHODS[key]
    if key == "sn-net" and "num_heads" in changes:
        settings = {"rows": ((8, 2, 2), 16)}
    gene = pico_gene(name, settings, **changes)
    rows = name in ("pool", "sn-net")
    shape = gene.method.named_shape(gene.shape, "8:1-2+16:2-4") if rows else gene.shape
    assert torch.equal(gene(batch(gene.shape), shape), gene.expand(shape)(batch(gene.shape)))
    larger = shape.replace(img_size=16, **({} if rows else {"depth": 3}))
    model, images = gene.expand(larger), batch(gene.shape.replace(img_size=16))
    assert torch.equal(saved_and_loaded(model, tmp_path / "des")(images), model(images))


@pytest.mark.parametrize("key", [key for key in METHODS if key not in ("mini-init", "scratch", *WITHOUT_HEAD)])
def test_the_auxiliary_model_is_the_descendant_at_its_shape(key: str) -> None:
    name, settings, _ = METHODS[key]
    for gene in (gene_of(key), pico_gene(name, settings, ending="official")):
        images = batch(gene.shape)
        assert torch.equal(gene(images), gene.expand()(images))
        assert torch.equal(gene(images), gene(images, gene.shape))
        assert gene.expand().learngene["fresh"] == []


# -- stem, norm and head -----------------------------------------------------------------------------------


COMPUTED = ("wave", "lets", "any")


@pytest.mark.parametrize("key", [key for key in METHODS if not key.startswith(COMPUTED)])
def test_stem_norm_and_head_are_carried_or_not_held(key: str) -> None:
    gene = gene_of(key)
    model, tensors = gene.expand(2 if key == "mini-init" else 4, **METHODS[key][2]), gene.tensors()
    tensors |= {name.removeprefix("row1."): value for name, value in tensors.items()}  # of the row that depth 4 is
    stem = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    for part, names in (("stem", stem), ("norm", ("norm.weight", "norm.bias")), ("head", ("head.weight", "head.bias"))):
        for name in names:
            assert (name in tensors) == (part in gene.method.parts) == (name not in model.learngene["fresh"]), name
            assert name not in tensors or torch.equal(model.state_dict()[name], tensors[name]), name


@pytest.mark.parametrize("classes", [2, 4])
def test_another_task_gets_a_fresh_seeded_head_and_keeps_the_rest(classes: int) -> None:
    gene = pico_gene()
    own, first, again, other = (
        gene.expand(4, num_classes=n, seed=s) for n, s in ((3, 0), (classes, 1), (classes, 1), (classes, 2))
    )
    assert first.learngene["fresh"] == ["head.weight", "head.bias"]
    assert first.get_classifier().weight.shape == (classes, 16)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.head.bias.any()
    rest = [key for key in own.state_dict() if not key.startswith("head")]
    assert all(torch.equal(own.state_dict()[key], first.state_dict()[key]) for key in rest)


def test_a_fresh_head_is_small_and_truncated() -> None:
    weight = pico_gene(embed_dim=64).expand(num_classes=200).head.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("class_token", [False, True])
def test_position_embeddings_are_resampled_as_timm_does(class_token: bool) -> None:
    gene = pico_gene(class_token=class_token)
    model = gene.expand(gene.shape.replace(img_size=20))
    expected = resample_abs_pos_embed(gene.tensors()["pos_embed"], [5, 5], num_prefix_tokens=int(class_token))
    assert torch.equal(model.pos_embed, expected)
    assert model.pos_embed.shape == (1, 25 + class_token, 16)


def test_position_embeddings_of_the_same_size_are_not_touched() -> None:
    gene = pico_gene()
    assert torch.equal(gene.expand(7).pos_embed, gene.tensors()["pos_embed"])


# -- partial initialisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "layers", "modules"),
    [
        *[("tleg", layers, modules) for layers in (None, [1, 2], [2], []) for modules in (None, ["mlp", "ln"], [])],
        *[(key, [3, 4], ["msa"]) for key in ("sws", "mini-init", "weight-selection", "pool")],
    ],
    ids=str,
)
def test_partial_initialisation_fills_exactly_what_was_asked_for(
    key: str, layers: list[int] | None, modules: list[str] | None
) -> None:
    gene = gene_of(key)
    whole, part = gene.expand(4), gene.expand(4, layers=layers, modules=modules, seed=3)
    filled = {
        f"blocks.{layer - 1}.{param}"
        for layer in (range(1, 5) if layers is None else layers)
        for module in (MODULE_PARAMS if modules is None else modules)
        for param in MODULE_PARAMS[module]
    }
    inside = {name for name in whole.state_dict() if name.startswith("blocks.")}
    assert set(part.learngene["fresh"]) == inside - filled
    for name, value in part.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]) == (name in filled or name not in inside), name


def test_what_is_left_out_starts_as_timm_starts_it_and_by_the_seed() -> None:
    gene = pico_gene(embed_dim=64)
    first, again, other = (gene.expand(4, layers=[1], seed=seed).state_dict() for seed in (0, 0, 1))
    assert first["blocks.2.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["blocks.2.mlp.fc1.weight"].abs().max() < 0.1
    assert not first["blocks.2.mlp.fc1.bias"].any()
    assert torch.equal(first["blocks.2.norm1.weight"], torch.ones(64))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["blocks.2.mlp.fc1.weight"], other["blocks.2.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layers": [0]}, "layer 0 does not exist; layers count from 1 to 4"),
        ({"layers": [5]}, "layer 5 does not exist; layers count from 1 to 4"),
        ({"modules": ["mpl"]}, "unknown module 'mpl'; did you mean 'mlp'"),
    ],
    ids=str,
)
def test_a_layer_or_module_that_does_not_exist_is_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pico_gene().expand(4, **choices)


# -- provenance and refusals -------------------------------------------------------------------------------


def test_a_descendant_says_where_it_comes_from() -> None:
    gene = pico_gene("sws", {"stages": (2, 2)})
    gene.metadata = {
        "digest": "xxh3_128:1",
        "ancestry": {"name": "levit_384"},
        "classes": ["a", "b", "c"],
        "preprocessing": {"mean": [0.1] * 3, "std": [0.4] * 3, "interpolation": "bilinear", "crop_pct": 1.0},
    }
    model = gene.expand(3, order="front-last-mid", seed=7)
    record = model.learngene
    assert (record["method"], record["settings"], record["options"]) == (
        "sws",
        {"stages": (2, 2)},
        {"order": "front-last-mid"},
    )
    assert (record["gene"], record["ancestry"], record["seed"]) == ("xxh3_128:1", {"name": "levit_384"}, 7)
    assert record["class_names"] == ["a", "b", "c"]
    assert ViTShape.from_dict(record["shape"]) == gene.shape.replace(depth=3)
    cfg = model.pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == ((0.1,) * 3, (0.4,) * 3, 1.0)
    assert (cfg["interpolation"], cfg["input_size"], cfg["tag"]) == ("bilinear", (3, 8, 8), "learngene_sws")
    assert gene.expand(3, num_classes=2).learngene["class_names"] is None
    assert gene.expand(3, num_classes=2, class_names=["x", "y"]).learngene["class_names"] == ["x", "y"]


@pytest.mark.parametrize(
    "key",
    [
        key
        for key, (name, *_) in METHODS.items()
        if name != "scratch" and not issubclass(KINDS[name], (Cutting, WAVE, SWEET, LeTs))
    ],
)
def test_another_width_or_head_is_refused(key: str) -> None:
    gene = gene_of(key)
    for changes, message in (
        ({"embed_dim": 32}, "has embed_dim 16, not 32|no row has width 32; rows have 8, 16"),
        ({"num_heads": 4}, "has num_heads 2, not 4|row 16 has 2 heads, not 4"),
        ({"mlp_ratio": 4.0}, "has mlp_ratio 2.0, not 4.0"),
        ({"patch_size": 2}, "has patch_size 4, not 2"),
        ({"in_chans": 1}, "has in_chans 3, not 1"),
        ({"class_token": True}, "has class_token False, not True"),
    ):
        for make in (gene.expand, gene.weights):
            with pytest.raises(ShapeError, match=message):
                make(gene.shape.replace(**changes))


@pytest.mark.parametrize("tensors", [{}, {"pos_embed": torch.zeros(1, 4, 8)}], ids=["none", "misshapen"])
def test_a_gene_is_not_made_from_missing_or_misshapen_tensors(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(LearngeneError, match="tensor 'pos_embed' is missing or does not have shape"):
        Learngene(pico_gene().method, pico_shape(), tensors)


def test_training_mode_reaches_the_auxiliary_model() -> None:
    from learngene.training.stage import set_drop_path

    gene = pico_gene()
    set_drop_path(gene.skeleton(), 0.5)
    images = batch(gene.shape, 8)
    assert torch.equal(gene(images), gene(images))
    gene.train()
    torch.manual_seed(0)
    assert not torch.equal(gene(images), gene(images))
    gene.eval()
    assert torch.equal(gene(images), gene.expand()(images))


def test_fields_that_differ_say_a_shape_and_a_width_alone_keeps_the_width_of_heads() -> None:
    gene = pico_gene("nested-slices", embed_dim=24, num_heads=3)  # heads are 8 wide
    record = gene.expand({"embed_dim": 16, "depth": 2}).learngene["shape"]
    assert [record[name] for name in ("embed_dim", "depth", "num_heads")] == [16, 2, 2]
    with pytest.raises(
        ShapeError, match=r"^embed_dim 20: this gene's heads are 8 wide, .* give 16 or 24, or say how many"
    ):
        gene.expand({"embed_dim": 20})
    with pytest.raises(ShapeError, match=r"^expand: shape must be a ViTShape, .*, not 3\.5$"):
        inspect.unwrap(Learngene.expand)(gene, 3.5)  # which the tests' type checker would refuse before


def test_fine_tuning_and_evaluation_take_the_width_of_a_gene_that_can_change_it(cli: Any, tmp_path: Path) -> None:
    pico_gene("nested-slices", img_size=8, patch_size=4, num_classes=10).save(tmp_path / "g.safetensors")
    judged = cli("eval", tmp_path / "g.safetensors", "--data", "digits", "--embed-dim", 8, "--depth", 2, "--json")
    assert judged.code == 0
    both = cli("eval", tmp_path / "g.safetensors", "--data", "digits", "--embed-dim", 8, "--path", "4+2")
    assert (both.code, "--path says depth, width and heads" in both.err) == (2, True)
    recipe = FinetuneRecipe.model_validate(
        {"model": str(tmp_path / "g.safetensors"), "data": {"source": "digits"}, "shape": {"embed_dim": 8}}
    )
    model = starting_model(recipe, open_splits(recipe.data).train)
    assert (model.embed_dim, model.blocks[0].attn.num_heads) == (8, 1)
