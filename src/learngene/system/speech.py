"""How a command speaks: how much, and in words or, for programs that follow it, in JSON, an object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

Thing = TypeVar("Thing")
Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)

BETWEEN, BETWEEN_EVENTS = 30.0, 1.0
"""Seconds between lines of progress where there is no terminal, and between those that are told in JSON."""


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
def spoken(level: Level) -> Iterator[None]:
    """Has this process speak so much inside the block."""
    root, before = logging.getLogger(), (logging.getLogger().level, logging.root.manager.disable)
    handler = logging.StreamHandler() if level == "debug" else None
    if handler:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
    if level == "error":
        logging.disable(logging.WARNING)
    speech.level, speech.json = level, False
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


def counted(what: str, things: Iterable[Thing], of: int) -> Iterator[Thing]:
    """Passes things on, and tells now and then how many of so many there were."""
    last = time.monotonic()
    for done, thing in enumerate(things, start=1):
        yield thing
        now, between = time.monotonic(), BETWEEN_EVENTS if speech.json else BETWEEN
        if speech.progress and now >= last + between:
            last = now
            if speech.json:
                tell("progress", text=what, done=done, of=of)
            else:
                print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


def say(text: str, **outcome: Any) -> None:
    """Prints a line of what came out once, however many processes a command runs in.

    Args:
        text: The line.
        outcome: What it tells, for programs: paths, scores in percent.
    """
    if speech.json:
        tell("outcome" if outcome else "note", text=text, **outcome)
    elif os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


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
