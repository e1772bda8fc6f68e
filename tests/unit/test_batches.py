"""Batches: a pure function of seed, epoch and step, on any number of processes, parts and loaders."""

import multiprocessing
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import create_transform
from torch import Tensor

from learngene.data.batches import TrainBatches, epoch_order, eval_loader, micro_batch
from learngene.data.open_split import open_split
from learngene.data.preprocessing import crop_pct
from learngene.data.splits import accumulation, refuse_unfit
from learngene.data.unlabelled import without_labels
from learngene.data.views import seeded
from learngene.recipe.sections import DataSpec, Train
from learngene.system.errors import DataError
from pico import FAST, MIXED, make_images

NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def batches(images: Path, train: dict[str, Any], *, workers: int = 0, **place: int) -> TrainBatches:
    spec = DataSpec(source=str(images), workers=workers, **NORMAL)
    return TrainBatches(open_split(spec, "train"), spec, Train(**train), img_size=8, **place)


def content(made: TrainBatches, epoch: int = 0, first_step: int = 0) -> list[Tensor]:
    """Everything of an epoch, flat: images and labels of each part of each step."""
    return [tensor for parts in made.epoch(epoch, first_step) for part in parts for tensor in part]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- order -------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 200),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
    size=st.integers(1, 40),
    repeats=st.integers(1, 4),
)
def test_the_order_is_a_pure_function(count: int, seed: int, epoch: int, size: int, repeats: int) -> None:
    np.random.seed(epoch)
    order = epoch_order(count, seed, epoch, size, repeats)
    np.random.seed(seed % 1000)
    assert np.array_equal(order, epoch_order(count, seed, epoch, size, repeats))
    assert len(order) == count // size * size
    assert set(order) <= set(range(count))
    # Every image that is drawn follows itself; only the last one may be cut off.
    assert all(times == repeats for times in list(Counter(order.tolist()).values())[:-1])
    assert [k for k, _ in zip(order[::repeats], order[::repeats], strict=True)] == list(dict.fromkeys(order))


def test_without_repeats_an_epoch_is_every_image_once() -> None:
    assert sorted(epoch_order(60, seed=3, epoch=2, batch_size=10)) == list(range(60))


