"""The ancestry: loaded from anywhere, pinned, frozen, and checked against data and shape."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

import learngene
from learngene import Ancestry, scratch
from learngene.genes.ancestry import weights_sha256
from learngene.recipe.sections import AncestrySpec, DataSpec
from learngene.system.errors import LearngeneError
from learngene.training.run_folder import RunFolder
from learngene.vits import timm_models
from pico import CLI, FAST, batch, make_ancestry, pico_shape
from runs import same, state

DIGITS = DataSpec(source="digits")
RESNET: dict[str, Any] = {"architecture": "resnet10t", "model_args": {"num_classes": 3}}


def message(call: Callable[[], object]) -> str:
    with pytest.raises(LearngeneError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet10t", num_classes=3)
    return model


# -- real sizes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_papers_ancestor_loads_at_its_real_size() -> None:
    ancestry = Ancestry("levit_384.fb_dist_in1k", pretrained=False)
    assert sum(parameter.numel() for parameter in ancestry.parameters()) == 39_128_836
    logits = ancestry(torch.zeros(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    assert [ancestry.identity[key] for key in ("name", "source")] == ["levit_384", "levit_384.fb_dist_in1k"]
    assert ancestry.identity["tag"] == "random-weights"
    assert ancestry.preprocessing["input_size"] == [3, 224, 224]
    assert ancestry.model.pretrained_cfg["tag"] == "fb_dist_in1k"


# -- where it comes from -----------------------------------------------------------------------------------


def test_a_descendant_folder_brings_its_classes_and_preprocessing(tmp_path: Path) -> None:
    folder = make_ancestry(tmp_path / "vit")
    ancestry = Ancestry(folder)
    images = batch(pico_shape())
    assert torch.equal(ancestry(images), scratch(pico_shape(depth=2, num_heads=4), seed=1)(images))
    assert ancestry.class_names == ["blue", "green", "red"]
    assert ancestry.num_classes == 3
    assert ancestry.identity["source"] == "vit"
    assert ancestry.preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert ancestry.preprocessing["input_size"] == [3, 8, 8]


def test_a_checkpoint_file_holds_the_weights(tmp_path: Path) -> None:
    model = resnet()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    ancestry = Ancestry(tmp_path / "w.pth", **RESNET)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ancestry(images), model.eval()(images))
    assert ancestry.identity["sha256"] == weights_sha256(model)
    assert ancestry.identity["name"] == "resnet10t"


def test_a_model_in_memory_is_an_ancestry() -> None:
    model = resnet()
    ancestry = Ancestry(model)
    assert ancestry.model is model
    assert (ancestry.num_classes, ancestry.class_names) == (3, None)
    assert ancestry.identity["source"] == "resnet10t"


def test_a_recipe_names_the_same_ancestry(tmp_path: Path) -> None:
    save_file(resnet().state_dict(), tmp_path / "w.safetensors")
    spec = AncestrySpec(source=str(tmp_path / "w.safetensors"), **RESNET)
    assert Ancestry.from_spec(spec).identity == Ancestry(tmp_path / "w.safetensors", **RESNET).identity


def test_arguments_of_timm_are_passed_on() -> None:
    ancestry = Ancestry("levit_128s", pretrained=False, model_args={"img_size": 32, "num_classes": 5})
    assert ancestry(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_two_heads_are_averaged() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = 4
            self.pretrained_cfg = {"architecture": "two", "input_size": (3, 8, 8)}
            self.heads = nn.ModuleList([nn.Linear(192, 4), nn.Linear(192, 4)])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(head(images.flatten(1)) for head in self.heads)

    model = TwoHeads()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Ancestry(model)(images), (model(images)[0] + model(images)[1]) / 2)


# -- frozen and pinned -------------------------------------------------------------------------------------


def test_the_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    ancestry = Ancestry(resnet())
    ancestry.train()
    assert not any(module.training for module in ancestry.modules())
    assert not any(parameter.requires_grad for parameter in ancestry.parameters())
    before = weights_sha256(ancestry.model)
    logits = ancestry(torch.randn(4, 3, 32, 32, requires_grad=True))
    assert not logits.requires_grad
    assert weights_sha256(ancestry.model) == before  # no running statistics were updated


def test_the_sha256_is_of_the_weights_and_nothing_else() -> None:
    one, other = resnet(), resnet()
    assert weights_sha256(one) == weights_sha256(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert weights_sha256(one) != weights_sha256(other)
    assert weights_sha256(one.to(torch.bfloat16)) != weights_sha256(resnet())


def test_other_weights_than_the_pinned_ones_are_refused() -> None:
    pin = Ancestry(resnet()).identity["sha256"]
    assert Ancestry(resnet(), sha256=pin).identity["sha256"] == pin
    text = message(lambda: Ancestry(resnet(), sha256="0" * 64))
    assert f"its weights have sha256 {pin}, not {'0' * 64}" in text


# -- refusals ----------------------------------------------------------------------------------------------


class Evil:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({**resnet().state_dict(), "more": Evil(trace)}, path)
    text = message(lambda: Ancestry(path, **RESNET))
    assert "holds more than tensors and is not unpickled" in text
    assert not trace.exists()


def a_checkpoint(path: Path) -> Path:
    save_file(resnet().state_dict(), path / "w.safetensors")
    return path / "w.safetensors"


def cut(path: Path) -> Path:
    whole = a_checkpoint(path)
    whole.write_bytes(whole.read_bytes()[:1000])
    return whole


def cut_pth(path: Path) -> Path:
    torch.save(resnet().state_dict(), path / "w.pth")
    (path / "w.pth").write_bytes((path / "w.pth").read_bytes()[:1000])
    return path / "w.pth"


def a_recipe(path: Path) -> Path:
    (path / "s.yaml").write_text("kind: search")
    return path / "s.yaml"


def an_empty_folder(path: Path) -> Path:
    return path


def half_a_folder(path: Path) -> Path:
    folder = make_ancestry(path / "vit")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    return folder


def broken_config(path: Path) -> Path:
    folder = make_ancestry(path / "vit")
    (folder / "config.json").write_text("{")
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path | str], dict[str, Any], str]] = {
    "unknown name": (lambda _: "levit_348", {}, "no timm model; did you mean 'levit_384'?"),
    "no network": (lambda _: "resnet10t.c3_in1k", {}, "the network or timm's cache must hold its weights (the hub does "
                   "not answer); pretrained=false makes it with random ones"),
    "wrong argument": (lambda _: "levit_128s", {"pretrained": False, "model_args": {"img_sise": 3}},
                       "model_args: timm's levit_128s takes no argument 'img_sise'; did you mean 'img_size'?"),
    "no architecture": (a_checkpoint, {}, "say which model it is with architecture (--architecture), for example deit"),
    "unknown architecture": (a_checkpoint, {"architecture": "resnet10"}, "did you mean 'resnet10t'?"),
    "missing file": (lambda path: path / "no.pth", RESNET, "no.pth: no such file"),
    "missing safetensors": (lambda path: path / "no.safetensors", RESNET, "no.safetensors: no such file"),
    "cut safetensors": (cut, RESNET, "w.safetensors: damaged or unreadable"),
    "cut pth": (cut_pth, RESNET, "w.pth: damaged or unreadable"),
    "another file": (a_recipe, {}, "s.yaml: a file, but no model; give a checkpoint file (.safetensors, .pth, .pt, "),
    "empty folder": (an_empty_folder, {}, "not a descendant folder (no config.json)"),
    "cut folder": (half_a_folder, {}, "a file was changed after it was written"),
    "broken config": (broken_config, {}, "a file was changed after it was written"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "arguments", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_source_that_is_no_model_is_refused(
    make: Callable[[Path], Path | str], arguments: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    source = make(tmp_path)
    assert expected in message(lambda: Ancestry(source, **arguments))


@pytest.mark.parametrize(
    ("shape", "classes", "data", "expected"),
    [
        ({}, 4, {}, "ancestry {} has 3 classes but the data has 4"),
        ({"num_classes": 4}, 3, {}, "ancestry {} has 3 classes but the auxiliary shape has 4"),
        ({}, 3, {"mean": (0.5, 0.5, 0.5)}, "data.mean (0.5, 0.5, 0.5) differs from the ancestry's (0.485,"),
        ({}, 3, {"std": (1.0, 1.0, 1.0)}, "data.std (1.0, 1.0, 1.0) differs from the ancestry's"),
        ({}, 3, {"img_size": 16}, "data.img_size 16 differs from the auxiliary shape's 8"),
        ({"img_size": 16}, 3, {}, "takes images of 8 px with 3 channels, but the auxiliary shape has 16 px"),
        ({"in_chans": 1}, 3, {}, "takes images of 8 px with 3 channels, but the auxiliary shape has 8 px with 1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(
    ancestry_folder: Path, shape: dict[str, Any], classes: int, data: dict[str, Any], expected: str
) -> None:
    ancestry = Ancestry(ancestry_folder)
    spec = DataSpec(source="digits", **data)
    text = message(lambda: ancestry.refuse_mismatch(pico_shape(**shape), classes, spec))
    assert expected.format(ancestry_folder.name) in text


def test_what_fits_is_not_refused(ancestry_folder: Path) -> None:
    ancestry = Ancestry(ancestry_folder)
    mean = tuple(ancestry.preprocessing["mean"])
    assert ancestry.refuse_mismatch(pico_shape(), 3, DIGITS) is None
    assert ancestry.refuse_mismatch(pico_shape(), 3, DataSpec(source="digits", mean=mean, img_size=8)) is None


# -- what nothing says -------------------------------------------------------------------------------------

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}


def test_ones_own_preprocessing_is_taken(tmp_path: Path) -> None:
    save_file(resnet().state_dict(), tmp_path / "w.safetensors")
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "crop_pct": 0.5}
    spec = AncestrySpec(source=str(tmp_path / "w.safetensors"), **RESNET, **own)
    ancestry = Ancestry.from_spec(spec)
    assert {key: ancestry.preprocessing[key] for key in own} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in own.items()
    }
    shape = pico_shape(img_size=32)
    ancestry.refuse_mismatch(shape, 3, DataSpec(source="digits", mean=own["mean"], std=own["std"]))
    text = message(lambda: ancestry.refuse_mismatch(shape, 3, DataSpec(source="digits", mean=(0.5, 0.5, 0.5))))
    assert text.endswith("or set ancestry.mean if it was trained so")
    two = spec.model_copy(update={"mean": (0.1, 0.2)})
    assert "mean (0.1, 0.2) must have 3 values, one per channel" in message(lambda: Ancestry.from_spec(two))


def test_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = Ancestry("vit_tiny_patch16_224", pretrained=False, model_args=VIT)
    drawn = torch.rand(1)
    again = Ancestry("vit_tiny_patch16_224", pretrained=False, model_args=VIT)
    assert first.identity == again.identity
    assert first.identity["tag"] == "random-weights"
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # nobody else's random numbers are used up


def test_a_run_with_random_ancestry_goes_on(images: Path, tmp_path: Path, cli: CLI) -> None:
    recipe = {
        "kind": "condense",
        "method": "tleg",
        "ancestry": {"source": "vit_tiny_patch16_224", "pretrained": False, "model_args": VIT},
        "shape": pico_shape(depth=2).to_dict(),
        "data": {"source": str(images), "workers": 0},
        "train": {**FAST, "save_every": 1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli("condense", tmp_path / "r.yaml", f"out={whole}").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", stopping_after(RunFolder.save))
        assert cli("condense", tmp_path / "r.yaml", f"out={stopped}").code != 0
    assert not stopped.with_suffix(".safetensors").exists()
    result = cli("condense", tmp_path / "r.yaml", f"out={stopped}")
    assert result.code == 0, result.err
    assert same(*(state(learngene.load(run.with_suffix(".safetensors"))) for run in (whole, stopped)))


def stopping_after(save: Callable[..., Any]) -> Callable[..., Any]:
    def stopping(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        raise LearngeneError("stopped")

    return stopping


@pytest.mark.parametrize("answer", ["none", "refused", "there"])
def test_a_hub_that_does_not_answer_leaves_the_cache(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over, offline = threading.Event(), threading.Event(), []

    class Client:
        def head(self, *_: Any, timeout: float) -> None:
            assert timeout <= 5
            asked.set()
            if answer == "refused":
                raise OSError("no route")
            if answer == "none":
                over.wait()

    def create(name: str, **_: Any) -> None:
        offline.append(constants.HF_HUB_OFFLINE)
        raise OSError("not in the cache")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Client)
    monkeypatch.setattr(timm, "create_model", create)
    assert timm_models.ANSWER <= 5
    if answer == "none":
        monkeypatch.setattr(timm_models, "ANSWER", 0.01)
    text = message(lambda: Ancestry("resnet10t.c3_in1k"))
    over.set()
    assert asked.wait(60)
    assert "the network or timm's cache must hold its weights (not in the cache)" in text
    assert offline == [answer != "there"]
    assert constants.HF_HUB_OFFLINE is False
