"""Folders of the transformers library: converted models compute what its models do. Its package is not needed.

The reference is a Vision Transformer in numpy that reads the tensors under the names of transformers.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from learngene import Ancestry, load_descendant
from learngene.system.errors import LearngeneError
from pico import CLI, random_tensors

WIDTH, HEADS, HIDDEN, PATCH, LABELS = 8, 2, 20, 4, 3
CONFIG: dict[str, Any] = {"model_type": "vit", "num_attention_heads": HEADS, "image_size": 8}
RGB = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}

WRITTEN = {
    "path": "encoder.layer.{}.", "norm1": "layernorm_before", "norm2": "layernorm_after",
    "q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value",
    "out": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
}  # fmt: skip
IN_MEMORY = WRITTEN | {
    "path": "layers.{}.", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
    "out": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
DINOV2 = WRITTEN | {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def tensors(
    names: dict[str, str],
    prefix: str = "vit.",
    heads: tuple[str, ...] = ("classifier",),
    *,
    special: dict[str, tuple[int, ...]] | None = None,
    scales: bool = False,
    chans: int = 3,
    patches: int = 4,
    patch: tuple[int, int] = (PATCH, PATCH),
) -> dict[str, Tensor]:
    """Random weights of a model of two layers, under the names of transformers."""
    special = special or {}
    positions = patches + 1 + ("distillation_token" in special)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, positions, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, chans, *patch),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
        **{f"embeddings.{name}": shape for name, shape in special.items()},
    }
    sizes = {part: (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
    sizes |= {"fc1": (HIDDEN, WIDTH), "fc2": (WIDTH, HIDDEN)}
    for layer in range(2):
        path = names["path"].format(layer)
        for part in ("norm1", "norm2", *sizes):
            shapes[f"{path}{names[part]}.weight"] = sizes.get(part, (WIDTH,))
            shapes[f"{path}{names[part]}.bias"] = sizes.get(part, (WIDTH,))[:1]
        shapes |= {f"{path}layer_scale{i}.lambda1": (WIDTH,) for i in (1, 2) if scales}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    for head in heads:
        shapes |= {f"{head}.weight": (LABELS, WIDTH), f"{head}.bias": (LABELS,)}
    return random_tensors(shapes)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def transformer(
    given: dict[str, Tensor],
    image: np.ndarray,
    names: dict[str, str],
    prefix: str = "vit.",
    act: Callable[[np.ndarray], np.ndarray] = gelu,
) -> np.ndarray:
    """The tokens that special tokens come out as, behind the final norm: (special tokens, width)."""
    of = {name.removeprefix(prefix): value.double().numpy() for name, value in given.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ of[f"{name}.weight"].T + of[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * of[f"{name}.weight"] + of[f"{name}.bias"]

    kernel = of["embeddings.patch_embeddings.projection.weight"]
    height, width = kernel.shape[2:]
    corners = [(i, j) for i in range(0, image.shape[1], height) for j in range(0, image.shape[2], width)]
    patches = [(kernel * image[:, i : i + height, j : j + width]).sum((1, 2, 3)) for i, j in corners]
    special = [
        of[f"embeddings.{name}"][0] for name in ("cls_token", "distillation_token") if f"embeddings.{name}" in of
    ]
    x = np.concatenate([*special, np.stack(patches) + of["embeddings.patch_embeddings.projection.bias"]])
    x = x + of["embeddings.position_embeddings"][0]
    if "embeddings.register_tokens" in of:
        x = np.concatenate([x[:1], of["embeddings.register_tokens"][0], x[1:]])
    for layer in range(2):
        path = names["path"].format(layer)
        part = {name: path + theirs for name, theirs in names.items()}
        y = norm(x, part["norm1"])
        q, k, v = (linear(y, part[name]).reshape(len(x), HEADS, -1).swapaxes(0, 1) for name in ("q", "k", "v"))
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(WIDTH // HEADS))
        y = ((weights / weights.sum(-1, keepdims=True)) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + linear(y, part["out"]) * of.get(f"{path}layer_scale1.lambda1", 1)
        y = linear(act(linear(norm(x, part["norm2"]), part["fc1"])), part["fc2"])
        x = x + y * of.get(f"{path}layer_scale2.lambda1", 1)
    out: np.ndarray = norm(x, "layernorm")[: len(special)]
    return out


def folder(path: Path, given: dict[str, Tensor], config: dict[str, Any] | None = None, *, binary: bool = False) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    if not (path / "preprocessor_config.json").exists():
        (path / "preprocessor_config.json").write_text(json.dumps(RGB))
    if binary:
        torch.save(given, path / "pytorch_model.bin")
    else:
        save_file(given, path / "model.safetensors")
    return path


MASK = {"mask_token": (1, WIDTH)}
KINDS: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any]]] = {
    "vit": (WRITTEN, {}, {}),
    "names of version 5 in memory": (IN_MEMORY, {}, {}),
    "features": (WRITTEN, {"prefix": "", "heads": ()}, {}),
    "grey": (WRITTEN, {"chans": 1}, {}),
    "rectangle": (WRITTEN, {"patches": 8}, {"image_size": [16, 8]}),
    "oblong patches": (WRITTEN, {"patches": 8, "patch": (2, 4)}, {}),
    "another size than config.json says": (WRITTEN, {"patches": 9}, {}),
    "tanh": (WRITTEN, {}, {"hidden_act": "gelu_new"}),
    "deit": (WRITTEN, {"prefix": "deit.", "special": {"distillation_token": (1, 1, WIDTH)}}, {"model_type": "deit"}),
    "deit with two heads": (
        WRITTEN,
        {
            "prefix": "deit.",
            "heads": ("cls_classifier", "distillation_classifier"),
            "special": {"distillation_token": (1, 1, WIDTH)},
        },
        {"model_type": "deit"},
    ),
    "dinov2": (DINOV2, {"prefix": "", "heads": (), "scales": True, "special": MASK}, {"model_type": "dinov2"}),
    "dinov2 with registers": (
        DINOV2,
        {"prefix": "", "heads": (), "scales": True, "special": MASK | {"register_tokens": (1, 4, WIDTH)}},
        {"model_type": "dinov2_with_registers"},
    ),
    "masked autoencoder": (WRITTEN, {"heads": ()}, {"model_type": "vit_mae"}),
}


@pytest.mark.parametrize(("names", "options", "config"), KINDS.values(), ids=KINDS)
def test_a_converted_model_computes_what_transformers_does(
    names: dict[str, str], options: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    given = tensors(names, **options)
    unused = {"pooler.dense.weight": torch.ones(2, 2), "decoder.mask_token": torch.ones(1, 1, 2)}
    binary = not config  # a file of torch's, of the plain ones
    model = load_descendant(folder(tmp_path, {**given, **unused}, config, binary=binary)).eval()
    patch = options.get("patch", (PATCH, PATCH))
    rows, columns = {4: (2, 2), 9: (3, 3), 8: (4, 2)}[options.get("patches", 4)]
    image = torch.randn(options.get("chans", 3), rows * patch[0], columns * patch[1])
    act = tanh_gelu if "hidden_act" in config else gelu
    special = transformer(given, image.double().numpy(), names, options.get("prefix", "vit."), act)
    heads = options.get("heads", ("classifier",))
    logits = [
        x @ given[f"{head}.weight"].numpy().T + given[f"{head}.bias"].numpy()
        for head, x in zip(heads, special, strict=False)
    ]
    expected = np.mean(logits, axis=0) if heads else special[0]
    with torch.no_grad():
        found = model(image[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert model.num_classes == (LABELS if heads else 0)


def test_queries_keys_and_values_stand_one_below_the_other(tmp_path: Path) -> None:
    given = tensors(WRITTEN)
    for value, part in enumerate(("q", "k", "v"), start=1):
        given[f"vit.encoder.layer.1.{WRITTEN[part]}.weight"].fill_(value)
    attention = load_descendant(folder(tmp_path, given)).blocks[1].attn
    assert attention.num_heads == HEADS
    assert attention.qkv.weight.mean(1).tolist() == [1.0] * WIDTH + [2.0] * WIDTH + [3.0] * WIDTH


SIZES = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}
PREPARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it says": (RGB, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}),
    "Pillow's number": (RGB | {"resample": 3}, {"interpolation": "bicubic"}),
    "not normalised": (RGB | {"do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
    "values from 0 to 255": ({"image_mean": [51.0] * 3, "image_std": [255.0] * 3, "do_rescale": False},
                             {"mean": [0.2] * 3, "std": [1.0] * 3}),
    "values from 0 to 2": ({"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 2 / 255},
                           {"mean": [0.5] * 3, "std": [0.5] * 3}),
    "centre": (SIZES, {"crop_pct": 0.5}),
    "centre, shortest edge": (SIZES | {"size": {"shortest_edge": 10}}, {"crop_pct": 0.8}),
    "centre, numbers": (SIZES | {"size": 10, "crop_size": 8}, {"crop_pct": 0.8}),
    "whole": (SIZES | {"do_center_crop": False}, {"crop_pct": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), PREPARED.values(), ids=PREPARED)
def test_images_are_prepared_as_the_folder_says(
    given: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = Ancestry(folder(tmp_path, tensors(WRITTEN))).preprocessing
    assert {key: found[key] for key in expected} == expected
    assert found["input_size"] == [3, 8, 8]


def test_without_a_word_on_preparing_the_usual_is_taken_and_said(tmp_path: Path) -> None:
    folder(tmp_path, tensors(WRITTEN))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json.* mean \(0.5, 0.5, 0.5\)"):
        assert Ancestry(tmp_path).preprocessing["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "cat", "1": "dog", "2": "emu"}, ["cat", "dog", "emu"]),
        ({"2": "emu", "0": "cat", "1": "dog"}, ["cat", "dog", "emu"]),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, None),
        ({"0": "cat", "1": "dog"}, None),
    ],
    ids=["names", "another order", "placeholders", "too few"],
)
def test_names_of_classes_are_those_of_the_configuration(
    labels: dict[str, str], names: list[str] | None, tmp_path: Path
) -> None:
    ancestry = Ancestry(folder(tmp_path, tensors(WRITTEN), {"id2label": labels}))
    assert ancestry.class_names == names
    assert ancestry.identity["tag"] == ""


GATED = {"vit.encoder.layer.0.mlp.weights_in.weight": torch.ones(4, WIDTH)}
REFUSED: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "kind": ({}, {"model_type": "swin"}, "model_type swin, of which only vit, deit, dinov2"),
    "activation": ({}, {"hidden_act": "mish"}, "has hidden_act mish, and timm computes gelu,"),
    "epsilon": ({}, {"layer_norm_eps": 1e-5}, "has layer_norm_eps 1e-05, and timm's ViT computes 1e-06"),
    "gates": (GATED, {}, "has gated MLPs (use_swiglu_ffn)"),
    "two vectors": ({"classifier.weight": torch.ones(LABELS, 2 * WIDTH)}, {}, "its classifier reads 16 numbers"),
    "positions": ({"vit.embeddings.position_embeddings": torch.ones(1, 8, WIDTH)}, {}, "7 patches, which image_size 8"),
    "no heads": ({}, {"num_attention_heads": 0}, "cannot be loaded ("),
    "other heads": ({}, {"num_attention_heads": 3}, "cannot be loaded ("),
}


@pytest.mark.parametrize(("extra", "config", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_timm_does_not_compute_is_refused(
    extra: dict[str, Tensor], config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(LearngeneError) as error:
        load_descendant(folder(tmp_path, tensors(WRITTEN) | extra, config))
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match=r"has no embeddings\.patch_embeddings\.projection\.weight"):
        load_descendant(folder(tmp_path, {"vit.embeddings.cls_token": torch.zeros(1, 1, WIDTH)}))


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_commands_take_such_a_folder(act: str, images: Path, tmp_path: Path, cli: CLI) -> None:
    path = folder(tmp_path / "hf", tensors(WRITTEN), {"hidden_act": act})
    result = cli("eval", path, "--data", images, "--json")
    assert result.code == 0, result.err
    flags = ["--model", path, "--data", images, "--epochs", 1, "--preset", "laptop", "--out", tmp_path / "run"]
    result = cli("finetune", *flags, "train.batch_size=8", "train.schedule.warmup_epochs=0", "data.workers=0")
    assert result.code == 0, result.err
    tuned = load_descendant(tmp_path / "run" / "descendant")
    assert type(tuned.blocks[0].mlp.act).__name__ == {"gelu": "GELU", "relu": "ReLU"}[act]
    assert list(tuned.pretrained_cfg["mean"]) == [0.1, 0.2, 0.3]
