"""Stitched shapes: closed forms against the built model, the sizes that Learngene Pool prints, and what is refused."""

from __future__ import annotations

import json
import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from learngene import StitchedShape, ViTShape
from learngene.methods import method
from learngene.system.errors import LearngeneError, ShapeError
from learngene.vits.descendant_folder import model_arguments
from learngene.vits.segment import Segment
from learngene.vits.stitched_shape import Shape, parse_path, shape_from
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
SOME_TIME = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def closed(shape: StitchedShape) -> dict[str, Any]:
    """What a shape says of itself."""
    sizes = {"params": shape.params(), "flops": 2 * 2 * shape.macs(), "fvcore": shape.macs_fvcore() - shape.macs()}
    return {"tensors": shape.all_params(), "outputs": (2, shape.num_classes or shape.embed_dim), **sizes}


def built(shape: StitchedShape) -> dict[str, Any]:
    """The same, counted on the model that is built, with two images."""
    with torch.device("meta"):
        model = StitchedViT(**shape.timm_kwargs()).eval()
        with FlopCounterMode(display=False) as counter:
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
def test_parameters_are_listed_in_the_models_order(shape: StitchedShape) -> None:
    built = [name for name in shape.skeleton().state_dict() if ".stitch." not in name]
    assert [name for name in shape.all_params() if ".stitch." not in name] == built


@every_shape
def test_a_skeleton_takes_no_memory(shape: StitchedShape) -> None:
    model = shape.skeleton()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(buffer.device.type == "meta" for buffer in model.buffers())
    assert len(model.blocks) == shape.depth


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


# -- the sizes that Learngene Pool prints ------------------------------------------------------------------

# Blocks of width 192 + blocks of width 768: (Params (M), FLOPs (G)).
POOL_12 = {
    **{"6+0": ("3.05", "0.64"), "5+1": ("10.38", "2.03"), "4+2": ("17.02", "3.38"), "3+3": ("23.66", "4.73")},
    **{"2+4": ("30.31", "6.09"), "1+5": ("36.95", "7.44"), "0+6": ("44.04", "8.85")},
}
POOL_18 = {
    **{"9+0": ("4.38", "0.95"), "8+1": ("11.71", "2.33"), "7+2": ("18.36", "3.69"), "6+3": ("25.00", "5.04")},
    **{"5+4": ("31.64", "6.39"), "4+5": ("38.29", "7.75"), "3+6": ("44.93", "9.10"), "2+7": ("51.57", "10.45")},
    **{"1+8": ("58.21", "11.80"), "0+9": ("65.30", "13.26")},
}
TABLE_5 = {
    6: {"6+0": ("3.05", "0.64"), "5+1": ("10.38", "2.03"), "6+1": ("10.82", "2.13"), "4+2": ("17.02", "3.38"),
        "5+2": ("17.47", "3.48")},
    9: {"9+0": ("4.38", "0.95"), "8+1": ("11.71", "2.33"), "9+1": ("12.16", "2.44"), "8+2": ("18.80", "3.79"),
        "6+3": ("25.00", "5.04")},
}  # fmt: skip


class Entry(NamedTuple):
    """A row of a table, what is printed in one column of it, and the exact value in the same unit."""

    table: int
    depth: int
    path: str
    column: str
    printed: str
    exact: Fraction

    @property
    def key(self) -> tuple[int, str, str]:
        return self.table, self.path, self.column


def pool_shape(depth: int) -> ViTShape:
    """The wide row: DeiT-B, class token and all, of fewer blocks."""
    return ViTShape.named("deit_base_patch16_224", depth=depth, class_token=True)


def pool_path(depth: int, path: str, *, final_norm: bool = True) -> Shape:
    return method("pool", {"final_norm": final_norm}).named_shape(pool_shape(depth), path)


def counted_params(shape: Shape) -> int:
    """Stitched paths without class token and positions, whole rows with everything."""
    return shape.params_snnet() if isinstance(shape, StitchedShape) else shape.params()


def entries() -> list[Entry]:
    tables = [(1, 6, POOL_12), (2, 9, POOL_18), *((5, depth, rows) for depth, rows in TABLE_5.items())]
    out = []
    for table, depth, rows in tables:
        for path, (params, flops) in rows.items():
            counted = Fraction(counted_params(pool_path(depth, path)), 10**6)
            out.append(Entry(table, depth, path, "Params", params, counted))
            # SN-Net's code leaves the final norm out where it computes a stitched path, and counts its parameters.
            computed = Fraction(pool_path(depth, path, final_norm=False).macs_fvcore(), 10**9)
            out.append(Entry(table, depth, path, "FLOPs", flops, computed))
    return out


ENTRIES = entries()
MISPRINTS: dict[tuple[int, str, str], tuple[str, str]] = {(2, "0+9", "FLOPs"): ("13.26", "13.22")}
"""Entries that exact counting does not give: printed, and exact at that precision."""


def rounded(exact: Fraction, printed: str) -> str:
    value = Decimal(exact.numerator) / Decimal(exact.denominator)
    return str(value.quantize(Decimal(printed), rounding=ROUND_HALF_UP))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: "-".join(map(str, e.key)))
def test_every_entry_is_reproduced_or_a_named_misprint(entry: Entry) -> None:
    exact = rounded(entry.exact, entry.printed)
    if entry.key in MISPRINTS:
        assert (entry.printed, exact) == MISPRINTS[entry.key]
        assert entry.printed != exact
    else:
        assert exact == entry.printed


