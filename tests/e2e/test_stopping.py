"""Commands stopped from outside and started again; the same run in two processes, and compiled."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import learngene
from comparisons import written
from pico import CLI, FAST, MIXED, command, condense_fields, make_images, pico_shape
from processes import Start, logged, ranks
from runs import SGD, metrics


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return learngene.load(path).tensors()


def close(one: Path, other: Path, atol: float = 1e-5) -> None:
    for key, value in tensors(one).items():
        torch.testing.assert_close(tensors(other)[key], value, rtol=1e-3, atol=atol)


def test_a_run_that_is_stopped_twice_gives_the_gene_of_a_run_that_was_not(
    cli: CLI, start: Start, ancestry_folder: Path, tmp_path: Path
) -> None:
    images = make_images(tmp_path / "many", train=32, val=2)  # twelve steps an epoch
    train = {**MIXED, "epochs": 10, "eval_every": 5, "save_every": 5, "drop_path": 0.1, "ema_decay": 0.9}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "whole", train=train))
    assert cli("condense", recipe).code == 0
    again = ["condense", recipe, f"out={tmp_path / 'stopped'}"]
    for epochs, number in ((1, signal.SIGINT), (5, signal.SIGTERM)):
        done = start(*again).until(logged(tmp_path / "stopped", epochs)).send(number).wait()
        assert (done.code, done.out) == (128 + number, "")
        last = done.err.splitlines()[-1]
        assert last.startswith("learngene: stopped and saved at epoch ")
        assert last.endswith("; the same command continues")
        assert "Traceback" not in done.err
        assert not (tmp_path / "stopped.safetensors").exists()
        saved = json.loads(torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["progress"])
        assert epochs <= saved["epoch"] < 10
    assert f"continues after epoch {saved['epoch']}, step {saved['step']}" in cli("check", *again[1:]).out
    assert cli(*again).code == 0
    one, other = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, other.tensors()[key]) for key, value in one.tensors().items())
    assert one.metadata["accuracy"] == other.metadata["accuracy"]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_ctrl_c_outside_training_stops_without_a_traceback(start: Start, tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to takes as long as we like."""
    os.mkfifo(tmp_path / "g.safetensors")
    process = start("plan", tmp_path / "g.safetensors")
    with (tmp_path / "g.safetensors").open("w"):  # opens when the command has opened its end
        time.sleep(0.1)
        done = process.send(signal.SIGINT).wait()
    assert (done.code, done.out, done.err) == (130, "", "")


def test_two_processes_give_the_gene_of_one(
    cli: CLI, start: Start, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, **SGD, "micro_batch": 2, "clip_grad": 1.0, "ema_decay": 0.9}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "one", train=train))
    assert cli("condense", recipe).code == 0
    both = [start("condense", recipe, f"out={tmp_path / 'two'}", **rank) for rank in ranks(2)]
    first, second = (process.wait() for process in both)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (len(first.out.splitlines()), second.out) == (2, "")
    close(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    one, two = (learngene.load(tmp_path / f"{name}.safetensors").metadata for name in ("one", "two"))
    assert two["training"]["updates"] == one["training"]["updates"] == 6
    for was, now in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert (now["loss"], now["val_loss"]) == pytest.approx((was["loss"], was["val_loss"]), rel=1e-4)
        assert (now["top1"], now["lr"]) == (was["top1"], was["lr"])
    # One process finds the finished run of two and has nothing left to do.
    before = (tmp_path / "two.safetensors").read_bytes()
    assert cli("condense", recipe, f"out={tmp_path / 'two'}").code == 0
    assert (tmp_path / "two.safetensors").read_bytes() == before


def test_two_processes_distil_the_rows_of_one_and_tune_paths_of_their_own(
    cli: CLI, start: Start, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    shape = pico_shape(depth=2).to_dict()
    pool: dict[str, Any] = {
        "method": "pool",
        "settings": {"rows": [shape["embed_dim"] // shape["num_heads"], shape["embed_dim"]]},
        "distill": {"preset": "pool"},
        "pool": {"terms": ["pred"], "stitches": "ls", "images": 4, "tune": None},  # of an ancestry of any kind
        "train": {**MIXED, **SGD, "micro_batch": 2, "epochs": 1},
        "shape": shape,
    }
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "one", **pool))
    assert cli("condense", recipe).code == 0
    for name, more in (("two", []), ("tuned", ["pool.tune={}"])):
        both = [start("condense", recipe, f"out={tmp_path / name}", *more, **rank) for rank in ranks(2)]
        assert [process.wait().code for process in both] == [0, 0]
    close(tmp_path / "one.safetensors", tmp_path / "two.safetensors", atol=1e-4)
    one, tuned = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("one", "tuned"))
    assert all(value.isfinite().all() for value in tuned.tensors().values())
    assert tuned.metadata["training"]["updates"] == 3 * one.metadata["training"]["updates"] // 2


@pytest.mark.slow
def test_a_compiled_run_gives_the_gene_of_an_eager_one(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    shape, train = pico_shape(depth=2).to_dict(), {**FAST, **SGD, "epochs": 1}
    fields = condense_fields(ancestry_folder, images, tmp_path / "eager", shape=shape, train=train)
    recipe = written(tmp_path / "r.yaml", fields)
    assert cli("condense", recipe).code == 0
    done = command("condense", recipe, f"out={tmp_path / 'compiled'}", "train.compile=true")
    assert done.returncode == 0, done.stderr
    close(tmp_path / "eager.safetensors", tmp_path / "compiled.safetensors")
