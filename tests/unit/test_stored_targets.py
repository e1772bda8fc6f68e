"""What teachers say, stored once and read again: the same runs, who shares what, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from learngene import Ancestry, save_descendant, scratch
from learngene.genes.gene import Learngene
from learngene.making.condense import run as run_condense
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import Distill, Replay
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.training.stored_targets import StoredTargets
from learngene.training.target_shards import Collected, Like, Shard
from pico import CLI, FAST, MIXED, make_ancestry, make_images, pico_shape
from runs import same, state
from taught import HARD, TAUGHT, Home


def scores(gene: Learngene) -> dict[str, Any]:
    return {name: gene.metadata.get(name) for name in ("accuracy", "agreement", "paths", "bridge")}


@pytest.fixture
def home(images: Path, tmp_path: Path) -> Home:
    return Home(images, make_ancestry(tmp_path / "ancestry" / "pico-vit", depth=6), tmp_path)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, no teacher may be asked."""

    def asked(*_: object) -> None:
        raise AssertionError("a teacher is asked")

    return lambda: monkeypatch.setattr(StoredTargets, "_ask", asked)


# -- the same run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TAUGHT)
def test_a_run_on_stored_outputs_is_bit_for_bit_the_one_that_asks_its_teacher(
    case: str, home: Home, silent: Callable[[], None]
) -> None:
    replay = {"folder": str(home.tmp / "store"), "patches": True}
    plain, storing = home.run(None, case), home.run(replay, case)
    silent()
    reading = home.run({**replay, "make": False}, case)
    for gene in (storing, reading):
        assert same(state(gene), state(plain))
        assert scores(gene) == scores(plain)


def test_who_has_the_same_teacher_and_views_shares_what_is_stored(home: Home, silent: Callable[[], None]) -> None:
    store = home.tmp / "store"
    home.run(str(store))
    first = home.files(store)
    assert len(first) == 2
    home.run(str(store), train={**HARD, "epochs": 3})  # a longer run adds its last epoch
    assert first.items() < home.files(store).items()
    assert len(home.files(store)) == 3
    silent()
    staged = {"method": "sws", "settings": {"stages": [2, 2]}}
    faster = {"train": {**HARD, "lr": 0.1, "drop_path": 0.0}}
    for other in ({"shape": pico_shape(depth=2).to_dict()}, staged, faster, {"distill": {"alpha": 0.3}}):
        home.run(str(store), **other)
    assert len(home.files(store)) == 3


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"batch_size": 4}, {"augment": {"preset": "light"}}, {"precision": "bf16"}],
    ids=lambda other: next(iter(other)),
)
def test_other_views_are_stored_beside(other: dict[str, Any], home: Home) -> None:
    store = home.tmp / "store"
    home.run(str(store))
    home.run(str(store), train={**HARD, **other})
    assert len({name.partition("/")[0] for name in home.files(store)}) == 2


def test_rows_are_stored_in_the_order_of_the_epoch_however_batches_are_cut(home: Home) -> None:
    for name, micro_batch in (("whole", None), ("cut", 2)):
        home.run(str(home.tmp / name), train={**HARD, "micro_batch": micro_batch})
    (one, *_), (other, *_) = (sorted((home.tmp / name).glob("*/*/*.safetensors")) for name in ("whole", "cut"))
    whole, cut = Shard.read(one, 24).tensors, Shard.read(other, 24).tensors
    assert torch.equal(whole["pixels"], cut["pixels"])
    torch.testing.assert_close(whole["values"], cut["values"])


def test_a_run_that_goes_on_amid_an_epoch_stores_all_of_it(home: Home) -> None:
    store, plain = home.tmp / "store", home.run()
    recipe, ancestry = build_recipe(home.fields(str(store))), Ancestry(home.ancestry)
    assert isinstance(recipe, CondenseRecipe)
    asked: list[int] = []

    def stop(*_: object) -> None:
        asked.append(1)
        if len(asked) == 4:  # the check of its size, an empty image, and two steps
            os.kill(os.getpid(), signal.SIGINT)

    handle = ancestry.register_forward_hook(stop)
    with pytest.raises(InterruptedRun, match="epoch 1, step 2"):
        run_condense(recipe, ancestry=ancestry, show=False)
    handle.remove()
    assert home.files(store) == {}
    assert same(state(run_condense(recipe, ancestry=ancestry, show=False).gene), state(plain))
    assert len(home.files(store)) == 2


