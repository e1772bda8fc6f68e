"""Descendant folders: what is in them, what stock timm reads, and what is never overwritten."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from learngene import Learngene, load_descendant, save_descendant, scratch, segment
from learngene.system.digest import content_digest
from learngene.system.errors import LearngeneError
from learngene.vits.class_names import class_names
from learngene.vits.descendant_folder import TIMM_FILES
from pico import batch, pico_gene, pico_shape

FILES = {"config.json", "model.safetensors", "learngene.json"}


def informed_gene() -> Any:
    gene = pico_gene()
    gene.metadata = {
        "classes": ["blue", "green", "red"],
        "preprocessing": {"mean": [0.1] * 3, "std": [0.4] * 3, "interpolation": "bilinear", "crop_pct": 0.9},
    }
    return gene


def test_a_folder_holds_the_model_its_classes_and_its_origin(tmp_path: Path) -> None:
    model = informed_gene().expand(3)
    save_descendant(model, tmp_path / "des")
    assert {path.name for path in (tmp_path / "des").iterdir()} == FILES
    config = json.loads((tmp_path / "des" / "config.json").read_text())
    assert config["label_names"] == ["blue", "green", "red"]
    assert config["num_classes"] == 3
    cfg = config["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"], cfg["interpolation"]) == ([0.1] * 3, [0.4] * 3, 0.9, "bilinear")
    assert (cfg["input_size"], cfg["tag"]) == ([3, 8, 8], "learngene_tleg")
    record = json.loads((tmp_path / "des" / "learngene.json").read_text())
    assert record["layers"] == ["B", "B + 1/3 A", "B + 2/3 A"]


def test_timm_reads_the_preprocessing_from_the_folder(tmp_path: Path) -> None:
    save_descendant(informed_gene().expand(3), tmp_path / "des")
    model = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (tuple(config["mean"]), tuple(config["std"]), config["crop_pct"]) == ((0.1,) * 3, (0.4,) * 3, 0.9)
    assert (tuple(config["input_size"]), config["interpolation"]) == ((3, 8, 8), "bilinear")


def test_a_folder_is_loaded_again_with_its_origin(tmp_path: Path) -> None:
    model = informed_gene().expand(5)
    save_descendant(model, tmp_path / "des")
    loaded = load_descendant(tmp_path / "des")
    images = batch(pico_shape())
    assert torch.equal(loaded.eval()(images), model(images))
    assert loaded.learngene["layers"] == model.learngene["layers"]
    save_descendant(loaded, tmp_path / "again")
    assert load_descendant(tmp_path / "again").learngene == loaded.learngene
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("again", "des")]
    assert weights[0] == weights[1]
    again = load_descendant(tmp_path / "again")
    assert torch.equal(again.eval()(images), model(images))
    for key in ("mean", "std", "crop_pct", "interpolation", "input_size", "tag", "label_names"):
        assert again.pretrained_cfg.get(key) == loaded.pretrained_cfg.get(key), key


def narrow(**changes: Any) -> Any:
    small = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 8, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**small, **changes}).eval()


NAMES = ["blue", "green", "red"]
KINDS: dict[str, tuple[Callable[[], Any], int, list[str] | None]] = {
    "named": (lambda: informed_gene().expand(3), 3, NAMES),
    "unnamed": (lambda: pico_gene(class_token=True).expand(3), 3, None),
    "official": (lambda: pico_gene(ending="official").expand(3), 3, None),
    "headless": (lambda: pico_gene(num_classes=0).expand(3), 0, None),
    "other head": (lambda: informed_gene().expand(3, num_classes=5), 5, None),
    "stitched": (lambda: pico_gene("pool", {"rows": (8, 16)}).expand("8:1-2+16:3-4"), 3, None),
    "by name": (lambda: narrow(pretrained_cfg_overlay={"num_classes": 3, "label_names": NAMES}), 3, NAMES),
    "grey by name": (lambda: narrow(in_chans=1), 3, None),
    "four channels": (lambda: pico_gene(in_chans=4).expand(3), 3, None),
    "segmenter": (lambda: segment(pico_gene().expand(3), 3, class_names=NAMES).eval(), 3, NAMES),
}


@pytest.mark.parametrize(("make", "classes", "names"), KINDS.values(), ids=KINDS)
def test_what_timm_and_transformers_read_of_a_folder(
    make: Callable[[], Any], classes: int, names: list[str] | None, tmp_path: Path
) -> None:
    """Transformers hands ``num_classes`` and ``model_args`` to timm at once, so classes must not be in both."""
    model = make()
    save_descendant(model, tmp_path / "des")
    config = json.loads((tmp_path / "des" / "config.json").read_text())
    assert "num_classes" not in config["model_args"]
    assert (config["num_classes"], config.get("label_names")) == (classes, names)
    channels, *size = config["pretrained_cfg"]["input_size"]
    assert [len(config["pretrained_cfg"][key]) for key in ("mean", "std")] == [channels, channels]
    stock = timm.create_model(f"local-dir:{tmp_path / 'des'}", pretrained=True).eval()
    images = torch.randn(2, channels, *size)
    assert size == [8, 8]
    assert torch.equal(stock(images), model(images))
    assert (stock.num_classes, stock.pretrained_cfg.get("label_names")) == (classes, names)
    assert class_names(load_descendant(tmp_path / "des")) == names


def test_a_folder_of_before_that_says_its_classes_twice_is_loaded_and_mended(tmp_path: Path) -> None:
    model = informed_gene().expand(3)
    save_descendant(model, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config["model_args"]["num_classes"] = 3
    (tmp_path / "old" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    record = json.loads((tmp_path / "old" / "learngene.json").read_text())
    del record["digest"]
    record["digest"] = content_digest(record, *(tmp_path / "old" / name for name in TIMM_FILES))
    (tmp_path / "old" / "learngene.json").write_text(json.dumps(record))
    loaded = load_descendant(tmp_path / "old").eval()
    assert torch.equal(loaded(batch(pico_shape())), model(batch(pico_shape())))
    save_descendant(loaded, tmp_path / "new")
    assert "num_classes" not in json.loads((tmp_path / "new" / "config.json").read_text())["model_args"]


def test_a_folder_is_loaded_with_another_head(tmp_path: Path) -> None:
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    assert load_descendant(tmp_path / "des", num_classes=7)(batch(pico_shape())).shape == (2, 7)


def test_any_timm_model_can_be_saved(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_descendant(model, tmp_path / "des")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_descendant(tmp_path / "des").eval()(images), model(images))


def test_a_model_is_replaced_and_what_others_put_beside_it_stays(tmp_path: Path) -> None:
    des = tmp_path / "des"
    save_descendant(pico_gene().expand(3), des)
    (des / "notes").write_text("mine")
    (des / "plots").mkdir()
    (des / "plots" / "a.png").write_text("mine, too")
    (des / "link").symlink_to("notes")
    save_descendant(pico_gene().expand(5), des)
    assert {path.name for path in des.iterdir()} == FILES | {"notes", "plots", "link"}
    assert [(des / name).read_text() for name in ("notes", "plots/a.png")] == ["mine", "mine, too"]
    assert (des / "link").readlink() == Path("notes")
    assert len(load_descendant(tmp_path / "des").blocks) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["des"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "des").mkdir()
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    assert {path.name for path in (tmp_path / "des").iterdir()} == FILES


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "des").mkdir()
    (tmp_path / "des" / "thesis.txt").write_text("the only copy")
    with pytest.raises(LearngeneError, match=r"exists and was not written by learngene \(it has no learngene.json\)"):
        save_descendant(pico_gene().expand(3), tmp_path / "des")
    assert [path.name for path in (tmp_path / "des").iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["des"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "des").write_text("hello")
    with pytest.raises(LearngeneError, match="exists and is a file, not a folder"):
        save_descendant(pico_gene().expand(3), tmp_path / "des")
    assert (tmp_path / "des").read_text() == "hello"


@pytest.mark.parametrize("place", ["learngene.vits.descendant_folder._mend_config", "safetensors.torch.save_file"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_else(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    before = {path.name: path.read_bytes() for path in (tmp_path / "des").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    with pytest.raises(LearngeneError, match="no space left on the device; nothing was changed"):
        save_descendant(pico_gene().expand(5), tmp_path / "des")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (tmp_path / "des").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["des"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(LearngeneError, match="Permission denied; nothing was changed"):
        save_descendant(pico_gene().expand(5), tmp_path / "des")
    monkeypatch.undo()
    assert len(load_descendant(tmp_path / "des").blocks) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["des"]


# -- scratch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"ending": "official"}, {"class_token": True}, {"num_classes": 0}], ids=str)
def test_scratch_is_a_seeded_timm_vit_with_timms_start_values(changes: dict[str, Any], tmp_path: Path) -> None:
    shape = pico_shape(**{"embed_dim": 64, **changes})
    first, again, other = (scratch(shape, seed) for seed in (0, 0, 1))
    assert {key: tuple(value.shape) for key, value in first.state_dict().items()} == shape.all_params()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert not torch.equal(first.pos_embed, other.pos_embed)
    torch.manual_seed(0)
    reference = timm.models.vision_transformer.VisionTransformer(**shape.timm_kwargs()).state_dict()
    for key, value in first.state_dict().items():
        spread = float(reference[key].std()) if value.numel() > 1 else 0.0
        if key != "head.weight":  # timm starts the head at zero
            assert float(value.std()) == pytest.approx(spread, rel=0.25, abs=1e-4), key
    save_descendant(first, tmp_path / "des")
    images = batch(shape)
    assert torch.equal(load_descendant(tmp_path / "des").eval()(images), first(images))


@pytest.mark.parametrize(
    ("method_name", "settings", "shape"), [("tleg", {}, 3), ("pool", {"rows": (8, 16)}, "8:1-2+16:3-4")]
)
def test_the_authors_epsilon_is_kept_by_every_descendant(
    method_name: str, settings: dict[str, Any], shape: Any, tmp_path: Path
) -> None:
    """By hand: a token of +-0.001 has variance 1e-6, and is scaled to 0.001 / sqrt(1e-6 + 1e-5) = 0.301511."""
    gene = pico_gene(method_name, settings, norm_eps=1e-5)
    model = gene.expand(shape).eval()
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm):
            width = norm.normalized_shape[0]
            token = torch.tensor([0.001, -0.001]).repeat(width // 2)
            scaled = (norm(token) - norm.bias) / norm.weight
            assert scaled.abs().tolist() == pytest.approx([0.301511] * width, rel=1e-3), name
    save_descendant(model, tmp_path / "d")
    again = timm.create_model(f"local-dir:{tmp_path / 'd'}", pretrained=True).eval()
    assert torch.equal(again(batch(gene.shape)), model(batch(gene.shape)))
    assert "norm_eps" not in pico_gene(method_name, settings).shape.to_dict()
    gene.save(tmp_path / "gene.safetensors")
    assert Learngene.load(tmp_path / "gene.safetensors").shape.norm_eps == 1e-5


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_folder_with_a_changed_byte_is_refused(name: str, tmp_path: Path) -> None:
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    assert "digest" not in load_descendant(tmp_path / "des").learngene
    file = tmp_path / "des" / name
    content = bytearray(file.read_bytes())
    place = content.rindex(b"1") if name.endswith("json") else len(content) - 2
    content[place] ^= 3
    file.write_bytes(content)
    with pytest.raises(LearngeneError, match=r"a file was changed after it was written; make the model again, or del"):
        load_descendant(tmp_path / "des")


def test_info_tells_of_a_descendant_folder(cli: Any, tmp_path: Path) -> None:
    save_descendant(pico_gene().expand(3), tmp_path / "des")
    shown = cli("info", tmp_path / "des").out
    params = pico_shape(depth=3).params() / 1e6
    assert ("descendant of    tleg gene" in shown, f"{params:.3f} M parameters" in shown) == (True, True)
    assert json.loads(cli("info", tmp_path / "des", "--json").out)["shape"]["depth"] == 3
    (tmp_path / "images" / "train").mkdir(parents=True)
    refused = cli("info", tmp_path / "images")
    assert (refused.code, "a folder of images (train/ or val/), not a model" in refused.err) == (2, True)
