"""The real command, stopped from outside and started again; and the same run in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import learngene
from pico import CLI, FAST, MIXED, command, condense_fields, make_images, pico_shape

BIN = Path(sys.executable).parent
SGD: dict[str, Any] = {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for epochs of twelve steps."""
    return make_images(tmp_path_factory.mktemp("many"), train=32, val=2)


def written(path: Path, fields: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(fields))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def stopped(
    arguments: list[object], run: Path, epochs: int, number: signal.Signals
) -> subprocess.CompletedProcess[str]:
    """Starts a command, waits until it has logged some epochs, and sends it a signal."""
    process = subprocess.Popen(
        [BIN / "learngene", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = run / "metrics.jsonl"
    for _ in range(20_000):
        if log.exists() and len(log.read_text().splitlines()) >= epochs:
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_run_that_is_stopped_twice_gives_the_gene_of_a_run_that_was_not(
    cli: CLI, many_images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, "epochs": 16, "eval_every": 8, "save_every": 8, "drop_path": 0.1, "ema_decay": 0.9}
    recipe = written(
        tmp_path / "r.yaml", condense_fields(ancestry_folder, many_images, tmp_path / "whole", train=train)
    )
    result = cli("condense", recipe)
    assert result.code == 0, result.err
    again = ["condense", recipe, f"out={tmp_path / 'stopped'}"]
    for epochs, number in ((1, signal.SIGINT), (6, signal.SIGTERM)):
        done = stopped([*again], tmp_path / "stopped", epochs, number)
        assert (done.returncode, done.stdout) == (128 + number, "")
        last = done.stderr.splitlines()[-1]
        assert last.startswith("learngene: stopped and saved at epoch ")
        assert last.endswith("; the same command continues")
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "stopped.safetensors").exists()
        saved = json.loads(torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["progress"])
        assert epochs <= saved["epoch"] < 16
    assert f"continues after epoch {saved['epoch']}, step {saved['step']}" in cli("check", *again[1:]).out
    assert cli(*again).code == 0
    one, other = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, other.tensors()[key]) for key, value in one.tensors().items())
    assert one.metadata["accuracy"] == other.metadata["accuracy"]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_ctrl_c_outside_training_stops_without_a_traceback(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to takes as long as we like."""
    os.mkfifo(tmp_path / "g.safetensors")
    process = subprocess.Popen(
        [BIN / "learngene", "plan", tmp_path / "g.safetensors"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with (tmp_path / "g.safetensors").open("w"):  # opens when the command has opened its end
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


# -- two processes -----------------------------------------------------------------------------------------


def in_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    launch = [BIN / "torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", BIN / "learngene"]
    return subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_two_processes_give_the_gene_of_one(cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    train = {**MIXED, **SGD, "micro_batch": 2, "clip_grad": 1.0, "ema_decay": 0.9}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "one", train=train))
    assert cli("condense", recipe).code == 0
    done = in_two_processes("condense", recipe, f"out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2  # what one process prints, once
    one, two = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for key, value in two.tensors().items():
        torch.testing.assert_close(value, one.tensors()[key], rtol=1e-3, atol=1e-5)
    assert two.metadata["training"]["updates"] == one.metadata["training"]["updates"] == 6
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
        assert second["val_loss"] == pytest.approx(first["val_loss"], rel=1e-4)
        assert (second["top1"], second["lr"]) == (first["top1"], first["lr"])
    # One process finds the finished run of two and has nothing left to do.
    before = (tmp_path / "two.safetensors").read_bytes()
    assert cli("condense", recipe, f"out={tmp_path / 'two'}").code == 0
    assert (tmp_path / "two.safetensors").read_bytes() == before


@pytest.mark.slow
def test_two_processes_distil_the_rows_of_one_and_tune_paths_of_their_own(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, **SGD, "micro_batch": 2, "epochs": 1}
    shape = pico_shape(depth=2).to_dict()
    narrow = shape["embed_dim"] // shape["num_heads"]
    rows = {"method": "pool", "settings": {"rows": [narrow, shape["embed_dim"]]}, "distill": {"preset": "pool"}}
    predictions = {"terms": ["pred"], "stitches": "ls", "images": 4, "tune": None}  # of an ancestry of any kind
    fields = condense_fields(ancestry_folder, images, tmp_path / "one", train=train, shape=shape)
    recipe = written(tmp_path / "r.yaml", {**fields, **rows, "pool": predictions})
    assert cli("condense", recipe).code == 0
    done = in_two_processes("condense", recipe, f"out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    one, two = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for key, value in two.tensors().items():
        torch.testing.assert_close(value, one.tensors()[key], rtol=1e-3, atol=1e-4)
    tuned = in_two_processes("condense", recipe, f"out={tmp_path / 'tuned'}", "pool.tune={}")
    assert tuned.returncode == 0, tuned.stderr
    gene = learngene.load(tmp_path / "tuned.safetensors")
    assert all(value.isfinite().all() for value in gene.tensors().values())
    assert gene.metadata["training"]["updates"] == 3 * one.metadata["training"]["updates"] // 2


# -- compiled ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_run_gives_the_gene_of_an_eager_one(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**FAST, **SGD, "epochs": 1}
    shape = pico_shape(depth=2).to_dict()
    fields = condense_fields(ancestry_folder, images, tmp_path / "eager", shape=shape, train=train)
    recipe = written(tmp_path / "r.yaml", fields)
    assert cli("condense", recipe).code == 0
    done = command("condense", recipe, f"out={tmp_path / 'compiled'}", "train.compile=true")
    assert done.returncode == 0, done.stderr
    eager, compiled = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("eager", "compiled"))
    for key, value in compiled.tensors().items():
        torch.testing.assert_close(value, eager.tensors()[key], rtol=1e-3, atol=1e-5)