def test_the_list_of_entries_is_complete() -> None:
    counts = {(table, column): sum(e.table == table and e.column == column for e in ENTRIES)
              for table in (1, 2, 5) for column in ("Params", "FLOPs")}  # fmt: skip
    assert counts == {
        **{(1, "Params"): 7, (1, "FLOPs"): 7, (2, "Params"): 10, (2, "FLOPs"): 10},
        **{(5, "Params"): 10, (5, "FLOPs"): 10},
    }
    keys = [entry.key for entry in ENTRIES]
    assert len(set(keys)) == len(keys)
    assert MISPRINTS.keys() <= set(keys)


def test_the_misprinted_flops_are_no_other_count_of_nine_blocks() -> None:
    """13.26 G of Table 2: 13.216 by the rule that gives the other 26 FLOPs, and not by leaving the norm out either."""
    shape = pool_shape(9)
    assert rounded(Fraction(shape.macs_fvcore(), 10**9), "1.000") == "13.216"
    for count in (shape.macs(), shape.macs_fvcore(), shape.replace(class_token=False).macs_fvcore()):
        assert rounded(Fraction(count, 10**9), "1.00") != "13.26"


def test_the_introductions_65_03_swaps_two_digits_of_table_2() -> None:
    exact = Fraction(pool_shape(9).params(), 10**6)
    assert rounded(exact, "65.30") == "65.30"
    assert rounded(exact, "65.03") != "65.03"


def test_the_final_norm_is_counted_as_parameters_and_not_as_flops() -> None:
    """One entry decides that the norm does not count as FLOPs; as parameters it does, whether applied or not."""

    def off(column: str, final_norm: bool) -> list[str]:
        wrong = []
        for entry in ENTRIES:
            shape = pool_path(entry.depth, entry.path, final_norm=final_norm)
            count = counted_params(shape) if column == "Params" else shape.macs_fvcore()
            unit = 10**6 if column == "Params" else 10**9
            if entry.column == column and rounded(Fraction(count, unit), entry.printed) != entry.printed:
                wrong.append(entry.path)
        return wrong

    assert off("Params", final_norm=True) == []
    assert off("Params", final_norm=False) == []
    assert off("FLOPs", final_norm=True) == ["1+8", "0+9"]
    assert off("FLOPs", final_norm=False) == ["0+9"]


def test_the_released_flops_of_the_first_snnet_path() -> None:
    """SN-Net publishes 4,696,010,496 for DeiT-Ti's first block and DeiT-S's twelve, which has no final norm."""
    kind = method("sn-net", {"rows": (192, 384, 768), "final_norm": False})
    shape = kind.named_shape(pool_shape(12), "192:1-1+384:1-12")
    assert shape.macs_fvcore() == 4_696_010_496
    assert ViTShape.named("deit_tiny_patch16_224", class_token=True).macs_fvcore() == 1_258_411_200


def test_snnets_own_count_of_a_small_net() -> None:
    """By hand: patches 9,264; a block of 48, 28,272; stitch 4,704; three of 96, 335,520; final norm 192; head 970.

    SN-Net counts the final norm of a path that does not apply it: its code says 378,922 for this net.
    """
    segments = (Segment(48, 1, 1, 1), Segment(96, 2, 1, 3))
    shape = StitchedShape(segments, patch_size=8, img_size=32, num_classes=10, final_norm=False)
    assert shape.params_snnet() == 9264 + 28272 + 4704 + 335520 + 192 + 970 == 378_922
    assert shape.params() - math.prod(shape.all_params()["pos_embed"]) == 378_922 - 192


# -- storage -----------------------------------------------------------------------------------------------


def stored(name: str, depth: int, **changes: Any) -> Fraction:
    sizes = method(name, changes).gene_tensors(pool_shape(depth)).values()
    return Fraction(sum(math.prod(size) for size in sizes), 10**6)


def test_a_gene_holds_the_printed_storage() -> None:
    assert rounded(stored("pool", 6), "47.83") == "47.83"
    assert rounded(stored("pool", 9), "70.87") == "70.87"
    assert rounded(stored("sn-net", 12, rows=(192, 384, 768)), "118.40") == "118.40"


def test_the_printed_savings() -> None:
    snnet = stored("sn-net", 12, rows=(192, 384, 768))
    for depth, printed in ((6, "59.6"), (9, "40.1")):
        assert rounded(100 * (1 - stored("pool", depth) / snnet), printed) == printed
    assert rounded(100 * (1 - Fraction("47.83") / Fraction("118.4")), "59.6") == "59.6"
    assert rounded(100 * (1 - Fraction("70.87") / Fraction("118.4")), "40.1") == "40.1"


@pytest.mark.parametrize(("depth", "printed"), [(6, "3.05"), (9, "4.38")])
def test_the_smallest_model_of_a_pool(depth: int, printed: str) -> None:
    kind, auxiliary = method("pool"), pool_shape(depth)
    smallest = min(kind.shapes(auxiliary, auxiliary), key=lambda shape: shape.params())
    assert smallest == ViTShape.named("deit_tiny_patch16_224", depth=depth, class_token=True)
    assert rounded(Fraction(smallest.params(), 10**6), printed) == printed
    assert smallest.params() < ViTShape.named("deit_tiny_patch16_224", class_token=True).params()


def test_paths_with_more_blocks_are_larger_than_the_wide_row() -> None:
    """2+6 of pool (12): two blocks more than either row."""
    deepest = pool_path(6, "2+6")
    assert deepest.depth == 8
    assert deepest.params() > pool_shape(6).params()
