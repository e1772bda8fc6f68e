"""``learngene search``: from a ViT and data sets to a gene and its descendants; stopped, shared, selected anew."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import learngene
from comparisons import contents, counted_at_the_end, written
from learngene import Ancestry
from learngene.making.extract import extract
from masked import make_masked
from pico import CLI, finetune_fields, make_images, pico_gene
from processes import Start
from runs import metrics
from searches import search_fields, search_recipe

Refused = Callable[..., str]


@pytest.fixture
def recipe(ancestry: Path, sets: dict[str, Path], tmp_path: Path) -> Path:
    """A recipe that works, in an empty folder."""
    return written(tmp_path / "search.yaml", search_fields(ancestry, sets, tmp_path / "s"))


def record_of(gene: Path) -> dict[str, Any]:
    """What a gene says about its search, without times."""
    record = learngene.load(gene).metadata["search"]
    for task in record["tasks"]:
        del task["seconds"]
    return record  # type: ignore[no-any-return]


def test_from_a_vit_to_descendants(
    cli: CLI, recipe: Path, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    gene = tmp_path / "s.safetensors"
    done = cli("check", recipe)
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"next: learngene search {recipe}"
    assert "task blocks: 12 training and 4 validation images, 1 steps of 8 images" in done.out
    assert counted_at_the_end(done.out, 1) == [f"data {path}" for path in sets.values()]
    done = cli("search", recipe)
    assert done.code == 0, done.err
    record = learngene.load(gene).metadata["search"]
    lines = done.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == list(sets)
    used = " ".join(f"{layer}:{count}" for layer, count in enumerate(record["usage"], start=1))
    assert lines[3:] == [
        f"base blocks of layers, by how many of 3 data sets they are used: {used}",
        f"{gene}: blocks {', '.join(map(str, record['layers']))}; map in {tmp_path / 's'}/usage.png",
        f"next: learngene plan {gene}",
    ]
    assert json.loads((tmp_path / "s" / "search.json").read_text()) == record
    vit, tensors = Ancestry(ancestry), learngene.load(gene).tensors()
    same = extract(vit, method="lsamd", settings={"layers": record["layers"]}).tensors()
    assert tensors.keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in tensors.items())
    metadata = learngene.load(gene).metadata
    assert metadata["ancestry"] == vit.identity
    assert (metadata["training"]["epochs"], metadata["training"]["seed"]) == (1, 0)
    assert "search           3 data sets, see `learngene picture`" in cli("info", gene, "--verify").out
    assert json.loads(cli("info", gene, "--json").out)["search"] == record
    assert cli("picture", gene, "--out", tmp_path / "map.png").code == 0
    for path in (tmp_path / "map.png", tmp_path / "s" / "usage.png"):
        with Image.open(path) as image:
            assert image.size[0] > 200
    assert cli("plan", gene, "--explain").code == 0
    done = cli("expand", gene, "--depth", 4, "--num-classes", 2, "--explain", "--out", tmp_path / "des")
    assert done.code == 0, done.err
    assert all(f"block {layer}" in done.out for layer in record["layers"])
    for name in ("two", "blocks"):
        fields = finetune_fields(gene, sets[name], tmp_path / name, shape={"depth": 3})
        done = cli("finetune", written(tmp_path / f"{name}.yaml", fields))
        assert done.code == 0, done.err


def test_a_second_run_trains_nothing_and_another_selection_only_selects(
    cli: CLI, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("search", recipe).code == 0
    before = {name: was for name, was in contents(tmp_path / "s").items() if "-s0-" in name}
    gene = (tmp_path / "s.safetensors").read_bytes()
    monkeypatch.setattr("learngene.making.search.task_search.run_stage", None)
    assert "task two: 20 training and 8 validation images, searched" in cli("check", recipe).out
    again = cli("search", recipe)
    assert (again.code, len(again.out.splitlines())) == (0, 3)
    assert (tmp_path / "s.safetensors").read_bytes() == gene
    assert cli("search", recipe, "select.k=3").code == 0
    assert len(record_of(tmp_path / "s.safetensors")["layers"]) == 3
    assert cli("search", recipe, "select={rule: threshold, k: null, tau: 0}").code == 0
    counts = record_of(tmp_path / "s.safetensors")["usage"]
    assert record_of(tmp_path / "s.safetensors")["layers"] == [i for i, count in enumerate(counts, 1) if count > 0]
    assert {name: was for name, was in contents(tmp_path / "s").items() if "-s0-" in name} == before


def test_an_empty_selection_is_told_and_leaves_paths_and_map(cli: CLI, recipe: Path, tmp_path: Path) -> None:
    assert cli("search", recipe).code == 0
    for file in (tmp_path / "s").glob("*/path.json"):  # paths without a single base block
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "share": [0.25] * 4, "digest": ""}))
    gene = (tmp_path / "s.safetensors").read_bytes()
    for old in (f"; {tmp_path / 's.safetensors'} is of an earlier selection", ""):
        done = cli("search", recipe, "select={rule: threshold, k: null, tau: 2}")
        record = json.loads((tmp_path / "s" / "search.json").read_text())
        assert done.code == 2
        (line,) = done.err.splitlines()
        assert line.startswith("learngene: select: no base block is used by more than tau=2 of 3 data sets (used by ")
        assert line.endswith(f"or use select.rule=top_k select.tau=null{old}")
        assert "layers" not in record
        assert (tmp_path / "s" / "usage.png").exists()
        if old:
            assert (tmp_path / "s.safetensors").read_bytes() == gene
        (tmp_path / "s.safetensors").unlink(missing_ok=True)


def test_searches_share_what_is_kept(
    cli: CLI, recipe: Path, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    assert cli("search", recipe, f"kept={tmp_path / 'kept'}").code == 0
    assert len(list((tmp_path / "kept").glob("*/path.json"))) == 3
    two = {name: path for name, path in sets.items() if name != "two"}
    other = search_fields(ancestry, two, tmp_path / "other", kept=str(tmp_path / "kept"))
    done = cli("search", written(tmp_path / "other.yaml", other))
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3  # no line for a data set that was searched
    assert len(record_of(tmp_path / "other.safetensors")["tasks"]) == 2


# -- stopped, shared ---------------------------------------------------------------------------------------


def test_a_search_that_is_stopped_twice_gives_the_gene_of_one_that_was_not(
    cli: CLI, stop_at: Callable[..., None], recipe: Path, tmp_path: Path
) -> None:
    again = ["search", recipe, "tasks.two.train.epochs=3", "tasks.two.train.eval_every=3"]
    again += ["tasks.two.train.augment.mixup=0.8"]
    assert cli(*again, f"out={tmp_path / 'whole'}").code == 0
    for epoch, number in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        stop_at(number, epoch=epoch, epochs=3)
        done = cli(*again)
        assert done.code == 128 + number
        where = f"learngene: stopped and saved at epoch {epoch + 1}, step 1 of two; the same command continues"
        assert done.err.splitlines()[-1] == where
        found = cli("check", *again[1:]).out
        assert "task colours: 24 training and 12 validation images, searched\n" in found
        assert f"task two: 20 training and 8 validation images, continues after epoch {epoch}, step 1\n" in found
        assert "task blocks: 12 training and 4 validation images, 1 steps of 8 images\n" in found
        assert [path.parent.name[:7] for path in (tmp_path / "s").glob("*/path.json")] == ["colours"]
        assert not (tmp_path / "s.safetensors").exists()
    assert cli(*again).code == 0
    assert record_of(tmp_path / "s.safetensors") == record_of(tmp_path / "whole.safetensors")
    (run,) = (tmp_path / "s").glob("two-*")
    assert metrics(run) == metrics(tmp_path / "whole" / run.name)


@pytest.mark.slow
def test_ctrl_c_reaches_all_processes_which_save_and_are_named(
    cli: CLI, start: Start, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    endless = {"train": {"epochs": 100_000, "eval_every": 100_000, "save_every": 100_000}}
    tasks = {name: sets[name] for name in ("two", "colours")}
    fields = search_fields(ancestry, tasks, tmp_path / "s", tasks=dict.fromkeys(tasks, endless))
    recipe = written(tmp_path / "r.yaml", fields)
    logs = [search_recipe(fields).task(name).out / "metrics.jsonl" for name in tasks]
    process = start("search", recipe, "--processes", 2).until(
        lambda: all(log.exists() and log.read_text() for log in logs)
    )
    done = process.interrupt().wait()
    assert (done.code, done.out) == (130, "")
    assert done.err == "learngene: stopped and saved at the last step of two, colours; the same command continues\n"
    found = cli("check", recipe).out
    told = [line.partition(":")[0] for line in found.splitlines() if ", continues after epoch " in line]
    assert told == ["task two", "task colours"]


@pytest.mark.slow
def test_two_processes_and_two_commands_find_the_same_paths_as_one(
    cli: CLI, start: Start, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    recipe = written(tmp_path / "r.yaml", search_fields(ancestry, sets, tmp_path / "one"))
    assert cli("search", recipe).code == 0
    one = record_of(tmp_path / "one.safetensors")
    both = [start("search", recipe, f"out={tmp_path / 'both'}") for _ in range(2)]
    two = start("search", recipe, f"out={tmp_path / 'two'}", "--processes", 2).wait()
    assert (two.code, two.err) == (0, "")
    assert sorted(line.partition(":")[0] for line in two.out.splitlines()[:3]) == sorted(sets)
    assert record_of(tmp_path / "two.safetensors") == one
    told = [process.wait() for process in both]
    assert [done.code for done in told] == [0, 0], told
    lines = [line for done in told for line in done.out.splitlines() if ": base blocks in layers" in line]
    assert sorted(line.partition(":")[0] for line in lines) == sorted(sets)
    assert record_of(tmp_path / "both.safetensors") == one


# -- what fails --------------------------------------------------------------------------------------------


def faults_of(text: str) -> list[str]:
    """The lines of an error, without those of progress."""
    return [line for line in text.splitlines() if line.startswith("learngene: ")]


def test_a_data_set_that_diverges_is_named_and_the_mended_command_goes_on(
    cli: CLI, recipe: Path, tmp_path: Path
) -> None:
    done = cli("search", recipe, "tasks.two.train.lr=1e30")
    assert done.code == 2
    first, last = faults_of(done.err)
    assert first.startswith("learngene: task two: search two: the loss became ")
    assert (
        last == "learngene: search: 2 of 3 data sets are searched; correct what failed and run the same command again"
    )
    assert not (tmp_path / "s.safetensors").exists()
    again = cli("search", recipe, "tasks.two.train.lr=1e30")
    assert (again.code, faults_of(again.err)) == (2, [first, last])
    mended = cli("search", recipe)
    assert mended.code == 0
    assert mended.out.startswith("two: base blocks ")
    assert len(mended.out.splitlines()) == 4


def test_a_damaged_path_is_named_and_deleting_it_mends(
    cli: CLI, recipe: Path, tmp_path: Path, refused: Refused
) -> None:
    assert cli("search", recipe).code == 0
    (path,) = (tmp_path / "s").glob("two-*/path.json")
    path.write_text("{")
    for command in ("search", "check"):
        line = refused(command, recipe)
        assert line == f"learngene: task two: {path}: damaged; delete {path.parent} to search this data set again"
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert cli("search", recipe).code == 0


# -- refused before training -------------------------------------------------------------------------------


def one_class(root: Path) -> Path:
    return make_images(root, classes=("red",))


def high_mask(root: Path) -> Path:
    return make_masked(root, classes=3)


def other_size(root: Path) -> Path:
    make_masked(root)
    path = root / "masks" / "train" / "00.png"
    with Image.open(path) as mask:
        mask.resize((4, 4), Image.Resampling.NEAREST).save(path)
    return root


DATA: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "one class": (one_class, [], "the split 'train' has one class (red); a classifier needs two"),
    "mask values": (high_mask, ["tasks.bad.data.mask_classes=2"], "has value 2, but there are 2 classes (0 to 1)"),
    "mask sizes": (other_size, [], "mask masks/train/00.png has 4 x 4 pixels, but its image has 12 x 8"),
    "masks mixed": (make_masked, ["tasks.bad.train.augment.mixup=0.5"], "masks cannot follow train.augment.mixup=0.5"),
    "few images": (make_images, ["tasks.bad.train.batch_size=40"], "24 training images are fewer than train.batch_"),
    "image size": (make_images, ["tasks.bad.data.img_size=10"], "img_size 10 is not divisible by patch_size 4"),
    "optimizer": (make_images, ["tasks.bad.train.optimizer=adamx"], "unknown optimizer 'adamx'"),
    "micro batch": (
        make_images, ["tasks.bad.train.micro_batch=1", "tasks.bad.train.augment.mixup=1.0"], "(mixing needs pairs)",
    ),
    "augmentation": (make_images, ["tasks.bad.train.augment.rand_augment=zzz"], "'zzz': timm refuses"),
    "channels": (make_images, ["tasks.bad.data.mean=[0.5]"], "data.mean has 1 values, but the images have 3 channels"),
    "missing": (lambda root: root, [], "no such folder or tar, and not a data set name"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_searched_is_refused_before_training(
    case: str, ancestry: Path, sets: dict[str, Path], tmp_path: Path, refused: Refused, cli: CLI
) -> None:
    make, overrides, text = DATA[case]
    tasks = {"two": sets["two"], "bad": make(tmp_path / "bad")}
    recipe = written(tmp_path / "r.yaml", search_fields(ancestry, tasks, tmp_path / "s"))
    before = contents(tmp_path)
    for command in ("search", "check"):
        line = refused(command, recipe, *overrides)
        assert line.startswith("learngene: task bad: ")
        assert text in line
    assert contents(tmp_path) == before


def test_every_data_set_that_does_not_fit_is_named(cli: CLI, ancestry: Path, tmp_path: Path) -> None:
    tasks = {"one": one_class(tmp_path / "one"), "none": tmp_path / "none"}
    done = cli("search", written(tmp_path / "r.yaml", search_fields(ancestry, tasks, tmp_path / "s")))
    assert done.code == 2
    assert [line.split(":")[1].strip() for line in done.err.splitlines()] == ["task one", "task none"]


OVERRIDES: dict[str, tuple[list[str], str]] = {
    "not plain, cnn": (
        ["ancestry={source: test_byobnet, pretrained: false}"], "whose layers are alike: it is a ByobNet",
    ),
    "layers that share a tensor": (
        [
            "ancestry={source: vit_small_patch16_rope_mixed_224, pretrained: false, model_args: "
            "{embed_dim: 16, depth: 2, num_heads: 2, img_size: 32}}"
        ],
        "'rope.freqs' of vit_small_patch16_rope_mixed_224 depends on the number of layers",
    ),
    "k": (["select.k=5"], "select.k: 5 blocks of an ancestry with 4 layers; use 4 or less"),
    "tau": (["select={rule: threshold, k: null, tau: 3}"], "than 3 of 3 data sets; use 0 to 2"),
    "name": (["tasks={../x: {data: {source: digits}}}"], "tasks: '../x' cannot name a folder"),
    "drop path": (["train.drop_path=0.1"], "train.drop_path is not for super nets, whose base blocks stay; use 0"),
    "routing": (["routing.route=imgs"], "routing.route: Input should be 'batch' or 'img'"),
    "twice": (["routing={route: img, route: batch}"], "key 'route' is given twice, in line 1; leave one out"),
    "pinned": (["ancestry.sha256=abc"], "the name now means other weights"),
    "gene is foreign": (["out=foreign"], "foreign.safetensors exists and is not a gene"),
    "out is a file": (["out=file"], "file exists and is a file, not a folder; choose another output path"),
    "out is foreign": (["out=folder"], "folder exists and was not written by learngene"),
    "out in a file": (["out=file/s"], "cannot write file/s: "),
    "kept is a file": (["kept=file"], "cannot write file: "),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERRIDES)
def test_what_cannot_be_searched_is_refused_and_nothing_written(
    case: str, recipe: Path, tmp_path: Path, refused: Refused, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo").write_text("mine")
    before = contents(tmp_path)
    overrides, text = OVERRIDES[case]
    assert text in refused("search", recipe, *overrides)
    done = cli("check", recipe, *overrides)
    assert done.code == 2
    assert text in done.err
    assert contents(tmp_path) == before


def test_a_read_only_folder_is_told_by_check(
    cli: CLI, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    for kept in ([], [f"kept={tmp_path / 'k' / 'l'}", "out=elsewhere"]):
        done = cli("check", recipe, *kept)
        name = "k/l" if kept else "s"
        assert done.code == 2
        assert done.err == (
            f"learngene: cannot write {tmp_path / name}: {tmp_path} is read-only; choose another folder\n"
        )
    assert contents(tmp_path) == before


def test_a_full_disk_is_told_before_training(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learngene.making.search.make.search_bytes", lambda _: 10**18)
    before = contents(tmp_path)
    assert "1000000000000 MB are needed but only " in refused("search", recipe)
    assert contents(tmp_path) == before


def test_a_task_named_twice_in_a_file_is_refused(recipe: Path, refused: Refused) -> None:
    text = recipe.read_text()
    start = text.index("  two:")
    again = text[start : text.index("  blocks:")]
    recipe.write_text(text[:start] + again + text[start:])
    number = text[:start].count("\n") + 1
    lines = f"lines {number} and {number + again.count(chr(10))}"
    assert refused("search", recipe) == f"learngene: {recipe}: key 'two' is given twice, in {lines}; leave one out"


def test_recipes_of_other_kinds_and_genes_without_a_search_are_refused(
    recipe: Path, tmp_path: Path, refused: Refused
) -> None:
    for command in ("condense", "finetune"):
        assert "a search recipe; run it with `learngene search`" in refused(command, recipe)
    other = written(tmp_path / "f.yaml", finetune_fields("vit", "digits", tmp_path / "x"))
    assert "a finetune recipe; run it with `learngene finetune`" in refused("search", other)
    pico_gene("lsamd", {"layers": [1, 3]}).save(tmp_path / "g.safetensors")
    picture = ["picture", tmp_path / "g.safetensors", "--out", tmp_path / "p.png"]
    text = "g.safetensors: made without a search, so there is no map of the blocks that data sets took;"
    assert text in refused(*picture)
    assert "is of lsamd, which has no paths; leave it out" in refused(*picture, "--path", "1+2")
    assert not (tmp_path / "p.png").exists()
