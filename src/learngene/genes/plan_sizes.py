"""Planning without a gene: a shape for every size that is asked for, what it costs, how fast it trains here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from learngene.genes.plan import Budget, Device, measured_latency
from learngene.system.errors import LearngeneError
from learngene.system.quantities import amount, short
from learngene.vits.shape import ViTShape
from learngene.vits.shape_rule import NARROW_HEAD, WIDE_HEAD, largest_shape, patch_for, rule_shapes


@dataclass(frozen=True)
class PlannedSize:
    """A model for one of the sizes.

    Attributes:
        budget: What was asked for.
        shape: What to make, by the rule of ``vits.shape_rule``.
        params: Its parameters.
        macs: Multiply-adds of one image.
        stored_bytes: Of its weights on disk, in float32.
        latency: Milliseconds of one forward pass on this machine, or None if the budget did not ask.
        train_speed: Images per second in training on this machine, or None if it was not measured.
    """

    budget: Budget
    shape: ViTShape
    params: int
    macs: int
    stored_bytes: int
    latency: float | None
    train_speed: float | None

    def epoch_seconds(self, images: int) -> float | None:
        """Expected seconds of an epoch: forward, backward and optimizer; reading images and evaluation come on top."""
        return images / self.train_speed if self.train_speed else None


def plan_sizes(
    sizes: Sequence[float | str | Budget],
    *,
    img_size: int,
    num_classes: int,
    in_chans: int = 3,
    batch_size: int = 64,
    measure: bool = True,
    timer: Callable[[ViTShape, int, str], float] | None = None,
    on: Device | None = None,
) -> list[PlannedSize]:
    """One shape for every size: width, depth, heads of one width and patches of one side, by a published rule.

    All shapes have the same patches and heads of the same width, so that one gene can make them all. Their heads are
    64 wide if no model is narrower than DeiT-Ti, otherwise 32. See ``vits.shape_rule`` for the rule and its sources.

    Args:
        sizes: Parameters at most, such as ``0.6e6`` or ``"0.6M"``, or budgets.
        img_size: Image side in pixels.
        num_classes: Classes of the task.
        in_chans: Image channels.
        batch_size: Images per step when the speed of training is measured; 64 as ``train.batch_size`` by default.
        measure: Whether to measure how fast each trains here: two seconds or a few steps of each.
        timer: Times a shape at a batch size on a device where a budget limits the latency; measures by default.
        on: A runtime whose latency counts instead, as in ``plan``.

    Returns:
        A plan for every size, in their order.

    Raises:
        LearngeneError: If a size is too small for any model, or larger than the largest; it names both ends.
    """
    if not sizes:
        raise LearngeneError("plan: give one size or more, such as 0.6M")
    budgets = [size if isinstance(size, Budget) else Budget(max_params=amount(size)) for size in sizes]
    base = ViTShape(img_size=img_size, patch_size=patch_for(img_size), in_chans=in_chans, num_classes=num_classes)
    timed = timer or measured_latency if on is None else lambda shape, *_: on.measured_latency(shape)
    found = [_shape(budget, base, WIDE_HEAD, timed) for budget in budgets]
    if any(shape is None or shape.num_heads < 3 for shape in found):
        found = [_shape(budget, base, NARROW_HEAD, timed) for budget in budgets]
    return [
        _planned(budget, shape or _refuse(budget, base, timed), batch_size, measure, timed)
        for budget, shape in zip(budgets, found, strict=True)
    ]


def _shape(budget: Budget, base: ViTShape, head_dim: int, timer: Callable[..., float]) -> ViTShape | None:
    """The shape for a budget; None if there is none."""
    if budget.max_latency is None:
        return largest_shape(base, head_dim, budget.room)
    within = (shape for shape in rule_shapes(base, head_dim) if budget.admits(shape))
    limit, batch_size, device = budget.max_latency, budget.batch_size, budget.device
    fast = list(itertools.takewhile(lambda shape: timer(shape, batch_size, device) <= limit, within))
    return fast[-1] if fast else None


def _planned(
    budget: Budget, shape: ViTShape, batch_size: int, measure: bool, timer: Callable[..., float]
) -> PlannedSize:
    if budget.max_latency is None and budget.room(shape) > 2:  # which happens beyond the largest alone
        _refuse(budget, shape, timer)
    speed: float | None = None
    if measure:
        from learngene.vits.speed import train_speed

        speed = train_speed(shape, batch_size=batch_size, device=budget.device)
    latency = timer(shape, budget.batch_size, budget.device) if budget.max_latency else None
    return PlannedSize(budget, shape, shape.params(), shape.macs(), 4 * shape.params(), latency, speed)


def _refuse(budget: Budget, base: ViTShape, timer: Callable[..., float]) -> NoReturn:
    """Raises ``LearngeneError`` with the smallest and the largest shape there is."""
    least, *_, most = rule_shapes(base, NARROW_HEAD)
    least = least.replace(depth=1)
    small, large = (
        f"{shape.size} with {short(shape.params())} params, {short(shape.macs())} macs" for shape in (least, most)
    )
    if budget.max_latency is not None:
        small += f", {timer(least, budget.batch_size, budget.device):.4g} ms"
    asked, task = ", ".join(budget.told), f"{base.img_size} px and {base.num_classes} classes"
    if budget.max_latency is None and budget.room(most) > 1:
        raise LearngeneError(f"{asked} is more than any model of {task} has; the largest is {large}: ask for less")
    raise LearngeneError(f"no model of {task} fits {asked}; the smallest is {small}, the largest {large}")