def test_an_unfinished_run_may_begin_to_store(home: Home, stop_at: Callable[..., None]) -> None:
    stop_at(signal.SIGINT, epoch=1)
    with pytest.raises(InterruptedRun):
        home.run(keep=True)
    gone_on = home.run(str(home.tmp / "store"), keep=True)
    shutil.rmtree(home.tmp / "run")
    assert same(state(gone_on), state(home.run()))
    home.run(keep=True)
    with pytest.raises(LearngeneError, match=r"distill\.replay\.dtype=bfloat16"):
        home.run({"folder": "store", "dtype": "bfloat16"}, keep=True)


def test_a_damaged_note_of_whose_outputs_they_are_is_written_anew(home: Home) -> None:
    """Its mean would be that of the images; so the teacher is loaded, and says itself what its mean is."""
    replay = {"folder": str(home.tmp / "store")}
    plain = home.run(replay, "logits")
    (note,) = (home.tmp / "store" / "teachers").glob("*.json")
    whole = note.read_text()
    record = json.loads(whole)
    record["cfg"]["mean"] = [0.9, 0.9, 0.9]
    note.write_text(json.dumps(record))
    assert home.run(replay, "logits").metadata["preprocessing"] == plain.metadata["preprocessing"]
    assert json.loads(note.read_text()) == json.loads(whole)


def test_longer_training_repeats_stored_epochs(home: Home) -> None:
    """At a learning rate of next to nothing, the loss of an epoch depends on its views alone."""
    train = {**MIXED, "lr": 1e-12, "schedule": {"warmup_epochs": 0, "min_lr": 1e-13, "warmup_lr": 1e-13}, "epochs": 4}
    store, out = home.tmp / "store", home.tmp / "run"
    found = {}
    for epochs in (None, 2):
        home.run({"folder": str(store), "epochs": epochs}, train=train, keep=True)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        found[epochs] = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
        shutil.rmtree(out)
    assert found[2][:2] * 2 == pytest.approx(found[2], rel=1e-6)
    assert found[2][:2] == pytest.approx(found[None][:2], rel=1e-6)
    assert len({f"{value:.6g}" for value in found[None]}) == 4


