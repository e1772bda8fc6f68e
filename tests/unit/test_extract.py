"""Extracting: genes read off a trained ViT, what is no plain ViT, and neurons ranked on data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

import learngene
from learngene import Ancestry, save_descendant, scratch
from learngene.making.extract import extract, mean_activity, plain_shape
from learngene.methods import METHODS
from learngene.system.errors import LearngeneError
from pico import CLI, COLOURS, batch, make_images, pico_gene, pico_shape

PLAIN: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
EXTRACTED = [name for name, kind in METHODS.items() if "extract" in kind.origins]


def timm_vit(**changes: Any) -> VisionTransformer:
    """A timm ViT of pico size with random tensors, whose configuration says its size."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**PLAIN, "mlp_ratio": 2.0, **changes}).eval()
    size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    model.pretrained_cfg = {"architecture": "pico", "input_size": size, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def extracted(name: str, ancestry: Any, images: Path, **arguments: Any) -> Any:
    data = {"source": str(images), "workers": 0} if METHODS[name].needs_data else None
    return extract(ancestry, method=name, data=data, **arguments)


# -- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"mlp_ratio": 2.7, "num_heads": 4, "depth": 3},
        {"in_chans": 1, "img_size": 12},
        {"num_classes": 0},
        {"dynamic_img_size": True},
    ],
    ids=str,
)
def test_a_plain_vit_is_recognised_and_made_again(changes: dict[str, Any]) -> None:
    model = timm_vit(**changes)
    gene = extract(Ancestry(model), method="pre-fin")
    assert gene.shape.class_token == (model.cls_token is not None)
    assert gene.shape.ending == ("official" if isinstance(model.fc_norm, nn.LayerNorm) else "aligned")
    images = batch(gene.shape, 4)
    assert torch.equal(gene.expand()(images), model(images))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == gene.shape.all_params()


@pytest.mark.parametrize("name", ["pre-fin", "simple-lg", "weight-selection"])
def test_a_gene_of_all_layers_is_the_ancestry(name: str, ancestry_folder: Path) -> None:
    ancestry = Ancestry(ancestry_folder)
    gene = extract(ancestry, method=name)
    images = batch(gene.shape)
    assert torch.equal(gene.expand()(images), ancestry(images))
    assert gene.tensors()["layer1.attn.qkv.bias"].data_ptr() != ancestry.model.blocks[1].attn.qkv.bias.data_ptr()


def test_vanilla_lg_takes_the_last_layers_and_with_stem_the_rest() -> None:
    model = scratch(pico_shape(ending="official"), 3)
    ancestry = Ancestry(model)
    gene = extract(ancestry, method="vanilla-lg")
    assert {name.partition(".")[0] for name in gene.tensors()} == {"layer1", "layer2", "layer3"}
    assert torch.equal(gene.tensors()["layer2.mlp.fc1.weight"], model.blocks[2].mlp.fc1.weight)
    with_stem = extract(ancestry, method="vanilla-lg", settings={"last": 1, "stem": True})
    assert torch.equal(with_stem.tensors()["norm.weight"], model.fc_norm.weight)
    assert torch.equal(with_stem.tensors()["pos_embed"], model.pos_embed)
    assert with_stem.expand(3).learngene["layers"] == ["fresh", "fresh", "layer3"]


@pytest.mark.parametrize("name", EXTRACTED)
def test_an_extracted_gene_survives_its_file_and_makes_timm_models(
    name: str, ancestry_folder: Path, images: Path, tmp_path: Path
) -> None:
    settings = {"vanilla-lg": {"last": 1}, "lsamd": {"layers": [1, 2]}}.get(name)
    ancestry = Ancestry(ancestry_folder)
    gene = extracted(name, ancestry, images, settings=settings)
    gene.save(tmp_path / "g.safetensors")
    loaded = learngene.load(tmp_path / "g.safetensors")
    assert all(torch.equal(value, gene.tensors()[key]) for key, value in loaded.tensors().items())
    assert loaded.metadata["ancestry"] == ancestry.identity
    assert loaded.metadata["classes"] == sorted(COLOURS)
    assert loaded.metadata["preprocessing"]["mean"] == list(ancestry.preprocessing["mean"])
    assert not loaded.metadata.keys() & {"training", "accuracy"}
    assert ("data" in loaded.metadata) is (name == "weight-subcloning")  # whose neurons are ranked on data
    assert {"torch", "timm", "learngene"} <= loaded.metadata["versions"].keys()
    model = loaded.expand(2)
    save_descendant(model, tmp_path / "des")
    stock = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True).eval()
    pictures = batch(gene.shape)
    assert torch.equal(stock(pictures), model(pictures))
    assert model.learngene["class_names"] == sorted(COLOURS)


