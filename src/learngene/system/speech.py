"""How a command speaks: how much, and in words or, for programs that follow it, in JSON, an object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from learngene.system.errors import LearngeneError

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass
class Speech:
    """How this process speaks.

    Attributes:
        level: ``debug``: what libraries log, too; ``info``: progress; ``warning``: cautions and what came out;
            ``error``: no cautions.
        json: Whether what happens is told in JSON, on standard output.
    """

    level: Level = "info"
    json: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress is told."""
        return self.level in ("debug", "info")


speech = Speech()


@contextlib.contextmanager
def spoken(level: str) -> Iterator[None]:
    """Has this process speak so much inside the block.

    Raises:
        LearngeneError: If there is no such level.
    """
    chosen = next((known for known in LEVELS if known == level), None)
    if chosen is None:
        raise LearngeneError(f"--log-level {level}: no such level; give {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    root, before = logging.getLogger(), (logging.getLogger().level, logging.root.manager.disable)
    handler = logging.StreamHandler() if level == "debug" else None
    if handler:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
    if level == "error":
        logging.disable(logging.WARNING)
    speech.level, speech.json = chosen, False
    try:
        yield
    finally:
        speech.level, speech.json = "info", False
        root.setLevel(before[0])
        logging.disable(before[1])
        if handler:
            root.removeHandler(handler)


def announce(text: str) -> None:
    """Prints a line at once and in one piece, so that the lines of several processes can be followed in one file."""
    if speech.progress and speech.json:
        tell("note", text=text)
    elif speech.progress:
        _print(text)


def tell(event: str, **values: Any) -> None:
    """Prints what happened as an object of JSON, of several processes the first one's; numbers that are none are null.

    Args:
        event: What.
        values: More about it.
    """
    if os.environ.get("RANK", "0") == "0":
        told = {key: _plain(value) for key, value in values.items() if value is not None}
        _print(json.dumps({"event": event, **told}, default=str))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(line: str) -> None:
    # ``print`` writes the end of a line by itself where output is unbuffered, and two processes' lines run together.
    try:
        print(f"{line}\n", end="", flush=True)
    except BrokenPipeError:  # the reader went away, as `head` does; the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
