"""Planning without a gene: the published families come out at their sizes, budgets bind, ends are named."""

from __future__ import annotations

from typing import Any

import pytest

from learngene import Budget, LearngeneError, plan_sizes
from learngene.system.quantities import amount, short, time_in_words
from learngene.vits.shape_rule import patch_for, usual_depth
from learngene.vits.speed import train_speed
from pico import pico_shape


def sizes(*asked: Any, img_size: int = 64, num_classes: int = 7, **more: Any) -> list[tuple[int, int, int]]:
    found = plan_sizes(asked, img_size=img_size, num_classes=num_classes, measure=False, **more)
    return [(one.shape.depth, one.shape.embed_dim, one.shape.num_heads) for one in found]


def test_at_their_sizes_and_pixels_the_shapes_are_those_of_deit_and_the_large_vit() -> None:
    deit = [(12, 192, 3), (12, 384, 6), (12, 768, 12), (24, 1024, 16)]
    assert sizes("5.72M", "22.1M", 86.6e6, 305e6, img_size=224, num_classes=1000) == deit


def test_small_sizes_keep_the_ratio_of_deit_tiny_and_share_heads_and_patches() -> None:
    assert sizes("0.2M", "0.6M", "1.5M") == [(3, 64, 2), (5, 96, 3), (7, 128, 4)]
    assert sizes("0.2M", "5.72M", img_size=224) == [(2, 64, 2), (12, 192, 6)]


def test_a_plan_counts_by_hand() -> None:
    (one,) = plan_sizes([Budget(max_params=170_000)], img_size=64, num_classes=7, measure=False)
    layer, stem = 12 * 64**2 + 13 * 64, (3 * 8 * 8 + 1) * 64 + 64 * 64
    assert one.params == 3 * layer + stem + 2 * 64 + 7 * 65 == one.stored_bytes // 4
    assert (one.macs, one.train_speed, one.epoch_seconds(100), one.latency) == (one.shape.macs(), None, None, None)


def test_limits_combine_and_latency_is_measured() -> None:
    def timer(shape: Any, batch_size: int, device: str) -> float:
        return shape.depth * batch_size

    assert sizes(Budget(max_macs=20e6, max_params=1e9)) == [(5, 64, 2)]
    assert sizes(Budget(max_latency=12, batch_size=2), timer=timer) == [(6, 96, 3)]
    assert sizes(Budget(max_latency=12, batch_size=2, max_params=3e5), timer=timer) == [(4, 64, 2)]


@pytest.mark.parametrize(("img_size", "patch"), [(8, 1), (28, 4), (32, 4), (48, 6), (64, 8), (96, 12), (224, 16)])
def test_images_have_about_eight_patches_along_a_side(img_size: int, patch: int) -> None:
    assert patch_for(img_size) == patch


@pytest.mark.parametrize(("width", "depth"), [(96, 6), (192, 12), (500, 12), (896, 18), (1664, 48), (9000, 48)])
def test_depth_is_interpolated_between_the_families(width: int, depth: float) -> None:
    assert usual_depth(width) == depth


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sizes("1K"),
            "fits 1K params; the smallest is 1 layers x 32 .*, the largest 48 layers x 1664",
        ),
        (lambda: sizes("100G"), "^100G params is more than any model of 64 px .* has; the largest is 48 layers x 1664"),
        (lambda: sizes(Budget(max_latency=1), timer=lambda *_: 5.0), "fits 1 ms; the smallest is .*, 5 ms"),
        (lambda: sizes("1Q"), "'1Q' is not a number such as 10M"),
        (lambda: sizes(), "give one size or more"),
        (lambda: sizes("1M", img_size=257), "img_size 257 has no divisor .* use 256 or 272"),
        (lambda: sizes("1M", img_size=0), "img_size must be a positive integer, not 0"),
        (lambda: sizes("1M", num_classes=-1), "num_classes must be an integer of 0 or more"),
    ],
)
def test_sizes_that_cannot_be_made_are_refused(call: Any, message: str) -> None:
    with pytest.raises(LearngeneError, match=message):
        call()


def test_training_is_timed_in_steps() -> None:
    assert train_speed(pico_shape(), batch_size=2, seconds=0) > 0


def test_numbers_in_words() -> None:
    assert [amount("2.5G"), amount("10k"), amount("7"), amount(3)] == [2.5e9, 1e4, 7.0, 3]
    assert [short(2e5), short(1.5e9), short(500), short(2e3)] == ["0.2M", "1.5G", "500", "2K"]
    times = [0.44, 12, 200, 7500, 7200, 86400 * 3 + 4 * 3600, 59.6]
    assert [time_in_words(seconds) for seconds in times] == [
        "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "2 h", "3 days 4 h", "1 min"
    ]  # fmt: skip


def test_the_command_plans_without_a_gene(cli: Any) -> None:
    out = cli("plan", "--sizes", "0.2M,0.6M", "--img-size", "64", "--classes", "7", "--no-measure").out
    assert all(text in out for text in ("64 px, patches of 8", "3 layers x 64 (2 heads)", "0.585 M params", "2.3 MB"))
