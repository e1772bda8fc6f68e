"""What the machine refuses, in one line each: files, memory, processes, disks, devices and compilers.

Python and torch report these as errors of their own, some of them by their text alone. A line says what ran out and
which setting needs less of it. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learngene.system.errors import LearngeneError

FILES = "too many open files{limit}; raise the limit (ulimit -n), or lower data.workers"
PROCESSES = "the system starts no further process or thread; lower data.workers or --processes, or raise ulimit -u"
MEMORY = "out of memory ({reason}); lower train.micro_batch, data.img_size or data.workers"
SHARED = "no shared memory left for loader processes ({reason}); enlarge /dev/shm, or set data.workers=0"
ENDED = (
    "the system ended a loader process ({reason}), most often because memory ran out; lower data.workers, 0 has none"
)
SPACE = "no space left on the device{file}; free some space, or choose another out"
GONE = "the folder {folder} is gone, so {file} can be neither read nor written; choose another out, or begin again"
COMPILER = "torch.compile cannot compile here ({reason}); set train.compile=false"
PRECISION = "this device cannot compute in that precision ({reason}); set train.precision=fp32"
DEVICE = "the accelerator reports an error ({reason}); CUDA_VISIBLE_DEVICES= in the environment runs on the CPU"
TOGETHER = (
    "the processes of this run cannot reach each other ({reason}); check the launcher, or start one process alone"
)

BY_TEXT = (
    (r"too many open files|received \d+ items of ancdata", FILES),
    (r"can't start new thread|failed to start .*thread", PROCESSES),
    (r"insufficient shared memory|bus error|shared memory (object|file)|<torch_\d+|/torch_\d+", SHARED),
    (r"dataloader worker .*(killed by signal|exited unexpectedly)", ENDED),
    (r"out of memory|can't allocate memory|cannot allocate memory|cublas_status_alloc_failed", MEMORY),
    (r"no space left|disk quota exceeded|os error 28|pytorchstreamwriter|unexpected pos \d", SPACE),
    (r"not implemented for '(half|bfloat16|float8\w*)'|does not support (bfloat16|fp16|half)", PRECISION),
    (r"cuda error|cuda driver|cudnn error|cublas error|no kernel image|no cuda gpus|hip error|mps backend", DEVICE),
    (r"nccl error|\[.*gloo.*\]|connection (closed|reset) by peer|broken pipe.*store", TOGETHER),
)
"""What the text of an error says, and the line for it; the first that fits counts."""

BY_NUMBER = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), FILES),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), SPACE),
    errno.EAGAIN: PROCESSES,
    errno.ENOMEM: MEMORY,
}

OF_PATHS = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EBADF)
"""What a wrong path in a program gives, too: the machine is to blame only for a path of the user's."""

CODE = {Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))}
"""Where no path of the user's lies."""

BY_MODULE = (
    (("torch._dynamo", "torch._inductor", "torch._functorch"), COMPILER),
    (("torch.distributed", "torch._C._distributed"), TOGETHER),
)
"""Whose errors they are, by the module of their class."""

BY_NAME = {
    "OutOfMemoryError": MEMORY,
    "AcceleratorError": DEVICE,
    "DistNetworkError": TOGETHER,
    "DistStoreError": TOGETHER,
}


class MachineError(LearngeneError):
    """Something that the machine refused; the last saved state is kept."""


def machine_fault(error: BaseException) -> str | None:
    """What the machine refused, in one line; None if the machine is not to blame.

    Args:
        error: An error of Python's or of torch's.
    """
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, OSError) and error.errno is not None:
        names = error.filename, getattr(error, "filename2", None)
        if any(str(name).startswith(("/dev/shm", "/torch_")) for name in names if name):
            return SHARED.format(reason=error.strerror)
        file = f" at {error.filename}" if error.filename else ""
        if line := BY_NUMBER.get(error.errno):
            return line.format(reason=error.strerror, file=file, limit=_limit())
        if isinstance(error, ConnectionError):  # a broken pipe is a reader that has read enough
            return None if isinstance(error, BrokenPipeError) else TOGETHER.format(reason=error.strerror)
        if error.errno in OF_PATHS and not _of_user(error.filename):
            return None
        if error.errno == errno.ENOENT and not (folder := Path(os.fsdecode(error.filename)).parent).exists():
            return GONE.format(folder=folder, file=Path(os.fsdecode(error.filename)).name)
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return MEMORY.format(reason=reason)
    if not isinstance(error, (RuntimeError, OSError, EOFError, ValueError, NotImplementedError, ImportError)):
        return None
    if "device-side assert" in str(error):  # a number beyond a tensor, in the program
        return None
    if line := BY_NAME.get(type(error).__name__):
        return line.format(reason=reason)
    for modules, line in BY_MODULE:
        if type(error).__module__.startswith(modules):
            return line.format(reason=reason)
    if not isinstance(error, (RuntimeError, OSError)):
        return None
    for pattern, line in BY_TEXT:
        if re.search(pattern, str(error), re.IGNORECASE):
            return line.format(reason=reason, file="", limit=_limit())
    return None


@contextlib.contextmanager
def machine_faults() -> Iterator[None]:
    """Turns what the machine refuses inside the block, and what loader processes report, into errors of one line.

    Raises:
        MachineError: For what the machine refuses.
        LearngeneError: For what a loader process refuses, without the traceback that torch puts into its place.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LearngeneError):
            if (own := _own_line(str(error))) is None:
                raise
            error.args = (own,)
            raise
        line = machine_fault(error)
        if line is None:
            raise
        _end_loaders(error)
        raise MachineError(line) from error


def _of_user(path: object) -> bool:
    """Whether a path is one that a user gave or that was made from it, and no part of the program."""
    if not isinstance(path, (str, bytes, os.PathLike)) or not path:
        return False
    place = Path(os.fsdecode(path)).absolute()
    return not any(place.is_relative_to(code) for code in CODE)


def _end_loaders(error: BaseException) -> None:
    """Lets torch's loaders that could not start all processes end those they started, without a complaint of theirs."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made: Any = frame.f_locals.get("self")
        if type(made).__name__ == "_MultiProcessingDataLoaderIter" and not hasattr(made, "_workers_status"):
            if hasattr(made, "_workers"):
                made._workers_status = [True] * len(made._workers)
            else:
                made._shutdown = True


def _own_line(text: str) -> str | None:
    """The message of an error that a loader process raised; None if it comes from no loader process."""
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    last = text.strip().splitlines()[-1]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", last)


def _limit() -> str:
    """The number of files that this process may have open, if the system says it."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    count = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f" (this process may have {count})"
