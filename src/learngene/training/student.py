"""What is trained, with everything that is its own: optimizer, schedule, average, scaler, state, folder and log.

A student sees of a pass what its stage has asked for, and nothing of the other students; so it ends bit for bit as it
would alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from learngene.genes.gene import Learngene
from learngene.recipe.sections import Train
from learngene.system.errors import LearngeneError, TrainingDivergedError
from learngene.training.log import TrainLog
from learngene.training.losses import Parts
from learngene.training.optimizer import make_optimizer, make_scheduler
from learngene.training.run_folder import Progress, RunFolder
from learngene.training.scores import Score, autocast
from learngene.training.sharding import Sharded
from learngene.training.stage import Stage, TrainResult
from learngene.training.teacher import Outputs, Teacher, said_by
from learngene.training.trackers import Tracker, trackers
from learngene.vits.recomputing import recompute_layers

MODEL_NOISE = 4
"""Purpose of randomness beside those of ``batches.py``: what the model itself draws, such as dropped paths."""

LOSS_CHECK_STEPS = 20
"""Steps between looks at the loss on an accelerator, where every look waits for the device; each step on a CPU."""

Seen = tuple[Tensor, Tensor, Sequence[tuple[Teacher, Outputs]]]
"""One part of a batch as students learn from it: mixed images, soft targets or masks, what each teacher says."""


class Shared(Protocol):
    """What students have in common: the pass they are in."""

    accelerator: Accelerator
    steps_per_epoch: int
    data: str

    def evaluate(self, student: Student) -> Score:
        """The score of a student as it is now."""


class Student:
    """A stage in training.

    Attributes:
        stage: What is trained.
        spec: How.
        folder: Where the state is kept; None keeps nothing.
        fault: Why it left the pass, if it did.
        progress: Where it stands.
    """

    def __init__(self, stage: Stage, spec: Train, folder: RunFolder | None = None) -> None:
        """Describes it; ``begin`` takes memory."""
        self.stage, self.spec, self.folder = stage, spec, folder
        self.fault: LearngeneError | None = None
        self.result: TrainResult | None = None
        self.progress = Progress()
        self._trackers: list[Tracker] = []
        self._pending: list[Parts] = []
        self._score: Score | None = None

    def begin(self, shared: Shared, show: bool) -> None:
        """Takes its place on the device, and goes on where a saved state stands.

        Args:
            shared: The pass.
            show: Whether to print progress.
        """
        self._shared = shared
        self.accelerator, stage, spec, folder = shared.accelerator, self.stage, self.spec, self.folder
        self.device = self.accelerator.device
        processes = self.accelerator.num_processes
        self.sharded = Sharded(stage.module, self.device, processes) if spec.shard and processes > 1 else None
        self.trained = self.sharded.part if self.sharded else stage.module.to(self.device)
        self.optimizer = make_optimizer(self.trained, spec)
        self.scheduler = make_scheduler(self.optimizer, spec, shared.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16")
        self.ema = ModelEmaV3(stage.module, decay=spec.ema_decay) if spec.ema_decay else None
        self.progress = Progress(data=shared.data, made_of=dict(stage.made_of))
        self._resume()
        if folder and self.accelerator.is_main_process:
            folder.begin(self.progress.history)
        if spec.recompute:
            self._recompute()
        if spec.compile:
            stage.module.compile()
        self.model = self.trained if self.sharded else self.accelerator.prepare_model(stage.module)
        mine = folder if self.accelerator.is_main_process else None
        self._trackers = trackers(spec.track, mine.path, mine.recipe) if mine else []
        self.log = TrainLog(stage.name, spec.epochs, shared.steps_per_epoch, self._trackers, show)

    def _recompute(self) -> None:
        """Has layers compute their activations again; those of genes with weights that are gone by then."""
        genes = [each for each in self.stage.module.modules() if isinstance(each, Learngene)]
        for gene in genes:
            gene.recompute = True
        if not genes:
            recompute_layers(self.trained)

    # -- the run -------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Begins, or goes on with, an epoch."""
        self._first = self.progress.step
        self.trained.train()

    def step(self, seen: Iterable[Seen], parts: int) -> None:
        """One optimizer step; ``look`` sees whether it went well.

        Args:
            seen: This process's parts of the batch.
            parts: How many those are.
        """
        progress = self.progress
        self._set_rate(progress.epoch, progress.step)
        self._pending.append(self._learn(seen, parts))
        progress.step, progress.updates = progress.step + 1, progress.updates + 1

    def look(self, elapsed: float, *, stopped: bool) -> None:
        """Looks at the losses of the last steps now and then, and always where the epoch, or the run, ends.

        Args:
            elapsed: Seconds since the pass entered the epoch.
            stopped: Whether the run ends here.
        """
        progress = self.progress
        last = progress.step == self._shared.steps_per_epoch
        if last or stopped or self.device.type == "cpu" or len(self._pending) == LOSS_CHECK_STEPS:
            self._check()
            loss, speed = progress.loss_sum / progress.step, self._speed(elapsed)
            self.log.step(progress.updates, loss, progress.part_means(), speed)

    def _learn(self, seen: Iterable[Seen], parts: int) -> Parts:
        """Gradients and weights of a step; returns the mean loss and its parts."""
        spec, epoch, step = self.spec, self.progress.epoch, self.progress.step
        key = [MODEL_NOISE, spec.seed, epoch, step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if self.stage.before_step:
            self.stage.before_step(epoch, step)
        losses = []
        for number, (images, targets, said) in enumerate(seen, start=1):
            theirs = said_by(self.stage.teachers, said)
            # Gradients of a batch add up over its parts; processes need to agree only on the last.
            together = number == parts
            with contextlib.nullcontext() if together else self.accelerator.no_sync(self.model):
                with autocast(self.device.type, spec.precision):
                    loss = self.stage.objective(self.model, images, targets, theirs)
                self.scaler.scale(loss["loss"] / parts).backward()
            losses.append({name: value.detach().float() for name, value in loss.items()})
        if spec.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.parameters(), spec.clip_grad)
        mean = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        if self.device.type == "cpu" and not math.isfinite(mean["loss"].item()):
            return mean  # _check stops the run; do not let it into the weights
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.stage.module, step=self.progress.updates + 1)
        return mean

    def _speed(self, elapsed: float) -> float:
        return (self.progress.step - self._first) * self.spec.batch_size / elapsed

    def finish_epoch(self, elapsed: float, share: float) -> None:
        """Scores, logs and saves behind the last step of an epoch.

        Args:
            elapsed: Seconds that the pass took for it.
            share: Those of them that count as this student's.
        """
        progress, spec, steps, start = self.progress, self.spec, self._shared.steps_per_epoch, time.perf_counter()
        parts = progress.part_means()
        entry: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "epochs": spec.epochs,
            "loss": progress.loss_sum / steps,
            **parts,
            "lr": self._set_rate(progress.epoch, steps - 1),
            "images_per_second": self._speed(elapsed),
        }
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        progress.part_sums = {}
        done = progress.epoch == spec.epochs
        improved = False
        if done or progress.epoch % spec.eval_every == 0:
            self._score = self._shared.evaluate(self)
            entry |= self._score.entry()
            improved, progress.best = self._score.main > progress.best, max(progress.best, self._score.main)
        progress.seconds += share + time.perf_counter() - start
        progress.history.append(entry)
        self.log.epoch(entry, parts)
        if self.folder and self.accelerator.is_main_process:
            self.folder.log(progress.history)
        if improved:
            self.save("best.pt")
        if done or progress.epoch % spec.save_every == 0:
            self.save()

    def end(self) -> None:
        """Sums up the run, behind its last epoch."""
        score = self._score or self._shared.evaluate(self)
        if self.sharded:
            self.sharded.gather(self.optimizer)
        self.stage.module.eval()
        progress = self.progress
        self.result = TrainResult(
            history=progress.history,
            final=score,
            best=max(progress.best, score.main),
            updates=progress.updates,
            images=progress.updates * self.spec.batch_size,
            seconds=progress.seconds,
            averaged=self.ema.module if self.ema else None,
        )

    @property
    def outcome(self) -> TrainResult | LearngeneError:
        """How it went, or why it left the pass."""
        out = self.result or self.fault
        assert out is not None
        return out

    def leave(self) -> None:
        """Gives its memory back."""
        self.stage.module.zero_grad(set_to_none=True)
        self.stage.module.to("cpu")
        self._pending, self.ema = [], None
        del self.optimizer, self.scheduler, self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Lets trackers send what they have, and another run use the folder."""
        while self._trackers:
            self._trackers.pop().close()
        if self.folder:
            self.folder.release()

    # -- learning rate, faults, state ----------------------------------------------------------------

    def _set_rate(self, epoch: int, step: int) -> float:
        """Sets the learning rate, a pure function of where the run stands."""
        stepping = self.spec.schedule.stepping
        if stepping == "step":
            self.scheduler.step_update(epoch * self._shared.steps_per_epoch + step)
        else:
            # The authors' loop calls step(epoch) after each epoch, so that epoch e runs at the rate of e - 1.
            self.scheduler.step(max(0, epoch - 1) if stepping == "official" else epoch)
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _check(self) -> None:
        """Adds finished losses and their parts to the epoch's sums; stops at the first loss that is not finite."""
        pending, progress = self._pending, self.progress
        names = list(pending[0])
        losses = torch.stack([loss[name] for name in names for loss in pending]).view(len(names), len(pending))
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, reduction="mean")
        sums = dict(zip(names, losses.tolist(), strict=True))  # the one wait for the device
        pending.clear()
        values = sums.pop("loss")
        for name, more in sums.items() if len(sums) > 1 else ():  # a single part is the loss itself
            total, steps = progress.part_sums.get(name, (0.0, 0))
            progress.part_sums[name] = total + sum(more), steps + len(more)
        for number, value in enumerate(values):
            if not math.isfinite(value):
                step = progress.step - len(values) + number + 1
                state = self.folder.path / "last.pt" if self.folder else None
                kept = f"; the last good state is in {state}" if state and state.exists() else ""
                raise TrainingDivergedError(
                    f"{self.stage.name}: the loss became {value} in epoch {progress.epoch + 1}, step {step}{kept}; "
                    "lower train.lr, or set train.clip_grad"
                )
            progress.loss_sum += value

    def save(self, name: str = "last.pt") -> None:
        """Writes the state, if there is a folder for it; all processes call this together."""
        if not self.folder or not (self.sharded or self.accelerator.is_main_process):
            return
        optimizer = self.sharded.gather(self.optimizer) if self.sharded else self.optimizer.state_dict()
        if not self.accelerator.is_main_process:
            return
        tensors: dict[str, Any] = {
            "module": self.stage.module.state_dict(),
            "optimizer": optimizer,
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
            if self.sharded:
                self.sharded.load(tensors["module"], self.optimizer, tensors["optimizer"])
            else:
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
