"""Who carries out the steps of a run: processes of this machine, or a cluster through Dask, SLURM or Ray.

Each is asked in the manner of ``concurrent.futures``. Its package is imported only when it is chosen.
"""

from __future__ import annotations

import importlib
import signal
import threading
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from learngene.system.errors import LearngeneError, nearest
from learngene.system.processes import LocalExecutor, wishes

ANSWER_SECONDS = 10
"""How long a scheduler may take to answer."""

SAVE_SECONDS = 60
"""How long is waited for work on other machines to save itself after Ctrl-C."""


class Executor(Protocol):
    """Whoever works.

    Attributes:
        died: What a future raises if the process that worked on it died.
        tries: How often work is handed out anew if it did.
    """

    died: tuple[type[BaseException], ...]
    tries: int

    def workers(self) -> int:
        """How many pieces of work are done at a time, now; never none."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands out work: a function that is importable by name, and its arguments."""

    def cancel(self) -> None:
        """Has what runs save itself and end."""

    def close(self) -> None:
        """Lets go of the workers, and ends those that were started here."""


def open_executor(chosen: str, processes: int, *, module: str, logs: Path) -> Executor:
    """Who is chosen by a text.

    Args:
        chosen: ``local``, ``dask``, ``slurm`` or ``ray``, behind a colon what it needs to know.
        processes: How many work at a time, where that is not the scheduler's to say.
        module: What the work needs imported.
        logs: A folder for what a scheduler keeps in files.

    Raises:
        LearngeneError: If there is no such executor, its package is missing, or its scheduler does not answer.
    """
    name, _, where = chosen.partition(":")
    if name not in EXECUTORS or (name == "local" and where):
        raise LearngeneError(f"--executor {chosen}: no such executor{nearest(name, EXECUTORS)}")
    if name == "local":
        return LocalExecutor(processes, module)
    try:
        if name == "dask":
            return DaskExecutor(where, processes)
        return SlurmExecutor(where, processes, logs) if name == "slurm" else RayExecutor(where, processes)
    except ImportError as error:
        raise LearngeneError(
            f"--executor {name}: package '{error.name}' is missing; pip install 'learngene[{name}]'"
        ) from None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LearngeneError(
            f"--executor {chosen}: no scheduler answers within {ANSWER_SECONDS} s ({reason}); check that it runs"
        ) from None


def _await(running: Collection[Future[Any]]) -> None:
    wait(list(running), SAVE_SECONDS)


EXECUTORS = ("local", "dask", "slurm", "ray")


