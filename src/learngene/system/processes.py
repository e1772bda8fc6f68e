"""Several processes that share one folder: starting them, giving each its part of the machine, stopping them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from learngene.system.errors import InterruptedRun

Task = TypeVar("Task")

POLL_SECONDS = 0.5
"""How long a process waits when others are doing all that can be done."""


def announce(text: str) -> None:
    """Prints a line at once, also into a file, so that several processes' lines can be followed."""
    print(text, flush=True)


def spread(work: Callable[[Task, int, int], None], task: Task, processes: int) -> None:
    """Runs ``work(task, number, processes)`` in so many new processes and waits for all of them."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(task, number, processes)) for number in range(processes)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        raise


def take_share(number: int, processes: int) -> None:
    """Gives a process of several its own accelerator if there are enough, else its share of the threads."""
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % count)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def end_with_parent() -> None:
    """Makes this process end when the one that started it has, however that ended: it cannot always say so itself."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # the main thread may be anywhere; files get their names when they are whole

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def stopping(where: Callable[[], str]) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end the block with the promise that the same command continues.

    Args:
        where: Says what is kept, for the message; called when everything has stopped.

    Raises:
        InterruptedRun: When it was stopped.
    """

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun(signal.SIGINT, where()) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
