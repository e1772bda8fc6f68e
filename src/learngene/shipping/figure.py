"""Small pictures in SVG that take their colours from the page: points with intervals, and a bar of parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 230, 40, 36, 22, 14


@dataclass(frozen=True)
class Point:
    """A model in a picture: where it stands in data, and on paper."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Accuracy over something, on paper.

    Attributes:
        title: What the horizontal axis is.
        points: On paper, from left to right.
        xticks: Places and texts.
        yticks: The same of the vertical axis.
        line: Place of a level that is drawn dashed, and what it is.
    """

    title: str
    points: list[Point]
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    line: tuple[float, str]

    @property
    def path(self) -> str:
        """The line through all points."""
        return "M" + "L".join(f"{point.x:.1f} {point.y:.1f}" for point in self.points)


def panel(title: str, points: Sequence[Point], level: float, text: str, scale: float = 1.0) -> Panel:
    """Places points whose horizontal axis is logarithmic.

    Args:
        title: Of the horizontal axis.
        points: In data.
        level: A score that is drawn as a dashed line.
        text: What it is.
        scale: Units of the axis in those of ``x``.
    """
    logs = [math.log(point.x) for point in points]
    left, right = min(logs), max(logs)
    margin = max(0.12 * (right - left), 0.2)
    left, right = left - margin, right + margin
    low = min(level, *(point.low for point in points))
    high = max(point.high for point in points)
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 6 or step == 20)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step

    def across(value: float) -> float:
        return LEFT + (math.log(value) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / max(high - low, 1) * (HEIGHT - BOTTOM - TOP)

    placed = [
        Point(each.name, across(each.x), up(each.y), up(each.low), up(each.high))
        for each in sorted(points, key=lambda point: point.x)
    ]
    xticks = [(across(point.x), f"{point.x / scale:.3g}") for point in points]
    xticks = [tick for i, tick in enumerate(xticks) if all(abs(tick[0] - other[0]) > 30 for other in xticks[:i])]
    yticks = [(up(value), f"{value:g}") for value in range(int(low), int(high) + 1, step)]
    return Panel(title, placed, xticks, yticks, (up(level), text))


@dataclass(frozen=True)
class Part:
    """A part of a bar: its name, value and text, and where it begins and how long it is, in percent."""

    name: str
    text: str
    start: float
    share: float


def parts(values: Sequence[tuple[str, float, str]]) -> list[Part]:
    """Lays names, values and texts end to end."""
    total, start, out = sum(value for _, value, _ in values) or 1.0, 0.0, []
    for name, value, text in values:
        out.append(Part(name, text, start, 100 * value / total))
        start += 100 * value / total
    return out
