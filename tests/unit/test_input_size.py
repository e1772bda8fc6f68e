"""Which images a model takes, and what becomes of it where the data says another size."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from learngene import (
    Ancestry,
    Learngene,
    evaluate,
    export_onnx,
    extract,
    finetune,
    load_descendant,
    save_descendant,
    scratch,
    segment,
)
from learngene.system.errors import LearngeneError
from learngene.vits.input_size import image_config, input_size, resize, square_size
from pico import CLI, FAST, condense_fields, finetune_fields, pico_shape

SMALL = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "num_classes": 3}
ONE = {**FAST, "epochs": 1}


def small(name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    return timm.create_model(name, **{**SMALL, **changes})


def swin() -> Any:
    narrow = {"embed_dim": 4, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 3}
    return timm.create_model("swin_tiny_patch4_window7_224", **narrow)


# -- what a model takes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (3, 224, 224)),
        ({"img_size": 32}, (3, 32, 32)),
        ({"img_size": (16, 32)}, (3, 16, 32)),
        ({"img_size": 32, "in_chans": 1}, (1, 32, 32)),
    ],
)
def test_a_size_is_that_of_the_model_and_not_of_its_pretraining(
    changes: dict[str, Any], size: tuple[int, int, int]
) -> None:
    model = small(**changes)
    assert input_size(model) == image_config(model)["input_size"] == size
    assert Ancestry(model).preprocessing["input_size"] == list(size)
    assert input_size(segment(model, 3)) == size


def test_a_resized_model_says_its_new_size() -> None:
    model = small(img_size=32)
    model.set_input_size(img_size=(16, 16))
    assert input_size(model) == (3, 16, 16)
    assert input_size(timm.create_model("resnet10t")) == (3, 176, 176)  # takes any; timm's is the recommended one


def test_grey_images_are_normalised_by_the_averages_over_colours() -> None:
    config = image_config(small("deit_tiny_patch16_224", img_size=8, in_chans=1))
    assert config["mean"] == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert config["std"] == pytest.approx(((0.229 + 0.224 + 0.225) / 3,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": (16, 32)}, r"takes images of 16 x 32 px; set data.img_size, for square ones"),
        ({"in_chans": 5}, r"takes images of 5 channels; images are read in colour \(3\) or grey \(1\)"),
    ],
)
def test_only_square_images_in_grey_or_colour_can_be_given(changes: dict[str, Any], message: str, images: Path) -> None:
    model = small(**changes)
    for refuse in (lambda: square_size(model), lambda: evaluate(model, str(images))):
        with pytest.raises(LearngeneError, match=message):
            refuse()


# -- another size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [lambda: small(img_size=8), lambda: segment(small(img_size=8), 3)])
def test_positions_are_resampled(made: Any) -> None:
    model = made()
    vit = getattr(model, "backbone", model)
    with torch.no_grad():
        vit.pos_embed[:, 1:] = torch.arange(8.0)  # every place the same, so that every new one is it, too
        vit.pos_embed[:, 0] = -1.0
    resize(model, 16)
    assert input_size(model) == (3, 16, 16)
    assert vit.pos_embed.shape == (1, 1 + 16, 8)
    torch.testing.assert_close(vit.pos_embed[:, 1:], torch.arange(8.0).expand(1, 16, 8))
    assert vit.pos_embed[0, 0].tolist() == [-1.0] * 8


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: small(img_size=(16, 32)), 16),
        (lambda: small("deit_tiny_distilled_patch16_224", img_size=32), 16),
        (lambda: small(img_size=32, dynamic_img_size=True, dynamic_img_pad=True), 17),
        (swin, 64),
        (lambda: timm.create_model("resnet10t", num_classes=3), 33),
    ],
    ids=["rectangular", "distilled", "padded", "swin", "convolutions"],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple|torch.searchsorted")  # timm's, as it resamples Swin's tables
def test_what_can_take_a_size_is_evaluated_at_it_and_stays_as_it_was(model: Any, size: int, images: Path) -> None:
    net = model()
    before, weights = input_size(net), {key: value.clone() for key, value in net.state_dict().items()}
    assert evaluate(net, {"source": str(images), "img_size": size, "workers": 0}).images == 12
    assert input_size(net) == before
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (lambda: small(img_size=8), 10,
         r"data.img_size 10 is no multiple of the model's patches of 4 px; use 8 or 12$"),
        (lambda: small(img_size=8), 3, r"no multiple of the model's patches of 4 px; use 4$"),
        (lambda: segment(small(img_size=8), 3), 9, r"no multiple of the model's patches of 4 px; use 8 or 12$"),
        (swin, 42, r"no multiple of the model's patches of 4 px; use 40 or 44$"),
        (lambda: timm.create_model("mixer_s32_224", img_size=32), 64,
         r"data.img_size 64: the model takes images of 32 x 32 px, and not of this size \(.*\); leave data.img_size"),
    ],
)  # fmt: skip
def test_what_cannot_take_a_size_is_refused(model: Any, size: int, message: str) -> None:
    net = model()
    with pytest.raises(LearngeneError, match=message):
        resize(net, size)


def test_finetuning_at_another_size_makes_a_folder_of_that_size(images: Path, tmp_path: Path) -> None:
    for number, model in enumerate((scratch(pico_shape(depth=1)), small(img_size=8))):
        run = tmp_path / str(number)
        result = finetune(model, data={"source": str(images), "img_size": 16, "workers": 0}, out=run, show=False, **ONE)
        stock = timm.create_model(f"local-dir:{run / 'descendant'}", pretrained=True)
        assert json.loads((run / "descendant" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [
            3,
            16,
            16,
        ]
        assert stock(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
        assert evaluate(load_descendant(run / "descendant"), str(images)).top1 == result.final.top1


CHANNELS = "the model takes images of 4 channels; images are read in colour (3) or grey (1)"
CANNOT: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a folder": ("des", {}, 10, "data.img_size 10 is no multiple of the model's patches of 4 px; use 8 or 12"),
    "a gene's shape": ("scratch", {"shape": pico_shape().to_dict()}, 16,
                       "data.img_size 16 differs from shape.img_size 8"),
    "timm's arguments": ("vit_tiny_patch16_224", {"model_args": {"img_size": 32}, "pretrained": False}, 64,
                         "data.img_size 64 differs from model_args.img_size 32; leave one of them out"),
    "a timm name": ("vit_tiny_patch16_224",
                    {"model_args": {"embed_dim": 8, "depth": 1, "num_heads": 2}, "pretrained": False}, 60,
                    "data.img_size 60 is no multiple of the model's patches of 16 px; use 48 or 64"),
    "four channels": ("scratch", {"shape": {**pico_shape().to_dict(), "in_chans": 4}}, 8, CHANNELS),
    "four channels by name": (
        "vit_tiny_patch16_224",
        {"model_args": {"embed_dim": 8, "depth": 1, "num_heads": 2, "in_chans": 4}, "pretrained": False},
        16,
        CHANNELS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "more", "size", "message"), CANNOT.values(), ids=CANNOT)
def test_check_refuses_a_size_before_the_first_step(
    model: str, more: dict[str, Any], size: int, message: str, images: Path, tmp_path: Path, cli: CLI
) -> None:
    if model == "des":
        save_descendant(scratch(pico_shape(depth=1)), tmp_path / "des")
        model = str(tmp_path / "des")
    fields = finetune_fields(model, images, tmp_path / "run", **more)
    fields["data"]["img_size"] = size
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    for command in ("check", "finetune"):
        result = cli(command, tmp_path / "recipe.yaml")
        assert (result.code, result.err.count("\n")) == (2, 1 + (command == "finetune")), result
        assert message in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_name_is_built_for_the_data(channels: int, images: Path, tmp_path: Path, cli: CLI) -> None:
    more: dict[str, Any] = {"model_args": {**SMALL, "in_chans": channels}, "pretrained": False, "train": ONE}
    del more["model_args"]["num_classes"]
    fields = finetune_fields("vit_tiny_patch16_224", images, tmp_path / "run", **more)
    fields["data"]["img_size"] = 8
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    assert cli("finetune", tmp_path / "recipe.yaml").code == 0
    assert input_size(load_descendant(tmp_path / "run" / "descendant")) == (channels, 8, 8)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_teacher_by_name_has_the_channels_of_the_images(
    channels: int, images: Path, tmp_path: Path, cli: CLI
) -> None:
    arguments = {**SMALL, "img_size": 8, "in_chans": channels}
    teacher = {"source": "vit_tiny_patch16_224", "pretrained": False, "model_args": arguments}
    fields = condense_fields("", images, tmp_path / "run", train=ONE)
    fields |= {"ancestry": teacher, "shape": pico_shape(depth=2, in_chans=channels).to_dict()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    result = cli("condense", tmp_path / "recipe.yaml")
    if channels == 1:
        assert Learngene.load(tmp_path / "run.safetensors").expand(3)(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    else:  # nothing reads such images, but the model itself is one like any other
        assert (result.code, result.err.splitlines()[-1]) == (2, f"learngene: {CHANNELS}")
        assert not (tmp_path / "run").exists()
        made = extract(
            Ancestry("vit_tiny_patch16_224", pretrained=False, model_args=arguments), method="weight-selection"
        )
        assert made.expand()(torch.zeros(1, 4, 8, 8)).shape == (1, 3)


@pytest.mark.slow
def test_an_export_is_of_the_models_size(tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(small(img_size=(8, 16), in_chans=1), tmp_path / "model.onnx")
    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert given.shape[1:] == [1, 8, 16]
