"""The sizes that TLEG, SWS, LSAMD and Learngene Pool print in tables, from shapes alone, as precisely as printed."""

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import NamedTuple

import pytest

from learngene.methods import method
from learngene.vits.shape import ViTShape
from learngene.vits.stitched_shape import Shape, StitchedShape

WIDTHS = {"Ti": "deit_tiny_patch16_224", "S": "deit_small_patch16_224", "B": "deit_base_patch16_224"}
MILLION, GIGA = 10**6, 10**9


class Entry(NamedTuple):
    """One number of a table: where it is, what is printed, and the exact value in the same unit."""

    table: str
    model: str
    depth: int
    column: str
    printed: str
    exact: Fraction

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self[:4]


def at_precision(exact: Fraction | int, printed: str) -> str:
    """The exact value with as many decimals as the printed one has."""
    # Exact for integers in millions or billions; TLEG Table 2's averages are far from ties.
    value = Decimal(exact.numerator) / Decimal(exact.denominator)
    return str(value.quantize(Decimal(printed), rounding=ROUND_HALF_UP))


def vit(model: str, depth: int, classes: int = 1000) -> ViTShape:
    return ViTShape.named(WIDTHS[model], depth=depth, num_classes=classes)


def stored(name: str, shape: ViTShape, **settings: object) -> int:
    """Parameters of the whole auxiliary model, each shared one counted once: what a gene file holds."""
    return sum(math.prod(size) for size in method(name, settings).gene_tensors(shape).values())


def stem(model: str, *, positions: bool = True) -> int:
    """Parameters of the patch projection and the position embedding."""
    return sum(math.prod(s) for name, s in vit(model, 1).stem_params().items() if positions or name != "pos_embed")


# -- the tables ------------------------------------------------------------------------------------------

# depth: (Params (M), FLOPs (G)) on ImageNet-1K. Des-Ti, Des-S and Des-B are one family in both papers.
TI = {3: ("1.7", "0.3"), 6: ("3.1", "0.6"), 9: ("4.4", "0.9"), 12: ("5.7", "1.3")}
S = {
    **{3: ("6.1", "1.2"), 4: ("7.9", "1.6"), 5: ("9.6", "1.9"), 6: ("11.4", "2.3"), 7: ("13.2", "2.7")},
    **{8: ("15.0", "3.1"), 9: ("16.7", "3.5"), 10: ("18.5", "3.8"), 11: ("20.3", "4.2"), 12: ("22.1", "4.6")},
}
B = {
    **{3: ("22.8", "4.5"), 4: ("29.9", "5.9"), 5: ("37.0", "7.4"), 6: ("44.0", "8.8"), 7: ("51.1", "10.3")},
    **{8: ("58.2", "11.7"), 9: ("65.3", "13.1"), 10: ("72.4", "14.6"), 11: ("79.5", "16.0")},
    **{12: ("86.6", "17.5"), 13: ("93.7", "18.9"), 14: ("100.7", "20.4"), 15: ("107.8", "21.8")},
}
IMAGENET_TABLES = {
    "TLEG 1": {"Ti": TI, "S": S, "B": {d: B[d] for d in range(3, 13)}},
    "SWS 1": {"B": {d: B[d] for d in range(6, 16)}},
    "SWS 3": {"B": {d: B[d] for d in range(8, 13)}},
    "SWS 4": {"B": {d: B[d] for d in range(7, 13)}},
}

# TLEG Table 2: classes of iNat 19, Mini-ImageNet, Tiny-ImageNet, CIFAR-100, CIFAR-10, Food-101.
SIX_SETS = (1010, 100, 200, 100, 10, 101)

# Des-B on CIFAR-100: depth: (Params, parameters that pre-training stores: S-P in TLEG, P-S in SWS).
TLEG_3 = {4: "29.2", 6: "43.3", 8: "57.6", 10: "71.7", 12: "85.9"}
SWS_2 = {
    **{6: ("43.4", "44.0"), 7: ("50.4", "51.1"), 8: ("57.5", "58.2"), 9: ("64.6", "65.3")},
    **{10: ("71.7", "72.4"), 11: ("78.8", "79.5"), 12: ("85.9", "86.6"), 13: ("93.0", "93.7")},
    **{14: ("100.1", "100.7"), 15: ("107.1", "107.8")},
}

