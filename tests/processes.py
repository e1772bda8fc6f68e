"""Commands in processes of their own, forked from one that has imported torch and timm once and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

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

    def until(self, happened: Callable[[], bool], seconds: float = 100) -> Command:
        """Waits for something that the command will do."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), self.wait()
            assert time.monotonic() < end
            time.sleep(0.005)
        return self

    def send(self, number: signal.Signals, group: bool = False) -> Command:
        """Sends a signal to the process, or as a terminal does to its whole group."""
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self

    def wait(self, seconds: float = 120) -> Outcome:
        """What it did, once it has ended."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s"
        out, err = (path.read_text() if path.exists() else "" for path in self.paths)
        return Outcome(self.process.exitcode, out, err)


Start = Callable[..., Command]


def logged(run: Path, epochs: int = 1) -> Callable[[], bool]:
    """Whether a run has logged so many epochs."""
    log = run / "metrics.jsonl"
    return lambda: log.exists() and len(log.read_text().splitlines()) >= epochs


def ranks(count: int) -> list[dict[str, str]]:
    """What torchrun tells every process of several on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    common |= {"LOCAL_WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
