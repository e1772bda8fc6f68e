"""The one training loop. Condensing, fine-tuning and baselines hand it stages: what is trained, and its objective.

A pass trains one stage, or several that see the same batches: those are read, mixed and shown to the teachers once.

Every random number is drawn from a seed made of (seed, epoch, step, process), so a run that was interrupted and
continued is the run that was not.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from learngene.data.batches import Batches, TrainBatches, eval_loader
from learngene.data.evaluation_batches import LEAST_BATCH
from learngene.data.images import ImageSet
from learngene.data.splits import Splits
from learngene.recipe.sections import DataSpec, Replay
from learngene.system.errors import InterruptedRun, LearngeneError, TrainingDivergedError
from learngene.system.machine_faults import machine_faults
from learngene.system.processes import wishes
from learngene.system.quantities import size_in_words
from learngene.training.classification import Baseline
from learngene.training.log import live
from learngene.training.run_folder import run_bytes
from learngene.training.scores import Score, autocast, task_score
from learngene.training.stage import TrainResult
from learngene.training.stored_targets import StoredTargets, Views
from learngene.training.student import Seen, Student
from learngene.training.target_shards import pixel_prints
from learngene.training.teacher import Asked, fewest


def train(
    students: Sequence[Student],
    train_images: ImageSet,
    val_images: ImageSet,
    data: DataSpec | None,
    *,
    show: bool = True,
    accelerator: Accelerator | None = None,
    replay: Replay | None = None,
) -> list[TrainResult | LearngeneError]:
    """Trains stages to their last epoch in one pass, each continuing a saved run if its folder holds one.

    Args:
        students: What to train; modules are left on the device they were trained on, in evaluation mode. All see the
            same views: seed, epochs, batch size and augmentation are those of the first.
        train_images: Images to train on.
        val_images: Images to evaluate on.
        data: How images are read and normalised, mean and std set; None where the stage has a feed of its own.
        show: Whether to print progress.
        accelerator: The processes and device to use; made from the environment by default.
        replay: Where what teachers say is stored; None asks them about every batch.

    Returns:
        Of every student how it went, or why it left: its loss was no longer finite (``TrainingDivergedError``), or
        files, memory, disk or device gave out (``MachineError``). Its last saved state stays.

    Raises:
        MachineError: If the machine gives out where no student is to blame, or one of several processes.
        InterruptedRun: After Ctrl-C or SIGTERM, when the states have been saved.
    """
    accelerator = accelerator or make_accelerator(all(student.stage.uses_all for student in students))
    try:
        with torch.random.fork_rng(), machine_faults():
            return _Pass(students, train_images, val_images, data, show, accelerator, replay).train()
    finally:
        for student in students:
            student.release()


def make_accelerator(uses_all: bool = True) -> Accelerator:
    """The device and the processes that the launcher set up; precision is the recipe's, see ``measure.autocast``.

    Args:
        uses_all: Whether every training step uses all parameters.
    """
    # Accelerate ignores torchrun's processes on a machine without an accelerator unless it is told to use the CPU.
    return Accelerator(
        mixed_precision="no",
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=not uses_all)],
    )


class _Pass:
    """The state and the steps of one call of ``train``."""

    def __init__(
        self,
        students: Sequence[Student],
        train_images: ImageSet,
        val_images: ImageSet,
        data: DataSpec | None,
        show: bool,
        accelerator: Accelerator,
        replay: Replay | None,
    ) -> None:
        self.students, self.accelerator, self.device = students, accelerator, accelerator.device
        stage, spec = students[0].stage, students[0].spec
        processes = accelerator.num_processes
        place: dict[str, Any] = {"rank": accelerator.process_index, "processes": processes, "device": self.device}
        self.batches: Batches
        if stage.feed:
            self.batches = stage.feed.batches(**place)
        else:
            assert data is not None
            size: dict[str, Any] = {"img_size": stage.img_size, "in_chans": stage.in_chans}
            self.batches = TrainBatches(train_images, data, spec, **size, **place)
            self.val = eval_loader(val_images, data, **size, **place, batch_size=max(spec.batch_size, LEAST_BATCH))
        self.data, self.steps_per_epoch = train_images.fingerprint(), self.batches.steps_per_epoch
        self.ignore_index, self.precision = val_images.ignore_index, spec.precision
        self.val_names = val_images.class_names
        self.stored = replay is not None
        self.view_epochs = min(spec.epochs, (replay.epochs if replay else None) or spec.epochs)
        notes = [line for student in students for each in student.stage.evaluated for line in each.prepare()]
        teachers = fewest(teacher for student in students for teacher in student.stage.teachers)
        self.teachers: Sequence[Asked | StoredTargets]
        if replay and data is not None and isinstance(self.batches, TrainBatches):
            views = Views(self.batches, data, self.data, self.view_epochs)
            stored = [StoredTargets(teacher, replay, views, accelerator) for teacher in teachers]
            notes += [line for each in stored for line in each.prepare()]
            self.teachers = stored
        else:
            sharing = processes if spec.shard_teachers else 1
            self.teachers = [Asked(teacher, self.device, sharing) for teacher in teachers]
        show = show and accelerator.is_main_process
        for student in students:
            student.begin(self, show)
        splits = Splits(train_images, val_images)
        cautions = [] if stage.feed or stage.score else splits.cautions()
        students[0].log.note("\n".join([splits.counted(), self._ahead(), *cautions, *dict.fromkeys(notes)]))

    def _ahead(self) -> str:
        """What is about to be trained: pixels, steps, where it goes on, disk."""
        first, steps = self.students[0], self.steps_per_epoch
        spec, done = first.spec, first.progress.updates
        size = sum(run_bytes(student.stage.module) for student in self.students if student.folder)
        return (
            f"{first.stage.img_size} px, {spec.epochs} epochs of {steps} steps of {spec.batch_size} images"
            + (f", goes on after step {done} of {spec.epochs * steps}" if done else "")
            + (f", up to {size_in_words(size)} on disk" if size else "")
        )

    # -- the run -------------------------------------------------------------------------------------

    def train(self) -> list[TrainResult | LearngeneError]:
        epochs = self.students[0].spec.epochs
        with live([(student.log, student.progress.updates) for student in self.students]), _signals() as received:
            while behind := [student for student in self._present() if student.progress.epoch < epochs]:
                self._epoch(min(student.progress.epoch for student in behind), received)
        for student in self._present():
            with self._apart(student):
                student.end()
        return [student.outcome for student in self.students]

    def _present(self, epoch: int | None = None, step: int | None = None) -> list[Student]:
        """The students that are left, or those of them that stand at an epoch, or at a step of it."""
        return [
            student
            for student in self.students
            if student.fault is None
            and epoch in (None, student.progress.epoch)
            and step in (None, student.progress.step)
        ]

    def _epoch(self, epoch: int, received: list[int]) -> None:
        """One epoch of all students that stand in it; those that are ahead wait for the others."""
        start, here = time.perf_counter(), self._present(epoch)
        first = min(student.progress.step for student in here)
        for student in here:
            student.enter()
        for step, parts in enumerate(self.batches.epoch(epoch % self.view_epochs, first), start=first):
            present = self._present(epoch, step)
            seen: Iterator[Seen] | list[Seen] = self._seen(parts, epoch % self.view_epochs, step)
            if len(present) > 1:
                seen = list(seen)
            for student in present:
                with self._apart(student):
                    student.step(seen, len(parts))
            stopped, elapsed = self._stopped(received), time.perf_counter() - start
            for student in present:
                if student.fault is None:
                    with self._apart(student):
                        student.look(elapsed, stopped=bool(stopped))
            here = self._present(epoch)
            if not here:
                return
            here[0].log.pace(here[0].progress.updates)
            if stopped:
                self._save(here, elapsed / len(here))
                raise InterruptedRun(stopped, f"epoch {epoch + 1}, step {step + 1}")
        elapsed = time.perf_counter() - start
        for student in here:
            with self._apart(student):
                student.finish_epoch(elapsed, elapsed / len(here))

    def _save(self, here: Sequence[Student], share: float) -> None:
        """Saves the students of an epoch in the midst of it; raises the fault of the first that cannot be."""
        for student in here:
            with self._apart(student):
                student.progress.seconds += share
                student.save()
        for student in here:
            if student.fault is not None:
                raise student.fault

    def _seen(self, parts: list[tuple[Tensor, Tensor]], epoch: int, step: int) -> Iterator[Seen]:
        """This process's parts of a batch, mixed, with what every teacher says of them."""
        for number, (raw, labels) in enumerate(parts):
            prints = pixel_prints(raw) if self.stored else None  # before mixing, which changes images where they are
            images, targets = self.batches.mix(raw, labels, epoch, step)
            with autocast(self.device.type, self.precision):
                # Of the same mixed and erased images.
                said = [(each.teacher, each.outputs(prints, images, epoch, step, number)) for each in self.teachers]
            yield images, targets, said

    @contextlib.contextmanager
    def _apart(self, student: Student) -> Iterator[None]:
        """Lets a student that fails leave the pass, which the others go on with."""
        try:
            with machine_faults():
                yield
        except LearngeneError as fault:
            if self.accelerator.num_processes > 1 and not isinstance(fault, TrainingDivergedError):
                raise  # of this process alone, and the others wait for it
            # Where others go on, without the traceback, which holds what was computed.
            student.fault = fault if len(self.students) == 1 else type(fault)(*fault.args)
        if student.fault is not None and len(self.students) > 1:
            student.log.note(f"{student.fault}; the others go on")
            student.leave()

    def evaluate(self, student: Student) -> Score:
        """The score of a student as it is now."""
        stage, spec = student.stage, student.spec
        if stage.before_scoring:
            stage.before_scoring()
        model = student.ema.module if student.ema and spec.use_ema else student.trained
        reduce = self.accelerator.reduce if self.accelerator.num_processes > 1 else None
        if stage.feed:
            place = self.accelerator.process_index, self.accelerator.num_processes
            return stage.feed.score(model, spec.precision, *place, reduce)
        if stage.score:
            return stage.score(model, self.val, spec.precision, reduce)
        how: dict[str, Any] = {"precision": spec.precision, "reduce": reduce}
        if student.progress.epoch == spec.epochs:
            how |= {"names": self.val_names, "baseline": stage.baseline and self._share(stage.baseline)}
        val = self._in_step(student) if student.sharded else self.val
        return task_score(model, val, self.ignore_index, **how)

    def _in_step(self, student: Student) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's validation batches; its model is called once more where other processes have a batch more."""
        yield from self.val
        mine, size = self.val.images, self.val.batch_size
        largest = range(0, mine.stop, mine.step)
        if -(-len(mine) // size) < -(-len(largest) // size):
            stage = student.stage
            student.trained(torch.zeros(1, stage.in_chans, stage.img_size, stage.img_size, device=self.device))

    def _share(self, baseline: Baseline) -> Baseline:
        """What a baseline scored on this process's validation images."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return replace(baseline, hits=baseline.hits[rank::processes])

    def _stopped(self, received: list[int]) -> int:
        """The signal that any process received, agreed on by all, or 0."""
        mine = received[0] if received else 0
        if self.accelerator.num_processes == 1:
            return mine
        return int(self.accelerator.gather(torch.tensor([mine], device=self.device)).max().item())


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM inside the block; a second Ctrl-C, or a second SIGTERM, acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return

    def remember(number: int, _frame: object) -> None:
        # After Ctrl-C on a terminal, which all processes get, a parent sends its workers SIGTERM: one wish, not two.
        if number in received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