# SWS Table 5: name: (stages, Params, FLOPs).
SWS_5 = {
    "MS-WS1": ((2, 2, 2, 2, 2, 2), "44.0", "17.5"),
    "MS-WS1 (wo dis)": ((2, 2, 2, 2, 2, 2), "44.0", "17.5"),
    "MS-WS2": ((1, 4, 1, 1, 4, 1), "44.0", "17.5"),
    "MS-WS3": ((1, 5, 1, 4, 1), "37.0", "17.5"),
    "MS-WS4": ((4, 1, 6, 1, 4), "37.0", "23.3"),
    "MS-WS5": ((4, 1, 5, 2, 3), "37.0", "21.8"),
    "MS-WS6": ((3, 3, 4, 3, 3), "37.0", "23.3"),
}

# LSAMD Table 2, DeiT-B with class token and 100 classes: depth: (Params, FLOPs).
LSAMD_2 = {
    **{5: ("36.11", "7.09"), 6: ("43.20", "8.49"), 7: ("50.28", "9.89"), 8: ("57.37", "11.28")},
    **{9: ("64.46", "12.68"), 10: ("71.55", "14.07"), 11: ("78.64", "15.47"), 12: ("85.72", "16.86")},
    **{13: ("92.81", "18.26"), 14: ("99.90", "19.65"), 15: ("106.99", "21.05")},
}


# Learngene Pool, rows of 6 and 9 blocks: blocks of width 192 + blocks of width 768: (Params, FLOPs).
POOL_12 = {
    **{"6+0": ("3.05", "0.64"), "5+1": ("10.38", "2.03"), "4+2": ("17.02", "3.38"), "3+3": ("23.66", "4.73")},
    **{"2+4": ("30.31", "6.09"), "1+5": ("36.95", "7.44"), "0+6": ("44.04", "8.85")},
}
POOL_18 = {
    **{"9+0": ("4.38", "0.95"), "8+1": ("11.71", "2.33"), "7+2": ("18.36", "3.69"), "6+3": ("25.00", "5.04")},
    **{"5+4": ("31.64", "6.39"), "4+5": ("38.29", "7.75"), "3+6": ("44.93", "9.10"), "2+7": ("51.57", "10.45")},
    **{"1+8": ("58.21", "11.80"), "0+9": ("65.30", "13.26")},
}
POOL_5 = {
    6: {path: POOL_12[path] for path in ("6+0", "5+1", "4+2")},
    9: {path: POOL_18[path] for path in ("9+0", "8+1", "6+3")},
}
POOL_5[6] |= {"6+1": ("10.82", "2.13"), "5+2": ("17.47", "3.48")}
POOL_5[9] |= {"9+1": ("12.16", "2.44"), "8+2": ("18.80", "3.79")}


def pool_shape(depth: int) -> ViTShape:
    """The wide row: DeiT-B, class token and all, of fewer blocks."""
    return vit("B", depth).replace(class_token=True)


def pool_path(depth: int, path: str, *, final_norm: bool) -> Shape:
    return method("pool", {"final_norm": final_norm}).named_shape(pool_shape(depth), path)


def pool_params(shape: Shape) -> int:
    """Stitched paths without class token and positions, whole rows with everything."""
    return shape.params_snnet() if isinstance(shape, StitchedShape) else shape.params()


def mini_deit_b() -> tuple[int, int]:
    """Parameters and fvcore multiply-adds of Mini-DeiT-B: 6 shared layers, each used twice.

    Not shared are the two norms, two 1x1 convolutions between the 12 heads, and a relative position table of
    49 buckets per layer for all heads (the published code of MiniViT).
    """
    shape, heads, tokens, buckets = vit("B", 12), 12, 196, 49
    second_norms = 6 * 4 * shape.embed_dim
    convolutions = 12 * 2 * heads**2
    positions = 12 * buckets * shape.head_dim
    added = 12 * (2 * heads**2 * tokens**2 + tokens * shape.embed_dim * buckets)
    return vit("B", 6).params() + second_norms + convolutions + positions, shape.macs_fvcore() + added