class DaskExecutor:
    """The workers of a ``distributed`` scheduler, which hands the work of one that dies to another.

    Given its address, or a class such as ``dask_jobqueue.SLURMCluster`` that starts a cluster as Dask's configuration
    says; nothing starts one of processes of this machine.
    """

    tries = 1  # Dask tries elsewhere itself

    def __init__(self, where: str, processes: int) -> None:
        """Connects."""
        import distributed

        self.died: tuple[type[BaseException], ...] = (distributed.KilledWorker,)
        self._name, self._running = f"learngene-stop-{uuid.uuid4().hex}", set[Future[Any]]()
        self._cluster: Any = None
        if not where:
            # Port 0: any free one, as a scheduler always has an HTTP server, and says aloud if 8787 is taken.
            self._cluster = distributed.LocalCluster(
                n_workers=processes, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
        elif "/" not in where and ":" not in where:
            module, _, name = where.rpartition(".")
            if not module or not hasattr(made_by := importlib.import_module(module), name):
                raise LearngeneError(f"--executor dask:{where}: neither tcp://HOST:PORT nor a class of a package")
            self._cluster = getattr(made_by, name)()
            self._cluster.scale(processes)
        self._client = distributed.Client(self._cluster or where, timeout=ANSWER_SECONDS, set_as_default=False)
        self._stop = distributed.Event(self._name, client=self._client)
        self._executor = self._client.get_executor(pure=False)

    def workers(self) -> int:
        """How many work at a time."""
        threads = self._client.nthreads()
        if several := [name for name, count in threads.items() if count > 1]:
            raise LearngeneError(
                f"--executor dask: worker {several[0]} has {threads[several[0]]} threads, and torch counts its random "
                "numbers by process; start workers with --nthreads 1"
            )
        return max(1, len(threads))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands out work."""
        future: Future[Any] = self._executor.submit(_in_dask, self._name, work, *arguments)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def cancel(self) -> None:
        """Has what runs save itself and end."""
        self._stop.set()
        _await(self._running)

    def close(self) -> None:
        """Lets go of the workers."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _in_dask(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Does work in a thread of a worker, which gets no signals, but hears of the wish to stop."""
    from distributed import Event, get_client

    stop, done = Event(name, client=get_client()), threading.Event()

    def watch() -> None:
        while not done.wait(1):
            if stop.is_set():
                wishes.append(signal.SIGTERM)
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        return work(*arguments)
    finally:
        done.set()
        watching.join()
        wishes.clear()


class SlurmExecutor:
    """A job of SLURM for each piece of work, through submitit; ``cluster=local`` runs them on this machine."""

    tries = 3

    def __init__(self, where: str, processes: int, logs: Path) -> None:
        """Submits nothing yet; ``where`` has settings of submitit's, such as ``partition=gpu,timeout_min=240``."""
        import submitit

        self.died: tuple[type[BaseException], ...] = (submitit.core.utils.UncompletedJobError,)
        self._failed = submitit.core.utils.FailedJobError  # one of those, but of work that raised, or is not taken
        parts = [part.partition("=") for part in where.split(",") if part]
        settings: dict[str, Any] = {key: int(value) if value.isdecimal() else value for key, _, value in parts}
        cluster = settings.pop("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(logs / "submitit", cluster=cluster)
            self._executor.update_parameters(
                **{key if key in ALL_CLUSTERS else f"slurm_{key}": value for key, value in settings.items()}
            )
        except (NameError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise LearngeneError(f"--executor slurm:{where}: {reason}; settings are KEY=VALUE,KEY=VALUE") from None
        self._jobs: list[Any] = []
        self._waiting = ThreadPoolExecutor(processes)
        self._processes = processes

    def workers(self) -> int:
        """How many work at a time."""
        return self._processes

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands out work."""
        try:
            job = self._executor.submit(work, *arguments)
        except self._failed as error:
            reason = (str(error).strip().splitlines() or ["it does not say why"])[0]
            raise LearngeneError(f"--executor slurm: the job is refused ({reason[:200]})") from None
        self._jobs = [*(other for other in self._jobs if not other.done()), job]

        def result() -> Any:
            try:
                return job.result()
            except self._failed as error:
                raise RuntimeError(str(error)) from error

        return self._waiting.submit(result)

    def cancel(self) -> None:
        """Has what runs save itself and end."""
        for job in self._jobs:
            job.cancel()

    def close(self) -> None:
        """Lets go of the workers."""
        self._waiting.shutdown(cancel_futures=True)


ALL_CLUSTERS = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name"}
"""Settings that submitit knows for every cluster; the others are SLURM's."""


class RayExecutor:
    """The workers of a Ray cluster, given its address, or of one that is started on this machine."""

    tries = 1  # Ray tries elsewhere itself

    def __init__(self, where: str, processes: int) -> None:
        """Connects."""
        import ray

        self._ray, self._processes, self._running = ray, processes, dict[Future[Any], Any]()
        self.died: tuple[type[BaseException], ...] = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
        here: dict[str, Any] = {"address": where} if where else {"num_cpus": processes, "include_dashboard": False}
        ray.init(**here, log_to_driver=False, logging_level="ERROR")
        self._options = {"max_retries": 2, "num_gpus": int("GPU" in ray.cluster_resources())}

    def workers(self) -> int:
        """How many work at a time."""
        return self._processes

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands out work."""
        reference = self._ray.remote(**self._options)(work).remote(*arguments)
        future: Future[Any] = reference.future()
        self._running[future] = reference
        future.add_done_callback(self._running.pop)
        return future

    def cancel(self) -> None:
        """Has what runs save itself and end."""
        for reference in list(self._running.values()):
            self._ray.cancel(reference, force=False)
        _await(self._running)

    def close(self) -> None:
        """Lets go of the workers."""
        self._ray.shutdown()
