"""Stitched shapes: closed forms against the built model, and what is refused."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from learngene import StitchedShape, ViTShape
from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.descendant_folder import model_arguments
from learngene.vits.segment import Segment
from learngene.vits.stitched_shape import parse_path, shape_from
from learngene.vits.stitched_vit import StitchedViT
from pico import batch, pico_shape

UP, DOWN = [[16, 2, 1, 2], [32, 4, 2, 3]], [[32, 4, 1, 1], [16, 2, 1, 3]]
THREE = [[16, 2, 1, 2], [24, 3, 2, 2], [32, 4, 3, 4]]


def stitched(segments: Any = UP, **changes: Any) -> StitchedShape:
    fields: dict[str, Any] = {"mlp_ratio": 2.0, "patch_size": 4, "img_size": 8, "num_classes": 3}
    return StitchedShape(segments, **{**fields, **changes})


# -- closed forms ------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn) -> StitchedShape:
    head, patch, class_token = draw(st.integers(1, 8)), draw(st.sampled_from([2, 3, 4])), draw(st.booleans())
    segments = []
    for _ in range(draw(st.integers(2, 4))):
        heads, first = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        segments.append(Segment(heads * head, heads, first, first + draw(st.integers(0, 2))))
    return StitchedShape(
        tuple(segments),
        mlp_ratio=draw(st.sampled_from([1.0, 2.7, 4.0])),
        patch_size=patch,
        img_size=patch * draw(st.integers(1, 4)),
        in_chans=draw(st.sampled_from([1, 3])),
        num_classes=draw(st.sampled_from([0, 1, 7])),
        class_token=class_token,
        ending="aligned" if class_token else draw(st.sampled_from(["aligned", "official"])),
        final_norm=draw(st.booleans()),
    )


NAMED: dict[str, StitchedShape] = {
    "up": stitched(),
    "down": stitched(DOWN),
    "three segments": stitched(THREE),
    "class token": stitched(THREE, class_token=True),
    "official": stitched(THREE, ending="official"),
    "no final norm": stitched(THREE, final_norm=False),
    "class token, no final norm": stitched(DOWN, class_token=True, final_norm=False),
    "official, no final norm": stitched(UP, ending="official", final_norm=False),
    "no classes": stitched(THREE, num_classes=0),
    "the same width twice": stitched([[16, 2, 1, 2], [16, 2, 1, 1]]),
}
every_shape = pytest.mark.parametrize("shape", NAMED.values(), ids=NAMED)
SOME_TIME = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def closed(shape: StitchedShape) -> dict[str, Any]:
    """What a shape says of itself."""
    sizes = {"params": shape.params(), "flops": 2 * 2 * shape.macs(), "fvcore": shape.macs_fvcore() - shape.macs()}
    return {"tensors": shape.all_params(), "outputs": (2, shape.num_classes or shape.embed_dim), **sizes}


def built(shape: StitchedShape) -> dict[str, Any]:
    """The same, counted on the model that is built (which ``test_expand.py`` compares with timm's), with two images."""
    model = shape.skeleton().eval()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(2, shape.in_chans, shape.img_size, shape.img_size))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    normalised = sum(math.prod(norm.normalized_shape) for norm in norms)
    return {
        "tensors": {name: tuple(value.shape) for name, value in model.state_dict().items()},
        "outputs": tuple(logits.shape),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "flops": counter.get_total_flops(),
        "fvcore": 5 * shape.num_tokens * normalised,
    }


@every_shape
def test_the_closed_forms_are_those_of_the_built_model(shape: StitchedShape) -> None:
    assert closed(shape) == built(shape)


@SOME_TIME
@given(shapes())
def test_the_closed_forms_hold_for_any_stitched_shape(shape: StitchedShape) -> None:
    assert closed(shape) == built(shape)


