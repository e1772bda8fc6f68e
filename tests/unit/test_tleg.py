"""TLEG: what feeds which layer, with all ablations, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, combinations
from typing import Any

import pytest
import torch

from learngene.methods import method
from learngene.system.errors import LearngeneError
from learngene.vits.shape import MODULE_PARAMS
from pico import batch, pico_gene, pico_shape

MODULES = ("msa", "mlp", "ln")
SUBSETS = list(chain.from_iterable(combinations(MODULES, n) for n in (1, 2, 3)))
ABLATIONS = [{"modules": list(modules), "first_layer": first} for modules in SUBSETS for first in (1, 2, 3)]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_the_auxiliary_model_is_the_descendant_at_its_shape(settings: dict[str, Any]) -> None:
    gene = pico_gene("tleg", settings)
    images = batch(gene.shape)
    assert torch.equal(gene(images), gene.expand(gene.shape)(images))
    assert gene.expand(gene.shape).learngene["fresh"] == []


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_gradients_reach_every_tensor_of_the_gene(settings: dict[str, Any]) -> None:
    gene = pico_gene("tleg", settings)
    gene(batch(gene.shape)).square().sum().backward()
    untouched = [name for name, value in gene.tensors().items() if value.grad is None or not value.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 12])
def test_the_first_layer_is_b(depth: int) -> None:
    gene = pico_gene()
    weights = gene.weights(pico_shape(depth=depth))
    for name, value in weights.items():
        if name.startswith("blocks.0."):
            assert torch.equal(value, gene.tensors()[f"B.{name.removeprefix('blocks.0.')}"]), name
    assert f"blocks.{depth - 1}.mlp.fc2.bias" in weights


def test_a_has_no_gradient_in_the_first_layer() -> None:
    gene = pico_gene()
    weights = gene.weights(pico_shape(depth=3))
    sources = [gene.tensors()["A.attn.qkv.weight"], gene.tensors()["B.attn.qkv.weight"]]
    first = torch.autograd.grad(weights["blocks.0.attn.qkv.weight"].sum(), sources, allow_unused=True)
    second = torch.autograd.grad(weights["blocks.1.attn.qkv.weight"].sum(), sources)
    assert first[0] is None
    assert torch.equal(first[1], torch.ones_like(sources[1]))
    torch.testing.assert_close(second[0], torch.full_like(sources[0], 1 / 3))


@pytest.mark.parametrize("depth", [3, 4, 9])
def test_layers_lie_on_a_line(depth: int) -> None:
    gene = pico_gene()
    weights = gene.weights(pico_shape(depth=depth))
    for name in chain.from_iterable(MODULE_PARAMS.values()):
        layers = torch.stack([weights[f"blocks.{i}.{name}"] for i in range(depth)])
        torch.testing.assert_close(layers.diff(dim=0, n=2), torch.zeros_like(layers[2:]), atol=1e-6, rtol=0)
        assert layers.diff(dim=0).abs().max() > 0.01


def test_the_description_says_the_coefficients_unreduced() -> None:
    assert pico_gene().expand(4).learngene["layers"] == ["B", "B + 1/4 A", "B + 2/4 A", "B + 3/4 A"]


def test_partial_expansion_counts_inside_its_group() -> None:
    """Table 6, expansion from layer 3 on, six layers: two ordinary ones, then 0, 1/4, 2/4, 3/4."""
    gene = pico_gene("tleg", {"first_layer": 3}, depth=6)
    assert gene.expand(6).learngene["layers"] == ["layer0", "layer1", "B", "B + 1/4 A", "B + 2/4 A", "B + 3/4 A"]
    assert gene.expand(4).learngene["layers"] == ["layer0", "layer1", "B", "B + 1/2 A"]
    assert gene.expand(3).learngene["layers"] == ["layer0", "layer1", "B"]


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
    from learngene.genes.gene import Learngene

    gene = Learngene(method("tleg"), pico_shape(embed_dim=96), seed=3)
    tensors = gene.tensors()
    for source in "AB":
        assert tensors[f"{source}.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
        assert not tensors[f"{source}.mlp.fc1.bias"].any()
        assert not tensors[f"{source}.norm1.bias"].any()
    assert torch.equal(tensors["B.norm1.weight"], torch.ones(96))
    assert torch.equal(tensors["A.norm1.weight"], torch.zeros(96))
    assert tensors["pos_embed"].std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fresh_gene_is_a_function_of_its_seed(seed: int) -> None:
    from learngene.genes.gene import Learngene

    torch.manual_seed(99)
    first = Learngene(method("tleg"), pico_shape(), seed=seed).tensors()
    torch.manual_seed(1)
    again, other = (Learngene(method("tleg"), pico_shape(), seed=s).tensors() for s in (seed, seed + 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["A.mlp.fc1.weight"], other["A.mlp.fc1.weight"])


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
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        method("tleg", settings)


def test_an_auxiliary_model_without_a_second_expanded_layer_is_refused() -> None:
    with pytest.raises(LearngeneError, match="depth 4 has no second expanded layer; use depth 5 or more"):
        pico_gene("tleg", {"first_layer": 4})


def test_a_depth_without_an_expanded_layer_is_refused() -> None:
    with pytest.raises(LearngeneError, match="depth 2 is below 3, the first linearly expanded layer"):
        pico_gene("tleg", {"first_layer": 3}).expand(2)


def test_tleg_has_no_choice_at_expansion() -> None:
    with pytest.raises(LearngeneError, match="tleg: expansion options: unknown key 'order'"):
        pico_gene().expand(3, order="front-mid-last")
