"""Batches of several tasks: whose turn it is, each task's own passes, any number of processes and restarts."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from learngene.data.batches import TrainBatches
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec, Train
from learngene.training.task_batches import TaskBatches, TaskFeed, TaskImages, joined, sampling_shares
from pico import FAST, MIXED, make_images

DECATHLON = {
    "aircraft": 3334,
    "cifar100": 40000,
    "daimler": 23520,
    "dtd": 1880,
    "gtsrb": 31367,
    "omniglot": 17853,
    "svhn": 47217,
    "ucf101": 7629,
    "flowers": 1020,
}
NORMAL: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "workers": 0}


def turns(batches: TaskBatches, epoch: int) -> list[str]:
    """The tasks of an epoch's steps."""
    return [batches.turn(epoch, step) for step in range(batches.steps_per_epoch)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three tasks of 24, 10 and 48 images and 3, 2 and 4 classes; read only."""
    root = tmp_path_factory.mktemp("tasks")
    classes = {"colours": (("blue", "green", "red"), 8), "pair": (("a", "b"), 5), "many": (("p", "q", "r", "s"), 12)}
    return {name: make_images(root / name, train=count, classes=names) for name, (names, count) in classes.items()}


def task_images(folders: dict[str, Path], **train: Any) -> dict[str, TaskImages]:
    specs = {name: DataSpec(source=str(folder), **NORMAL) for name, folder in folders.items()}
    return {name: TaskImages(open_splits(spec), spec, Train(**{**FAST, **train})) for name, spec in specs.items()}


def task_batches(folders: dict[str, Path], temperature: float = 2.0, **train: Any) -> TaskBatches:
    place = {key: train.pop(key) for key in ("rank", "processes") if key in train}
    spec = Train(**{**FAST, **train})
    return TaskBatches(task_images(folders, **train), spec, temperature, img_size=8, in_chans=3, **place)


def content(made: TaskBatches, epoch: int, first_step: int = 0) -> list[list[tuple[Tensor, Tensor]]]:
    return list(made.epoch(epoch, first_step))


def same(one: list[list[tuple[Tensor, Tensor]]], other: list[list[tuple[Tensor, Tensor]]]) -> bool:
    flat = [[tensor for parts in steps for part in parts for tensor in part] for steps in (one, other)]
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


# -- whose turn it is --------------------------------------------------------------------------------------


def test_the_decathlons_shares_are_the_published_ones() -> None:
    shares = sampling_shares(DECATHLON, 2.0)
    assert [round(share, 2) for share in shares.values()] == [0.05, 0.18, 0.14, 0.04, 0.16, 0.12, 0.2, 0.08, 0.03]


@given(
    sizes=st.dictionaries(st.sampled_from("abcdefghi"), st.integers(1, 10**6), min_size=1, max_size=9),
    temperature=st.floats(0.1, 100),
)
def test_shares_are_the_formula(sizes: dict[str, int], temperature: float) -> None:
    shares = sampling_shares(sizes, temperature)
    powers = [(size / sum(sizes.values())) ** (1 / temperature) for size in sizes.values()]
    assert list(shares) == list(sizes)
    assert list(shares.values()) == pytest.approx([power / sum(powers) for power in powers])
    assert sum(shares.values()) == pytest.approx(1.0)


def test_one_is_by_size_and_much_is_evenly() -> None:
    assert sampling_shares({"a": 10, "b": 30}, 1.0) == pytest.approx({"a": 0.25, "b": 0.75})
    assert sampling_shares({"a": 10, "b": 30}, 1e6) == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-4)
    assert sampling_shares({"a": 100, "b": 400}, 2.0) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert sampling_shares({"a": 1}, 0.001) == {"a": 1.0}


def test_a_low_temperature_takes_the_largest_only() -> None:
    assert sampling_shares({"a": 100, "b": 400}, 1e-4) == pytest.approx({"a": 0.0, "b": 1.0})


def test_turns_come_by_their_shares(folders: dict[str, Path]) -> None:
    made = task_batches(folders)
    drawn = Counter(made.turn(epoch, step) for epoch in range(300) for step in range(made.steps_per_epoch))
    assert made.steps_per_epoch == 11  # 82 images in batches of 8, rounded up
    assert made.shares == sampling_shares({"colours": 24, "pair": 10, "many": 48}, 2.0)
    for name, share in made.shares.items():
        assert drawn[name] / drawn.total() == pytest.approx(share, abs=0.03)


def test_an_epoch_has_as_many_steps_as_all_images_fill(folders: dict[str, Path]) -> None:
    assert task_batches(folders, batch_size=2).steps_per_epoch == 41
    assert task_batches(folders, batch_size=10).steps_per_epoch == 9
    assert len(content(task_batches(folders, batch_size=10), 1)) == 9


def test_turns_are_a_function_of_seed_and_epoch(folders: dict[str, Path]) -> None:
    one, again, other = task_batches(folders), task_batches(folders), task_batches(folders, seed=1)
    late = turns(again, 5)  # asked for first
    assert late == turns(one, 5)
    assert turns(one, 0) == turns(again, 0)
    assert turns(one, 0) != turns(one, 1)
    assert [turns(one, i) for i in range(3)] != [turns(other, i) for i in range(3)]


# -- every task's own images -------------------------------------------------------------------------------


def test_a_task_goes_on_with_its_own_next_batch(folders: dict[str, Path]) -> None:
    """The batches of a task, in the order of its turns, are those of training on it alone."""
    made = task_batches(folders, augment={"repeats": 1, "rand_augment": None})
    found: dict[str, list[Any]] = {name: [] for name in folders}
    for epoch in range(4):
        for step, parts in enumerate(made.epoch(epoch)):
            found[made.turn(epoch, step)].append(parts)
    for name, task in task_images(folders, augment={"repeats": 1, "rand_augment": None}).items():
        alone = TrainBatches(task.images[0], task.data, task.train, img_size=8)
        expected: list[Any] = []
        while len(expected) < len(found[name]):
            expected += alone.epoch(len(expected) // alone.steps_per_epoch)
        assert len(found[name]) > alone.steps_per_epoch
        assert same(found[name], expected[: len(found[name])])


def test_every_image_of_a_task_is_seen_once_per_pass(folders: dict[str, Path]) -> None:
    made = task_batches({name: folders[name] for name in ("colours", "many")})
    found: dict[str, list[Tensor]] = {"colours": [], "many": []}
    for epoch in range(6):
        for step, parts in enumerate(made.epoch(epoch)):
            found[made.turn(epoch, step)] += [image for images, _ in parts for image in images]
    for name, count in (("colours", 24), ("many", 48)):
        assert len(found[name]) >= 2 * count
        for start in range(0, len(found[name]) - count + 1, count):
            once = {image.numpy().tobytes() for image in found[name][start : start + count]}
            assert len(once) == count


@pytest.mark.parametrize("train", [{}, {**MIXED, "seed": 4}, {"micro_batch": 4}], ids=["plain", "mixed", "parts"])
def test_a_run_that_goes_on_sees_the_same_batches(folders: dict[str, Path], train: dict[str, Any]) -> None:
    for epoch in (0, 2):
        whole = content(task_batches(folders, **train), epoch)
        for first in (1, 4, 10):
            assert same(content(task_batches(folders, **train), epoch, first), whole[first:])
        assert content(task_batches(folders, **train), epoch, len(whole)) == []


@pytest.mark.parametrize("train", [{}, MIXED], ids=["plain", "mixed"])
def test_two_processes_share_every_batch(folders: dict[str, Path], train: dict[str, Any]) -> None:
    whole = content(task_batches(folders, **train), 1)
    shares = [content(task_batches(folders, rank=rank, processes=2, **train), 1) for rank in range(2)]
    for step, ((images, labels),) in enumerate(whole):
        parts = [share[step][0] for share in shares]
        assert [len(part[0]) for part in parts] == [4, 4]
        found = sorted(
            (image.numpy().tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True)
        )
        assert found == sorted(
            (image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )


def test_targets_are_of_the_tasks_own_classes(folders: dict[str, Path]) -> None:
    classes = {"colours": 3, "pair": 2, "many": 4}
    made = task_batches(folders, **MIXED)
    seen = set()
    for step, parts in enumerate(made.epoch(0)):
        name = made.turn(0, step)
        images, targets = made.mix(*parts[0], 0, step)
        again = made.mix(*[value.clone() for value in parts[0]], 0, step)
        assert targets.shape == (8, classes[name])
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        assert images.shape == (8, 3, 8, 8)
        assert torch.equal(targets, again[1])
        seen.add(name)
    assert seen == set(classes)


def test_a_task_has_its_own_augmentation(folders: dict[str, Path]) -> None:
    tasks = task_images(folders)
    tasks["pair"] = TaskImages(tasks["pair"].images, tasks["pair"].data,
                               Train(**{**FAST, "augment": {"preset": "none", "smoothing": 0.2}}))  # fmt: skip
    made = TaskBatches(tasks, Train(**FAST), 2.0, img_size=8, in_chans=3)
    for step, parts in enumerate(made.epoch(0)):
        _, targets = made.mix(*parts[0], 0, step)
        assert targets.max().item() == pytest.approx(0.9 if made.turn(0, step) == "pair" else 1.0)


# -- scores and records ------------------------------------------------------------------------------------


class Says(nn.Module):
    """Answers with the class that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.classes = 0

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(self.classes)[0].expand(len(images), -1) + self.unused


def test_every_task_is_scored_by_itself(folders: dict[str, Path]) -> None:
    classes = {"colours": 3, "pair": 2, "many": 4}
    entered = []

    def enter(model: nn.Module, name: str) -> None:
        assert isinstance(model, Says)
        model.classes = classes[name]
        entered.append(name)

    feed = TaskFeed(task_images(folders), Train(**FAST), 2.0, 8, 3, enter)
    score: Any = feed.score(Says(), "fp32", 0, 1, lambda values, **_: values)
    assert entered == list(classes)
    assert score.tasks == pytest.approx({name: 100 / count for name, count in classes.items()})
    assert score.main == pytest.approx(sum(100 / count for count in classes.values()) / 3)


def test_the_feed_knows_whose_turn_it_is(folders: dict[str, Path]) -> None:
    feed = TaskFeed(task_images(folders), Train(**FAST), 2.0, 8, 3, lambda _model, _name: None)
    made = feed.batches(0, 1)
    assert [feed.turn(1, step) for step in range(11)] == [made.turn(1, step) for step in range(11)]


def test_joined_images_tell_tasks_apart(folders: dict[str, Path]) -> None:
    sets = {name: task.images for name, task in task_images(folders).items()}
    both, val = joined(sets)
    assert len(both) == 82
    assert val.class_names == both.class_names
    assert both.class_names == ["colours/blue", "colours/green", "colours/red", "pair/a", "pair/b",
                                *(f"many/{name}" for name in "pqrs")]  # fmt: skip
    assert Counter(both.labels) == {0: 8, 1: 8, 2: 8, 3: 5, 4: 5, 5: 12, 6: 12, 7: 12, 8: 12}
    assert both.names[24].startswith("pair/")
    assert both.image(24, "RGB").tobytes() == sets["pair"].train.image(0, "RGB").tobytes()
    assert both.image(81, "RGB").tobytes() == sets["many"].train.image(47, "RGB").tobytes()
    other, _ = joined({"pair": sets["pair"], "colours": sets["colours"], "many": sets["many"]})
    assert both.fingerprint() != other.fingerprint()
    assert both.fingerprint() == joined(sets).train.fingerprint()
