"""Every path of a pool is an ordinary timm model: trained, saved, loaded by stock timm, a teacher."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from learngene import Ancestry, StitchedShape, condense, finetune, load_descendant, save_descendant, segment
from learngene.vits.segment import Segment
from pico import FAST, batch
from pools import POOLS, pool
from runs import same, state

KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "narrow row": (*POOLS["two rows"], "16:1-3"),
    "wide row": (*POOLS["two rows"], "32:1-3"),
    "up": (*POOLS["two rows"], "16:1-2+32:2-3"),
    "down": (*POOLS["down"], "32:1-1+16:2-3"),
    "no final norm": (*POOLS["no final norm"], "16:1-1+32:2-3"),
    "three rows": (*POOLS["three rows"], "16:1-1+24:2-2+32:3-3"),
    "unequal depth": (*POOLS["unequal depth"], "16:1-2+32:2-3"),
}
every_kind = pytest.mark.parametrize(("name", "settings", "path"), KINDS.values(), ids=KINDS)
stitched_kinds = pytest.mark.parametrize(("name", "settings", "path"), [KINDS[k] for k in ("up", "down")])


@every_kind
def test_a_path_trains_is_saved_and_loaded_bit_by_bit(
    name: str, settings: dict[str, Any], path: str, tmp_path: Path
) -> None:
    gene = pool(name, settings)
    gene.metadata["preprocessing"] = {"mean": [0.1] * 3, "std": [0.4] * 3, "crop_pct": 1.0}
    model, images = gene.expand(path), batch(gene.shape)
    logits = model(images)
    logits.square().mean().backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []
    save_descendant(model, tmp_path / "des")
    for loaded in (load_descendant(tmp_path / "des"), timm.create_model(f"local-dir:{tmp_path}/des", pretrained=True)):
        assert torch.equal(loaded.eval()(images), logits)
        assert same(state(loaded), state(model))
        assert tuple(timm.data.resolve_model_data_config(loaded)["mean"]) == (0.1,) * 3
    again = load_descendant(tmp_path / "des")
    assert again.learngene["layers"] == model.learngene["layers"]
    save_descendant(again, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "des/model.safetensors").read_bytes()
    other = load_descendant(tmp_path / "des", num_classes=7).eval()
    assert other(images).shape == (2, 7)
    assert same({k: v for k, v in state(other).items() if "head" not in k},
                {k: v for k, v in state(model).items() if "head" not in k})  # fmt: skip


LOADS = """
import json, sys
sys.modules["learngene"] = None
import timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    print(json.dumps(model(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)).double().tolist()))
    if sys.modules["learngene"] is None:
        del sys.modules["learngene"]
        import learngene