@every_shape
def test_a_skeleton_takes_no_memory_and_has_its_parameters_in_order(shape: StitchedShape) -> None:
    model = shape.skeleton()
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert len(model.blocks) == shape.depth
    listed, found = ([name for name in names if ".stitch." not in name]
                     for names in (shape.all_params(), model.state_dict()))  # fmt: skip
    assert listed == found


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("ending", ["aligned", "official"])
def test_the_model_computes_segments_and_stitches_in_order(ending: Any, final_norm: bool) -> None:
    """Against a forward pass written out, with one plain timm ViT for each segment."""
    shape = stitched(THREE, ending=ending, final_norm=final_norm)
    torch.manual_seed(0)
    model: Any = StitchedViT(**shape.timm_kwargs()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images = batch(pico_shape())
    tokens = model.patch_embed(images) + model.pos_embed
    for index, block in enumerate(model.blocks):
        tokens = block.stitch(tokens) if index in (2, 3) else tokens
        assert tokens.shape[-1] == (16, 16, 24, 32, 32)[index]
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    if ending == "aligned":
        pooled = (model.norm(tokens) if final_norm else tokens).mean(1)
    else:
        pooled = model.fc_norm(tokens.mean(1)) if final_norm else tokens.mean(1)
    torch.testing.assert_close(model(images), model.head(pooled))
    assert [block.attn.num_heads for block in model.blocks] == [2, 2, 3, 4, 4]
    assert {block.attn.head_dim for block in model.blocks} == {8}


def test_a_fresh_model_starts_as_timm_starts_it() -> None:
    torch.manual_seed(0)
    model: Any = StitchedViT(segments=((48, 3, 1, 2), (96, 6, 2, 3)), img_size=8, patch_size=4, num_classes=5)
    for block in model.blocks:
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not block.mlp.fc1.bias.any()
        assert torch.equal(block.norm1.weight, torch.ones_like(block.norm1.weight))
    assert model.blocks[2].stitch.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.blocks[2].stitch.bias.any()
    assert {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__} == {"LayerNorm"}
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_features_say_their_own_width() -> None:
    model = stitched(THREE).skeleton()
    assert [entry["num_chs"] for entry in model.feature_info] == [16, 16, 24, 32, 32]
    assert [entry["module"] for entry in model.feature_info] == [f"blocks.{i}" for i in range(5)]
    assert model.num_features == model.embed_dim == model.head_hidden_size == 32


def test_snnets_own_count_of_a_small_net() -> None:
    """By hand: patches 9,264; a block of 48, 28,272; stitch 4,704; three of 96, 335,520; final norm 192; head 970.

    SN-Net counts the final norm of a path that does not apply it: its code says 378,922 for this net.
    """
    segments = (Segment(48, 1, 1, 1), Segment(96, 2, 1, 3))
    shape = StitchedShape(segments, patch_size=8, img_size=32, num_classes=10, final_norm=False)
    assert shape.params_snnet() == 9264 + 28272 + 4704 + 335520 + 192 + 970 == 378_922
    assert shape.params() - math.prod(shape.all_params()["pos_embed"]) == 378_922 - 192


# -- derived sizes and dictionaries ------------------------------------------------------------------------


def test_a_stitched_shape_reads_like_its_parts() -> None:
    shape = stitched(THREE, class_token=True)
    assert (shape.path, shape.depth) == ("16:1-2+24:2-2+32:3-4", 5)
    assert (shape.embed_dim, shape.num_heads) == (32, 4)
    assert (shape.grid_size, shape.num_tokens) == (2, 5)
    assert shape.parts == [pico_shape(embed_dim=w, depth=d, num_heads=h, class_token=True)
                           for w, d, h in ((16, 2, 2), (24, 1, 3), (32, 2, 4))]  # fmt: skip
    assert str(shape) == "5 layers 16:1-2+24:2-2+32:3-4 (2+3+4 heads), patch 4, 8 px, 3 classes, class token"
    assert str(stitched(final_norm=False)).endswith("3 classes, no final norm")


def test_where_blocks_stood_in_their_rows_changes_no_size() -> None:
    early, late = stitched(), stitched([[16, 2, 3, 4], [32, 4, 5, 6]])
    assert early != late
    assert early.all_params() == late.all_params()
    assert early.macs() == late.macs()


@SOME_TIME
@given(shapes())
def test_a_shape_survives_its_dictionary_and_is_hashable(shape: StitchedShape) -> None:
    plain = json.loads(json.dumps(shape.to_dict()))
    for again in (StitchedShape.from_dict(plain), shape_from(plain), shape_from(shape)):
        assert again == shape
        assert {shape: 1}[again] == 1
    assert json.loads(json.dumps(shape.timm_kwargs()))["segments"] == plain["segments"]


def test_a_changed_copy_is_validated_again() -> None:
    shape = stitched()
    assert shape.replace(num_classes=9).to_dict() == {**shape.to_dict(), "num_classes": 9}
    with pytest.raises(ShapeError, match="img_size 10 is not divisible by patch_size 4; use 8"):
        shape.replace(img_size=10)
    with pytest.raises(LearngeneError, match="unknown key 'num_class'; did you mean 'num_classes'"):
        shape.replace(num_class=9)
    with pytest.raises(AttributeError):
        shape.num_classes = 9  # type: ignore[misc]


def test_a_descendants_record_rebuilds_its_arguments() -> None:
    class Expanded:
        learngene = {"shape": json.loads(json.dumps(stitched(THREE).to_dict()))}  # noqa: RUF012

    assert model_arguments(Expanded()) == stitched(THREE).timm_kwargs()


# -- paths as text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("16:1-2+32:2-3", UP),
        (" 16:1-2 + 32:2-3 ", UP),
        ("16:1-2+24:2+32:3-4", THREE),
        ("32:1+16:1-3", DOWN),
        ("8:7", [[8, 1, 7, 7]]),
    ],
)
def test_a_path_is_read(text: str, segments: list[list[int]]) -> None:
    assert parse_path(text, 8) == tuple(Segment(*each) for each in segments)


