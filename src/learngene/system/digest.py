"""Digests: what a file says of its own content, so that a changed byte is noticed when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

DIGEST = "digest"
"""The entry of a JSON file that holds its digest."""


def content_digest(content: Mapping[str, Any], *files: Path) -> str:
    """XXH3 of plain JSON values without their ``digest``, however they are written, and of whole files beside them.

    It tells damage, not forgery: whoever changes a file on purpose can compute a new one.
    """
    hasher = xxhash.xxh3_128()
    rest = {key: value for key, value in content.items() if key != DIGEST}
    hasher.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                hasher.update(piece)
    return f"xxh3_128:{hasher.hexdigest()}"