print([name for name in sys.modules if name.startswith("learngene.") and name.split(".")[1] in ("genes", "training")])
"""


@pytest.mark.slow
def test_stock_timm_loads_vits_without_learngene_and_paths_and_segmenters_behind_its_import(tmp_path: Path) -> None:
    models = {"vit": pool().expand("0+3"), "path": pool().expand("2+2"), "segmenter": segment(pool().expand("2+2"), 3)}
    for name, model in models.items():
        save_descendant(model, tmp_path / name)
    call = [sys.executable, "-c", LOADS, *(tmp_path / name for name in models)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *found, loaded = done.stdout.splitlines()
    for model, logits in zip(models.values(), found, strict=True):
        assert json.loads(logits) == model(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)).double().tolist()
    assert loaded == "[]"


@pytest.mark.slow
def test_importing_learngene_does_not_import_timm() -> None:
    code = "import sys, learngene; print([m for m in ('timm', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@stitched_kinds
def test_a_path_gets_a_new_head(name: str, settings: dict[str, Any], path: str) -> None:
    gene = pool(name, settings)
    model, images = gene.expand(path), batch(gene.shape)
    features = model.forward_features(images)
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(images).shape == (2, 5)
    assert torch.equal(model.forward_features(images), features)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.embed_dim)
    other = gene.expand(path, num_classes=5, seed=1)
    assert other.learngene["fresh"] == ["head.weight", "head.bias"]
    assert not other.head.bias.any()
    assert torch.equal(other.forward_features(images), features)


@stitched_kinds
def test_a_path_takes_another_image_size(name: str, settings: dict[str, Any], path: str) -> None:
    gene = pool(name, settings, class_token=True)
    model = gene.expand(gene.method.named_shape(gene.shape, path).replace(img_size=16))
    first = 1 if path.startswith("32") else 0
    expected = resample_abs_pos_embed(gene.tensors()[f"row{first}.pos_embed"], [4, 4], num_prefix_tokens=1)
    assert torch.equal(model.pos_embed, expected)
    assert model(batch(gene.shape.replace(img_size=16))).shape == (2, 3)
    own = gene.expand(path)
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in model.state_dict().items()
               if key != "pos_embed")  # fmt: skip


def test_partial_initialisation_leaves_other_layers_and_their_stitches_fresh() -> None:
    gene = pool()
    whole, part = gene.expand("2+2"), gene.expand("2+2", layers=[1, 4], seed=3)
    fresh = {key for key in whole.state_dict() if key.startswith(("blocks.1.", "blocks.2."))}
    assert set(part.learngene["fresh"]) == fresh
    assert "blocks.2.stitch.weight" in fresh
    for key, value in part.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]) == (key not in fresh), key


@stitched_kinds
def test_a_path_can_be_an_ancestry(name: str, settings: dict[str, Any], path: str, tmp_path: Path) -> None:
    model = pool(name, settings).expand(path, class_names=["blue", "green", "red"])
    save_descendant(model, tmp_path / "des")
    images = batch(pool().shape)
    for ancestry in (Ancestry(model), Ancestry(tmp_path / "des")):
        assert torch.equal(ancestry(images), model(images))
        assert ancestry.num_classes == 3
    assert Ancestry(tmp_path / "des").class_names == ["blue", "green", "red"]


def test_a_pool_is_distilled_from_a_path(images: Path) -> None:
    """Predictions, blocks and attention of a teacher whose blocks differ in width."""
    ancestry = Ancestry(pool(embed_dim=32).expand("16:1-2+32:2-3"))
    made = condense(
        ancestry,
        method="pool",
        shape=pool().shape,
        settings={"rows": [16, 32]},
        data={"source": str(images), "workers": 0},
        pool={"stitches": "ls", "images": 12},
        show=False,
        **{**FAST, "epochs": 1},
    )
    assert len(made.metadata["paths"]) == 9
    assert made.metadata["ancestry"] == ancestry.identity


def test_layers_of_a_path_learn_at_their_own_rates(images: Path) -> None:
    """Timm numbers the blocks; a stitch layer learns with the block that it leads into."""
    model = pool().expand("2+1")
    before = state(model)
    data = {"source": str(images), "workers": 0}
    train = {**FAST, "epochs": 1, "batch_size": 24, "weight_decay": 0.0, "layer_decay": 0.5}
    result = finetune(model, data=data, show=False, **train)
    assert result.updates == 1
    keys = ["blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "blocks.2.stitch.weight", "blocks.2.mlp.fc1.weight"]
    moved = [(state(model)[key] - before[key]).abs().median().item() for key in [*keys, "head.weight"]]
    assert moved == pytest.approx([3e-3 * rate for rate in (0.125, 0.25, 0.5, 0.5, 1)], rel=0.05)


def test_a_path_is_tuned_like_any_descendant(images: Path, tmp_path: Path) -> None:
    model = pool(settings={"rows": (16, 32), "final_norm": False}).expand("2+2")
    result = finetune(model, data={"source": str(images), "workers": 0}, out=tmp_path / "run", show=False, **FAST)
    loaded = load_descendant(tmp_path / "run" / "descendant")
    pixels: Tensor = batch(pool().shape)
    assert torch.equal(loaded.eval()(pixels), model.eval()(pixels))
    assert loaded.learngene["finetuned"]["accuracy"]["top1"] == result.final.top1


def test_a_stitched_path_needs_no_gene_to_be_described() -> None:
    model = pool().expand("2+1")
    fields = model.learngene["shape"]
    assert StitchedShape.from_dict(fields).segments == (Segment(16, 2, 1, 2), Segment(32, 4, 3, 3))
    assert json.loads(json.dumps(fields))["segments"] == [[16, 2, 1, 2], [32, 4, 3, 3]]


# -- what timm offers for any Vision Transformer ------------------------------------------------------------


def built(**arguments: Any) -> Any:
    fields = {"segments": [[16, 2, 1, 2], [32, 4, 3, 3]], "img_size": 8, "patch_size": 4, "num_classes": 3}
    return timm.create_model("learngene_stitched_vit", **{**fields, **arguments})


LOOK: dict[str, Callable[[Any], Any]] = {
    "drop_path_rate": lambda block: [getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)],
    "proj_drop_rate": lambda block: block.mlp.drop1.p,
    "attn_drop_rate": lambda block: block.attn.attn_drop.p,
    "init_values": lambda block: block.ls1.gamma[0].item() if hasattr(block.ls1, "gamma") else None,
    "qkv_bias": lambda block: block.attn.qkv.bias is not None,
}


@pytest.mark.parametrize(("name", "value"), [("proj_drop_rate", 0.25), ("attn_drop_rate", 0.25), ("init_values", 0.5),
                                             ("qkv_bias", False)])  # fmt: skip
def test_arguments_of_timm_reach_the_blocks_of_every_segment(name: str, value: Any) -> None:
    assert [LOOK[name](block) for block in built(**{name: value}).blocks] == [value] * 3


def test_dropped_paths_rise_over_all_segments() -> None:
    found = [LOOK["drop_path_rate"](block) for block in built(drop_path_rate=0.2).blocks]
    assert [rates[0] for rates in found] == [rates[1] for rates in found] == pytest.approx([0.0, 0.1, 0.2])


def test_a_path_is_a_backbone(tmp_path: Path) -> None:
    """As timm makes one of any ViT; here the maps have the widths of their rows."""
    plain, stitched = pool().expand("0+3"), pool().expand("2+1")
    images = batch(pool().shape)
    for model, widths in ((plain, [32, 32, 32]), (stitched, [16, 16, 32])):
        save_descendant(model, tmp_path / "des")
        found = timm.create_model(f"local-dir:{tmp_path}/des", pretrained=True, features_only=True)
        assert found.feature_info.channels() == widths
        assert [tuple(features.shape) for features in found.eval()(images)] == [(2, width, 2, 2) for width in widths]


def test_gradient_checkpointing_changes_nothing() -> None:
    model, images = pool().expand("2+2").train(), batch(pool().shape)
    expected = model(images)
    model.set_grad_checkpointing(True)
    found = model(images)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert model.blocks[2].stitch.weight.grad.any()


def test_a_loaded_path_takes_another_image_size(tmp_path: Path) -> None:
    save_descendant(pool(class_token=True).expand("2+2"), tmp_path / "des")
    model = load_descendant(tmp_path / "des", img_size=16)
    assert model.pos_embed.shape == (1, 17, 16)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