@pytest.mark.parametrize(("repeats", "seen"), [(1, [4, 4, 4]), (2, [2, 2, 2])])
def test_a_balanced_order_sees_all_classes_equally_often(repeats: int, seen: list[int]) -> None:
    """Of nine images of a, two of b and one of c; class for class, and round by round."""
    labels = [0] * 9 + [1] * 2 + [2]
    orders = [epoch_order(12, 3, epoch, 4, repeats, labels).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        drawn = order[::repeats]
        of = [labels[index] for index in drawn]
        assert [of.count(label) for label in range(3)] == seen
        assert all(set(of[start : start + 3]) == {0, 1, 2} for start in range(0, len(of), 3))
        a, b = ([index for index in drawn if labels[index] == label] for label in (0, 1))
        assert len(set(a)) == len(a)
        assert set(b[:2]) == set(b[2:] or b) == {9, 10}


def test_three_repeats_are_a_third_of_the_images_three_times() -> None:
    """Repeated augmentation: the authors' epoch has as many samples and a third of the images."""
    counts = Counter(epoch_order(600, seed=0, epoch=0, batch_size=60, repeats=3).tolist())
    assert len(counts) == 200
    assert set(counts.values()) == {3}


def test_orders_differ_by_epoch_and_by_seed() -> None:
    orders = [tuple(epoch_order(50, seed, epoch, 10)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


# -- shares of a batch -------------------------------------------------------------------------------------


@given(half=st.integers(1, 6), cells=st.integers(1, 8))
def test_shares_make_up_the_batch_and_keep_mirrored_pairs_together(half: int, cells: int) -> None:
    """timm mixes image i with image B-1-i, in the batch and in every share of it."""
    size = 2 * half
    positions = np.arange(100, 100 + size * cells)
    mirrored = dict(zip(positions, positions[::-1], strict=True))
    shares = [micro_batch(positions, cell, cells) for cell in range(cells)]
    assert sorted(np.concatenate(shares)) == list(positions)
    for share in shares:
        assert len(share) == size
        assert [mirrored[p] for p in share] == list(share[::-1])


@given(size=st.integers(0, 5).map(lambda n: 2 * n + 1), cells=st.integers(1, 6))
def test_shares_of_odd_size_make_up_the_batch(size: int, cells: int) -> None:
    positions = np.arange(size * cells)
    shares = [micro_batch(positions, cell, cells) for cell in range(cells)]
    assert sorted(np.concatenate(shares)) == list(positions)


@pytest.mark.parametrize(
    ("changes", "processes", "parts"),
    [
        ({}, 1, 1),
        ({"micro_batch": 8}, 1, 1),
        ({"micro_batch": 4}, 1, 2),
        ({"micro_batch": 5}, 1, 2),
        ({"micro_batch": 3}, 1, 4),
        ({"micro_batch": 2}, 1, 4),
        ({"micro_batch": 2}, 2, 2),
        ({"micro_batch": 100}, 4, 1),
        ({"micro_batch": 3, "augment": {"preset": "none"}}, 1, 4),
        ({"micro_batch": 1, "augment": {"preset": "none"}}, 1, 8),
    ],
    ids=str,
)
def test_the_batch_stays_what_the_recipe_says(changes: dict[str, Any], processes: int, parts: int) -> None:
    assert accumulation(Train(**{"batch_size": 8, **changes}), processes) == parts


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 3, "batch_size 8 cannot be shared by 3 processes evenly"),
        ({}, 8, "mixing needs pairs"),
        ({"micro_batch": 1}, 1, r"micro_batch 1: a process's 8 images .* \(mixing needs pairs\)"),
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_cut_is_refused(changes: dict[str, Any], processes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        accumulation(Train(**{"batch_size": 8, **changes}), processes)


def test_fewer_images_than_a_batch_are_refused(images: Path) -> None:
    with pytest.raises(DataError, match=r"24 training images are fewer than train.batch_size 32; use 24 or less"):
        batches(images, {**FAST, "batch_size": 32})


# -- images ------------------------------------------------------------------------------------------------


def test_the_same_epoch_is_the_same_whatever_was_drawn_before(images: Path) -> None:
    made = batches(images, MIXED)
    torch.manual_seed(1)
    first = content(made, epoch=1)
    assert same(first, content(made, epoch=1))
    assert not same(first, content(made, epoch=2))
    assert not same(first, content(batches(images, {**MIXED, "seed": 1}), epoch=1))


def test_the_same_picture_is_augmented_anew_at_every_place_and_in_every_epoch(tmp_path: Path, images: Path) -> None:
    picture = (images / "train" / "red" / "00.png").read_bytes()
    for name in ("a/0", "a/1", "b/0", "b/1"):
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    made = batches(tmp_path, {**MIXED, "batch_size": 4})
    views = [view for epoch in range(3) for view in content(made, epoch)[0]]
    assert len({view.numpy().tobytes() for view in views}) == 12


def test_an_epoch_can_start_in_its_middle(images: Path) -> None:
    made = batches(images, MIXED)
    assert same(content(made)[2:], content(made, first_step=1))
    assert content(made, first_step=3) == []


@pytest.mark.parametrize("train", [FAST, MIXED], ids=["plain", "augmented"])
def test_augmentation_does_not_depend_on_the_loaders(images: Path, train: dict[str, Any]) -> None:
    assert same(content(batches(images, train)), content(batches(images, train, workers=2)))


@pytest.mark.parametrize("augment", [{"preset": "light"}, {}], ids=["light", "deit"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_those_of_timms_transform_to_the_bit(images: Path, augment: dict[str, Any], workers: int) -> None:
    """Of each image by itself, seeded with purpose 2 (augmentation), the run's seed, epoch and position."""
    deit = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
    how = {"scale": (0.6, 1.0), "color_jitter": None} if augment else deit
    transform = create_transform(8, is_training=True, interpolation="bicubic", **NORMAL, **how)
    made = batches(images, {**FAST, "augment": augment}, workers=workers)
    split, order = open_split(DataSpec(source=str(images)), "train"), epoch_order(24, 0, 1, 8, 1 if augment else 3)
    views = torch.cat(content(made, 1)[::2])
    assert len(views) == 24
    for position, view in enumerate(views):
        with seeded(2, 0, 1, position):
            assert torch.equal(view, transform(split.image(int(order[position]))))


def test_repeated_views_of_an_image_differ(images: Path) -> None:
    train = {**MIXED, "augment": {**MIXED["augment"], "repeats": 4}}
    views, labels = content(batches(images, train))[:2]
    assert labels[:4].unique().numel() == 1
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize(("processes", "micro"), [(2, None), (1, 4), (2, 2), (1, 2)])
def test_processes_and_parts_see_the_same_mixed_images(images: Path, processes: int, micro: int | None) -> None:
    """The batch of one process, mixed, is the mixed batch of two processes or of accumulated parts."""

    def mixed(made: TrainBatches, step: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (image, target)
            for part in list(made.epoch(1))[step]
            for image, target in zip(*made.mix(*part, 1, step), strict=True)
        ]

    whole = batches(images, MIXED)
    for step in range(3):
        expected = mixed(whole, step)
        found = [
            pair
            for rank in range(processes)
            for pair in mixed(batches(images, {**MIXED, "micro_batch": micro}, rank=rank, processes=processes), step)
        ]
        assert len(found) == len(expected) == 8
        # Cutmix draws its box once per step and every share pastes its own pairs, so each image is one of the batch's.
        for image, target in found:
            assert any(torch.equal(image, i) and torch.equal(target, t) for i, t in expected)


def test_mixing_and_smoothing_give_targets_that_sum_to_one(images: Path) -> None:
    made = batches(images, MIXED)
    (part,) = next(iter(made.epoch(0)))
    mixed, targets = made.mix(part[0].clone(), part[1], 0, 0)
    torch.testing.assert_close(targets.sum(-1), torch.ones(8))
    assert targets.min() == pytest.approx(0.1 / 3)
    assert not torch.equal(mixed, part[0])
    plain = batches(images, FAST)
    (part,) = next(iter(plain.epoch(0)))
    unmixed, targets = plain.mix(*part, 0, 0)
    assert torch.equal(unmixed, part[0])
    assert torch.equal(targets, torch.nn.functional.one_hot(part[1], 3).float())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("option", "weights", "seen"), [("class_weight", [2.0, 0.5], [2, 8, 2]), ("sampling", [1.0, 1.0], [4, 4, 4])]
)
def test_classes_weigh_or_are_drawn_as_the_recipe_says(
    processes: int, option: str, weights: list[float], seen: list[int], tmp_path: Path
) -> None:
    """Of 12 images 8 are green, 2 red and 2 blue: they weigh 12 / (3 x 8) = 0.5 and 12 / (3 x 2) = 2."""
    root = make_images(tmp_path / "few", train=2, val=1)
    make_images(root, train=8, val=1, classes=("green",))
    changes = {option: "balanced", "batch_size": 6}
    labels: list[int] = []
    for rank in range(processes):
        made = batches(root, {**FAST, **changes}, rank=rank, processes=processes)
        for step, parts in enumerate(made.epoch(0)):
            for part in parts:
                weighed = made.mix(*part, 0, step)[1]
                assert torch.equal(weighed.argmax(1), part[1])
                assert weighed.sum(1).tolist() == [weights[label == 1] for label in part[1].tolist()]
                labels += part[1].tolist()
    assert [labels.count(label) for label in range(3)] == seen


def test_classes_are_evened_out_once(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would even classes out twice"):
        Train(class_weight="balanced", sampling="balanced")
    flat = open_split(DataSpec(source=str(images)), "train")
    with pytest.raises(DataError, match="sampling=balanced needs images with a class each"):
        refuse_unfit(without_labels(flat), Train(batch_size=8, sampling="balanced"))


def test_every_step_is_mixed_in_its_own_way(images: Path) -> None:
    made = batches(images, {**MIXED, "augment": {**MIXED["augment"], "cutmix": 0.0}})
    labels = torch.tensor([0] * 4 + [1] * 4)
    shares = {
        (epoch, step): made.mix(torch.zeros(8, 3, 8, 8), labels, epoch, step)[1].max().item()
        for epoch in range(3)
        for step in range(3)
    }
    assert len(set(shares.values())) == 9
    assert made.mix(torch.zeros(8, 3, 8, 8), labels, 1, 2)[1].max().item() == shares[1, 2]


def test_smoothing_alone_needs_no_mixing(images: Path) -> None:
    made = batches(images, {**FAST, "augment": {"preset": "none", "smoothing": 0.3}})
    (part,) = next(iter(made.epoch(0)))
    _, targets = made.mix(*part, 0, 0)
    assert targets.max(-1).values.tolist() == pytest.approx([0.8] * 8)


def test_images_are_normalised_as_the_data_section_says(images: Path) -> None:
    made = batches(images, FAST)
    split = open_split(DataSpec(source=str(images)), "train")
    (part,) = next(iter(made.epoch(0)))
    order = epoch_order(24, 0, 0, 8)
    for view, label, index in zip(*part, order[:8], strict=True):
        pixels = torch.from_numpy(np.array(split.image(int(index)))).permute(2, 0, 1) / 255
        expected = (pixels - torch.tensor(NORMAL["mean"])[:, None, None]) / torch.tensor(NORMAL["std"])[:, None, None]
        torch.testing.assert_close(view, expected, rtol=1e-5, atol=1e-5)
        assert label == split.labels[index]


@pytest.mark.parametrize("policy", ["rand-m10-n9-inc1", "rand-m0-n9"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_strongest_augmentations_blacken_an_image_at_worst(images: Path, policy: str, channels: int) -> None:
    """Posterizing to no bits at all, which timm asks for at either end of its scale and Pillow 13 refuses."""
    spec = DataSpec(source=str(images), workers=0, mean=(0.5,) * channels, std=(0.5,) * channels)
    train = Train(**{**FAST, "augment": {"preset": "none", "rand_augment": policy}})
    made = TrainBatches(open_split(spec, "train"), spec, train, img_size=8, in_chans=channels)
    for epoch in range(8):
        assert all(tensor.isfinite().all() for tensor in content(made, epoch))


def test_grey_images_have_one_channel(images: Path) -> None:
    spec = DataSpec(source=str(images), workers=0, mean=(0.5,), std=(0.5,))
    made = TrainBatches(open_split(spec, "train"), spec, Train(**FAST), img_size=8, in_chans=1)
    assert content(made)[0].shape == (8, 1, 8, 8)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_sees_every_image_once_in_order(images: Path, processes: int) -> None:
    spec = DataSpec(source=str(images), workers=0, **NORMAL)
    split = open_split(spec, "val")
    labels = [
        torch.cat([y for _, y in eval_loader(split, spec, img_size=8, batch_size=5, rank=rank, processes=processes)])
        for rank in range(processes)
    ]
    assert sorted(torch.cat(labels).tolist()) == sorted(split.labels)
    assert all(torch.equal(mine, torch.tensor(split.labels)[rank::processes]) for rank, mine in enumerate(labels))


def test_small_images_are_not_cropped_in_evaluation() -> None:
    crops = [crop_pct(DataSpec(source="digits"), size) for size in (32, 64, 224)]
    assert crops == [1.0, 1.0, 0.875]


def test_seeding_a_block_leaves_no_trace() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with seeded(1, 2):
        first = torch.rand(3), np.random.rand(3)
    with seeded(1, 2):
        assert torch.equal(first[0], torch.rand(3))
        assert np.array_equal(first[1], np.random.rand(3))
    with seeded(1, 3):
        assert not torch.equal(first[0], torch.rand(3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_loaders_at_work(images: Path, number: signal.Signals) -> None:
    spec = DataSpec(source=str(images), workers=1, **NORMAL)
    loaded = iter(eval_loader(open_split(spec, "train"), spec, img_size=8, batch_size=2))
    next(loaded)
    (child,) = multiprocessing.active_children()
    subprocess.run(["kill", f"-{number}", str(child.pid)], check=True)
    assert len(list(loaded)) == 11  # of 24 images, the first two of which are read


def test_a_loader_process_obeys_its_parent(images: Path) -> None:
    spec = DataSpec(source=str(images), workers=1, **NORMAL)
    loaded = iter(eval_loader(open_split(spec, "train"), spec, img_size=8, batch_size=2))
    next(loaded)
    (child,) = multiprocessing.active_children()
    child.terminate()
    child.join()
    assert child.exitcode == 0