def entries() -> list[Entry]:
    """Every Params (M) and FLOPs (G) entry of the tables above, and stored sizes."""
    out: list[Entry] = []

    def add(table: str, model: str, depth: int, column: str, printed: str, exact: Fraction | int) -> None:
        unit = GIGA if column == "FLOPs" else MILLION
        out.append(Entry(table, model, depth, column, printed, Fraction(exact) / unit))

    for table, models in IMAGENET_TABLES.items():
        for model, rows in models.items():
            for depth, (params, flops) in rows.items():
                add(table, f"Des-{model}", depth, "Params", params, vit(model, depth).params())
                add(table, f"Des-{model}", depth, "FLOPs", flops, vit(model, depth).macs_fvcore())

    # "The average number of individual model parameters on different datasets"
    for model, printed in (("Ti", "3.0"), ("S", "11.3")):
        total = sum(vit(model, 6, classes).params() for classes in SIX_SETS)
        add("TLEG 2", f"Des-{model}", 6, "Params", printed, Fraction(total, len(SIX_SETS)))
    for model, pre_fin, he_lg, share, mini in (("Ti", "2.9", "1.4", "0.6", "2.8"), ("S", "11.0", "5.3", "2.1", "11.0")):
        shape, layer = vit(model, 6), vit(model, 6).layer_size()
        final_norm = 2 * shape.embed_dim
        add("TLEG 2", "Pre-Fin(U)", 6, f"S-Params {model}", pre_fin, 6 * layer + stem(model) + final_norm)
        add("TLEG 2", "He-LG", 6, f"S-Params {model}", he_lg, 3 * layer)
        add("TLEG 2", "Share-Init", 6, f"S-Params {model}", share, layer + stem(model, positions=False))
        # Both norms of the 6 shared blocks and the head-mixing convolutions; no positions.
        mini_exact = 6 * layer + stem(model, positions=False) + 6 * 4 * shape.embed_dim + 24 * shape.num_heads**2
        add("TLEG 2", "Mini-Init", 6, f"S-Params {model}", mini, mini_exact)

    for depth, params in TLEG_3.items():
        add("TLEG 3", "Des-B", depth, "Params", params, vit("B", depth, 100).params())

    for depth, (params, pretrained) in SWS_2.items():
        add("SWS 2", "Des-B", depth, "Params", params, vit("B", depth, 100).params())
        add("SWS 2", "Des-B", depth, "P-S of PF", pretrained, vit("B", depth).params())
    add("SWS 2", "Aux-B", 16, "P-S of SWS", "37.0", stored("sws", vit("B", 16)))

    tleg = vit("B", 12)
    mini_params, mini_macs = mini_deit_b()
    add("SWS 5", "Scratch", 12, "Params", "86.6", tleg.params())
    add("SWS 5", "Scratch", 12, "FLOPs", "17.5", tleg.macs_fvcore())
    add("SWS 5", "TLEG", 12, "Params", "15.7", stored("tleg", tleg))
    add("SWS 5", "TLEG", 12, "FLOPs", "17.6", tleg.macs_fvcore_expansion())
    add("SWS 5", "Mini-DeiT", 12, "Params", "44.1", mini_params)
    add("SWS 5", "Mini-DeiT", 12, "FLOPs", "17.5", mini_macs)
    for name, (stages, params, flops) in SWS_5.items():
        shape = vit("B", sum(stages))
        add("SWS 5", name, shape.depth, "Params", params, stored("sws", shape, stages=stages))
        add("SWS 5", name, shape.depth, "FLOPs", flops, shape.macs_fvcore())

    for depth, (params, flops) in LSAMD_2.items():
        shape = vit("B", depth, 100).replace(class_token=True)
        add("LSAMD 2", "Des-Net", depth, "Params", params, shape.params_without_positions())
        add("LSAMD 2", "Des-Net", depth, "FLOPs", flops, shape.macs_thop())
    add("LSAMD 2", "Des-Net", 5, "LG-Params", "36.11", vit("B", 5, 100).params_without_positions())

    for table, depth, rows in (
        ("Pool 1", 6, POOL_12),
        ("Pool 2", 9, POOL_18),
        *(("Pool 5", d, POOL_5[d]) for d in POOL_5),
    ):
        for path, (params, flops) in rows.items():
            # SN-Net's code leaves the final norm out where it computes a stitched path, and counts its parameters.
            shape = pool_path(depth, path, final_norm=False)
            add(table, path, depth, "Params", params, pool_params(shape))
            add(table, path, depth, "FLOPs", flops, shape.macs_fvcore())
    for depth, printed in ((6, "47.83"), (9, "70.87")):
        add("Pool", "gene", depth, "Stored", printed, stored("pool", pool_shape(depth)))
    add("Pool", "SN-Net", 12, "Stored", "118.40", stored("sn-net", pool_shape(12), rows=(192, 384, 768)))
    return out


