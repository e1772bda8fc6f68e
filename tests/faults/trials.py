"""What all parts of the campaign share: random damage, and the verdict on what a reader makes of it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from learngene.system.errors import LearngeneError

SLOW = 2.0
"""Seconds that no refusal may take."""

STRANGE: list[Any] = [None, True, "", "x", [], {}, -1, 0, 1, 1.5, 10**30, 1e308, "\ud800", [[[]]], {"a": {"b": 1}}]
"""Values that take the place of others in JSON."""


class Verdicts:
    """Counts what became of every trial, and keeps what should not have."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self.slowest = 0.0

    def judge(self, what: str, trial: str, read: Callable[[], bool]) -> None:
        """One trial: ``read`` raises our own error, or says whether the content is the original's."""
        start = time.perf_counter()
        try:
            outcome = "unchanged" if read() else "other content"
        except LearngeneError as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
        seconds = time.perf_counter() - start
        self.slowest = max(self.slowest, seconds)
        good = outcome in ("unchanged", "refused")
        self.counts.setdefault(what, Counter())[outcome if good else "fault"] += 1
        if not good:
            self.faults.append(f"{what}, {trial}: {outcome}")
        if seconds > SLOW:
            self.faults.append(f"{what}, {trial}: {seconds:.1f} s")

    def record(self, **more: Any) -> dict[str, Any]:
        """For the campaign's JSON."""
        counts = {what: dict(sorted(found.items())) for what, found in sorted(self.counts.items())}
        trials = sum(sum(found.values()) for found in self.counts.values())
        return {"trials": trials, "faults": self.faults, "slowest": round(self.slowest, 3), "outcomes": counts, **more}


def damage(content: bytes, source: random.Random) -> tuple[str, bytes]:
    """A copy with something changed, and what: bytes, a piece, the length."""
    size = len(content)
    a = source.randrange(size)
    b = min(size, a + source.choice([1, 2, 8, 64, 1024, size]))
    kind = source.choice(["bit", "byte", "bytes", "cut", "longer", "without", "twice", "zeros", "moved", "empty"])
    changed = bytearray(content)
    if kind == "bit":
        changed[a] ^= 1 << source.randrange(8)
    elif kind == "byte":
        changed[a] = source.randrange(256)
    elif kind == "bytes":
        changed[a:b] = source.randbytes(b - a)
    elif kind == "cut":
        del changed[a:]
    elif kind == "longer":
        changed += source.randbytes(b - a)
    elif kind == "without":
        del changed[a:b]
    elif kind == "twice":
        changed[a:a] = changed[a:b]
    elif kind == "zeros":
        changed[a:b] = bytes(b - a)
    elif kind == "moved":
        piece = changed[a:b]
        del changed[a:b]
        place = source.randrange(len(changed) + 1)
        changed[place:place] = piece
    else:
        changed = bytearray()
    return f"{kind} at {a} to {b}", bytes(changed)


def damage_json(value: Any, source: random.Random) -> tuple[str, Any]:
    """A copy of JSON values with one changed, taken out, added or renamed somewhere inside, and where."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any, str]] = []

    def walk(parent: Any, path: str) -> None:
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else []
        for key in keys:
            places.append((parent, key, f"{path}.{key}"))
            walk(parent[key], f"{path}.{key}")

    walk(value, "")
    parent, key, path = source.choice(places)
    kind = source.choice(["value", "value", "number", "gone", "added", "renamed"])
    if kind == "number" and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * source.choice([-1, 2, 1 + 1e-6]) + source.choice([0, 1, 1e-3])
    elif kind == "gone":
        del parent[key]
    elif kind == "added" and isinstance(parent, dict):
        parent[f"{key}x"] = source.choice(STRANGE)
    elif kind == "renamed" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        kind, parent[key] = "value", source.choice(STRANGE)
    return f"{kind} of {path}", value
