"""What condensing a pool or an SN-Net refuses, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import timm

from learngene import Ancestry, scratch
from learngene.recipe.loading import build_recipe
from learngene.system.errors import LearngeneError
from pico import FAST, condense_fields, pico_shape
from pools import POOL, WIDE, anchors, made, pool, snnet, teacher

NO_TEACHER: dict[str, Any] = {"ancestry": None}
LABELS = {"points": [0, 0], "stitches": "ls"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": {"points": [3]}}, "pool.points: one number per row is needed, 2 in all, not 1"),
        ({"pool": {"points": [3, 4]}}, "pool.points.1: .* less than or equal to 3"),
        ({"pool": {"terms": []}}, "pool.terms"),
        ({"pool": {"terms": ["prd"]}}, "pool.terms.0: .*'pred', 'blk' or 'att'"),
        ({"pool": {"stitch": "tm"}}, "unknown key 'stitch'; did you mean 'stitches'"),
        ({"pool": {"rows": {"epoch": 3}}}, "pool.rows: .*unknown key 'epoch'; did you mean 'epochs'"),
        ({"pool": {"tune": {"lr": -1}}}, "pool.tune: lr: .* greater than 0"),
        (NO_TEACHER, "ancestry is missing: rows are distilled from it, unless pool.points are all 0"),
        ({**NO_TEACHER, "pool": {"points": [0, 1]}}, "ancestry is missing: rows are distilled from it"),
        ({**NO_TEACHER, "pool": {**LABELS, "guide": "soft"}}, "ancestry is missing: pool.guide soft needs a teacher"),
        ({"anchors": [{"source": "a"}, {"source": "b"}]}, "the rows of a pool are distilled from its ancestry; leave"),
        ({"method": "sn-net"}, "anchors: settings.rows has 2 rows, so give 2 pretrained ViTs as anchors"),
        ({"method": "sn-net", "anchors": [{"source": "a"}]}, "so give 2 pretrained ViTs as anchors"),
        ({"method": "sn-net", "anchors": [{"source": "a"}] * 2, "pool": {"stitches": "tm"}},
         "pool.stitches: tm needs rows that were distilled here, not anchors; use ls"),
        ({"method": "tleg", "settings": {}, "pool": {}}, "pool: method tleg has no rows; leave it out"),
        ({"method": "sws", "settings": {"stages": [3]}, "anchors": [{"source": "a"}]}, "anchors: method sws has no"),
        ({"train": {**FAST, "layer_decay": 0.5}}, "layer_decay is for fine-tuning"),
        ({"settings": {"rows": [16, 24]}}, "the last row must be the auxiliary shape"),
        ({"settings": {"row": [16, 24]}}, "unknown key 'row'; did you mean 'rows'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_recipe_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {**condense_fields("one", "digits", tmp_path / "pool"), **POOL, **changes}
    with pytest.raises(LearngeneError, match=message) as error:
        build_recipe(fields)
    assert len(str(error.value).splitlines()) == 1


def resnet() -> Ancestry:
    return Ancestry(timm.create_model("resnet10t", num_classes=3))


def levit() -> Ancestry:
    return Ancestry(timm.create_model("levit_128s", num_classes=3))


def mixer() -> Ancestry:
    return Ancestry(timm.create_model("mixer_s32_224", img_size=32, num_classes=3))


def path() -> Ancestry:
    return Ancestry(pool().expand("2+1"))


@pytest.mark.parametrize(
    ("ancestry", "changes", "message"),
    [
        (resnet, {}, "ancestry resnet10t: .* ResNet has no sequence of blocks; set pool.terms"),
        (levit, {"shape": pico_shape(**WIDE, img_size=224, patch_size=32).to_dict()}, "levit_128s: .* Levit.* has"),
        (mixer, {"shape": pico_shape(**WIDE, img_size=32, patch_size=32).to_dict()},
         "ancestry mixer_s32_224: block 1, a MixerBlock, has no attention module to read; use an ancestry of plain"),
        (lambda: teacher(class_token=True), {}, "block 6 has 5 tokens but the auxiliary models have 4; give shape the"),
        (lambda: teacher(patch_size=2), {}, "has 16 tokens but the auxiliary models have 4; give shape the"),
        (lambda: teacher(img_size=16), {}, "takes images of 16 px with 3 channels, but the auxiliary shape has 8 px"),
        (lambda: teacher(num_classes=4), {}, "has 4 classes but the data has 3"),
        (lambda: teacher(depth=2), {}, "pool.points: 3 points need 3 blocks or more, not 2; use 1 point"),
        (path, {}, r"the ancestry's blocks have widths \[16, 16, 32\], so their matrices have no mean; use"),
        (teacher, {"pool": {"points": [0, 1]}}, "tm needs the block matrices of every row, which points of 0 or terms"),
        (teacher, {"pool": {"terms": ["pred", "att"]}}, "or terms without blk do not learn; use pool.stitches=ls"),
    ],
)  # fmt: skip
def test_an_ancestry_that_does_not_fit_is_refused_before_anything_is_trained(
    ancestry: Any, changes: dict[str, Any], message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        made(tmp_path / "pool", images, ancestry(), **changes)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: anchors((16, 2), (32, 3)), "anchors: number 1, .* has depth 2, but its row has 3; set settings.rows"),
        (lambda: anchors((32, 3), (16, 3)), "anchors: number 1, .* has embed_dim 32, but its row has 16"),
        (lambda: [*anchors((16, 3)), *anchors((32, 3), mlp_ratio=4.0)], "number 2, .* mlp_ratio 4.0, but its row"),
        (lambda: [*anchors((16, 3)), Ancestry(scratch(pico_shape(**{**WIDE, "num_heads": 2})))],
         "anchors: number 2, .* has num_heads 2, but its row has 4"),
        (lambda: [*anchors((16, 3)), path()], "no plain|plain"),
        (lambda: [*anchors((16, 3)), resnet()], "ResNet|plain"),
        (lambda: anchors((32, 3)), "settings.rows has 2 rows, so give 2 pretrained ViTs as anchors"),
        (lambda: anchors((16, 3), (24, 3), (32, 3)), "settings.rows has 2 rows, so give 2 pretrained ViTs"),
        (lambda: anchors((16, 3), (32, 3), num_classes=4), "has 4 classes but the data has 3"),
    ],
)  # fmt: skip
def test_anchors_that_are_not_their_rows_are_refused(models: Any, message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        snnet(images, models(), out=tmp_path / "net")
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