def test_the_ancestry_may_be_named_by_its_folder(ancestry_folder: Path) -> None:
    gene = extract(ancestry_folder, method="pre-fin")
    assert gene.metadata["ancestry"]["source"] == "pico-vit"


# -- refusals ----------------------------------------------------------------------------------------------


def test_another_architecture_is_refused() -> None:
    ancestry = Ancestry("levit_128s", pretrained=False)
    with pytest.raises(
        LearngeneError, match=r"from a timm Vision Transformer whose layers are alike: it is a LevitDistilled"
    ):
        extract(ancestry, method="pre-fin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_values": 0.1}, "tensor 'blocks.0.ls1.gamma' is .* where a plain one has none"),
        ({"reg_tokens": 2}, "tensor 'pos_embed' is"),
        ({"qk_norm": True}, "k_norm"),
        ({"qkv_bias": False}, "tensor 'blocks.0.attn.qkv.bias' is missing"),
        ({"pre_norm": True}, "norm_pre"),
        ({"no_embed_class": True}, "tensor 'pos_embed' is"),
        ({"pos_embed": "none"}, "tensor 'pos_embed' is missing"),
        ({"global_pool": "avg"}, "tensor 'cls_token' is"),
        ({"global_pool": "map"}, "attn_pool"),
        ({"act_layer": nn.ReLU}, "computes with ReLU"),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-12)}, "norm_eps must be 1e-6 or 1e-5, which timm can name"),
        ({"fc_norm": True}, "not a plain Vision Transformer"),
        ({"img_size": (8, 12)}, "its images or patches are not square"),
    ],
    ids=str,
)
def test_a_vit_with_something_more_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        plain_shape(Ancestry(timm_vit(**changes)))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False, "global_pool": "max"},
        {"class_token": False, "global_pool": "avgmax"},
        {"class_token": False, "global_pool": ""},
        {"block_fn": ResPostBlock},
        {"act_layer": partial(nn.GELU, approximate="tanh")},
    ],
    ids=["max", "avgmax", "no pooling", "norms after", "tanh"],
)
def test_a_vit_that_computes_otherwise_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LearngeneError):
        plain_shape(Ancestry(timm_vit(**changes)))


def test_an_mlp_of_any_width_is_recognised() -> None:
    model = timm_vit(embed_dim=56, mlp_ratio=61.5 / 56)
    assert plain_shape(Ancestry(model)).hidden_dim == 61


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tleg", "cannot be extracted: its gene is made by `learngene condense`; methods that can: lsamd, simple-lg, "),
        ("share-init", "cannot be extracted: its gene is made by `learngene condense`"),
        ("distilled", "cannot be extracted: its gene is made by `learngene condense`"),
        ("scratch", "cannot be extracted: it needs no gene"),
        ("vanila-lg", "unknown method 'vanila-lg'; did you mean 'vanilla-lg'"),
    ],
)
def test_a_method_that_is_not_extracted_is_refused(name: str, message: str, ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match=message):
        extract(ancestry_folder, method=name)


def test_data_is_asked_for_where_it_is_needed_and_only_there(ancestry_folder: Path, images: Path) -> None:
    with pytest.raises(LearngeneError, match="weight-subcloning ranks neurons on data; give some"):
        extract(ancestry_folder, method="weight-subcloning")
    for name in set(EXTRACTED) - {"weight-subcloning"}:
        with pytest.raises(LearngeneError, match=f"method {name} looks at no data; leave it out"):
            extract(ancestry_folder, method=name, data=str(images))


def test_wrong_settings_are_refused(ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match="the ancestry has 2 layers, fewer than last=3"):
        extract(ancestry_folder, method="vanilla-lg")
    with pytest.raises(LearngeneError, match="settings of method 'pre-fin': unknown key 'last'"):
        extract(ancestry_folder, method="pre-fin", settings={"last": 1})


# -- activity ----------------------------------------------------------------------------------------------


