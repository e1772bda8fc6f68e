"""The super ancestry net: what it computes at the start, who learns, how samples are routed, what a gate sees."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from learngene.making.search.super_net import DatasetAdapter, RoutedBlock, SuperNet, routed
from learngene.recipe.search import Routing
from learngene.recipe.sections import Train
from learngene.training.optimizer import make_optimizer
from learngene.vits.shape import ViTShape

WIDTH, DEPTH = 16, 3


def ancestry(**changes):
    torch.manual_seed(0)
    fields = {"img_size": 8, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "num_classes": 4}
    return VisionTransformer(**(fields | changes)).eval().requires_grad_(False)


def images(count=6, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def net_of(model, **routing):
    return SuperNet(routed(model, Routing(**routing)))


def stir(net, scale=1.0):
    """Adapters that decide, and specific blocks that differ from the base blocks."""
    torch.manual_seed(2)
    for layer in net.layers:
        for weight in (layer.adapter.W1, layer.adapter.W2):
            nn.init.normal_(weight, std=scale)
        for parameter in layer.specific.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net


ROUTES, GATES = ("batch", "img"), ("straight-through", "two-branch")
NOISES, DESCRIPTORS = ("gaussian", "literal", "none"), ("mean", "cls", "vote")


@pytest.mark.parametrize(("noise", "descriptor"), [*zip(NOISES, DESCRIPTORS, strict=True), ("none", "mean")])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("route", ROUTES)
def test_the_net_starts_as_the_ancestry_whatever_its_gates_say(route, gate, noise, descriptor):
    model = ancestry()
    net = net_of(model, route=route, gate=gate, noise=noise, descriptor=descriptor)
    for layer in net.layers:
        nn.init.normal_(layer.adapter.W1, std=5.0, generator=torch.Generator().manual_seed(3))
    batch = images()
    with torch.no_grad():
        expected = model(batch)
    for training in (True, False):
        out = net.train(training)(batch)
        if route == "batch":
            assert torch.equal(out, expected)
        else:  # other sizes of matrices may be summed in another order
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"class_token": False, "global_pool": "avg"}, {"fc_norm": True, "global_pool": "avg"}]
)
def test_plain_vits_without_a_class_token_can_be_searched(changes):
    model = ancestry(**changes)
    batch = images()
    with torch.no_grad():
        assert torch.equal(net_of(model).eval()(batch), model(batch))


def test_another_image_size_resamples_the_positions_and_leaves_the_ancestry_alone():
    model = ancestry()
    before = copy.deepcopy(model.state_dict())
    net = SuperNet(routed(model, Routing(), 16))
    assert net(images(2, 16)).shape == (2, 4)
    assert net.model.pos_embed.shape[1] == 17
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("gate", [*GATES, "scale"])
def test_training_moves_what_ran_and_never_the_base(route, gate):
    model = ancestry()
    net = stir(net_of(model, route=route, gate=gate))
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = make_optimizer(net, Train(lr=0.01, lr_batch=None, weight_decay=0.1))
    stirred = {name for name, value in net.named_parameters() if value.requires_grad}
    assert not any(".base." in name for name in stirred)
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert held == {id(value) for value in net.parameters() if value.requires_grad}
    torch.manual_seed(0)
    net.train()(images()).square().sum().backward()
    ran = {
        f"model.blocks.{i}.specific."
        for i, layer in enumerate(net.layers)
        if (not layer.prefers.all() if route == "img" else 2 * int(layer.prefers.sum()) < len(layer.prefers))
    }
    grads = {name for name, value in net.named_parameters() if value.grad is not None}
    assert {name.partition("specific.")[0] + "specific." for name in grads if ".specific." in name} == ran
    assert {f"model.blocks.{i}.adapter.W1" for i in range(DEPTH)} <= grads
    optimizer.step()
    for name, value in net.named_parameters():
        moved = not torch.equal(value, before[name])
        assert not (moved and ".base." in name)
        assert not (moved and ".specific." in name and not name.startswith(tuple(ran))), name


def test_base_blocks_share_their_memory_with_the_ancestry():
    model = ancestry()
    net = net_of(model)
    for block, layer in zip(model.blocks, net.layers, strict=True):
        assert layer.base.attn.qkv.weight is block.attn.qkv.weight
        assert layer.specific.attn.qkv.weight is not block.attn.qkv.weight
    assert net.model.patch_embed.proj.weight is model.patch_embed.proj.weight
    assert net.model.norm.weight is not model.norm.weight
    assert net.model.norm.weight.requires_grad


def test_the_papers_super_net_has_170_89_million_parameters():
    shape = ViTShape.named("deit_base_patch16_224", class_token=True, num_classes=0)
    net = SuperNet(routed(shape.skeleton(), Routing()))
    count = sum(value.numel() for value in net.parameters())
    assert round(count / 1e6, 2) == 170.89
    trained = sum(value.numel() for value in net.parameters() if value.requires_grad)
    assert trained == 12 * (shape.layer_size() + 4 * 768) + 2 * 768


# -- what a gate sees ----------------------------------------------------------------------------------------


class Update(nn.Module):
    """A block that adds a fixed direction."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(value)

    def forward(self, x):
        return x + self.weight


