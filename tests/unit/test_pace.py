"""What a run says of its time, without a terminal."""

from __future__ import annotations

import pytest

from learngene.training.log import TrainLog


def test_a_run_says_how_long_it_takes_and_then_where_it_is_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step does not count: two in 4 s, then eleven in 44 s."""
    log = TrainLog("net", 2, 10, (), show=True)
    for now, step in ((0.0, 1), (2.9, 2), (4.0, 3), (33.9, 11), (44.0, 12), (60.0, 13)):
        monkeypatch.setattr("time.perf_counter", lambda now=now: now)
        log.step(step, 0.5, {}, 70.0)
        log.pace(step)
    assert capsys.readouterr().err.splitlines() == [
        "net  about 20 s an epoch, 34 s to go, evaluation on top",
        "net  epoch 2/2 step 2/10  loss 0.5  70 images/s  about 32 s to go",
    ]


def test_a_run_that_is_not_shown_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    TrainLog("net", 2, 10, (), show=False).pace(1)
    assert capsys.readouterr() == ("", "")
