"""Commands in processes of their own, forked from one that has imported torch and timm once and computed nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pico import Outcome

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["timm", "matplotlib.pyplot", "learngene.comparing.claims.reproduce", "learngene.cli"])


def _run(arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """The command, as if its console script had been started: leads a group, and its workers are forked from it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell ignores Ctrl-C
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment, return-value]
    sys.argv = ["learngene", *arguments]
    from learngene.cli import main

    main()


class Command:
    """A command that was started; its output goes to files in ``folder``."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self.paths = tuple(folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        self.process = SERVER.Process(target=_run, args=([*map(str, arguments)], environment, *self.paths))
        self.process.start()

    def until(self, happened: Callable[[], bool]) -> Command:
        """Waits for something that the command will do, however long it takes."""
        while not happened():
            assert self.process.is_alive(), self.wait()
            self.process.join(0.01)
        return self

    def interrupt(self) -> Command:
        """Ctrl-C, as a terminal sends it to the whole group."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self

    def kill(self) -> None:
        """Kills the process and all that it started, at once."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it leads no group yet, or has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def wait(self) -> Outcome:
        """What it did, once it has ended."""
        self.process.join()
        assert self.process.exitcode is not None
        out, err = (path.read_text() if path.exists() else "" for path in self.paths)
        return Outcome(self.process.exitcode, out, err)


Start = Callable[..., Command]


def program(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a program in a group of its own, which takes Ctrl-C even if the suite runs in the background of a shell.

    What it and all that it starts print has an end when all of them have ended.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    more: dict[str, Any] = {"preexec_fn": heed, "start_new_session": True, "env": os.environ | environment}
    return subprocess.Popen([*map(str, arguments)], text=True, **pipes, **more)


def ranks(count: int) -> list[dict[str, str]]:
    """What torchrun tells every process of several on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common |= {"LOCAL_WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
