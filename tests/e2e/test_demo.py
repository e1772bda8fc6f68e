"""The demo in small: 200 digits, one epoch of everything, two depths, in one process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import timm
from learngene.report import SERIES
from PIL import Image

import learngene
from learngene import demo, demo_lsamd, demo_pool, demo_tal
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec
from pico import CLI


class Here:
    """Runs at once what a pool of processes would run."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*arguments))
        return done


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = sklearn.datasets.load_digits()
    digits.images, digits.target = digits.images[:200], digits.target[:200]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    monkeypatch.setattr(demo, "workers", Here)
    monkeypatch.setattr(demo, "DEPTHS", (3, 7))
    monkeypatch.setattr(demo, "EPOCHS", 1)
    for name in ("ANCESTRY_TRAIN", "CONDENSE_TRAIN"):
        settings = {**getattr(demo, name), "epochs": 1, "batch_size": 50, "schedule": {"warmup_epochs": 0}}
        monkeypatch.setattr(demo, name, settings)


@pytest.mark.usefixtures("small")
def test_the_demo_writes_its_table_picture_and_page_and_uses_what_it_left(cli: CLI, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("demo", "--out", out)
    assert result.code == 0, result.err
    next_command = (
        "learngene finetune --model my-model --data digits --preset laptop --epochs 3 --out runs/mine "
        "train.augment.preset=none\n"
    )
    for text in ("1. An ancestry model", "2. Two genes", "3. Budgets", "4. Descendants", next_command):
        assert text in result.out
    record = json.loads((out / "demo.json").read_text())
    assert [row["depth"] for row in record["rows"]] == [3, 7]
    for row in record["rows"]:
        shape = demo.AUXILIARY.replace(depth=row["depth"])
        assert (row["params"], row["macs"]) == (shape.params(), shape.macs())
        assert all(0 <= row[key] <= 100 for key in SERIES)
    assert record["budgets"].keys() == demo.BUDGETS.keys()
    for name in ("tleg", "sws"):
        gene = learngene.load(out / f"{name}-0.safetensors")
        assert record["genes"][name]["params"] == sum(parameter.numel() for parameter in gene.parameters())
        assert gene.metadata["ancestry"]["sha256"] == record["ancestry"]["sha256"]
    assert timm.create_model(f"local-dir:{out / 'ancestry-0'}", pretrained=True).num_classes == 10
    with Image.open(out / "demo.png") as picture:
        assert picture.size[0] > 500
    page = (out / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert f"<td>{record['rows'][1]['tleg_tuned']:.1f}" in page
    assert "http" not in page  # nothing is loaded from elsewhere

    (out / "demo.png").unlink()
    before = (out / "tleg-0.safetensors").read_bytes()
    assert cli("demo", "--out", out).code == 0
    again = json.loads((out / "demo.json").read_text())
    assert again["rows"] == record["rows"]  # same seed, same table
    assert again["genes"] == record["genes"]
    assert (out / "tleg-0.safetensors").read_bytes() == before
    assert (out / "demo.png").exists()


@pytest.mark.usefixtures("small")
def test_the_demo_of_pools_scores_every_path_of_both(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_pool, "workers", Here)
    monkeypatch.setattr(demo_pool, "TRAIN", {**demo_pool.TRAIN, "batch_size": 50, "schedule": {"warmup_epochs": 0}})
    monkeypatch.setattr(demo_pool, "TUNE", {"epochs": 1})
    for name in ("ANCESTRY_EPOCHS", "ROW_EPOCHS", "ANCHOR_EPOCHS"):
        monkeypatch.setattr(demo_pool, name, 1)
    result = cli("demo", "--method", "pool", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [row["blocks"] for row in record["rows"]][:2] == ["6+0", "5+1"]
    assert len(record["rows"]) == 18
    for gene, column in (("pool", "pool"), ("sn-net", "sn_net")):
        paths = learngene.load(tmp_path / "out" / f"{gene}-0.safetensors").metadata["paths"]
        assert {each["path"]: each["top1"] for each in paths} == {row["path"]: row[column] for row in record["rows"]}
    best = max((row for row in record["rows"] if row["params"] <= 0.2e6), key=lambda row: row["pool"])
    assert record["budgets"]["at most 0.20 M parameters"] == best["path"]
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert min(picture.size) > 300
    assert cli("demo", "--method", "pol").code == 2


@pytest.mark.usefixtures("small")
def test_the_demo_of_searches_tunes_what_it_found(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(demo_lsamd, "workers", Here)
    monkeypatch.setattr(demo_lsamd, "SHAPE", demo_lsamd.SHAPE.replace(embed_dim=12, depth=5))
    monkeypatch.setattr(demo_lsamd, "DEPTHS", (4, 6))
    monkeypatch.setattr(demo_lsamd, "TRAIN_IMAGES", 64)
    for name in ("ANCESTRY_EPOCHS", "SEARCH_EPOCHS", "EPOCHS"):
        monkeypatch.setattr(demo_lsamd, name, 1)
    result = cli("demo", "--method", "lsamd", "--out", out)
    assert result.code == 0, result.err
    record = json.loads((out / "demo.json").read_text())
    gene = learngene.load(out / "search-0.safetensors")
    assert [task["task"] for task in record["search"]["tasks"]] == list(demo_lsamd.SETS)
    assert record["search"]["layers"] == list(gene.method.layers)
    assert [(row["task"], row["depth"]) for row in record["rows"]] == [
        (task, depth) for task in demo_lsamd.TUNED for depth in (4, 6)
    ]
    for row in record["rows"]:
        assert row["blocks"] == gene.method.block_of_layer(row["depth"])
        assert all(0 <= row[key] <= 100 for key in ("lsamd", "scratch", "scratch_3x"))
    masked = [task for task in record["search"]["tasks"] if task["metric"] == "mean IoU"]
    assert [task["task"] for task in masked] == [demo_lsamd.CANVAS]
    assert (out / "index.html").read_text().count("data:image/png;base64,") == 2
    with Image.open(out / "demo.png") as picture:
        assert min(picture.size) > 300

    before = (out / "search-0.safetensors").read_bytes()
    assert cli("demo", "--method", "lsamd", "--out", out).code == 0
    assert json.loads((out / "demo.json").read_text())["rows"] == record["rows"]  # same seed, same table
    assert (out / "search-0.safetensors").read_bytes() == before


@pytest.mark.usefixtures("small")
def test_the_demo_of_hypernetworks_predicts_for_every_task(
    cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(demo_tal, "workers", Here)
    monkeypatch.setattr(demo_tal, "SHAPE", demo_tal.SHAPE.replace(embed_dim=16, depth=2))
    monkeypatch.setattr(demo_tal, "SETTINGS", {"size": "pico", "expansion": 512})
    monkeypatch.setattr(demo_tal, "TRAINED", (1, 2))
    monkeypatch.setattr(demo_tal, "DEPTHS", (1, 2))
    monkeypatch.setattr(demo_tal, "TRAIN_IMAGES", 64)
    for name in ("HOME_TRAIN", "TASK_TRAIN"):
        monkeypatch.setattr(demo_tal, name, {**getattr(demo_tal, name), "schedule": {"warmup_epochs": 0}})
    for name in ("ANCESTRY_EPOCHS", "HOME_EPOCHS", "TASK_EPOCHS", "EPOCHS"):
        monkeypatch.setattr(demo_tal, name, 1)
    result = cli("demo", "--method", "tal", "--out", out)
    assert result.code == 0, result.err
    record = json.loads((out / "demo.json").read_text())
    tasks = (*demo_tal.TASKS, *demo_tal.UNSEEN)
    assert [(row["task"], row["depth"]) for row in record["rows"]] == [(task, d) for task in tasks for d in (1, 2)]
    assert [row["depth"] for row in record["tuned"]] == [1, 2]
    for row in record["rows"]:
        assert all(0 <= row[key] <= 100 for key in ("tal", "logah", "random"))
    for row in record["tuned"]:
        assert all(0 <= row[key] <= 100 for key in ("tal", "logah", "scratch", "scratch_3x"))
    gene = learngene.load(out / "tal-0.safetensors")
    assert gene.tasks().keys() == demo_tal.TASKS.keys()
    assert record["genes"]["tal"]["params"] == sum(parameter.numel() for parameter in gene.parameters())
    # The rows of a task that the gene knows are what the command line gives.
    assert cli("expand", out / "tal-0.safetensors", "--depth", 1, "--task", "half", "--out", tmp_path / "des").code == 0
    assert len({learngene.load(out / f"{name}-0.safetensors").method.name for name in ("tal", "logah")}) == 2
    with Image.open(out / "demo.png") as picture:
        assert min(picture.size) > 300
    assert "unseen" in (out / "index.html").read_text()

    before = (out / "tal-0.safetensors").read_bytes()
    assert cli("demo", "--method", "tal", "--out", out).code == 0
    assert json.loads((out / "demo.json").read_text())["rows"] == record["rows"]  # same seed, same table
    assert (out / "tal-0.safetensors").read_bytes() == before


def test_tasks_of_equal_class_counts_differ_in_their_images() -> None:
    _, digits = open_splits(DataSpec(**demo.DATA))
    side = demo_tal.SHAPE.img_size
    pixels, seen = demo_lsamd.digit_pixels(digits, 0, side), {}
    for task in (*demo_tal.TASKS, *demo_tal.UNSEEN):
        shown = [demo_tal.shown(task, pixels, label) for label in range(10)]
        assert len({name for _, name in shown}) == (demo_tal.TASKS | demo_tal.UNSEEN)[task]
        seen[task] = shown[0][0].tobytes()
    assert len(set(seen.values())) == len(seen)


HELD = """
import os
import time
from learngene.demo import workers

if __name__ == "__main__":
    with workers() as processes:
        processes.submit(os.getpid).result()
        for number in range(4):  # more than there are processes: some wait in the queue
            processes.submit(time.sleep, 600)
        print("at work", flush=True)
        time.sleep(600)
"""


def test_a_demo_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    process = subprocess.Popen([sys.executable, tmp_path / "held.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGTERM)
    # What they print on has an end only when all of them have ended.
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == -signal.SIGTERM


def test_a_canvas_has_a_mask_of_its_digits() -> None:
    digits, _ = open_splits(DataSpec(**demo.DATA))
    image, mask = demo_lsamd.canvas(digits, np.random.default_rng(0))
    assert image.shape == mask.shape == (demo_lsamd.CANVAS_SIDE, demo_lsamd.CANVAS_SIDE)
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert (mask > 0).any()
    assert ((mask > 0) == (image >= demo_lsamd.INK)).all()
