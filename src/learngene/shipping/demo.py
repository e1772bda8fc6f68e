"""What ``learngene demo`` ships: models of digits, for multiply-adds that make the same models on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learngene.shipping.ship import ship
from learngene.system.quantities import short
from learngene.system.speech import announce

SIZES, BUDGET = [20_000, 40_000, 80_000], 500e9
"""Most parameters of each model, and multiply-adds of all training: less than a minute of one core."""


def ship_demo(out: Path, seed: int = 0, budget_macs: float = BUDGET) -> dict[str, Any]:
    """Ships models of digits into the folder ``ship-SEED`` of the demo's.

    Args:
        out: The demo's folder.
        seed: Of everything random.
        budget_macs: Multiply-adds of all training.

    Returns:
        What its ``result.json`` has.
    """
    folder, sizes = out / f"ship-{seed}", ",".join(map(short, SIZES))
    command = f"learngene ship digits --sizes {sizes} --budget-macs {short(budget_macs)} --out {folder}"
    announce(f"\nThe same from images to shipped models: {command}")
    return ship("digits", out=folder, sizes=SIZES, budget_macs=budget_macs, seed=seed)
