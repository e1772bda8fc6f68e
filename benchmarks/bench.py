"""What the benchmarks share: paired rounds, ratios of one run, and the result they print."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from learngene.system.environment import environment


def paired_rounds(cases: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Measures the cases in turn, the first case of a round rotating, so that load falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds + warm_up):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            value = cases[name]()
            if number >= warm_up:
                times[name].append(value)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of one case's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def target(what: str, value: float, limit: float) -> dict[str, Any]:
    """One figure with the limit it shall keep."""
    return {"what": what, "value": round(value, 4), "limit": limit, "met": value <= limit}


def finish(name: str, times: dict[str, list[float]], targets: list[dict[str, Any]], **more: Any) -> None:
    """Prints the result as JSON."""
    summary = {
        case: {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}
        for case, values in times.items()
    }
    result = {"benchmark": name, "targets": targets, "seconds": summary, **more, "environment": environment()}
    print(json.dumps(result, indent=2))