def plain_activity(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """Mean magnitudes, computed layer by layer by hand over all images at once."""
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    if model.cls_token is not None:
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
    x = x + model.pos_embed
    residual, out = [], {}
    for i, block in enumerate(model.blocks):
        residual.append(x)
        count, tokens, width = x.shape
        heads = block.attn.num_heads
        qkv = block.attn.qkv(block.norm1(x)).view(count, tokens, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        values = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v
        out[f"blocks.{i}.heads"] = values.abs().mean(dim=(0, 2, 3))
        x = x + block.attn.proj(values.transpose(1, 2).flatten(2))
        residual.append(x)
        hidden = F.gelu(block.mlp.fc1(block.norm2(x)))
        out[f"blocks.{i}.hidden"] = hidden.abs().mean(dim=(0, 1))
        x = x + block.mlp.fc2(hidden)
    return {"residual": torch.stack(residual).abs().mean(dim=(0, 1, 2)), **out}


@pytest.mark.parametrize("changes", [{}, {"class_token": False, "global_pool": "avg"}, {"num_heads": 4}], ids=str)
def test_activity_is_the_mean_magnitude_over_images_and_tokens(changes: dict[str, Any]) -> None:
    model = timm_vit(**changes)
    images = batch(pico_shape(), 7)
    with torch.no_grad():
        expected = plain_activity(model, images)
    found = mean_activity(model, [images[:4], images[4:]])  # batches of different size count by their images
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_watching_leaves_no_trace() -> None:
    model = timm_vit()
    mean_activity(model, [batch(pico_shape())])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_subcloned_gene_ranks_on_the_normalised_training_images(ancestry_folder: Path, images: Path) -> None:
    from learngene.data.batches import eval_loader
    from learngene.data.open_split import open_split
    from learngene.data.preprocessing import fill_preprocessing
    from learngene.making.finetune import data_section

    ancestry = Ancestry(ancestry_folder)
    spec = fill_preprocessing(data_section({"source": str(images), "workers": 0}), ancestry.model.pretrained_cfg)
    loader = eval_loader(open_split(spec, "train"), spec, img_size=8, in_chans=3)
    everything = torch.cat([pictures for pictures, _ in loader])
    assert len(everything) == 24
    with torch.no_grad():
        order = plain_activity(ancestry.model, everything)["residual"].argsort(descending=True, stable=True)
    gene = extracted("weight-subcloning", ancestry, images)
    torch.testing.assert_close(gene.tensors()["pos_embed"], ancestry.model.pos_embed[..., order])


def test_the_images_have_the_size_of_the_model(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1, embed_dim=12, num_heads=2)
    images = make_images(tmp_path / "images", train=1, val=1)
    assert extracted("weight-subcloning", Ancestry(model), images).shape.img_size == 32


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_writes_a_gene_that_can_be_planned_and_expanded(
    cli: CLI, ancestry_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "g.safetensors"
    result = cli("extract", ancestry_folder, "--method", "weight-selection", "--out", out, "--set", "head=false")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{out}: weight-selection, 0.00")
    assert result.out.endswith(f"next: learngene plan {out}\n")
    gene = learngene.load(out)
    assert gene.method == METHODS["weight-selection"](head=False)  # type: ignore[call-arg]
    assert cli("info", out).out.splitlines()[4].endswith(gene.metadata["ancestry"]["sha256"][:12])
    planned = cli("plan", out)
    assert "width   16" in planned.out
    assert "width    4" in planned.out
    narrow = cli("expand", out, "--depth", 1, "--embed-dim", 8, "--out", tmp_path / "des")
    assert narrow.code == 0, narrow.err
    assert "2 tensors start fresh, the first is head.weight" in narrow.out
    model = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True)
    assert (model.embed_dim, model.blocks[0].attn.num_heads) == (8, 2)  # heads keep their width


def test_the_command_stores_half_precision_and_ranks_on_data(
    cli: CLI, ancestry_folder: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "g.safetensors"
    given = ["--method", "weight-subcloning", "--data", images, "--out", out, "--dtype", "bfloat16"]
    result = cli("extract", ancestry_folder, *given)
    assert result.code == 0, result.err
    assert learngene.load(out).shape == plain_shape(Ancestry(ancestry_folder))


def test_wrong_input_gets_one_line(refused: Callable[..., str], ancestry_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.safetensors"
    assert "genes are .safetensors files" in refused(
        "extract", ancestry_folder, "--method", "vanilla-lg", "--out", tmp_path / "gene"
    )
    assert "cannot be extracted" in refused("extract", ancestry_folder, "--method", "sws", "--out", out)
    needs = refused("extract", ancestry_folder, "--method", "weight-subcloning", "--out", out)
    assert "ranks neurons on data" in needs
    assert "has 2 layers" in refused("extract", ancestry_folder, "--method", "vanilla-lg", "--out", out)
    assert "no timm model" in refused("extract", "vit_tny", "--method", "pre-fin", "--out", out)
    out.write_text("mine")
    refused("extract", ancestry_folder, "--method", "pre-fin", "--out", out)
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


def test_a_gene_extracted_by_hand_says_the_same(ancestry_folder: Path, cli: CLI, tmp_path: Path) -> None:
    """The command and the function give the same digest: nothing of the day or the path is stored."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    extract(ancestry_folder, method="simple-lg").save(first)
    assert cli("extract", ancestry_folder, "--method", "simple-lg", "--out", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert pico_gene("simple-lg").method == learngene.load(first).method
