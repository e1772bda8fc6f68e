"""Architectures of timm that are no plain ViT: as shapes, genes, descendants and ancestries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

import learngene
from comparisons import written
from learngene import Ancestry, LearngeneError, ViTShape, save_descendant
from learngene.genes.gene import Learngene
from learngene.making.extract import extract
from learngene.making.search.super_net import SuperNet, routed
from learngene.methods import method
from learngene.recipe.search import Routing
from learngene.system.errors import ShapeError
from pico import CLI, batch, condense_fields, finetune_fields

PICO: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 16, "num_classes": 3}

ARCHS = {
    "vit_small_patch14_reg4_dinov2": {},  # LayerScale, registers, positions of patches only
    "vit_small_patch16_dinov3": {"in_chans": 1},  # RoPE, no position embedding, no qkv bias
    "vit_giant_patch14_dinov2": {"in_chans": 4, "embed_dim": 48},  # packed SwiGLU
    "eva02_tiny_patch14_224": {},  # gated MLP, q and v bias in tensors of their own
    "vit_base_patch16_siglip_224": {},  # attention pool
    "vit_xsmall_patch16_clip_224": {},  # norm before the layers
    "beit_base_patch16_224": {},  # tables of relative positions
    "deit_tiny_distilled_patch16_224": {},  # two heads
    "vit_pwee_patch16_reg1_gap_256": {},  # parallel attention and MLP, q and k norm
    "naflexvit_base_patch16_gap": {},
    "flexivit_small": {},
    "vit_base_patch16_224": {"arch_args": {"global_pool": "avg", "init_values": 1e-5}},  # as MAE, with LayerScale
}


def arch_shape(arch: str, **changes: Any) -> ViTShape:
    return ViTShape.from_dict({"arch": arch, "in_chans": 3, **PICO, **ARCHS.get(arch, {}), **changes})


def fresh(name: str, shape: ViTShape, **settings: Any) -> Learngene:
    return Learngene(method(name, settings), shape)


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_and_multiply_adds_are_those_of_timms_model(arch: str) -> None:
    for depth, classes in ((1, 0), (5, 7)):
        shape = arch_shape(arch, depth=depth, num_classes=classes)
        model = timm.create_model(arch, **shape.timm_kwargs()).eval().requires_grad_(False)
        assert list(shape.all_params().items()) == [(n, tuple(p.shape)) for n, p in model.named_parameters()]
        assert shape.params() == sum(parameter.numel() for parameter in model.parameters())
        with FlopCounterMode(display=False) as counter:
            model(batch(shape, 1))
        assert 2 * shape.macs() == counter.get_total_flops()
        assert ViTShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("name", "settings"), [("tleg", {}), ("sws", {"stages": [2, 1]})])
def test_a_gene_trains_in_every_tensor_and_is_its_descendant(
    arch: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    gene = fresh(name, arch_shape(arch), **settings)
    images = batch(gene.shape)
    gene.train()(images).square().sum().backward()
    assert [key for key, value in gene.tensors().items() if value.grad is None or not value.grad.any()] == []
    gene.eval()
    assert torch.equal(gene(images), gene.expand()(images))
    gene.save(tmp_path / "g.safetensors")
    again = learngene.load(tmp_path / "g.safetensors")
    for changes in ({"depth": 5}, {"img_size": 32, "depth": 2, "num_classes": 4}):
        shape = again.shape.replace(**changes)
        model = again.expand(shape)
        assert sum(value.numel() for value in model.parameters()) == shape.params()
        save_descendant(model, tmp_path / "des")
        images = batch(shape)
        stock = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True).eval()
        assert torch.equal(stock(images), model(images))
        assert torch.equal(learngene.load_descendant(tmp_path / "des").eval()(images), model(images))


def test_names_and_modules_of_registers_and_layer_scale() -> None:
    """By hand: 16 patches, a class token, four registers."""
    shape = arch_shape("vit_small_patch14_reg4_dinov2")
    assert shape.stem_params() == {
        "cls_token": (1, 1, 32),
        "reg_token": (1, 4, 32),
        "pos_embed": (1, 16, 32),
        "patch_embed.proj.weight": (32, 3, 4, 4),
        "patch_embed.proj.bias": (32,),
    }
    assert (shape.num_tokens, shape.layout.patches) == (21, 16)
    norms = ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma")
    assert shape.module_params()["ln"] == norms
    layer = 12 * 32**2 + 13 * 32 + 2 * 32
    assert shape.params() == 5 * 32 + 16 * 32 + 3 * 16 * 32 + 32 + 3 * layer + 2 * 32 + 3 * 32 + 3


def test_sizes_that_are_not_given_are_the_architectures_own() -> None:
    shape = ViTShape.from_dict({"arch": "vit_small_patch14_reg4_dinov2", "depth": 5})
    own = {"embed_dim": 384, "num_heads": 6, "patch_size": 14, "img_size": 518, "in_chans": 3, "num_classes": 0}
    assert shape.to_dict() == {**own, "depth": 5, "arch": "vit_small_patch14_reg4_dinov2", "arch_args": {}}
    assert str(shape).startswith("vit_small_patch14_reg4_dinov2: 5 layers x 384 (6 heads)")


def test_a_plain_shape_says_nothing_of_architectures() -> None:
    assert not {"arch", "arch_args", "norm_eps"} & ViTShape().to_dict().keys()


def test_start_values_are_timms_and_a_starts_at_0_where_they_are_constant() -> None:
    tensors = fresh("tleg", arch_shape("vit_small_patch14_reg4_dinov2", arch_args={"init_values": 0.25})).tensors()
    constant = {"norm1.weight": 1.0, "norm2.bias": 0.0, "attn.qkv.bias": 0.0, "ls1.gamma": 0.25, "ls2.gamma": 0.25}
    for name, value in constant.items():
        assert (tensors[f"B.{name}"] == value).all(), name
        assert not tensors[f"A.{name}"].any(), name
    assert 0.015 < tensors["A.mlp.fc1.weight"].std() < 0.025
    assert not torch.equal(tensors["A.mlp.fc1.weight"], tensors["B.mlp.fc1.weight"])
    assert 0 < tensors["reg_token"].abs().max() < 1e-5


def test_the_same_seed_gives_the_same_gene_and_the_same_fresh_head() -> None:
    shape = arch_shape("eva02_tiny_patch14_224")
    first, second, third = (Learngene(method("tleg"), shape, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first.tensors()[name], value) for name, value in second.tensors().items())
    assert not torch.equal(first.tensors()["B.attn.proj.weight"], third.tensors()["B.attn.proj.weight"])
    heads = [first.expand(num_classes=9, seed=seed).head.weight for seed in (3, 3, 4)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weight_decay_spares_what_timm_spares() -> None:
    assert fresh("tleg", arch_shape("beit_base_patch16_224")).no_weight_decay() == {
        "cls_token",
        "A.attn.relative_position_bias_table",
        "B.attn.relative_position_bias_table",
    }


def test_a_plan_of_a_gene_needs_no_torch(tmp_path: Path) -> None:
    gene = fresh("tleg", arch_shape("vit_small_patch16_dinov3"))
    gene.save(tmp_path / "g.safetensors")
    code = (
        "import sys, learngene\n"
        f"rows = learngene.plan({str(tmp_path / 'g.safetensors')!r}, num_classes=7)\n"
        "print([(row.shape.depth, row.params, row.macs) for row in rows if row.shape.depth == 5])\n"
        "assert not {'torch', 'timm'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape = gene.shape.replace(depth=5, num_classes=7)
    assert done.stdout.strip() == str([(5, shape.params(), shape.macs())])


def test_a_gene_of_another_timm_is_refused_and_leaves_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    from learngene.genes.gene_file import PLACEHOLDER, read_header, seal
    from learngene.vits import known_layouts

    path = tmp_path / "g.safetensors"
    gene = fresh("tleg", arch_shape("vit_small_patch14_reg4_dinov2", img_size=20))
    gene.save(path)
    gene.save(tmp_path / "right.safetensors")
    right = dict(gene.shape.layout.layer)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["learngene"])
    told["layout"]["layer"]["ls3.gamma"] = [32]
    told["digest"] = PLACEHOLDER
    extra = {f"{layer}.ls3.gamma": torch.ones(32) for layer in "AB"}
    save_file(load_file(path) | extra, path, {"learngene": json.dumps(told, sort_keys=True)})
    seal(path, told)
    refused = pytest.raises(LearngeneError, match="its layout is not that of timm's vit_small_patch14_reg4_dinov2")
    with refused:
        learngene.load(path)
    monkeypatch.setattr(known_layouts, "_READ", {})  # as in a process that has not asked timm yet
    assert "ls3.gamma" in read_header(path).shape.layer_params()
    with refused:
        learngene.load(path)
    assert learngene.load(tmp_path / "right.safetensors").shape.layout.layer == right  # whatever the other file told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "vit_smal_patch14_dinov2"}, "no timm model; did you mean 'vit_small_patch14_dinov2'"),
        ({"arch": "samvit_base_patch16_224"}, "the layers of samvit_base_patch16_224 differ among themselves"),
        ({"arch": "resnet18"}, "resnet18 has no embed_dim, so it is no sequence of like layers"),
        ({"arch": "vit_small_patch16_rope_mixed_224"}, "'rope.freqs' of .* depends on the number of layers"),
        (
            {"arch": "xcit_nano_12_p16_224", "patch_size": 8},
            "running_mean', which is no parameter and so not in a gene",
        ),
        ({"arch": "beit_base_patch16_224", "class_token": True}, "beit_base_patch16_224 says class_token itself"),
        ({"arch": "beit_base_patch16_224", "arch_args": {"depth": 3}}, "write shape.depth, not shape.arch_args.depth"),
        ({"arch": "beit_base_patch16_224", "arch_args": {"wrong": 3}}, "unexpected keyword argument 'wrong'"),
        ({"arch": "beit_base_patch16_224", "arch_args": [3]}, "arch_args must be a mapping"),
        ({"arch": "beit_base_patch16_224", "arch_args": {"a": {}}}, "numbers, words and lists"),
        ({"arch_args": {"init_values": 1e-5}}, "arch_args are arguments of an arch"),
        ({"arch": 3}, "arch must be timm's name"),
    ],
)
def test_what_is_no_sequence_of_like_layers_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        ViTShape.from_dict({**PICO, "in_chans": 3, **fields}).params()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["levit_128s", "efficientvit_m0"])
def test_models_of_stages_are_no_sequence_of_like_layers(arch: str) -> None:
    with pytest.raises(ShapeError, match=f"{arch} has stages, each of sizes of its own, so it is no sequence of like"):
        ViTShape.from_dict({"arch": arch, "depth": 3})


@pytest.mark.parametrize(
    "name",
    ["pool", "sn-net", "tal", "logah", "ghn3", "mini-init", "weight-subcloning", "nested-slices", "fine", "lets"],
)
def test_methods_for_plain_vits_say_so(name: str) -> None:
    settings = {"rows": [16, 32]} if name in ("pool", "sn-net") else {}
    with pytest.raises(ShapeError, match=f"{name}: makes plain ViTs only, not beit_base_patch16_224; use a"):
        fresh(name, arch_shape("beit_base_patch16_224"), **settings)


def test_a_gene_makes_its_own_architecture_only() -> None:
    gene = fresh("tleg", arch_shape("flexivit_small"))
    with pytest.raises(ShapeError, match="this gene has arch flexivit_small, not ''; only its own arch"):
        gene.expand(ViTShape(**PICO))
    with pytest.raises(ShapeError, match=r"arch_args \{\}, not \{'init_values': 0.1\}"):
        gene.expand(gene.shape.replace(arch_args={"init_values": 0.1}))


# -- ancestries ------------------------------------------------------------------------------------------


def trained(shape: ViTShape, seed: int = 0) -> Any:
    """A timm model none of whose tensors is at its start value."""
    torch.manual_seed(seed)
    model = timm.create_model(shape.arch, **shape.timm_kwargs()).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_an_ancestry_is_read_off_and_its_layers_are_taken(arch: str, tmp_path: Path) -> None:
    shape = arch_shape(arch)
    model = trained(shape)
    images, state = batch(shape), model.state_dict()
    whole = extract(Ancestry(model), method="weight-selection")
    assert torch.equal(whole.expand()(images), model(images))
    assert whole.shape.timm_kwargs().items() >= shape.timm_kwargs().items()
    save_descendant(whole.expand(), tmp_path / "des")
    again = extract(tmp_path / "des", method="weight-selection")
    assert again.shape == whole.shape
    assert torch.equal(again.expand()(images), model(images))
    last = extract(Ancestry(model), method="vanilla-lg", settings={"last": 2}).expand(4).state_dict()
    block = extract(Ancestry(model), method="lsamd", settings={"layers": [1, 3]}).expand(5)
    for name in shape.layer_params():
        assert torch.equal(last[f"blocks.3.{name}"], state[f"blocks.2.{name}"])
        sources = [state[f"blocks.{i}.{name}"] for i in (0, 0, 2, 2, 2)]
        assert all(torch.equal(block.state_dict()[f"blocks.{i}.{name}"], value) for i, value in enumerate(sources))
    for rule in ("official", "aligned"):
        narrow = whole.expand(whole.shape.replace(embed_dim=shape.head_dim, num_heads=1, depth=2), rule=rule)
        assert narrow(images).isfinite().all()


def test_packed_tensors_are_selected_part_by_part() -> None:
    """Each half of a packed SwiGLU gives rows of its own, and never the other's."""
    shape = arch_shape("vit_giant_patch14_dinov2")
    model = trained(shape)
    gene = extract(Ancestry(model), method="weight-selection")
    narrow = gene.expand(gene.shape.replace(embed_dim=24, num_heads=1)).state_dict()
    rows = narrow["blocks.0.mlp.fc1.weight"].shape[0]
    fc1 = model.state_dict()["blocks.0.mlp.fc1.weight"]
    half = fc1.shape[0] // 2
    for part, name in enumerate(("gate", "value")):
        mine = narrow["blocks.0.mlp.fc1.weight"][part * rows // 2 : (part + 1) * rows // 2]
        theirs = fc1[part * half : (part + 1) * half, ::2]
        assert all(any(torch.equal(row, other) for other in theirs) for row in mine), name


def test_a_model_that_computes_otherwise_than_recorded_is_refused() -> None:
    model = trained(arch_shape("vit_small_patch14_reg4_dinov2"))
    model.blocks[1].mlp.act = torch.nn.ReLU()
    with pytest.raises(LearngeneError, match="with the recorded arguments computes otherwise than this model"):
        extract(Ancestry(model), method="vanilla-lg")


@pytest.mark.parametrize("arch", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_a_super_net_computes_what_its_ancestry_does(arch: str) -> None:
    model = trained(arch_shape(arch))
    images = batch(arch_shape(arch))
    net = SuperNet(routed(model, Routing()))
    assert torch.equal(net(images), model(images))
    assert len(net.layers) == 3
    net.train()(images).square().sum().backward()
    larger = SuperNet(routed(model, Routing(), 32))
    assert larger(batch(arch_shape(arch, img_size=32))).shape == (2, 3)


# -- runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"),
        *("vit_base_patch16_siglip_224", "vit_xsmall_patch16_clip_224", "beit_base_patch16_224"),
    ],
)
def test_a_gene_of_another_architecture_through_all_commands(
    arch: str, cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    """Condensed, planned, expanded, tuned and evaluated; with RoPE and with a mask of attention also exported."""
    gene, tuned, model = tmp_path / "run.safetensors", tmp_path / "tuned", tmp_path / "des"
    shape = {"arch": arch, **PICO, "img_size": 8, "in_chans": 3}
    recipe = written(tmp_path / "c.yaml", condense_fields(ancestry_folder, images, tmp_path / "run", shape=shape))
    tune = written(tmp_path / "f.yaml", finetune_fields(model, images, tuned))
    for command in (
        f"check {recipe}",
        f"condense {recipe}",
        f"info {gene}",
        f"plan {gene} --max-params 100000",
        f"expand {gene} --depth 2 --out {model}",
        f"finetune {tune}",
        f"eval {tuned / 'descendant'} --data {images}",
        *([f"export {model} --out {tmp_path / 'model.onnx'}"] if "dinov3" in arch or "beit" in arch else []),
    ):
        outcome = cli(*command.split())
        assert outcome.code == 0, f"{command}: {outcome.err}"
    assert learngene.load(gene).shape.arch == arch


def test_the_families_that_were_tried_are_listed(cli: CLI) -> None:
    outcome = cli("methods", "--families")
    assert outcome.code == 0
    row = next(line for line in outcome.out.splitlines() if line.startswith("vit_small_patch14_reg4_dinov2 "))
    assert row.split()[-3:] == ["ok"] * 3
    row = next(line for line in outcome.out.splitlines() if line.startswith("resnet18 "))
    assert row.split()[-3:] == ["ok", "refused", "refused"]
