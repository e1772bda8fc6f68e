"""What a worker notes in a file about where it is, for whoever shows it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_notes: list[tuple[Path, float]] = []
"""The file of this process and when it was written last, while it is a worker."""


@contextlib.contextmanager
def noting(path: Path) -> Iterator[None]:
    """Has notes of this process written to a file inside the block."""
    _notes[:] = [(path, 0.0)]
    note("")
    try:
        yield
    finally:
        _notes.clear()
        path.unlink(missing_ok=True)


def note(text: str) -> None:
    """Notes where this process is, once a second at most; does nothing where nobody wants to know."""
    if _notes and time.monotonic() - _notes[0][1] > 1:
        path, _ = _notes[0]
        _notes[:] = [(path, time.monotonic())]
        with contextlib.suppress(OSError):
            path.write_text(f"{socket.gethostname()}:{os.getpid()} {text}")


def read_note(path: Path) -> str:
    """The last note; empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
