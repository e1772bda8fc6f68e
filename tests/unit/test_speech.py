"""How commands speak: how much, and in JSON for programs that follow them."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import learngene
from learngene.cli import main
from learngene.cli.app import say_start
from learngene.system.speech import announce, counted, speech, spoken, tell
from learngene.training.log import TrainLog
from pico import CLI, pico_shape


@pytest.fixture
def flags(images: Path, tmp_path: Path) -> list[object]:
    learngene.save_descendant(learngene.scratch(pico_shape()), tmp_path / "des")
    training = ["--preset", "laptop", "--epochs", 2, "--batch-size", 8, "data.workers=0", "train.augment.preset=none"]
    return ["finetune", "--model", tmp_path / "des", "--data", images, *training, "--out", tmp_path / "run"]


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_tells_a_run_from_its_start_to_its_outcome(cli: CLI, flags: list[object], tmp_path: Path) -> None:
    done = cli(*flags, "--json")
    told = events(done.out)
    kinds = [event["event"] for event in told]
    assert kinds[0] == "start"
    assert kinds.count("epoch") == 2
    assert done.code == 0
    (outcome,) = [event for event in told if event["event"] == "outcome"]
    epochs = [event for event in told if event["event"] == "epoch"]
    assert outcome["path"] == str(tmp_path / "run" / "descendant")
    assert (outcome["measure"], outcome["score"]) == ("top-1", epochs[-1]["top1"])
    kept = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [{key: event[key] for key in event if key not in ("event", "run")} for event in epochs] == events(
        "\n".join(kept)
    )


def test_json_tells_steps_once_a_second(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speech, "json", True)
    log = TrainLog("net", 2, 10, (), show=True)
    for now, step in ((0.0, 1), (0.9, 2), (2.0, 3), (2.5, 4), (3.0, 13)):
        monkeypatch.setattr("time.perf_counter", lambda now=now: now)
        log.step(step, 0.5, {"kd": float("nan")}, 70.0)
        log.pace(step)
    first = {"event": "step", "run": "net", "epoch": 1, "epochs": 2, "step": 3, "steps": 10, "loss": 0.5, "kd": None}
    told = events(capsys.readouterr().out)
    assert told[0] == first | {"images_per_second": 70.0, "seconds_left": 17.0}
    assert [(event["epoch"], event["step"]) for event in told] == [(1, 3), (2, 3)]


def test_a_reader_that_goes_away_stops_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends = os.pipe()
    with os.fdopen(ends[1], "w") as gone:
        os.close(ends[0])
        monkeypatch.setattr(sys, "stdout", gone)
        tell("note", text="nobody reads this")
        tell("note", text="nor this")
        assert os.fstat(gone.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # and so on, into nothing


@pytest.mark.parametrize("command", ["methods", "--version"])  # more than a buffer takes, and less
def test_a_reader_that_has_enough_is_no_fault(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = os.pipe()
    with os.fdopen(ends[1], "w") as gone, monkeypatch.context() as patch:
        os.close(ends[0])
        patch.setattr(sys, "stdout", gone)
        patch.setattr(sys, "argv", ["learngene", command])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0


def test_a_level_of_error_leaves_out_progress_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    with spoken("error"):
        speech.json = True
        say_start("condensing", "gene.yaml")
        announce("a word")
    assert capsys.readouterr().out == ""


def test_json_tells_an_error_that_standard_error_tells_too(cli: CLI, flags: list[object]) -> None:
    done = cli(*flags, "--json", "train.optimizer=none-such")
    last = events(done.out)[-1]
    assert done.code == last["code"] == 2
    assert last["event"] == "error"
    assert done.err.splitlines()[-1] == f"learngene: {last['text']}"


LONG = (
    "ship demo compare reproduce condense targets search tune finetune index extract export measure-on-device push pull"
)


@pytest.mark.parametrize("command", LONG.split())
def test_json_tells_that_a_call_is_wrong(command: str, cli: CLI) -> None:
    done = cli(command, "--json", "--no-such-flag")
    (told,) = events(done.out)
    assert (done.code, told["event"], told["code"]) == (2, "error", 2)
    assert told["text"].startswith("No such option: --no-such-flag")
    assert done.err == f"learngene: {told['text']}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("finetune --epochs x --json", "Invalid value for '--epochs'"),
        ("compare --json", "Missing argument 'recipe'"),
        ("demo --log-level loud --json", "Invalid value for --log-level: 'loud' is not one of debug, info"),
        ("no-such-command --json", "No such command 'no-such-command'"),
    ],
)
def test_json_tells_what_is_wrong_with_a_flag(words: str, said: str, cli: CLI) -> None:
    done = cli(*words.split())
    (told,) = events(done.out)
    assert (done.code, told["event"], told["text"].startswith(said)) == (2, "error", True), told


def test_things_are_counted_once_a_second(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.5, 2.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr(speech, "json", True)
    assert list(counted("shards", "abcd", 4)) == [*"abcd"]
    assert [(event["done"], event["of"]) for event in events(capsys.readouterr().out)] == [(2, 4), (4, 4)]


@pytest.mark.parametrize("place", [0, 1, 99])
def test_a_log_level_of_warning_leaves_the_outcome_alone(place: int, cli: CLI, flags: list[object]) -> None:
    words = list(flags)
    words[place:place] = ["--log-level", "warning"]
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    assert "fine-tuned" in done.out
    assert "next:" not in done.out


def test_levels_decide_what_libraries_and_cautions_tell(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("some.library")
    for level, told in (("debug", ["DEBUG", "WARNING"]), ("error", [])):
        with spoken(level):
            library.debug("a detail")
            library.warning("a caution")
        words = capsys.readouterr().err
        assert [line.split()[0] for line in words.splitlines() if "some.library" in line] == told
    assert logging.getLogger().level == logging.WARNING
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("words", "given"),
    [("methods --log-level loud", "loud"), ("methods --log-level=loud", "loud"), ("--log-level", "")],
)
def test_a_log_level_that_is_none_is_refused(words: str, given: str, cli: CLI) -> None:
    done = cli(*words.split())
    line = f"Invalid value for --log-level: '{given}' is not one of debug, info, warning, error; see learngene --help"
    assert (done.code, done.out, done.err) == (2, "", f"learngene: {line}\n")


def test_flags_alone_are_no_call(cli: CLI) -> None:
    done = cli("--log-level", "warning")
    assert (done.code, done.out, done.err) == (2, "", "learngene: give a command; see learngene --help\n")
    assert "Commands:" in cli().out