def test_a_shape_is_made_of_fields_with_a_path() -> None:
    base = {**pico_shape(embed_dim=32, num_heads=4).to_dict()}
    assert shape_from({**base, "path": "16:1-2+32:2-3"}) == stitched()
    assert shape_from({**base, "path": "16:1-2+32:2-3", "final_norm": False}) == stitched(final_norm=False)
    assert shape_from({"named": "deit_base_patch16_224", "path": "192:1-4+768:5-6"}) == StitchedShape(
        ((192, 3, 1, 4), (768, 12, 5, 6))  # type: ignore[arg-type]
    )
    assert shape_from(base) == ViTShape.from_dict(base)
    assert shape_from("deit_base_patch16_224") == ViTShape.named("deit_base_patch16_224")
    again = stitched(THREE).path
    assert "+".join(str(segment) for segment in parse_path(again, 8)) == again


FORM = "is not of the form WIDTH:FIRST-LAST+WIDTH:FIRST-LAST"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", FORM),
        ("4+2", FORM),
        ("16:1-2+", FORM),
        ("16:1-2,32:2-3", FORM),
        ("16:-1-2+32:2-3", FORM),
        ("16:1-2+32:2-3.0", FORM),
        ("16:１-2+32:2-3", FORM),
        (None, FORM),
        ("16:1-2+20:2-3", "width 20 is no multiple of the head width 8"),
        ("0:1-2+32:2-3", "width 0 is no multiple of the head width 8"),
        ("16:2-1+32:2-3", "segment 2-1 is empty; blocks count from 1, first to last"),
        ("16:0-1+32:2-3", "segment 0-1 is empty; blocks count from 1, first to last"),
    ],
)
def test_a_wrong_path_is_refused(text: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message.replace("+", r"\+")):
        parse_path(text, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stitched([[16, 2, 1, 4]]), "two segments or more; one alone is a plain ViTShape"),
        (lambda: stitched([]), "two segments or more"),
        (lambda: stitched([[16, 2, 1, 2], [32, 4, 3, 2]]), "segment 3-2 is empty"),
        (lambda: stitched([[16, 2, 0, 2], [32, 4, 2, 3]]), "segment 0-2 is empty; blocks count from 1"),
        (lambda: stitched([[16, 2, 1.0, 2], [32, 4, 2, 3]]), "the blocks of a segment are integers, not 1.0"),
        (lambda: stitched([[16, 2, True, 2], [32, 4, 2, 3]]), "the blocks of a segment are integers, not True"),
        (lambda: stitched([[16, 2, 1], [32, 4, 2, 3]]), r"a segment is \[embed_dim, num_heads, first, last\], not"),
        (lambda: stitched(["16:1-2", [32, 4, 2, 3]]), r"a segment is .* not '16:1-2'"),
        (lambda: stitched([[16, 3, 1, 2], [32, 4, 2, 3]]), "embed_dim 16 is not divisible by num_heads 3"),
        (lambda: stitched([[16, 2, 1, 2], [32, 5, 2, 3]]), "embed_dim 32 is not divisible by num_heads 5"),
        (lambda: stitched([["16", 2, 1, 2], [32, 4, 2, 3]]), "embed_dim must be a positive integer, not '16'"),
        (lambda: stitched([[16, 2, 1, 2], [0, 4, 2, 3]]), "embed_dim must be a positive integer, not 0"),
        (lambda: stitched(final_norm=1), "final_norm must be true or false, not 1"),
        (lambda: stitched(num_classes=-1), "num_classes must be an integer of 0 or more"),
        (lambda: stitched(class_token=True, ending="official"), "needs class_token false"),
        (lambda: StitchedShape.from_dict({"segment": UP}), "unknown key 'segment'; did you mean 'segments'"),
        (lambda: shape_from({"segments": UP, "depth": 3}), "unknown key 'depth'"),
        (lambda: shape_from({"depth": 3, "final_norm": False}), "final_norm belongs to a path; a plain ViT always has"),
        (lambda: shape_from({"paths": "16:1-2"}), "unknown key 'paths'"),
        (lambda: shape_from({**pico_shape().to_dict(), "path": "16:1-4"}), "one alone is a plain ViTShape"),
        (lambda: shape_from({**pico_shape().to_dict(), "path": "16:1-4+20:5"}), "20 is no multiple of the head width"),
    ],
)  # fmt: skip
def test_an_impossible_shape_is_refused(make: Any, message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        make()
