"""TLEG: what feeds which layer, with all ablations, and what is refused."""

from fractions import Fraction
from itertools import chain, combinations
from typing import Any

import pytest
import torch

from learngene.genes.gene import Learngene
from learngene.methods import method
from learngene.system.errors import LearngeneError
from learngene.vits.shape import MODULE_PARAMS
from pico import batch, pico_gene, pico_shape

MODULES = ("msa", "mlp", "ln")
SUBSETS = list(chain.from_iterable(combinations(MODULES, n) for n in (1, 2, 3)))
ABLATIONS = [{"modules": list(modules), "first_layer": first} for modules in SUBSETS for first in (1, 2, 3)]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_the_auxiliary_model_is_the_descendant_at_its_shape_and_trains_the_whole_gene(settings: dict[str, Any]) -> None:
    gene = pico_gene("tleg", settings)
    images, descendant = batch(gene.shape), gene.expand(gene.shape)
    logits = gene(images)
    assert torch.equal(logits, descendant(images))
    assert descendant.learngene["fresh"] == []
    logits.square().sum().backward()
    assert [name for name, value in gene.tensors().items() if value.grad is None or not value.grad.any()] == []


def test_partial_expansion_counts_inside_its_group() -> None:
    """Table 6, expansion from layer 3 on, six layers: two ordinary ones, then 0, 1/4, 2/4, 3/4."""
    gene = pico_gene("tleg", {"first_layer": 3}, depth=6)
    assert gene.expand(6).learngene["layers"] == ["layer0", "layer1", "B", "B + 1/4 A", "B + 2/4 A", "B + 3/4 A"]
    assert gene.expand(4).learngene["layers"] == ["layer0", "layer1", "B", "B + 1/2 A"]
    assert gene.expand(3).learngene["layers"] == ["layer0", "layer1", "B"]
    assert pico_gene().expand(4).learngene["layers"] == ["B", "B + 1/4 A", "B + 2/4 A", "B + 3/4 A"]


def test_modules_that_are_not_expanded_start_fresh_at_another_depth() -> None:
    gene = pico_gene("tleg", {"modules": ["msa"]})
    model = gene.expand(3, seed=5)
    record = model.learngene
    assert record["layers"] == ["msa: B, mlp and ln: fresh", *(f"msa: B + {i}/3 A, mlp and ln: fresh" for i in (1, 2))]
    assert set(record["fresh"]) == {
        f"blocks.{i}.{name}" for i in range(3) for module in ("mlp", "ln") for name in MODULE_PARAMS[module]
    }
    state = model.state_dict()
    assert torch.equal(state["blocks.1.norm1.weight"], torch.ones(16))
    assert torch.equal(state["blocks.0.attn.qkv.weight"], gene.tensors()["B.attn.qkv.weight"])


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_the_gene_holds_what_its_settings_say(settings: dict[str, Any]) -> None:
    shape, modules, first = pico_shape(), settings["modules"], settings["first_layer"]
    names = method("tleg", settings).gene_tensors(shape).keys()
    for module, params in MODULE_PARAMS.items():
        for name in params:
            assert (f"A.{name}" in names) == (f"B.{name}" in names) == (module in modules)
            for i in range(shape.depth):
                assert (f"layer{i}.{name}" in names) == (module not in modules or i + 1 < first)


def test_a_fresh_gene_starts_as_the_authors_auxiliary_model() -> None:
    """Weights of A and B both std 0.02, so that the layers' std grows; every layer's norm starts at 1."""
    torch.manual_seed(99)
    tensors = Learngene(method("tleg"), pico_shape(embed_dim=96), seed=3).tensors()
    torch.manual_seed(1)
    again, other = (Learngene(method("tleg"), pico_shape(embed_dim=96), seed=seed).tensors() for seed in (3, 4))
    assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    assert not torch.equal(tensors["A.mlp.fc1.weight"], other["A.mlp.fc1.weight"])
    for source in "AB":
        assert tensors[f"{source}.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
        assert not tensors[f"{source}.mlp.fc1.bias"].any()
        assert not tensors[f"{source}.norm1.bias"].any()
    assert torch.equal(tensors["B.norm1.weight"], torch.ones(96))
    assert torch.equal(tensors["A.norm1.weight"], torch.zeros(96))
    assert tensors["pos_embed"].std().item() == pytest.approx(0.02, rel=0.2)


def test_the_terms_are_exact_fractions() -> None:
    """Thirds and sevenths are rounded once, at the end."""
    layers = method("tleg").terms(pico_shape(), pico_shape(depth=7))  # type: ignore[attr-defined]
    assert [dict(layer["msa"])["A"] for layer in layers] == [Fraction(i, 7) for i in range(7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": []}, "modules is empty"),
        ({"modules": ["mha"]}, "unknown module 'mha'; did you mean 'msa'"),
        ({"first_layer": 0}, "first_layer must be a positive integer, not 0"),
        ({"first_layer": "2"}, "first_layer must be a positive integer, not '2'"),
        ({"first_layers": 2}, "unknown key 'first_layers'; did you mean 'first_layer'"),
        ({"modules": 3}, "modules must be a list of msa, mlp, ln, not 3"),
        ({"modules": [["msa"]]}, "unknown module"),
        ({"first_layer": True}, "first_layer must be a positive integer, not True"),
        ({"first_layer": 4}, "depth 4 has no second expanded layer; use depth 5 or more"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        pico_gene("tleg", settings)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (2, {}, "depth 2 is below 3, the first linearly expanded layer"),
        (3, {"order": "front-mid-last"}, "tleg: expansion options: unknown key 'order'"),
    ],
)
def test_what_cannot_be_made_is_refused(depth: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        pico_gene("tleg", {"first_layer": 3}).expand(depth, **options)
