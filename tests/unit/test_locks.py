"""Locks of folders: one holder at a time, and none that outlives its process."""

import subprocess
import sys
from pathlib import Path

import pytest

from learngene.system.errors import LearngeneError
from learngene.system.files import take_lock

HOLD = """
import sys
from pathlib import Path
from learngene.system.files import take_lock
held = take_lock(Path(sys.argv[1]))
print(held is not None, flush=True)
sys.stdin.read()
"""


def test_a_lock_has_one_holder_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.lock"
    held = take_lock(path)
    assert held is not None
    assert take_lock(path) is None
    held.close()
    with take_lock(path) or pytest.fail("not free"):
        assert take_lock(path) is None
    assert take_lock(path) is not None
    assert path.read_bytes() == b""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert take_lock(path) is None
        other.kill()
    assert take_lock(path) is not None


def test_a_holder_may_delete_the_file(tmp_path: Path) -> None:
    """As a run does at its end: a file without a name is locked by nobody, so two can never hold one name."""
    path = tmp_path / "x.lock"
    held = take_lock(path)
    assert held is not None
    path.unlink()
    second = take_lock(path)
    assert second is not None
    held.close()
    assert take_lock(path) is None


def test_a_lock_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LearngeneError, match=r"^cannot write .*file: .*; choose another folder$"):
        take_lock(tmp_path / "file" / "x.lock")