ENTRIES = entries()

MISPRINTS: dict[tuple[str, str, int, str], tuple[str, str, str]] = {
    ("TLEG 1", "Des-Ti", 6, "Params"): ("3.1", "3.0", "3.0478 M"),
    ("TLEG 1", "Des-S", 12, "Params"): ("22.1", "22.0", "22.0499 M; 22.0507 M with a class token"),
    ("TLEG 2", "Des-Ti", 6, "Params"): ("3.0", "2.9", "the average over the six sets is 2.904 M"),
    ("TLEG 2", "Des-S", 6, "Params"): ("11.3", "11.1", "the average over the six sets is 11.116 M"),
    ("TLEG 2", "He-LG", 6, "S-Params Ti"): ("1.4", "1.3", "three layers are 1.335 M; those of S do give 5.3"),
    ("TLEG 3", "Des-B", 8, "Params"): ("57.6", "57.5", "57.523 M, and SWS Table 2 prints 57.5"),
    ("SWS 2", "Des-B", 6, "Params"): ("43.4", "43.3", "43.347 M, and TLEG Table 3 prints 43.3"),
    ("SWS 2", "Des-B", 14, "Params"): ("100.1", "100.0", "100.0498 M"),
    ("SWS 5", "Mini-DeiT", 12, "FLOPs"): ("17.5", "17.7", "17.5 is a plain ViT's, without what Mini-DeiT adds"),
    ("Pool 2", "0+9", 9, "FLOPs"): ("13.26", "13.22", "13.216 G by the rule that gives the other 26 FLOPs"),
}
"""Entries that exact counting does not give: (printed, exact at that precision, remark)."""


def test_every_entry_is_reproduced_or_a_named_misprint() -> None:
    exact = {entry.key: (entry.printed, at_precision(entry.exact, entry.printed)) for entry in ENTRIES}
    assert {key: both for key, both in exact.items() if both[0] != both[1]} == {
        key: (printed, counted) for key, (printed, counted, _) in MISPRINTS.items()
    }


