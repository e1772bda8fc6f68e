"""Optimizers and schedules, all of them timm's."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from torch import nn

from learngene.recipe.sections import Train
from learngene.system.errors import LearngeneError, nearest


def refuse_optimizer(spec: Train, device: torch.device | None = None) -> None:
    """Takes a step with an optimizer on a few numbers, so that what cannot be used here shows before a run begins.

    Args:
        spec: The train section.
        device: Where the run will be; the accelerator by default, or the CPU without one.

    Raises:
        LearngeneError: If timm has no optimizer of that name, or it does not work here: some need CUDA, a package, or
            gradients of gradients.
    """
    from timm.optim import list_optimizers  # loads torch's compiler

    known = list_optimizers()
    if spec.optimizer not in known:
        raise LearngeneError(f"train.optimizer: unknown optimizer '{spec.optimizer}'{nearest(spec.optimizer, known)}")
    default = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or default or torch.device("cpu")
    tried = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).to(device)
    try:
        optimizer = _optimizer(tried, spec)
        tried(torch.ones(1, 2, device=device)).sum().backward()
        optimizer.step()
    except (AssertionError, ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise LearngeneError(
            f"train.optimizer: '{spec.optimizer}' cannot be used here on {device.type} ({reason}); choose another, "
            "such as adamw"
        ) from None


def make_optimizer(module: nn.Module, spec: Train) -> torch.optim.Optimizer:
    """Builds timm's optimizer of that name, with norms, biases and position embeddings left undecayed."""
    with torch.random.fork_rng():
        refuse_optimizer(spec, next(module.parameters()).device)
    return _optimizer(module, spec)


def _optimizer(module: nn.Module, spec: Train) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    more: dict[str, Any] = {"layer_decay": spec.layer_decay} if spec.layer_decay else {}
    if "adam" in spec.optimizer or spec.optimizer == "lamb":
        more |= {"betas": spec.betas, "eps": spec.eps}
    if spec.optimizer in ("adam", "adamw"):
        more["fused"] = True  # one kernel for all tensors, which small models feel even on a CPU
    rate = spec.lr * (spec.batch_size / spec.lr_batch if spec.lr_batch else 1.0)
    return create_optimizer_v2(module, opt=spec.optimizer, lr=rate, weight_decay=spec.weight_decay, **more)


def make_scheduler(
    optimizer: torch.optim.Optimizer, spec: Train, steps_per_epoch: int
) -> CosineLRScheduler | PolyLRScheduler:
    """Timm's cosine or polynomial schedule, counted in steps or in epochs."""
    schedule = spec.schedule
    unit = steps_per_epoch if schedule.stepping == "step" else 1
    common: dict[str, Any] = {
        # timm warns of a length of 1; its only rate is the first, which is that of any length.
        "t_initial": max(2, spec.epochs * unit),
        "lr_min": schedule.min_lr,
        "warmup_t": round(schedule.warmup_epochs * unit),
        "warmup_lr_init": schedule.warmup_lr,
        "t_in_epochs": schedule.stepping != "step",
    }
    if schedule.kind == "poly":
        return PolyLRScheduler(optimizer, power=schedule.power, **common)
    return CosineLRScheduler(optimizer, **common)
