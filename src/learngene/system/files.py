"""Writing files so that nothing is lost or half-written: a temporary name, a flush, a rename.

A folder that learngene writes carries a marker file; an existing path without it is not ours and is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from learngene.system.errors import LearngeneError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary name beside ``path``, flushes the file and renames it into place.

    Args:
        path: Where the file shall be; its folder is made if it is missing.
        write: Writes the whole file to the name it is given.

    Raises:
        LearngeneError: If the disk is full or the path cannot be written; an old file at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _readable(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise LearngeneError(f"cannot write {path}: {reason}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path, name: str = "*", *, untouched: float = 0) -> None:
    """Deletes what a killed process left half-written in a folder.

    Args:
        folder: Where.
        name: Of the file or folder that should have been written; anything by default.
        untouched: Seconds for which nobody has written to it; 0 only for who holds the lock on what is written.
    """
    for left in folder.glob(f".{name}.{'[0-9a-f]' * 8}.*"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it
            if left.suffix not in (".tmp", ".old") or time.time() - left.stat().st_mtime < untouched:
                continue
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def write_folder(path: Path, own: Sequence[str], write: Callable[[Path], object]) -> None:
    """Like ``write_file`` for a folder: filled under a temporary name, then moved into place.

    Args:
        path: Where the folder shall be. One of ours is replaced; what others have put into it stays.
        own: Names, or patterns of names, of what ``write`` may create; the first is of a file in every such folder.
        write: Fills the folder it is given.

    Raises:
        LearngeneError: If ``path`` exists and is not ours, or cannot be written.
    """
    refuse_foreign(path, own[0])
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.iterdir():
            _readable(file)
        if path.exists():
            _keep_others(path, temporary, own)
            path.rename(old)
        temporary.rename(path)
    except Exception as error:
        if old.exists() and not path.exists():
            old.rename(path)
        reason = _reason(error)
        if reason is None:
            raise
        raise LearngeneError(f"cannot write {path}: {reason}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _keep_others(old: Path, new: Path, own: Sequence[str]) -> None:
    """Copies what is in a folder and neither ours nor in the new one. A copy, so that a crash loses nothing."""
    for each in old.iterdir():
        if os.path.lexists(new / each.name) or any(fnmatchcase(each.name, pattern) for pattern in own):
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.copytree(each, new / each.name, symlinks=True)
        else:
            shutil.copy2(each, new / each.name, follow_symlinks=False)


def take_lock(path: Path) -> contextlib.ExitStack | None:
    """Takes the lock that a file stands for, without waiting; the operating system frees it even if the process dies.

    The empty file stays. Only who holds the lock may delete it: filelock locks no file that has lost its name.

    Args:
        path: The file; made if it is missing, together with its folder.

    Returns:
        What holds the lock until it is closed, or None if another process holds it.

    Raises:
        LearngeneError: If it cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise LearngeneError(f"cannot write {path.parent}: {_reason(error)}; choose another folder") from None
    held = contextlib.ExitStack()
    held.callback(lock.release)
    return held


def refuse_foreign(path: Path, marker: str) -> None:
    """Raises ``LearngeneError`` if ``path`` exists and is neither empty nor a folder that holds ``marker``."""
    if not path.exists():
        return
    if not path.is_dir():
        raise LearngeneError(f"{path} exists and is a file, not a folder; choose another output path")
    if not (path / marker).exists() and any(path.iterdir()):
        raise LearngeneError(
            f"{path} exists and was not written by learngene (it has no {marker}); choose another output path"
        )


def refuse_unwritable(folder: Path) -> None:
    """Makes a folder, and raises ``LearngeneError`` if that, or writing into it, cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex[:8]}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LearngeneError(f"cannot write {folder}: {_reason(error)}; choose another folder") from None


def refuse_read_only(folder: Path) -> None:
    """Raises ``LearngeneError`` if a folder, or the one that it would be made in, cannot be written; makes nothing."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise LearngeneError(f"cannot write {folder}: {there} is no folder; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LearngeneError(f"cannot write {folder}: {there} is read-only; choose another folder")


def in_package(packaged: Path, checkout: str) -> Path:
    """A file or folder that an installed package has at ``packaged``, and a checkout at a path below its root."""
    return packaged if packaged.exists() else Path(__file__).parents[3] / checkout


def find_folder(name: str) -> Path:
    """A folder of the project, such as ``claims``: in the working folder, or beside the sources of a checkout.

    Raises:
        LearngeneError: If it is in neither; it is not part of an installed package.
    """
    for folder in (Path(name), Path(__file__).parents[3] / name):
        if folder.is_dir():
            return folder
    raise LearngeneError(f"no folder '{name}' here; run this in a checkout of learngene")


def refuse_full_disk(path: Path, needed: int) -> None:
    """Raises ``LearngeneError`` if fewer than ``needed`` bytes are free where ``path`` will be written."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LearngeneError(
            f"{path}: {needed / 1e6:.0f} MB are needed but only {free / 1e6:.0f} MB are free; free some space"
        )


def _readable(path: Path) -> None:
    """Gives a file the user's ordinary permissions; safetensors writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _reason(error: Exception) -> str | None:
    """The cause in words if the file system is to blame, None for any other error."""
    if isinstance(error, OSError):
        return "no space left on the device" if error.errno == errno.ENOSPC else (error.strerror or str(error))
    # safetensors and torch wrap the operating system's error in their own.
    text = str(error).lower()
    # Torch's zip writer does not say why it came to stand elsewhere than it wrote to.
    signs = ("no space left", "os error 28", "unexpected pos", "inline_container", "pytorchstreamwriter")
    if any(sign in text for sign in signs):
        return "no space left on the device"
    if "os error" in text or "io error" in text or "i/o error" in text:
        line = str(error).splitlines()[0].rpartition("I/O error: ")[2]
        return re.sub(r" \(os error \d+\)$", "", line)
    return None
