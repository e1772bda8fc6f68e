"""Several processes: what they print, and that none outlives the one that started it."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learngene.system.speech import announce
from processes import program

MAIN = """
from learngene.system.processes import LocalExecutor
from workers import work

if __name__ == "__main__":
    executor = LocalExecutor(2, "workers")
    try:
        for future in [executor.submit(work), executor.submit(work)]:
            future.result()
    except KeyboardInterrupt:
        executor.cancel()
        executor.close()
        print("stopped", flush=True)
"""
SLEEP = "print('here', flush=True); threading.Event().wait()"
READ = "if sys.argv[0] == '-c': print('here', flush=True); sys.stdin.read()"  # in the process that workers come from
WORKERS = "import sys, threading\n{}\ndef work(*_):\n    {}\n"


def started(folder: Path, importing: str, working: str) -> subprocess.Popen[str]:
    """A program that has two processes do work."""
    (folder / "main.py").write_text(MAIN)
    (folder / "workers.py").write_text(WORKERS.format(importing, working))
    return program(sys.executable, folder / "main.py", PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))


def heard(process: subprocess.Popen[str], times: int) -> None:
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(times)] == ["here\n"] * times


def test_a_process_that_is_killed_takes_its_workers_with_it(tmp_path: Path) -> None:
    process = started(tmp_path, "", SLEEP)
    heard(process, 2)
    process.kill()
    assert process.communicate()[0] == ""  # has an end when all have ended


def test_ctrl_c_ends_all_of_them_quietly(tmp_path: Path) -> None:
    process = started(tmp_path, "", SLEEP)
    heard(process, 2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate() == ("stopped\n", "")


def test_ctrl_c_while_they_import_is_as_quiet(tmp_path: Path) -> None:
    process = started(tmp_path, READ, "print('at work')")
    heard(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    assert process.communicate() == ("stopped\n", "")


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else lines of several processes run together where output is unbuffered, as in many containers."""
    pieces: list[bytes] = []

    class Raw(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, piece: object) -> int:
            pieces.append(bytes(piece))  # type: ignore[call-overload]
            return len(pieces[-1])

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Raw(), write_through=True))  # type: ignore[type-var]
    announce("a line")
    assert [piece for piece in pieces if piece] == [b"a line\n"]
