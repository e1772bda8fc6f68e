"""Keys: short hashes of everything that decides a result, so that what was computed once is found again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from learngene.sections import DataSpec, Section

KEY_LENGTH = 10
FREE_TO_CHANGE = ("root", "download", "workers", "save_every", "micro_batch", "compile")
"""Entries that do not change what is computed."""


def hashed(content: Any) -> str:
    """A short hash of plain values."""
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def content(section: Section) -> dict[str, Any]:
    """What a section says about results: not where files lie, nor how many processes read them."""
    values: dict[str, Any] = section.model_dump(mode="json")
    for name in FREE_TO_CHANGE:
        values.pop(name, None)
    if isinstance(section, DataSpec):
        values["source"] = [Path(source).name for source in section.sources]
    return values
