"""The one runner: what it makes, in which order, what it waits for, and what a failure takes down."""

from pathlib import Path
from typing import Any

import pytest
import torch

from learngene.making.steps import Step, make, missing, run_steps
from learngene.system.errors import LearngeneError
from learngene.system.files import take_lock


def written(path: Path, *needs: Step[Any], order: list[str] | None = None) -> Step[str]:
    """A step that writes its own name into a file, and notes that it was made."""

    def write() -> str:
        path.write_text(path.name)
        if order is not None:
            order.append(path.name)
        return path.name

    return Step(path.name, path, write, lambda: path.read_text() if path.exists() else None, needs)


def failing(path: Path, error: Exception) -> Step[str]:
    def fail() -> str:
        raise error

    return Step(path.name, path, fail)


def test_what_is_there_is_found_and_what_is_missing_is_made_after_what_it_needs(tmp_path: Path) -> None:
    order: list[str] = []
    (tmp_path / "a").write_text("found")
    a = written(tmp_path / "a", order=order)
    b = written(tmp_path / "b", a, order=order)
    c = written(tmp_path / "c", b, order=order)
    outcomes = {step.name: outcome for step, outcome in run_steps([a, c, b], locks=tmp_path / "locks")}
    assert outcomes == {"a": "found", "b": "b", "c": "c"}
    assert order == ["b", "c"]


def test_only_what_the_goal_needs_is_missing(tmp_path: Path) -> None:
    a, unused = written(tmp_path / "a"), written(tmp_path / "unused")
    b = written(tmp_path / "b", a)
    goal = written(tmp_path / "goal", b)
    steps = [a, unused, b, goal]
    assert [step.name for step in missing(steps, lambda step: step is goal)] == ["a", "b", "goal"]
    (tmp_path / "b").write_text("there")  # what made it is no longer needed
    assert [step.name for step in missing(steps, lambda step: step is goal)] == ["goal"]
    (tmp_path / "goal").write_text("there")
    assert missing(steps, lambda step: step is goal) == []


LOWER = "; lower train.micro_batch, data.img_size or data.workers"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LearngeneError("no such images"), "no such images"),
        (MemoryError(), f"out of memory (MemoryError){LOWER}"),
        (torch.OutOfMemoryError("CUDA full.\nTried to allocate"), f"out of memory (CUDA full.){LOWER}"),
        (RuntimeError("[fail] can't allocate memory: 2"), f"out of memory ([fail] can't allocate memory: 2){LOWER}"),
    ],
    ids=["data", "memory", "accelerator", "allocator"],
)
def test_a_step_that_fails_takes_down_only_what_needs_it(tmp_path: Path, error: Exception, reason: str) -> None:
    bad = failing(tmp_path / "bad", error)
    after, other = written(tmp_path / "after", bad), written(tmp_path / "other")
    failed: dict[str, str] = {}
    said: list[str] = []
    made = [step.name for step, _ in run_steps([bad, after, other], failed=failed, say=said.append)]
    assert made == ["other"]
    assert failed == {"bad": reason}
    assert said[0] == f"bad: failed: {reason}"
    assert not (tmp_path / "after").exists()


def test_a_programming_error_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        list(run_steps([failing(tmp_path / "a", RuntimeError("shapes do not match"))], failed={}))


def test_alone_a_step_raises_what_goes_wrong(tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match="no such images"):
        make(failing(tmp_path / "a", LearngeneError("no such images")))
    assert make(written(tmp_path / "b")) == "b"


def test_a_step_that_another_process_makes_is_waited_for_and_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    theirs, mine = written(tmp_path / "theirs", order=order), written(tmp_path / "mine", order=order)
    lock = take_lock(tmp_path / "locks" / f"theirs-{tmp_path.name}.lock")
    assert lock is not None

    def finish(_seconds: float) -> None:
        (tmp_path / "theirs").write_text("from elsewhere")
        lock.close()

    monkeypatch.setattr("learngene.making.steps.time.sleep", finish)
    outcomes = {step.name: outcome for step, outcome in run_steps([theirs, mine], locks=tmp_path / "locks")}
    assert outcomes == {"theirs": "from elsewhere", "mine": "mine"}
    assert order == ["mine"]
