"""Commands stopped from outside and started again; the same run in two processes, and compiled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import learngene
from comparisons import written
from pico import CLI, FAST, MIXED, condense_fields, finetune_fields, make_images, pico_shape
from processes import Start, program, ranks
from runs import SGD, metrics, same


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return learngene.load(path).tensors()


def close(one: Path, other: Path, atol: float = 1e-5) -> None:
    for key, value in tensors(one).items():
        torch.testing.assert_close(tensors(other)[key], value, rtol=1e-3, atol=atol)


def test_a_run_that_is_stopped_twice_gives_the_gene_of_a_run_that_was_not(
    cli: CLI, stop_at: Callable[..., None], images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, "epochs": 4, "eval_every": 2, "save_every": 2, "drop_path": 0.1, "ema_decay": 0.9}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "whole", train=train))
    assert cli("condense", recipe).code == 0
    again = ["condense", recipe, f"out={tmp_path / 'stopped'}"]
    for epoch, number in ((1, signal.SIGINT), (3, signal.SIGTERM)):
        stop_at(number, epoch=epoch)
        done = cli(*again)
        assert (done.code, done.out) == (128 + number, "")
        where = f"learngene: stopped and saved at epoch {epoch + 1}, step 1; the same command continues"
        assert done.err.splitlines()[-1] == where
        assert not (tmp_path / "stopped.safetensors").exists()
        assert f"continues after epoch {epoch}, step 1" in cli("check", *again[1:]).out
    assert cli(*again).code == 0
    one, other = (learngene.load(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert same(one.tensors(), other.tensors())
    assert one.metadata["accuracy"] == other.metadata["accuracy"]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_ctrl_c_outside_training_stops_without_a_traceback(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to takes as long as we like; planning needs no torch."""
    gene = tmp_path / "g.safetensors"
    os.mkfifo(gene)
    process = program(Path(sys.executable).with_name("learngene"), "plan", gene)
    with gene.open("w"):  # opens when the command has opened its end
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == 130


