"""Shapes: closed forms against the built model, timm's names, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from learngene import LearngeneError, ViTShape
from learngene.system.errors import ShapeError
from learngene.vits.shape import MAX_DEPTH
from pico import pico_shape


@st.composite
def shapes(draw: st.DrawFn) -> ViTShape:
    heads = draw(st.integers(1, 4))
    patch = draw(st.sampled_from([2, 3, 4]))
    class_token = draw(st.booleans())
    width = heads * draw(st.integers(1, 8))
    return ViTShape(
        embed_dim=width,
        depth=draw(st.integers(1, 4)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([ratio for ratio in (0.5, 1.0, 2.7, 3.3, 4.0) if width * ratio >= 1])),
        patch_size=patch,
        img_size=patch * draw(st.integers(1, 4)),
        in_chans=draw(st.sampled_from([1, 3, 5])),
        num_classes=draw(st.sampled_from([0, 1, 2, 7])),
        class_token=class_token,
        ending="aligned" if class_token else draw(st.sampled_from(["aligned", "official"])),
    )


SOME_TIME = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SOME_TIME
@given(shapes())
def test_parameters_are_those_of_the_timm_model(shape: ViTShape) -> None:
    model = VisionTransformer(**shape.timm_kwargs())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shape.all_params()
    assert list(model.state_dict()) == list(shape.all_params())
    assert shape.params() == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer_size() == sum(parameter.numel() for parameter in model.blocks[0].parameters())


@SOME_TIME
@given(shapes())
def test_macs_are_half_of_what_the_flop_counter_counts(shape: ViTShape) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        shape.skeleton().eval()(torch.zeros(1, shape.in_chans, shape.img_size, shape.img_size))
    assert 2 * shape.macs() == counter.get_total_flops()


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"])
def test_named_shapes_are_timms_without_class_token(name: str) -> None:
    import timm

    shape = ViTShape.named(name)
    with torch.device("meta"):
        model = timm.create_model(name, class_token=False, global_pool="avg", fc_norm=False)
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, 224, 224))
    assert {n: tuple(v.shape) for n, v in model.state_dict().items()} == shape.all_params()
    assert model.blocks[0].attn.num_heads == shape.num_heads
    assert 2 * shape.macs() == counter.get_total_flops()


def test_the_released_sws_auxiliary_has_twelve_heads_of_32() -> None:
    shape = ViTShape.named("sws_official_aux_small")
    assert (shape.num_heads, shape.head_dim, shape.depth) == (12, 32, 16)
    assert shape.all_params() == ViTShape.named("deit_small_patch16_224", depth=16).all_params()


def test_fvcore_counts_five_operations_per_normalised_element() -> None:
    shape = ViTShape.named("deit_base_patch16_224")
    patches, width = 196, 768
    norms = 5 * patches * width * (2 * 12 + 1)
    assert shape.macs_fvcore() == shape.macs() + norms
    assert shape.macs_fvcore_expansion() == shape.macs_fvcore() + 12 * 7_087_872


@SOME_TIME
@given(shapes())
def test_a_shape_survives_its_dictionary_and_is_hashable(shape: ViTShape) -> None:
    again = ViTShape.from_dict(shape.to_dict())
    assert again == shape
    assert {shape: 1}[again] == 1
    assert shape.replace(depth=shape.depth + 1).to_dict() == {**shape.to_dict(), "depth": shape.depth + 1}


def test_a_shape_is_built_from_a_name_with_changes() -> None:
    expected = ViTShape(embed_dim=192, num_heads=3, depth=5)
    assert ViTShape.from_dict({"named": "deit_tiny_patch16_224", "depth": 5}) == expected
    assert ViTShape.from_dict("deit_tiny_patch16_224").replace(depth=5) == expected
    assert ViTShape.from_dict(expected) is expected


def test_a_skeleton_takes_no_memory() -> None:
    model = ViTShape.named("deit_base_patch16_224").skeleton()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(buffer.device.type == "meta" for buffer in model.buffers())


def test_a_shape_is_frozen() -> None:
    with pytest.raises(AttributeError):
        pico_shape().depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 16, "num_heads": 3}, "embed_dim 16 is not divisible by num_heads 3; the nearest .* is 2"),
        ({"img_size": 10}, "img_size 10 is not divisible by patch_size 4; use 8"),
        ({"img_size": 3}, "img_size 3 is not divisible by patch_size 4; use 4"),
        ({"depth": 0}, "depth must be a positive integer, not 0"),
        ({"depth": 1.5}, "depth must be a positive integer, not 1.5"),
        ({"depth": True}, "depth must be a positive integer, not True"),
        ({"embed_dim": "16"}, "embed_dim must be a positive integer, not '16'"),
        ({"num_heads": -2}, "num_heads must be a positive integer"),
        ({"patch_size": 0}, "patch_size must be a positive integer"),
        ({"in_chans": 0}, "in_chans must be a positive integer"),
        ({"num_classes": -1}, "num_classes must be an integer of 0 or more"),
        ({"num_classes": 2.0}, "num_classes must be an integer of 0 or more"),
        ({"mlp_ratio": 0}, "mlp_ratio must be a positive number"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a positive number"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a positive number"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must be a positive number"),
        ({"mlp_ratio": 0.01}, "mlp_ratio 0.01 of embed_dim 16 leaves the MLP no width"),
        ({"class_token": 1}, "class_token must be true or false"),
        ({"ending": "oficial"}, "unknown ending 'oficial'; did you mean 'official'"),
        ({"class_token": True, "ending": "official"}, "needs class_token false"),
    ],
    ids=str,
)
def test_an_impossible_shape_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pico_shape(**changes)


@pytest.mark.parametrize(
    "fields", [{"depth": 2_000_000_000}, {"img_size": 160_000}, {"embed_dim": 10**12 + 1, "num_heads": 7}]
)
def test_a_shape_that_no_memory_holds_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match="typing error"):
        ViTShape(**fields)
    assert ViTShape(depth=MAX_DEPTH).depth == MAX_DEPTH


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTShape.named("deit_smal_patch16_224"), "unknown name .* did you mean 'deit_small_patch16_224'"),
        (lambda: ViTShape.from_dict({"dept": 3}), "unknown key 'dept'; did you mean 'depth'"),
        (lambda: ViTShape.from_dict({"named": "deit_base_patch16_224", "heads": 3}), "unknown key 'heads'"),
        (lambda: pico_shape().replace(num_head=4), "unknown key 'num_head'; did you mean 'num_heads'"),
    ],
)
def test_an_unknown_name_or_field_is_refused_with_the_nearest(make: Any, message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        make()
