"""Checkpoint files of others: found below any wrapper, loaded into timm's model, and nothing in them is run."""

import argparse
import json
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from learngene import Ancestry
from learngene.genes.gene_file import read_header
from learngene.system.errors import LearngeneError
from learngene.vits.checkpoint import is_checkpoint, load_checkpoint
from pico import CLI, random_tensors

VIT = "vit_tiny_patch16_224"
SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
ARGUMENTS = {**SIZE, "num_classes": 3}
FLAGS = ["--architecture", VIT, "--model-args", json.dumps(SIZE)]

State = dict[str, Tensor]


def weights(arguments: dict[str, Any] = ARGUMENTS, architecture: str = VIT) -> State:
    shapes = timm.create_model(architecture, **arguments).state_dict()
    return random_tensors({name: tuple(tensor.shape) for name, tensor in shapes.items()})


def below(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def number(value: float) -> State:
    """Weights that say which ones they are by the head's bias."""
    return weights() | {"head.bias": torch.full((3,), float(value))}


def saved(path: Path, content: Any, name: str = "w.pth", **options: Any) -> Path:
    torch.save(content, path / name, **options)
    return path / name


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(LearngeneError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# -- wrappers ----------------------------------------------------------------------------------------------


def dino(state: State) -> Any:
    """A teacher behind a projection that only pretraining has."""
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return {"teacher": below("backbone.", headless) | {"head.mlp.0.weight": torch.ones(2, 8)}, "epoch": 3}


def autoencoder(state: State) -> Any:
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    extra = {"mask_token": torch.ones(1, 1, 4), "decoder_pred.weight": torch.ones(2, 4)}
    return {"model": headless | extra | {"decoder_blocks.0.norm1.weight": torch.ones(4)}}


class Settings:
    """A class of somebody's own, which is not there when the file is read."""

    def __init__(self, value: object = None) -> None:
        self.value = value


ACCELERATED = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}, "scaler": None}
WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    **{
        prefix: lambda state, prefix=prefix: below(prefix, state)  # type: ignore[misc]
        for prefix in ("module.", "_orig_mod.", "model.", "backbone.", "teacher.", "student.", "_orig_mod.module.")
    },
    "model": lambda state: {"model": below("_orig_mod.module.", state), **ACCELERATED},
    "average alone": lambda state: {"model_ema": state, "epoch": 3},
    "Lightning": lambda state: {"state_dict": below("model.", state), "pytorch-lightning_version": "2"},
    "timm": lambda state: {"arch": VIT, "state_dict": state, "args": argparse.Namespace(model=VIT), "metric": 1.0},
    "own classes": lambda state: {"model": OrderedDict(state), "config": Settings(Settings()), "list": [Settings()]},
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
    "transposed in memory": lambda state: {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in state.items()
    },
    "keys that are no names": lambda state: {**state, 3: torch.ones(1), ("a",): 1},  # type: ignore[dict-item]
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_below_any_wrapper(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    state = weights()
    model = load_checkpoint(saved(tmp_path, wrap(state)), VIT, SIZE)
    assert model.num_classes == 3  # as many as the file's head
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


BESIDE = {
    "Lightning": ("model.backbone.", "model.head."),
    "top": ("model.", "head."),
    "classifier": ("encoder.module.", "classifier."),
    "sequence": ("net.vit.", "net.fc.1."),
}


@pytest.mark.parametrize(("prefix", "head"), BESIDE.values(), ids=BESIDE)
def test_a_head_that_stands_beside_the_model_is_taken(prefix: str, head: str, tmp_path: Path) -> None:
    state = number(2.0)
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    wrapped = below(prefix, bare) | {f"{head}{part}": state[f"head.{part}"] for part in ("weight", "bias")}
    model = load_checkpoint(saved(tmp_path, {"state_dict": wrapped}), VIT, SIZE)
    assert model.head.bias.tolist() == [2.0] * 3
    assert torch.equal(model.head.weight, state["head.weight"])


def test_what_stands_beside_the_model_and_is_no_head_is_told(tmp_path: Path) -> None:
    state = below("net.vit.", {name: t for name, t in weights().items() if not name.startswith("head.")})
    projector = {"net.head.0.weight": torch.ones(3, 8), "net.head.2.weight": torch.ones(3, 8)}
    with pytest.warns(UserWarning, match=r"not used is what stands beside it: head \(2 tensors\)"):
        assert load_checkpoint(saved(tmp_path, state | projector), VIT, SIZE).num_classes == 0


@pytest.mark.parametrize(
    "name", ["w.pth", "w.PT", "w.ckpt", "w.Pth.Tar", "w.bin", "w.SafeTensors", "folder/model.safetensors"]
)
def test_suffixes_and_folders_of_checkpoints(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (save_file if name.lower().endswith("safetensors") else torch.save)(number(2.0), path)
    source = path.parent if "/" in name else path
    assert is_checkpoint(source, VIT)
    assert Ancestry(source, architecture=VIT, model_args=SIZE).model.head.bias.tolist() == [2.0] * 3


@pytest.mark.parametrize("wrap", [dino, autoencoder], ids=["DINO", "MAE"])
def test_what_only_pretraining_has_is_left_out(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    state = weights()
    with pytest.warns(UserWarning, match="has no head for classes, so the model gives features alone"):
        model = load_checkpoint(saved(tmp_path, wrap(state)), VIT, SIZE)
    assert model.num_classes == 0
    assert torch.equal(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert "has no head; leave model_args.num_classes out" in refusal(
        lambda: load_checkpoint(tmp_path / "w.pth", VIT, ARGUMENTS)
    )


CLIP = {
    "visual.conv1.weight": "patch_embed.proj.weight",
    "visual.positional_embedding": "pos_embed",
    "visual.ln_pre.bias": "norm_pre.bias",
    "visual.ln_post.weight": "norm.weight",
    "visual.transformer.resblocks.0.ln_1.weight": "blocks.0.norm1.weight",
    "visual.transformer.resblocks.0.ln_2.bias": "blocks.0.norm2.bias",
    "visual.transformer.resblocks.0.attn.in_proj_weight": "blocks.0.attn.qkv.weight",
    "visual.transformer.resblocks.0.attn.in_proj_bias": "blocks.0.attn.qkv.bias",
    "visual.transformer.resblocks.0.attn.out_proj.weight": "blocks.0.attn.proj.weight",
    "visual.transformer.resblocks.0.mlp.c_fc.weight": "blocks.0.mlp.fc1.weight",
    "visual.transformer.resblocks.0.mlp.c_proj.bias": "blocks.0.mlp.fc2.bias",
}
"""Some names of OpenAI's code, and timm's."""


@pytest.mark.parametrize("wrapped", [False, True], ids=["OpenAI", "LAION"])
def test_the_images_tower_of_clip_is_found(wrapped: bool, tmp_path: Path) -> None:
    layer = {
        **{f"{norm}.{kind}": (8,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
        **{"attn.in_proj_weight": (24, 8), "attn.in_proj_bias": (24,), "attn.out_proj.weight": (8, 8)},
        **{"attn.out_proj.bias": (8,), "mlp.c_fc.weight": (32, 8), "mlp.c_fc.bias": (32,)},
        **{"mlp.c_proj.weight": (8, 32), "mlp.c_proj.bias": (8,)},
    }
    tower = {
        "visual.class_embedding": (8,),
        "visual.positional_embedding": (5, 8),
        "visual.conv1.weight": (8, 3, 4, 4),
        "visual.proj": (8, 6),
        **{f"visual.{norm}.{kind}": (8,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        **{f"visual.transformer.resblocks.0.{name}": shape for name, shape in layer.items()},
    }
    text = {"positional_embedding": (7, 8), "token_embedding.weight": (9, 8), "ln_final.weight": (8,)}
    state = random_tensors({**tower, **text, "text_projection": (8, 6)})
    content = {"state_dict": below("module.", state), "epoch": 1} if wrapped else state
    model = load_checkpoint(saved(tmp_path, content), "vit_base_patch32_clip_224", SIZE)
    found = model.state_dict()
    for theirs, timms in CLIP.items():
        assert torch.equal(found[timms].squeeze(), state[theirs].squeeze()), timms
    assert torch.equal(model.head.weight, state["visual.proj"].T)  # what CLIP calls an embedding
    assert not model.head.bias.any()


# -- several states ----------------------------------------------------------------------------------------

SEVERAL: dict[str, tuple[Any, str | None, float, str | None]] = {
    "average first": ({"model": number(1), "model_ema": number(2)}, None, 2, "'model_ema' is loaded.*: model$"),
    "its own name": ({"model": number(1), "model_ema": number(2)}, "model", 1, None),
    "timm's order": ({"model": number(1), "state_dict": number(2)}, None, 2, "'state_dict' is loaded"),
    "teacher": ({"student": number(1), "teacher": number(2)}, None, 2, "'teacher' is loaded.*: student$"),
    "deep": ({"state_dict": below("net.", number(1)) | below("ema_net.", number(2))}, "state_dict.net", 1, None),
    "top and average": (number(1) | below("ema.", number(2)), None, 2, "'ema' is loaded.*: the whole file$"),
    "top alone": (number(1) | below("ema.", number(2)), "the whole file", 1, None),
}


@pytest.mark.parametrize(("content", "state", "value", "said"), SEVERAL.values(), ids=SEVERAL)
def test_of_several_states_one_is_taken_and_said(
    content: Any, state: str | None, value: float, said: str | None, tmp_path: Path
) -> None:
    path = saved(tmp_path, content)
    if said is None:
        model = load_checkpoint(path, VIT, SIZE, state=state)
    else:
        with pytest.warns(UserWarning, match=said):
            model = load_checkpoint(path, VIT, SIZE, state=state)
    assert model.head.bias.tolist() == [value] * 3


def test_a_state_must_be_named_where_none_comes_first(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": number(1), "b": number(2)})
    assert "has several states; say which with state: a, b" in refusal(lambda: load_checkpoint(path, VIT, SIZE))
    assert "no state 'c'; it has: a, b" in refusal(lambda: load_checkpoint(path, VIT, SIZE, state="c"))


def test_a_file_that_contains_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": number(1)}
    content |= {str(i): content for i in range(20)}
    assert load_checkpoint(saved(tmp_path, content), VIT, SIZE).head.bias.tolist() == [1.0] * 3


# -- what the tensors are ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in weights().items()}
    model = load_checkpoint(saved(tmp_path, state), VIT, SIZE)
    assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in state.items())


def test_weights_of_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    saved(tmp_path, number(2), "here.pth")
    with zipfile.ZipFile(tmp_path / "here.pth") as here, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as there:
        for entry in here.infolist():
            # The pickle names the device of each tensor as a text with its length in front.
            content = here.read(entry).replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            there.writestr(entry.filename, content)
    assert (tmp_path / "gpu.pth").read_bytes().count(b"cuda:0") == 1
    assert load_checkpoint(tmp_path / "gpu.pth", VIT, SIZE).head.bias.tolist() == [2.0] * 3


def test_positions_are_resampled_for_a_size_that_is_asked_for(tmp_path: Path) -> None:
    positions = torch.full((1, 5, 8), 0.25)
    positions[:, 0] = 7.0
    path = saved(tmp_path, weights() | {"pos_embed": positions})
    found = load_checkpoint(path, VIT, {**SIZE, "img_size": 16}).pos_embed[0]
    assert found.shape == (17, 8)  # of 4 x 4 patches
    torch.testing.assert_close(found, torch.tensor([7.0] + [0.25] * 16)[:, None].expand(17, 8))
    text = refusal(lambda: load_checkpoint(path, VIT, {key: SIZE[key] for key in SIZE if key != "img_size"}))
    assert "its positions are of 2 x 2 patches, the architecture's of 56 x 56; set model_args: {img_size: 8}" in text
    text = refusal(lambda: load_checkpoint(path, VIT, {}))
    assert "its patches are of 4 px, the architecture's of 16" in text


def test_the_model_claims_nothing_of_weights_of_timm(tmp_path: Path) -> None:
    ancestry = Ancestry(saved(tmp_path, weights()), architecture=VIT, model_args=SIZE)
    assert timm.create_model(VIT).pretrained_cfg["tag"] == "augreg_in21k_ft_in1k"
    assert ancestry.identity["tag"] == ""
    assert [ancestry.model.pretrained_cfg.get(key) for key in ("tag", "url", "hf_hub_id")] == ["", "", ""]


# -- damaged and hostile -----------------------------------------------------------------------------------


def headless(path: Path) -> Path:
    return saved(path, {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3})


def text(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / "w.pth").write_bytes(content)
        return path / "w.pth"

    return write


def a_tar(path: Path) -> Path:
    with tarfile.open(path / "w.pth.tar", "w") as archive:
        archive.add(saved(path, weights()), "w.pth")
    return path / "w.pth.tar"


def a_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "w.pth", "w") as archive:
        archive.writestr("w.txt", "hello")
    return path / "w.pth"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (text(b""), "w.pth: empty"),
    "page": (text(b"<!DOCTYPE html><html>"), "w.pth: damaged, or not written by torch.save"),
    "pointer": (text(b"version https://git-lfs.github.com/spec/v1\noid"), "a pointer of Git LFS"),
    "tar": (a_tar, "damaged, or not written by torch.save"),
    "zip": (a_zip, "w.pth: damaged or unreadable ("),
    "list": (lambda path: saved(path, [torch.ones(3)]), "holds no tensors by name"),
    "optimizer": (headless, "holds no tensors by name; save the model's state_dict()"),
    "module": (lambda path: saved(path, nn.Linear(2, 2)), "holds no tensors by name; save the model's state_dict()"),
    "quantised": (lambda path: saved(path, {name: tensor.to(torch.int8) for name, tensor in weights().items()}),
                  "is torch.int8, not floating point"),
    "without content": (lambda path: saved(path, {name: tensor.to("meta") for name, tensor in weights().items()}),
                        "does not hold the weights of"),
    "missing": (lambda path: saved(path, {name: t for name, t in weights().items() if name != "norm.bias"}),
                "it lacks norm.bias"),
    "too much": (lambda path: saved(path, weights() | {"more": torch.ones(1)}), "too much is more"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_file_without_the_weights_is_refused(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    assert expected in refusal(lambda: load_checkpoint(path, VIT, ARGUMENTS))


WRONG: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "nothing said": (None, {}, "say which model it is with architecture (--architecture), the file says 'resnet18'"),
    "unknown": ("vit_tiny", {}, "architecture: 'vit_tiny' is no timm model"),
    "no heads": (VIT, {**ARGUMENTS, "num_heads": 0}, "model_args: timm cannot make vit_tiny_patch16_224 with"),
    "other classes": (VIT, {**ARGUMENTS, "num_classes": 5}, "size mismatch for head.weight"),
    "unknown argument": (VIT, {"sise": 5}, f"model_args: timm's {VIT} takes no argument 'sise'"),
    "slip": (VIT, {"imgsize": 32}, "takes no argument 'imgsize'; did you mean 'img_size'?"),
    "other architecture": ("resnet18", {"num_classes": 3}, "it lacks conv1.weight and "),
}


@pytest.mark.parametrize(("architecture", "arguments", "expected"), WRONG.values(), ids=WRONG)
def test_a_model_that_is_not_in_the_file_is_refused(
    architecture: str | None, arguments: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, {"arch": "resnet18", "state_dict": weights()})
    assert expected in refusal(lambda: load_checkpoint(path, architecture, arguments))


class Evil:
    """Leaves a folder behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, (str(self.path),)


def touch(path: str) -> None:
    os.mkdir(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_run(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(trace)}))
    else:
        torch.save({"model": number(2), "x": Evil(trace)}, path, _use_new_zipfile_serialization=kind == "zip")
    if kind == "zip":  # whose foreign names can be seen beforehand, so that the rest is read
        assert load_checkpoint(path, VIT, SIZE).head.bias.tolist() == [2.0] * 3
    else:
        text = refusal(lambda: load_checkpoint(path, VIT, SIZE))
        assert "holds more than tensors and is not unpickled" in text
    assert not trace.exists()


def test_torchs_older_files_are_read(tmp_path: Path) -> None:
    content = {"model": number(2), "args": argparse.Namespace(lr=0.1)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert load_checkpoint(path, VIT, SIZE).head.bias.tolist() == [2.0] * 3


# -- commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def always_green(tmp_path: Path) -> Path:
    """A checkpoint whose model says the second class of any image, and how sure it is of that by its bias."""
    fixed = {"head.weight": torch.zeros(3, 8), "head.bias": torch.tensor([0.0, 2.0, 0.0])}
    return saved(tmp_path, {"state_dict": below("module.", weights() | fixed)}, "own.CKPT")


def test_commands_take_a_checkpoint(always_green: Path, images: Path, tmp_path: Path, cli: CLI) -> None:
    scores = json.loads(cli("eval", always_green, "--data", images, "--json", *FLAGS).out)
    # exp(2) against two times exp(0): a third of the images are green.
    assert scores["top1"] == pytest.approx(100 / 3)
    assert scores["loss"] == pytest.approx(1 / 3 * 0.2395 + 2 / 3 * 2.2395, abs=1e-4)
    gene = tmp_path / "g.safetensors"
    own = ["--preprocessing", "{mean: [0.1, 0.2, 0.3], std: [0.5, 0.5, 0.5]}"]
    result = cli("extract", always_green, "--method", "vanilla-lg", "-s", "last=1", "--out", gene, *FLAGS, *own)
    assert result.code == 0, result.err
    metadata = read_header(gene).metadata
    assert metadata["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert (metadata["ancestry"]["source"], metadata["ancestry"]["tag"]) == ("own.CKPT", "")
    run = ["--epochs", 1, "--out", tmp_path / "run", "train.batch_size=8", "train.lr=1e-9", "train.weight_decay=0"]
    result = cli("finetune", "--model", always_green, "--data", images, *FLAGS, *run, "data.workers=0",
                 "train.schedule.warmup_epochs=0", "train.augment.preset=none", "train.schedule.min_lr=0")  # fmt: skip
    assert result.code == 0, result.err
    assert "top-1 33.33 % untuned" in result.out
    again = json.loads(cli("eval", tmp_path / "run" / "descendant", "--data", images, "--json").out)
    assert again["loss"] == pytest.approx(scores["loss"], abs=1e-3)


def test_commands_refuse_a_checkpoint_that_they_cannot_build(
    always_green: Path, images: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = ["--data", images]
    assert "say which model it is with architecture (--architecture)" in refused("eval", always_green, *data)
    run = ["finetune", "--model", always_green, *data, "--out", tmp_path / "run"]
    assert "say which model it is with architecture (--architecture)" in refused(*run)
    assert "shape means nothing for a checkpoint" in refused(*run, *FLAGS, "shape.depth=2")
    assert "architecture means nothing for what is no checkpoint" in refused(
        "finetune", "--model", VIT, *data, *FLAGS, "--out", tmp_path / "run"
    )
    assert "architecture is for a checkpoint file, which this is not" in refused("eval", VIT, *data, *FLAGS)
    assert "has no state 'ema'" in refused("eval", always_green, *data, *FLAGS, "--state", "ema")
    assert "mean (0.5,) must have 3 values" in refused(
        "eval", always_green, *data, *FLAGS, "--preprocessing", "{mean: [0.5]}"
    )
    assert "is not a mapping such as" in refused(
        "eval", always_green, *data, "--architecture", VIT, "--model-args", "3"
    )
    assert "unknown key 'meen'; did you mean 'mean'?" in refused(
        "eval", always_green, *data, *FLAGS, "--preprocessing", "{meen: 3}"
    )
