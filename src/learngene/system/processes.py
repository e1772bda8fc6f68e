"""Several processes that share one folder: starting them, giving each its part of the machine, stopping them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from learngene.system.errors import InterruptedRun

Task = TypeVar("Task")

POLL_SECONDS = 0.5
"""How long a process waits when others are doing all that can be done."""


def announce(text: str) -> None:
    """Prints a line at once and in one piece, so that the lines of several processes can be followed in one file."""
    # ``print`` writes the end of a line by itself where output is unbuffered, and two processes' lines run together.
    print(f"{text}\n", end="", flush=True)


def spread(work: Callable[[Task, int, int], None], task: Task, processes: int) -> None:
    """Runs ``work(task, number, processes)`` in so many new processes and waits for all of them.

    Where the system can fork, they are forked from one that has imported the module of ``work`` and computed nothing:
    it costs the seconds of that import once, and nothing of this process, such as an open accelerator, is inherited.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    told = dict(os.environ), work, task
    workers: list[BaseProcess] = []
    try:
        if context.get_start_method() == "forkserver":
            _start_server(work.__module__)
        for number in range(processes):
            workers.append(context.Process(target=_begin, args=(*told, number, processes)))
            workers[-1].start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        begun = [worker for worker in workers if worker.pid]  # one that was just being started ends with this process
        for worker in begun:
            worker.terminate()
        for worker in begun:
            worker.join()
        raise


def _start_server(module: str) -> None:
    """Starts the process that workers are forked from; its imports are deaf to Ctrl-C, which is for the workers."""
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # else the server starts it, and that opens the ears again
    forkserver.set_forkserver_preload([module])
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _begin(
    environment: dict[str, str], work: Callable[[Task, int, int], None], task: Task, number: int, processes: int
) -> None:
    """What a worker does: it hears Ctrl-C again, and ends with the process that started it."""
    _end_with_parent()
    os.environ |= environment  # which may have changed since the server was started
    with contextlib.suppress(KeyboardInterrupt):  # the process that started this one says that it stopped
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work(task, number, processes)


_beside: list[int] = []
"""The number of processes that share the work of this one, if it is one of several."""


def take_share(number: int, processes: int) -> None:
    """Gives a process of several its own accelerator if there are enough, else its share of the threads."""
    import torch

    _beside[:] = [processes]
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % count)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def fair_share(count: int) -> int:
    """How many of so many things this process may do at once, so that the processes beside it have some, too."""
    return -(-count // (_beside or [1])[0])


def _end_with_parent() -> None:
    """Makes this process end when the one that started it has, however that ended: it cannot always say so itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the main thread may be anywhere; files get their names when they are whole

    if not parent.is_alive():
        os._exit(1)
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