def test_the_list_of_entries_is_complete_and_misprints_are_among_them() -> None:
    counts: dict[tuple[str, str], int] = {}
    for entry in ENTRIES:
        place = (entry.table, entry.column.split()[0])
        counts[place] = counts.get(place, 0) + 1
    assert counts == {
        **{("TLEG 1", "Params"): 24, ("TLEG 1", "FLOPs"): 24},
        **{("TLEG 2", "Params"): 2, ("TLEG 2", "S-Params"): 8, ("TLEG 3", "Params"): 5},
        **{("SWS 1", "Params"): 10, ("SWS 1", "FLOPs"): 10, ("SWS 2", "Params"): 10, ("SWS 2", "P-S"): 11},
        **{("SWS 3", "Params"): 5, ("SWS 3", "FLOPs"): 5, ("SWS 4", "Params"): 6, ("SWS 4", "FLOPs"): 6},
        **{("SWS 5", "Params"): 10, ("SWS 5", "FLOPs"): 10},
        **{("LSAMD 2", "Params"): 11, ("LSAMD 2", "FLOPs"): 11, ("LSAMD 2", "LG-Params"): 1},
        **{("Pool 1", "Params"): 7, ("Pool 1", "FLOPs"): 7, ("Pool 2", "Params"): 10, ("Pool 2", "FLOPs"): 10},
        **{("Pool 5", "Params"): 10, ("Pool 5", "FLOPs"): 10, ("Pool", "Stored"): 3},
    }
    keys = [entry.key for entry in ENTRIES]
    assert len(set(keys)) == len(keys)
    assert MISPRINTS.keys() <= set(keys)


@pytest.mark.parametrize("key", MISPRINTS, ids=lambda key: "-".join(map(str, key)))
def test_the_exact_figure_in_a_remark_is_the_counted_one(key: tuple[str, str, int, str]) -> None:
    remark = MISPRINTS[key][2]
    figures = [word for word in remark.replace(";", " ").replace(",", " ").split() if word[0].isdigit()]
    exact = next(entry.exact for entry in ENTRIES if entry.key == key)
    if "plain" in remark:
        exact = Fraction(vit("B", 12).macs_fvcore(), GIGA)
    assert at_precision(exact, figures[0]) == figures[0]


def test_no_class_token_is_what_reproduces_the_flops() -> None:
    """27 of 27 widths and depths without a class token; with one, 11 of them are off."""
    printed = {(model, depth): rows[depth][1] for model, rows in (("Ti", TI), ("S", S), ("B", B)) for depth in rows}
    assert len(printed) == 27

    def off(class_token: bool) -> int:
        shapes = {(m, d): vit(m, d).replace(class_token=class_token) for m, d in printed}
        exact = {place: Fraction(shape.macs_fvcore(), GIGA) for place, shape in shapes.items()}
        return sum(at_precision(exact[place], text) != text for place, text in printed.items())

    assert off(class_token=False) == 0
    assert off(class_token=True) == 11


def test_the_misprinted_flops_of_pool_18_are_no_other_count_of_nine_blocks() -> None:
    shape = pool_shape(9)
    for count in (shape.macs(), shape.macs_fvcore(), shape.replace(class_token=False).macs_fvcore()):
        assert at_precision(Fraction(count, GIGA), "1.00") != "13.26"


def test_the_pools_final_norm_is_counted_as_parameters_and_not_as_flops() -> None:
    """One entry decides that the norm does not count as FLOPs; as parameters it does, whether applied or not."""
    paths = [(depth, path, text) for depth, rows in ((6, POOL_12), (9, POOL_18)) for path, text in rows.items()]

    def off(final_norm: bool, column: int) -> list[str]:
        shapes = {path: pool_path(depth, path, final_norm=final_norm) for depth, path, _ in paths}
        exact = {path: (Fraction(pool_params(shape), MILLION), Fraction(shape.macs_fvcore(), GIGA))[column]
                 for path, shape in shapes.items()}  # fmt: skip
        return [path for _, path, text in paths if at_precision(exact[path], text[column]) != text[column]]

    assert off(True, 0) == off(False, 0) == []
    assert off(True, 1) == ["1+8", "0+9"]
    assert off(False, 1) == ["0+9"]


def test_the_released_flops_of_the_first_snnet_path() -> None:
    """SN-Net publishes 4,696,010,496 for DeiT-Ti's first block and DeiT-S's twelve, which has no final norm."""
    kind = method("sn-net", {"rows": (192, 384, 768), "final_norm": False})
    assert kind.named_shape(pool_shape(12), "192:1-1+384:1-12").macs_fvcore() == 4_696_010_496
    assert vit("Ti", 12).replace(class_token=True).macs_fvcore() == 1_258_411_200
