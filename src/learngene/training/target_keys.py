"""Keys of stored targets: what decides them, read from beside the files, and compared in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learngene.system.errors import LearngeneError


def read_key(path: Path) -> dict[str, Any]:
    """The values of a key, as they stand beside its files.

    Raises:
        LearngeneError: If the file is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise LearngeneError(f"{path}: is damaged; delete the folder it is in, and its targets are made again")
    return content


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of entries by their names with dots."""
    out: dict[str, Any] = {}
    for name, value in content.items():
        inner = isinstance(value, Mapping) and value
        out |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return out


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first entry in which two keys differ."""
    one, other = flat(there), flat(here)
    said = [(name, *(found.get(name, "nothing") for found in (one, other))) for name in [*other, *one]]
    name, theirs, mine = next(each for each in said if each[1] != each[2])
    return f"{name}: {theirs} there, {mine} here"