@pytest.mark.parametrize("case", sorted(TAUGHT.keys() - {"bf16", "kept bridge"}))
def test_a_teacher_whose_outputs_are_all_stored_is_not_loaded(
    case: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = {"folder": str(home.tmp / "store"), "patches": True}
    plain = home.run(replay, case)
    with monkeypatch.context() as patch:
        patch.setattr(Ancestry, "from_spec", lambda _spec: pytest.fail("it is loaded"))
        again = home.run(replay, case)
    assert same(state(again), state(plain))
    assert scores(again) == scores(plain)
    # What is missing after all is made by the teacher, which is loaded then.
    min((home.tmp / "store").glob("*/*/*.safetensors")).unlink()
    assert same(state(home.run(replay, case)), state(plain))


def test_a_checkpoint_file_is_known_by_its_content(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = home.tmp / "deit.pth", str(home.tmp / "store")
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    torch.save(timm.create_model("deit_tiny_patch16_224", **size).state_dict(), path)
    ancestry = {"source": str(path), "architecture": "deit_tiny_patch16_224", "model_args": size}
    plain = home.run(store, ancestry=ancestry)
    with monkeypatch.context() as patch:
        patch.setattr(Ancestry, "from_spec", lambda _spec: pytest.fail("it is loaded"))
        assert same(state(home.run(store, ancestry=ancestry)), state(plain))
    torch.save(timm.create_model("deit_tiny_patch16_224", **size).state_dict(), path)
    assert not same(state(home.run(store, ancestry=ancestry)), state(plain))


# -- forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"top_k": 2}], ids=str)
def test_a_run_that_stores_less_than_all_is_the_one_that_reads_it(
    replay: dict[str, Any], home: Home, silent: Callable[[], None]
) -> None:
    given = {"folder": str(home.tmp / "store"), **replay}
    plain, storing = home.run(), home.run(given)
    assert not same(state(storing), state(plain))
    silent()
    assert same(state(home.run(given)), state(storing))


def test_of_keys_of_results_only_what_changes_them_counts() -> None:
    keys = [
        short_hash(Distill(replay=replay))
        for replay in (None, Replay(folder="one"), Replay(folder="two", check=0, patches=True, make=False))
    ]
    assert len(set(keys)) == 1
    others = [short_hash(Distill(replay=Replay(folder="one", **more))) for more in ({"epochs": 3}, {"top_k": 2})]
    assert len({keys[0], *others}) == 3


def test_a_recipe_that_only_stores_keeps_the_loss_of_its_method(home: Home) -> None:
    for case in ("logits", "rows and paths", "stage 1"):
        with_replay = build_recipe(home.fields({"folder": "x", "patches": True}, case))
        without = build_recipe(home.fields(None, case))
        assert isinstance(with_replay, CondenseRecipe)
        assert isinstance(without, CondenseRecipe)
        assert with_replay.distill.model_copy(update={"replay": None}) == without.distill


# -- ahead -------------------------------------------------------------------------------------------------


def test_targets_are_written_ahead_once(home: Home, cli: CLI, silent: Callable[[], None]) -> None:
    store = home.tmp / "store"
    recipe = home.recipe({"folder": str(store), "patches": True}, "rows and paths")
    done = cli("targets", recipe)
    assert done.code == 0, done.err
    # Of 48 views: 3 logits, and twice 3 blocks of 4 tokens of width 16, in 4 bytes each, and a fingerprint per output.
    size = 48 * (3 * 4 + 6 * 4 * 16 * 4 + 7 * 8) / 1000
    assert f"{store}: 14 of 14 files are missing, {size:.1f} kB\n" in done.out
    assert "of 48 views" in done.out
    before = home.files(store)
    silent()
    again = cli("targets", recipe)
    assert again.code == 0
    assert "0 B are new" in again.out
    home.run({"folder": str(store), "patches": True}, "rows and paths")
    assert home.files(store) == before


@pytest.mark.slow
def test_several_processes_write_every_file_once(home: Home, cli: CLI) -> None:
    store = home.tmp / "store"
    done = cli("targets", home.recipe(str(store), train={**HARD, "epochs": 6}), "--processes", 2)
    assert done.code == 0, done.err
    assert len(home.files(store)) == 6
    alone = home.tmp / "alone"
    home.run(str(alone), train={**HARD, "epochs": 6})
    assert home.files(store).keys() == home.files(alone).keys()
    for name in home.files(store):
        one, other = Shard.read(store / name, 24).tensors, Shard.read(alone / name, 24).tensors
        torch.testing.assert_close(one["values"], other["values"])


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replay", "case", "changes", "message"),
    [
        ({"top_k": 3}, "logits", {}, r"top_k 3: the teacher has 3 classes; use fewer, or null"),
        ({"top_k": 2}, "features", {}, r"top_k: is of logits, and this recipe learns features"),
        ({}, "features", {}, r"learns vectors of patches, .* set distill\.replay\.patches=true"),
        ({}, "rows and paths", {}, r"set distill\.replay\.patches=true"),
        ({}, "stage 1, patches", {}, r"set distill\.replay\.patches=true"),
        ({}, "logits", {"ancestry": None, "distill": {"alpha": 0}}, r"this recipe has none"),
        ({"dtype": "int8"}, "logits", {}, r"distill\.replay\.dtype"),
        ({"epochs": 0}, "logits", {}, r"distill\.replay\.epochs"),
    ],
)
def test_recipes_that_cannot_store(
    replay: dict[str, Any], case: str, changes: dict[str, Any], message: str, home: Home, refused: Callable[..., str]
) -> None:
    recipe = home.recipe({"folder": str(home.tmp / "store"), **replay}, case, **changes)
    with pytest.raises(LearngeneError, match=message):
        raise LearngeneError(refused("condense", recipe))
    assert not (home.tmp / "store").exists()


def test_targets_need_a_folder(home: Home, refused: Callable[..., str]) -> None:
    assert "distill.replay is missing" in refused("targets", home.recipe())


def test_a_damaged_file_is_named_and_made_again_if_asked(home: Home, cli: CLI) -> None:
    recipe = home.recipe(str(home.tmp / "store"))
    assert cli("targets", recipe).code == 0
    path = max((home.tmp / "store").glob("*/*/*.safetensors"))
    whole = path.read_bytes()
    values = Shard.read(path, 24).tensors["values"].clone()
    for damaged in (whole[:-1] + b"?", whole[:50], b""):
        path.write_bytes(damaged)
        broken = cli("condense", recipe, f"out={home.tmp / str(len(damaged))}")
        assert broken.code == 2
        assert broken.err.splitlines()[-1].startswith(f"learngene: {path}: stored targets are damaged (")
        assert "--again" in broken.err
        done = cli("targets", recipe, "--again")
        assert (done.code, f"{path}: damaged, and made again" in done.out) == (0, True)
        assert torch.equal(Shard.read(path, 24).tensors["values"], values)


def test_what_differs_is_named_where_nothing_may_be_made(home: Home) -> None:
    replay = {"folder": str(home.tmp / "store"), "make": False}
    with pytest.raises(LearngeneError, match=r"safetensors is missing; let it be made with distill\.replay\.make=true"):
        home.run(replay)
    home.run(str(home.tmp / "store"))
    for train, named in (
        ({"seed": 4}, "seed: 0 there, 4 here"),
        ({"augment": {**MIXED["augment"], "hflip": 0.0}}, r"augment\.hflip: 0\.5 there, 0\.0 here"),
    ):
        with pytest.raises(LearngeneError, match=f"is missing: .* have another {named}"):
            home.run(replay, train={**HARD, **train})
    save_descendant(scratch(pico_shape(depth=6), seed=7, class_names=["blue", "green", "red"]), home.ancestry)
    with pytest.raises(LearngeneError, match=r"have another teacher\.sha256: [0-9a-f]{64} there, [0-9a-f]{64} here"):
        home.run(replay)


def test_a_key_that_was_put_under_another_name_is_refused(home: Home) -> None:
    store = home.tmp / "store"
    home.run(str(store))
    (mine,) = store.glob("targets-*")
    home.run(str(store), train={**HARD, "seed": 4})
    (other,) = set(store.glob("targets-*")) - {mine}
    shutil.rmtree(mine)
    other.rename(mine)
    with pytest.raises(LearngeneError, match="is of other targets: seed: 4 there, 0 here"):
        home.run(str(store))
    key = mine / "key.json"
    for changed in ({"more": None}, {"more": {}}):
        key.write_text(json.dumps(json.loads(key.read_text()) | {"seed": 0} | changed))
        with pytest.raises(LearngeneError, match=r"other targets: more: (None|\{\}) there, nothing here"):
            home.run(str(store))
    key.write_text("{")
    with pytest.raises(LearngeneError, match=r"key\.json: is damaged"):
        home.run(str(store))


def test_other_pixels_under_the_same_names_are_noticed(home: Home) -> None:
    images = make_images(home.tmp / "images")
    home = home._replace(images=images)
    home.run(str(home.tmp / "store"))
    files = sorted((images / "train" / "blue").iterdir())
    one, other = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(other)
    files[1].write_bytes(one)
    with pytest.raises(LearngeneError, match=r"the images of epoch 1, step \d are not those that these targets are of"):
        home.run(str(home.tmp / "store"))


def test_on_another_machine_the_teacher_is_asked_once_more(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked, ask = home.tmp / "store", [], StoredTargets._ask
    home.run(str(store))

    def counted(self: StoredTargets, images: torch.Tensor) -> Any:
        asked.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(StoredTargets, "_ask", counted)
    (folder,) = store.glob("targets-*")
    for check, steps in ((0.001, 1), (0.5, 3), (0, 0)):
        shutil.rmtree(folder / "checked", ignore_errors=True)
        for _ in range(2):
            home.run({"folder": str(store), "check": check})
        assert asked == [8] * steps
        asked.clear()
    path = min(folder.glob("*/*.safetensors"))
    tensors = {name: value.clone() for name, value in Shard.read(path, 24).tensors.items()}
    tensors["values"] *= 1.2
    Collected(24, tensors, Like(3, torch.float32)).write(path)
    with pytest.raises(LearngeneError, match=r"logits of epoch 1, step 1 differ by \d+\.\d% of the largest"):
        home.run(str(store))


def test_a_disk_that_is_too_small_is_refused_ahead(
    home: Home, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = home.recipe({"folder": str(home.tmp / "store"), "patches": True}, "features")
    usage = shutil.disk_usage(home.tmp)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    assert "are needed but only 0 MB are free" in refused("targets", recipe)
    assert not (home.tmp / "store").exists()


def test_what_is_whole_stays_when_the_disk_is_full(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = home.tmp / "store", Collected.write
    written_files: list[Path] = []

    def full(self: Collected, path: Path) -> None:
        written_files.append(path)
        if len(written_files) == 2:
            raise LearngeneError(f"cannot write {path}: no space left on the device; nothing was changed")
        write(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Collected, "write", full)
        with pytest.raises(LearngeneError, match="no space left"):
            home.run(str(store))
    assert len(home.files(store)) == 1
    before = home.files(store)
    home.run(str(store))
    assert before.items() < home.files(store).items()


def test_what_killed_writers_left_is_deleted_when_nobody_can_be_writing_it(home: Home) -> None:
    store = home.tmp / "store"
    home.run(str(store))
    (shard, *_) = store.glob("targets-*/*/*.safetensors")
    old, young = (shard.with_name(f".{shard.name}.0123456{number}.tmp") for number in (7, 8))
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    home.run(str(store))
    assert (old.exists(), young.exists()) == (False, True)


def test_check_says_what_is_stored(home: Home, cli: CLI) -> None:
    recipe = home.recipe(str(home.tmp / "store"), train={**FAST, "epochs": 2})
    assert "targets: 2 of 2 files are missing" in cli("check", recipe).out
    cli("targets", recipe)
    assert "targets: all 2 files are stored" in cli("check", recipe).out
