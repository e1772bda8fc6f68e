"""The one training loop. Condensing, fine-tuning and baselines hand it a stage: what is trained, and its objective.

Every random number is drawn from a seed made of (seed, epoch, step, process), so a run that was interrupted and
continued is the run that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from learngene.data.batches import Batches, TrainBatches, eval_loader
from learngene.data.images import ImageSet
from learngene.data.splits import Splits
from learngene.recipe.sections import DataSpec, Replay, Train
from learngene.system.errors import InterruptedRun, LearngeneError, TrainingDivergedError
from learngene.system.machine_faults import machine_faults
from learngene.training.log import TrainLog
from learngene.training.losses import Parts
from learngene.training.optimizer import _scheduler, make_optimizer
from learngene.training.run_folder import Progress, RunFolder
from learngene.training.scores import Score, autocast, task_score
from learngene.training.stage import Stage, TrainResult
from learngene.training.stored_targets import StoredTargets, Views
from learngene.training.target_shards import pixel_prints
from learngene.training.teacher import Asked

MODEL_NOISE = 4
"""Purpose of randomness beside those of ``batches.py``: what the model itself draws, such as dropped paths."""

LOSS_CHECK_STEPS = 20
"""Steps between looks at the loss on an accelerator, where every look waits for the device; each step on a CPU."""


def train(
    stage: Stage,
    train_images: ImageSet,
    val_images: ImageSet,
    data: DataSpec | None,
    spec: Train,
    *,
    folder: RunFolder | None = None,
    show: bool = True,
    accelerator: Accelerator | None = None,
    replay: Replay | None = None,
) -> TrainResult:
    """Trains a stage to its last epoch, continuing a saved run if the folder holds one.

    Args:
        stage: What to train; its module is left on the device it was trained on, in evaluation mode.
        train_images: Images to train on.
        val_images: Images to evaluate on.
        data: How images are read and normalised, mean and std set; None where the stage has a feed of its own.
        spec: Every setting of the run.
        folder: Where the state is kept; None keeps nothing.
        show: Whether to print progress.
        accelerator: The processes and device to use; made from the environment by default.
        replay: Where what teachers say is stored; None asks them about every batch.

    Raises:
        TrainingDivergedError: If the loss is no longer finite; the last saved state stays.
        MachineError: If files, memory, processes, disk or device give out; the last saved state stays.
        InterruptedRun: After Ctrl-C or SIGTERM, when the state has been saved.
    """
    accelerator = accelerator or make_accelerator(stage.uses_all)
    try:
        with torch.random.fork_rng(), machine_faults():
            return _Run(stage, train_images, val_images, data, spec, folder, show, accelerator, replay).train()
    finally:
        if folder:
            folder.release()


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


class _Run:
    """The state and the steps of one call of ``train``."""

    def __init__(
        self,
        stage: Stage,
        train_images: ImageSet,
        val_images: ImageSet,
        data: DataSpec | None,
        spec: Train,
        folder: RunFolder | None,
        show: bool,
        accelerator: Accelerator,
        replay: Replay | None,
    ) -> None:
        self.stage, self.spec, self.folder, self.accelerator = stage, spec, folder, accelerator
        self.device, processes = accelerator.device, accelerator.num_processes
        place = {"rank": accelerator.process_index, "processes": processes}
        pin_memory = self.device.type == "cuda"
        self.batches: Batches
        if stage.feed:
            self.batches = stage.feed.batches(**place, pin_memory=pin_memory)
        else:
            assert data is not None
            size = {"img_size": stage.img_size, "in_chans": stage.in_chans}
            self.batches = TrainBatches(train_images, data, spec, **size, **place, pin_memory=pin_memory)
            self.val = eval_loader(val_images, data, **size, **place, batch_size=max(spec.batch_size, 64))
        self.ignore_index = val_images.ignore_index
        stage.module.to(self.device)
        self.stored = replay is not None
        self.view_epochs = min(spec.epochs, (replay.epochs if replay else None) or spec.epochs)
        self.teachers: Sequence[Asked | StoredTargets]
        if replay and data is not None and isinstance(self.batches, TrainBatches):
            seen = Views(self.batches, data, train_images.fingerprint(), self.view_epochs)
            stored = [StoredTargets(teacher, replay, seen, accelerator) for teacher in stage.teachers]
            notes = [line for each in stored for line in each.prepare()]
            self.teachers = stored
        else:
            self.teachers, notes = [Asked(teacher, self.device) for teacher in stage.teachers], []
        self.optimizer = make_optimizer(stage.module, spec)
        self.scheduler = _scheduler(self.optimizer, spec, self.batches.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16")
        self.ema = ModelEmaV3(stage.module, decay=spec.ema_decay) if spec.ema_decay else None
        self.progress = Progress(data=train_images.fingerprint(), made_of=dict(stage.made_of))
        self._resume()
        if folder and accelerator.is_main_process:
            folder.begin(self.progress.history)
        if spec.compile:
            stage.module.compile()
        self.model = accelerator.prepare_model(stage.module)
        self.show = show and accelerator.is_main_process
        events = folder.path if folder and accelerator.is_main_process else None
        self.log = TrainLog(stage.name, spec.epochs * self.batches.steps_per_epoch, events, self.show)
        self.log.note("\n".join([Splits(train_images, val_images).counted(), *notes]))

    # -- the run -------------------------------------------------------------------------------------

    def train(self) -> TrainResult:
        progress, spec = self.progress, self.spec
        self._score: Score | None = None
        with self.log.running(progress.updates), _signals() as received:
            while progress.epoch < spec.epochs:
                self._epoch(received)
        score = self._score or self._evaluate()
        self.stage.module.eval()
        return TrainResult(
            history=progress.history,
            final=score,
            best=max(progress.best, score.main),
            updates=progress.updates,
            images=progress.updates * spec.batch_size,
            seconds=progress.seconds,
            averaged=self.ema.module if self.ema else None,
        )

    def _epoch(self, received: list[int]) -> None:
        progress, spec, batches = self.progress, self.spec, self.batches
        epoch, start, first = progress.epoch, time.perf_counter(), progress.step
        self.stage.module.train()
        pending: list[Parts] = []
        for step, parts in enumerate(batches.epoch(epoch % self.view_epochs, first), start=first):
            self._set_rate(epoch, step)
            pending.append(self._step(parts, epoch, step))
            progress.step, progress.updates = step + 1, progress.updates + 1
            stopped = self._stopped(received)
            last = progress.step == batches.steps_per_epoch
            if last or stopped or self.device.type == "cpu" or len(pending) == LOSS_CHECK_STEPS:
                self._check(pending, epoch)
                speed = (progress.step - first) * spec.batch_size / (time.perf_counter() - start)
                self.log.step(progress.updates, progress.loss_sum / progress.step, progress.part_means(), speed)
            if stopped:
                progress.seconds += time.perf_counter() - start
                self._save()
                raise InterruptedRun(stopped, f"epoch {epoch + 1}, step {progress.step}")
        speed = (batches.steps_per_epoch - first) * spec.batch_size / (time.perf_counter() - start)
        self._finish_epoch(self._set_rate(epoch, batches.steps_per_epoch - 1), speed, start)

    def _step(self, parts: list[tuple[Tensor, Tensor]], epoch: int, step: int) -> Parts:
        """One optimizer step over this process's parts of the batch; returns the mean loss and its parts."""
        spec = self.spec
        key = [MODEL_NOISE, spec.seed, epoch, step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if self.stage.before_step:
            self.stage.before_step(epoch, step)
        losses = []
        views = epoch % self.view_epochs
        for number, (raw, labels) in enumerate(parts, start=1):
            prints = pixel_prints(raw) if self.stored else None  # before mixing, which changes images where they are
            images = raw.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            images, targets = self.batches.mix(images, labels, views, step)
            # Gradients of a batch add up over its parts; processes need to agree only on the last.
            together = number == len(parts)
            with contextlib.nullcontext() if together else self.accelerator.no_sync(self.model):
                with autocast(self.device.type, spec.precision):
                    # Of the same mixed and erased images.
                    theirs = [each.outputs(prints, images, views, step, number - 1) for each in self.teachers]
                    loss = self.stage.objective(self.model, images, targets, theirs)
                self.scaler.scale(loss["loss"] / len(parts)).backward()
            losses.append({name: value.detach().float() for name, value in loss.items()})
        if spec.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.stage.module.parameters(), spec.clip_grad)
        mean = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        if self.device.type == "cpu" and not math.isfinite(mean["loss"].item()):
            return mean  # _check stops the run; do not let it into the weights
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.stage.module, step=self.progress.updates + 1)
        return mean

    def _finish_epoch(self, rate: float, speed: float, start: float) -> None:
        progress, spec, parts = self.progress, self.spec, self.progress.part_means()
        entry: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "epochs": spec.epochs,
            "loss": progress.loss_sum / self.batches.steps_per_epoch,
            **parts,
            "lr": rate,
            "images_per_second": speed,
        }
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        progress.part_sums = {}
        done = progress.epoch == spec.epochs
        improved = False
        if done or progress.epoch % spec.eval_every == 0:
            self._score = self._evaluate()
            entry |= self._score.entry()
            improved, progress.best = self._score.main > progress.best, max(progress.best, self._score.main)
        progress.seconds += time.perf_counter() - start
        progress.history.append(entry)
        self.log.epoch(entry, parts)
        if self.folder and self.accelerator.is_main_process:
            self.folder.log(entry)
            if improved:
                self._save("best.pt")
        if done or progress.epoch % spec.save_every == 0:
            self._save()

    def _evaluate(self) -> Score:
        if self.stage.before_scoring:
            self.stage.before_scoring()
        model = self.ema.module if self.ema and self.spec.use_ema else self.stage.module
        reduce = self.accelerator.reduce if self.accelerator.num_processes > 1 else None
        if self.stage.feed:
            place = self.accelerator.process_index, self.accelerator.num_processes
            return self.stage.feed.score(model, self.spec.precision, *place, reduce)
        if self.stage.score:
            return self.stage.score(model, self.val, self.spec.precision, reduce)
        return task_score(model, self.val, self.ignore_index, precision=self.spec.precision, reduce=reduce)

    # -- learning rate, faults, state ----------------------------------------------------------------

    def _set_rate(self, epoch: int, step: int) -> float:
        """Sets the learning rate, a pure function of where the run stands."""
        stepping = self.spec.schedule.stepping
        if stepping == "step":
            self.scheduler.step_update(epoch * self.batches.steps_per_epoch + step)
        else:
            # The authors' loop calls step(epoch) after each epoch, so that epoch e runs at the rate of e - 1.
            self.scheduler.step(max(0, epoch - 1) if stepping == "official" else epoch)
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _check(self, pending: list[Parts], epoch: int) -> None:
        """Adds finished losses and their parts to the epoch's sums; stops at the first loss that is not finite."""
        names = list(pending[0])
        losses = torch.stack([loss[name] for name in names for loss in pending]).view(len(names), len(pending))
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, reduction="mean")
        sums = dict(zip(names, losses.tolist(), strict=True))  # the one wait for the device
        pending.clear()
        values = sums.pop("loss")
        for name, more in sums.items() if len(sums) > 1 else ():  # a single part is the loss itself
            total, steps = self.progress.part_sums.get(name, (0.0, 0))
            self.progress.part_sums[name] = total + sum(more), steps + len(more)
        for number, value in enumerate(values):
            if not math.isfinite(value):
                step = self.progress.step - len(values) + number + 1
                state = self.folder.path / "last.pt" if self.folder else None
                kept = f"; the last good state is in {state}" if state and state.exists() else ""
                raise TrainingDivergedError(
                    f"{self.stage.name}: the loss became {value} in epoch {epoch + 1}, step {step}{kept}; "
                    "lower train.lr, or set train.clip_grad"
                )
            self.progress.loss_sum += value

    def _stopped(self, received: list[int]) -> int:
        """The signal that any process received, agreed on by all, or 0."""
        mine = received[0] if received else 0
        if self.accelerator.num_processes == 1:
            return mine
        return int(self.accelerator.gather(torch.tensor([mine], device=self.device)).max().item())

    def _save(self, name: str = "last.pt") -> None:
        if not self.folder or not self.accelerator.is_main_process:
            return
        tensors: dict[str, Any] = {
            "module": self.stage.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.ema:
            tensors["ema"] = self.ema.module.state_dict()
        self.folder.save(tensors, self.progress, name)

    def _resume(self) -> None:
        saved = self.folder.load() if self.folder else None
        if saved is None:
            return
        tensors, progress = saved
        try:
            self.stage.module.load_state_dict(tensors["module"])
            self.optimizer.load_state_dict(tensors["optimizer"])
            self.scaler.load_state_dict(tensors["scaler"])
            if self.ema:
                self.ema.module.load_state_dict(tensors["ema"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise LearngeneError(
                f"{self.folder.path if self.folder else ''}: the saved state does not fit this run "
                f"({str(error).splitlines()[0]}); choose another out, or delete the folder"
            ) from None
        mine = self.progress
        others = ["on other training images"] if progress.data not in ("", mine.data) else []
        others += [f"of another {name}" for name, sha in mine.made_of.items() if progress.made_of.get(name) != sha]
        for other in others:
            where = self.folder.path if self.folder else ""
            raise LearngeneError(f"{where} holds a run {other}; choose another out, or delete the folder")
        self.progress = replace(progress, data=mine.data, made_of=mine.made_of)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM inside the block; a second Ctrl-C, or a second SIGTERM, acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
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