def layer_of(spec):
    torch.manual_seed(4)
    layer = RoutedBlock(Update(torch.randn(WIDTH)), WIDTH, spec)
    layer.specific.weight.data = torch.randn(WIDTH)
    nn.init.normal_(layer.adapter.W1)
    return layer


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("gate", [*GATES, "scale"])
def test_gates_learn_by_the_formula_of_their_name(route, gate):
    layer = layer_of(Routing(route=route, gate=gate, noise="none"))
    x = torch.randn(7, 5, WIDTH, generator=torch.Generator().manual_seed(5), requires_grad=True)
    direction = torch.randn(7, 5, WIDTH, generator=torch.Generator().manual_seed(6))
    out = layer(x)
    found = torch.autograd.grad(
        (out * direction).sum(), [layer.adapter.W1, layer.specific.weight, x], allow_unused=True
    )

    p = (x.mean(1) @ layer.adapter.W1).softmax(-1)[:, 1]
    base = p >= 0.5
    if route == "batch":
        base = torch.full_like(base, 2 * int(base.sum()) >= 7)
    h_base, h_specific = x + layer.base.weight, x + layer.specific.weight
    h = torch.where(base[:, None, None], h_base, h_specific)
    o = torch.where(base[:, None, None], h_specific, h_base).detach()
    chosen = torch.where(base, p, 1 - p)[:, None, None]
    other = 1 - chosen
    expected = {
        "straight-through": x + (1 + chosen - chosen.detach()) * (h - x),
        "two-branch": h + (chosen - chosen.detach()) * h + (other - other.detach()) * o,
        "scale": chosen * h,
    }[gate]
    torch.testing.assert_close(out, expected)
    wanted = torch.autograd.grad(
        (expected * direction).sum(), [layer.adapter.W1, layer.specific.weight, x], allow_unused=True
    )
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None) or torch.all((mine if theirs is None else theirs) == 0)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert float(found[0].abs().max()) > 0


@pytest.mark.parametrize("route", ROUTES)
def test_a_gate_that_compares_some_samples_learns_what_it_would_from_these(route):
    x = torch.randn(8, 5, WIDTH, generator=torch.Generator().manual_seed(5))
    direction = torch.randn(8, 5, WIDTH, generator=torch.Generator().manual_seed(6))
    direction[2:] = 0  # the rest of the batch has nothing to say
    found = []
    for compared in (0.25, 1.0):
        layer = layer_of(Routing(route=route, gate="two-branch", compared=compared, noise="none"))
        out = layer(x)
        found.append((out.detach(), torch.autograd.grad((out * direction).sum(), layer.adapter.W1)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0][1].abs().max()) > 0


def test_copies_give_the_two_branch_gate_nothing_to_learn_from_and_straight_through_something():
    grads = {}
    for gate in GATES:
        net = net_of(ancestry(), gate=gate, noise="none")
        net.train()(images()).square().sum().backward()
        grads[gate] = max(float(layer.adapter.W1.grad.abs().max()) for layer in net.layers)
    assert grads["two-branch"] == 0 < grads["straight-through"]


# -- routing ---------------------------------------------------------------------------------------------------