TARGETS: dict[str, dict[str, Any]] = {
    "logits": {},
    "features": {"distill": {"target": "features"}, "shape": pico_shape(depth=2, num_classes=0).to_dict()},
}
SIZES: list[dict[str, Any]] = [{"embed_dim": 8, "depth": 1}, {"embed_dim": [8, 16], "depth": 2}]
SEVERAL: dict[str, dict[str, Any]] = {
    name: {**TARGETS[target], "method": "nested-slices", "shapes": {"sizes": SIZES, **sampling}}
    for name, target, sampling in (
        ("random shapes", "logits", {"sampling": "random"}),
        ("sandwich of features", "features", {"sandwich": 1}),
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["logits", *SEVERAL])
def test_two_processes_give_the_gene_of_one(
    target: str, cli: CLI, start: Start, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, **SGD, "micro_batch": 2, "clip_grad": 1.0, "ema_decay": 0.9}
    fields = condense_fields(ancestry_folder, images, tmp_path / "one", **(TARGETS | SEVERAL)[target], train=train)
    recipe = written(tmp_path / "r.yaml", fields)
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
        assert (now.get("top1"), now["lr"]) == (was.get("top1"), was["lr"])
    # One process finds the finished run of two and has nothing left to do.
    before = (tmp_path / "two.safetensors").read_bytes()
    assert cli("condense", recipe, f"out={tmp_path / 'two'}").code == 0
    assert (tmp_path / "two.safetensors").read_bytes() == before


@pytest.mark.slow
def test_two_nodes_that_are_stopped_give_the_gene_of_one(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    train = {**MIXED, **SGD, "micro_batch": 2, "epochs": 30, "eval_every": 30, "save_every": 30}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "one", train=train))
    assert cli("condense", recipe).code == 0
    meeting = ["--rdzv-backend=c10d", "--rdzv-id=gene", f"--rdzv-endpoint=127.0.0.1:{ranks(1)[0]['MASTER_PORT']}"]
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting, "--no-python"]
    call = [*node, Path(sys.executable).with_name("learngene"), "condense", recipe, f"out={tmp_path / 'two'}"]
    for stopped in (True, False):
        both = [program(*call, ACCELERATE_USE_CPU="true") for _ in range(2)]
        while stopped and not (tmp_path / "two" / "metrics.jsonl").exists():
            assert [each.poll() for each in both] == [None, None]
            time.sleep(0.05)
        for each in both if stopped else ():
            each.send_signal(signal.SIGTERM)
        said = [each.communicate()[1] for each in both]
        assert [each.returncode == 0 for each in both] == [not stopped] * 2, said
        assert (tmp_path / "two.safetensors").exists() is not stopped
    close(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("ancestry", ["vit", "convolutions"])
def test_two_processes_that_share_the_teacher_give_the_gene_of_two_that_have_it_each(
    ancestry: str, start: Start, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    teacher: dict[str, Any] = {"source": str(ancestry_folder)}
    if ancestry == "convolutions":
        teacher = {"source": "test_resnet", "pretrained": False, "model_args": {"num_classes": 3}}
    train = {**MIXED, "micro_batch": 2}
    fields = condense_fields("", images, tmp_path / "unused", train=train) | {"ancestry": teacher}
    recipe = written(tmp_path / "r.yaml", fields)
    for name, shared in (("each", "false"), ("shared", "true")):
        more = [f"train.shard_teachers={shared}", f"out={tmp_path / name}"]
        both = [start("condense", recipe, *more, **rank) for rank in ranks(2)]
        assert [process.wait().code for process in both] == [0, 0], both[0].wait().err
    assert same(tensors(tmp_path / "each.safetensors"), tensors(tmp_path / "shared.safetensors"))
    assert metrics(tmp_path / "each") == metrics(tmp_path / "shared")


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stopped"), [("momentum", False), ("adamw", True)])
def test_two_processes_that_share_a_model_tune_it_as_one_does(
    optimizer: str,
    stopped: bool,
    cli: CLI,
    start: Start,
    stop_at: Callable[..., None],
    ancestry_folder: Path,
    tmp_path: Path,
) -> None:
    images = make_images(tmp_path / "images", val=43)  # two batches of 65 for one process, and one of 64 for the other
    train = {**MIXED, **SGD, "optimizer": optimizer, "lr": 1e-2, "micro_batch": 2, "clip_grad": 1.0}
    train["recompute"] = stopped
    recipe = written(tmp_path / "r.yaml", finetune_fields(ancestry_folder, images, tmp_path / "one", train=train))
    assert cli("finetune", recipe).code == 0
    shared = ["finetune", recipe, f"out={tmp_path / 'two'}", "train.shard=true"]
    if stopped:  # and continued by two
        stop_at(signal.SIGINT, epoch=1)
        assert cli(*shared).code == 130
    both = [start(*shared, **rank) for rank in ranks(2)]
    assert [process.wait().code for process in both] == [0, 0], both[0].wait().err
    one, two = (load_file(tmp_path / name / "descendant" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "qkv.bias" not in key:  # the keys' have gradients that are zero up to rounding, see ``SGD``
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)
    assert cli("finetune", recipe, f"out={tmp_path / 'two'}").code == 0  # one process reads what two have kept


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_two_processes_store_what_one_reads(
    target: str, cli: CLI, start: Start, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    fields = {**TARGETS[target], "train": {**MIXED, **SGD, "micro_batch": 2}}
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "plain", **fields))
    assert cli("condense", recipe).code == 0
    store = [f"distill.replay.folder={tmp_path / 'store'}", "distill.replay.patches=true"]
    both = [start("condense", recipe, *store, f"out={tmp_path / 'two'}", **rank) for rank in ranks(2)]
    assert [process.wait().code for process in both] == [0, 0]
    reading = cli("condense", recipe, *store, "distill.replay.make=false", f"out={tmp_path / 'one'}")
    assert (reading.code, "so the teacher is not loaded" in reading.err) == (0, True), reading.err
    for name in ("two", "one"):
        close(tmp_path / "plain.safetensors", tmp_path / f"{name}.safetensors")


@pytest.mark.slow
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


COMPILE = """
import functools, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from learngene.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_compiled_run_gives_the_gene_of_an_eager_one(
    target: str, cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    """As far as it is ours: the graph is captured and differentiated ahead, but no kernel is generated."""
    changes = {"shape": pico_shape(depth=2).to_dict(), **TARGETS[target], "train": {**FAST, **SGD, "epochs": 1}}
    fields = condense_fields(ancestry_folder, images, tmp_path / "eager", **changes)
    recipe = written(tmp_path / "r.yaml", fields)
    assert cli("condense", recipe).code == 0
    call = [sys.executable, "-c", COMPILE, "condense", recipe, f"out={tmp_path / 'compiled'}", "train.compile=true"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close(tmp_path / "eager.safetensors", tmp_path / "compiled.safetensors")
