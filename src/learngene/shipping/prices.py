"""What training costs, per image and shape: seconds that were measured here, or multiply-adds that are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from learngene.data.images import ImageSet
from learngene.recipe.sections import DataSpec, Train
from learngene.vits.shape import ViTShape

TRAINING = 3
"""Forward passes that a training step costs."""

MOST_SPREAD = 0.5
"""Beyond which single steps say more about other programs than about a run of minutes."""
STEPS, WARM_UP, ENOUGH = 10, 1, 4.0
"""Most steps that are timed, after those that are not; no more than two behind so many seconds."""
FEW, AGREEING = 5, 0.03
"""Steps that will do if the middle half of them lies so near to the middle one."""
READ = 4
"""Batches that are read for the price of reading."""


@dataclass(frozen=True)
class Prices:
    """Cost of a training image: a part that every shape has, and a part for every multiply-add.

    Attributes:
        unit: ``s`` for seconds, ``macs`` for multiply-adds.
        fixed: Of reading, augmentation and what a step takes for any model.
        per_mac: Of a multiply-add of a forward pass, all passes of a step included.
        spread: How far the middle half of the steps lay from the middle one, as a share of it.
    """

    unit: str
    fixed: float
    per_mac: float
    spread: float = 0.0

    def image(self, macs: float) -> float:
        """Of a training image through a model of so many multiply-adds."""
        return self.fixed + self.per_mac * macs

    def seen(self, macs: float) -> float:
        """Of an image that is looked at and not learnt from."""
        return self.image(macs) / TRAINING


COUNTED = Prices("macs", 0.0, TRAINING)


def measured(
    images: ImageSet,
    data: DataSpec,
    train: Train,
    shapes: Sequence[ViTShape],
    clock: Callable[[], float] = time.perf_counter,
) -> Prices:
    """Times training steps of the smallest and the largest shape on this machine.

    The optimizer is left out: it takes little of a step, and seconds to load, as torch's compiler comes with it.

    Args:
        images: The training images.
        data: The data section, mean and std set.
        train: How the models will be trained; its batch and augmentation count.
        shapes: What will be trained.
        clock: ``time.process_time`` leaves out what other programs take.
    """
    from learngene.data.batches import TrainBatches
    from learngene.making.finetune import scratch
    from learngene.training.loop import make_accelerator
    from learngene.training.losses import task_loss

    device = make_accelerator().device
    ends = sorted(dict.fromkeys((min(shapes, key=ViTShape.macs), max(shapes, key=ViTShape.macs))), key=ViTShape.macs)
    rounds: list[list[float]] = [[] for _ in ends]
    loss_of = task_loss(images)
    shape = ends[0]
    batches = TrainBatches(images, data, train, img_size=shape.img_size, in_chans=shape.in_chans, device=device)
    models = [scratch(shape).to(device).train() for shape in ends]
    count = min(READ, batches.steps_per_epoch)
    for parts in batches.epoch(0, end=count):  # decoded images are kept, so that only later epochs tell the price
        del parts
    start = clock()
    mixed = [batches.mix(*parts[0], 0, step) for step, parts in enumerate(batches.epoch(0, end=count))]
    reading = (clock() - start) / count
    start = clock()
    for step in range(STEPS + WARM_UP):
        views, targets = mixed[step % count]
        for times, model in zip(rounds, models, strict=True):
            begun = clock()
            loss = loss_of(model(views), targets)
            loss.backward()
            model.zero_grad(set_to_none=True)
            loss.item()
            times.append(clock() - begun)
        done = step + 1 - WARM_UP
        if done >= 2 and (clock() - start > ENOUGH or (done >= FEW and _spread(rounds[-1][WARM_UP:]) < AGREEING)):
            break
    small, *more = (median(times[WARM_UP:]) / len(views) for times in rounds)
    per_mac = (more[0] - small) / (ends[1].macs() - ends[0].macs()) if more else small / ends[0].macs()
    per_mac = max(per_mac, 0.0)
    fixed = max(small - per_mac * ends[0].macs(), 0.0) + reading / len(views)
    return Prices("s", fixed, per_mac, min(_spread(rounds[-1][WARM_UP:]), MOST_SPREAD))


def _spread(times: Sequence[float]) -> float:
    """How far the middle half of some times lies from the middle one, as a share of it."""
    times = sorted(times)
    quarter = len(times) // 4
    return (times[-1 - quarter] - times[quarter]) / 2 / times[len(times) // 2]