def test_each_sample_goes_to_its_own_block_and_comes_back_in_its_place():
    layer = layer_of(Routing(route="img", noise="none"))
    x = torch.randn(9, 5, WIDTH, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        out = layer(x)
    assert 0 < int(layer.prefers.sum()) < 9
    for i in range(9):
        block = layer.base if layer.prefers[i] else layer.specific
        torch.testing.assert_close(out[i], block(x[i]))


@pytest.mark.parametrize(("preferring", "base_runs"), [(3, False), (4, True), (5, True)])
def test_the_majority_decides_for_the_batch_and_exactly_half_is_the_base_block(preferring, base_runs):
    layer = layer_of(Routing(noise="none"))
    sign = torch.tensor([1.0] * preferring + [-1.0] * (8 - preferring))
    layer.adapter.W1.data = torch.stack([-torch.ones(WIDTH), torch.ones(WIDTH)], dim=1)
    x = sign[:, None, None] * torch.ones(8, 5, WIDTH)
    with torch.no_grad():
        out = layer(x)
    torch.testing.assert_close(out, (layer.base if base_runs else layer.specific)(x))


def test_a_tie_of_a_sample_goes_to_the_base_block():
    layer = layer_of(Routing(noise="literal"))
    nn.init.zeros_(layer.adapter.W1)
    with torch.no_grad():
        layer(torch.randn(3, 5, WIDTH))
    assert layer.prefers.all()
    assert torch.all(layer.probability == 0.5)


def test_noise_is_random_in_training_only():
    adapter = DatasetAdapter(WIDTH, Routing(noise="gaussian"))
    x = torch.randn(400, 5, WIDTH)
    torch.manual_seed(0)
    first, second = adapter.train()(x)[0], adapter(x)[0]
    assert not torch.equal(first, second)
    assert 0.4 < float((first >= 0.5).float().mean()) < 0.6
    assert torch.all(adapter.eval()(x)[0] == 0.5)


def test_literal_noise_is_equation_1_as_printed():
    adapter = DatasetAdapter(WIDTH, Routing(noise="literal")).eval()
    torch.manual_seed(1)
    nn.init.normal_(adapter.W1)
    nn.init.normal_(adapter.W2)
    x = torch.randn(6, 5, WIDTH)
    mean = x.mean(1)
    expected = (mean @ adapter.W1 + torch.log(1 + torch.exp(mean @ adapter.W2))).softmax(-1)
    torch.testing.assert_close(adapter(x)[0], expected[:, 1])


def test_descriptors_look_at_the_tokens_of_their_name():
    torch.manual_seed(2)
    adapters = {name: DatasetAdapter(WIDTH, Routing(noise="none", descriptor=name)) for name in DESCRIPTORS}
    weight = torch.randn(WIDTH, 2)
    for adapter in adapters.values():
        adapter.W1.data = weight
    x = torch.randn(50, 5, WIDTH)
    p = (x @ weight).softmax(-1)[..., 1]
    torch.testing.assert_close(adapters["cls"](x)[0], p[:, 0])
    torch.testing.assert_close(adapters["mean"](x)[0], (x.mean(1) @ weight).softmax(-1)[:, 1])
    found, prefers = adapters["vote"](x)
    torch.testing.assert_close(found, p.mean(1))
    assert torch.equal(prefers, (p >= 0.5).sum(1) >= 3)


def test_the_class_token_cannot_tell_data_sets_apart_in_the_first_layer():
    net = net_of(ancestry(), descriptor="cls", noise="none")
    nn.init.normal_(net.layers[0].adapter.W1)
    with torch.no_grad():
        net(images())
    assert len(set(net.layers[0].probability.tolist())) == 1


def test_the_specific_share_is_what_preferring_the_base_weighs_down():
    net = stir(net_of(ancestry(), noise="none"))
    net(images())
    share = torch.stack([1 - layer.probability for layer in net.layers]).mean()
    torch.testing.assert_close(net.specific_share(), share)
    share.backward()
    assert all(layer.adapter.W1.grad is not None for layer in net.layers)


def test_adapters_are_not_decayed():
    net = net_of(ancestry())
    optimizer = make_optimizer(net, Train(lr=0.01, lr_batch=None, weight_decay=0.5))
    free = {id(value) for group in optimizer.param_groups if not group["weight_decay"] for value in group["params"]}
    assert all({id(layer.adapter.W1), id(layer.adapter.W2)} <= free for layer in net.layers)
