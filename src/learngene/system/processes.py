"""Several processes that share one folder: starting them, giving each its part of the machine, stopping them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

from learngene.system.errors import InterruptedRun

POLL_SECONDS = 0.5
"""How long a process waits when others are doing all that can be done."""


class LocalExecutor:
    """Processes of this machine, each a pool of its own, so that one that dies takes no work of others with it.

    Where the system can fork, they are forked from one that has imported the module of the work and computed nothing:
    it costs the seconds of that import once, and nothing of this process, such as an open accelerator, is inherited.
    """

    died: tuple[type[BaseException], ...] = (BrokenExecutor,)
    tries = 3

    def __init__(self, processes: int, module: str) -> None:
        """Starts nothing yet.

        Args:
            processes: How many.
            module: What the work needs imported.
        """
        self._pools: list[ProcessPoolExecutor | None] = [None] * processes
        self._work: list[Future[Any] | None] = [None] * processes
        self._module = module

    def workers(self) -> int:
        """How many pieces of work are done at a time."""
        return len(self._pools)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands work to a process that has none; there must be one."""
        number = next(number for number, last in enumerate(self._work) if last is None or last.done())
        try:
            future = self._pool(number).submit(work, *arguments)
        except BrokenExecutor:  # it died
            self._pools[number] = None
            future = self._pool(number).submit(work, *arguments)
        self._work[number] = future
        return future

    def cancel(self) -> None:
        """Has what runs save itself and end."""
        for child in multiprocessing.active_children():
            child.terminate()

    def close(self) -> None:
        """Waits for all processes to end."""
        for pool in self._pools:
            if pool:
                pool.shutdown(cancel_futures=True)

    def _pool(self, number: int) -> ProcessPoolExecutor:
        if (pool := self._pools[number]) is None:
            forks = "forkserver" in multiprocessing.get_all_start_methods()
            context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
            if context.get_start_method() == "forkserver":
                _start_server(self._module)
                # Answers when the imports are done. A process of a pool, if Ctrl-C came before, would look in vain for
                # the pool's semaphores, and say so.
                first = context.Process(target=int)
                first.start()
                first.join()
            told = dict(os.environ), number, len(self._pools)
            pool = self._pools[number] = ProcessPoolExecutor(1, context, initializer=_begin, initargs=told)
        return pool


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


def _begin(environment: dict[str, str], number: int, processes: int) -> None:
    """What a worker does first: it ends with the process that started it, which also hears Ctrl-C for it."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= environment  # which may have changed since the server was started
    take_share(number, processes)


_beside: list[int] = []
"""The number of processes that share the work of this one, if it is one of several."""

wishes: list[int] = []
"""Signals that work beside the main thread shall take as received, since none reach it: of a worker of Dask's."""


def take_share(number: int, processes: int) -> None:
    """Gives a process of several its own accelerator if there are enough, else its share of the threads."""
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % count)
    else:
        threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or os.cpu_count() or 1)
        torch.set_num_threads(max(1, threads // processes))


def work_beside(processes: int) -> None:
    """Tells this process how many do the work that it has a part of."""
    _beside[:] = [processes]


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
