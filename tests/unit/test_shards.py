"""Webdataset's shards: an index of them makes a set like any other; what cannot be used is refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from learngene import Ancestry
from learngene.data.batches import TrainBatches
from learngene.data.open_split import open_split
from learngene.data.shard_index import INDEX, write_index
from learngene.data.splits import Splits, open_splits
from learngene.recipe.sections import DataSpec, Train
from learngene.system.errors import DataError, InterruptedRun
from pico import CLI, COLOURS, FAST
from runs import HARD, condensed, same

NAMES = sorted(COLOURS)
Fields = dict[str, bytes]


def write_shard(path: Path, samples: Iterable[tuple[str, Fields]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, fields in samples:
            for suffix, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def by_number(label: int) -> Fields:
    return {"cls": str(label).encode()}


def make_shards(
    images: Path, root: Path, label: Callable[[int], Fields] = by_number, pattern: str = "{}-{:03d}"
) -> Path:
    """The images of a folder in its order, five to a shard."""
    for split in ("train", "val"):
        paths = sorted(images.glob(f"{split}/*/*.png"))
        for number in range(0, len(paths), 5):
            samples = [
                (f"{path.parent.name}-{path.stem}", {"png": path.read_bytes(), **label(NAMES.index(path.parent.name))})
                for path in paths[number : number + 5]
            ]
            write_shard(root / f"{pattern.format(split, number // 5)}.tar", samples)
    return root


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexed shards of the images; read only."""
    root = make_shards(images, tmp_path_factory.mktemp("shards"))
    write_index(root)
    return root


def spec(root: Path | str, **fields: Any) -> DataSpec:
    return DataSpec(source=f"wds/{root}", **fields)


@pytest.mark.parametrize("pattern", ["{}-{:03d}", "{}/{:03d}", "colours_{}{:03d}.v1", "a/{}/b{:03d}"])
@pytest.mark.parametrize(
    ("label", "names"),
    [
        (by_number, ["0", "1", "2"]),
        (lambda label: {"cls": NAMES[label].encode()}, NAMES),
        (lambda label: {"json": b'{"label": %d, "text": "x"}' % label, "txt": b"a caption"}, ["0", "1", "2"]),
        (lambda label: {"json": b'{"label": "%s"}' % NAMES[label].encode()}, NAMES),
    ],
    ids=["cls", "names", "json", "json names"],
)
def test_shards_are_read_as_the_folder_they_were_made_of(
    label: Callable[[int], Fields], names: list[str], pattern: str, images: Path, tmp_path: Path
) -> None:
    if "{}{" in pattern:  # without a separator a split is no word
        pattern = pattern.replace("{}{", "{}.{")
    root = make_shards(images, tmp_path / "s", label, pattern)
    write_index(root, processes=1)
    for made, plain in zip(open_splits(spec(root)), open_splits(DataSpec(source=str(images))), strict=True):
        assert made.class_names == names
        found = {Path(name).stem: (made.labels[i], made.image(i).tobytes()) for i, name in enumerate(made.names)}
        expected = {
            f"{Path(name).parent.name}-{Path(name).stem}": (plain.labels[i], plain.image(i).tobytes())
            for i, name in enumerate(plain.names)
        }
        assert found == expected
        assert made.fingerprint() == open_split(spec(root), "train" if len(made) == 24 else "val").fingerprint()


def test_a_sample_is_what_webdataset_takes_for_one(images: Path, tmp_path: Path) -> None:
    image = (images / "train" / "red" / "00.png").read_bytes()
    samples = [
        ("deep/er/a", {"b.PNG": image, "cls": b" 1\n"}),  # its name ends at the first dot
        ("deep/er/c", {"seg.png": b"no image", "png": image, "cls": b"0"}),
        ("./d", {"input.png": image, "cls": b"1"}),
        ("e", {"json": b"{}", "cls": b"1"}),
        ("__MACOSX/f", {"png": image}),
    ]
    write_shard(tmp_path / "train-0.tar", samples)
    made = write_index(tmp_path)
    train = open_split(spec(tmp_path), "train")
    assert list(train.names) == [f"train-0.tar/{n}" for n in ("deep/er/a.b.PNG", "deep/er/c.png", "d.input.png")]
    assert (list(train.labels), made.imageless) == ([1, 0, 1], 1)
    assert all(train.image(index).size == (8, 8) for index in range(3))


def test_json_tells_what_was_indexed(images: Path, tmp_path: Path, cli: CLI) -> None:
    outcome, _ = map(json.loads, cli("index", make_shards(images, tmp_path), "--json").out.splitlines())
    counts = {"shards": 8, "images": 36, "classes": 3, "without_image": 0, "damaged": []}
    assert outcome.items() >= {"event": "outcome", "path": str(tmp_path / INDEX), **counts}.items()


def test_which_shards_a_split_has_can_be_said(images: Path, tmp_path: Path) -> None:
    root = make_shards(images, tmp_path)
    write_index(root)
    (root / "classnames.txt").write_text("blau\ngrün\nrot\n", "utf-8")
    write_index(root)
    one, other = (open_split(spec(root, train_split=text), "train") for text in ("train-{000..001}.tar", "val*.tar"))
    assert (len(one), len(other), one.class_names) == (10, 12, ["blau", "grün", "rot"])
    assert len(open_split(spec(root, train_split="{train-00[34],val-000}.tar"), "train")) == 14
    with pytest.raises(DataError, match=r"no shards of split 'test1'; found: train-000.tar, .* and 5 more; say with"):
        open_split(spec(root, val_split="test1"), "val")


def unlabelled(root: Path, **fields: Any) -> Splits:
    return open_splits(spec(root, labels=False, **fields), unlabelled=True)


def test_labels_are_optional(images: Path, shards: Path, tmp_path: Path) -> None:
    assert list(map(len, unlabelled(shards))) == [24, 12]
    root = make_shards(images, tmp_path, lambda _: {"txt": b"no class"})
    write_index(root)
    with pytest.raises(DataError, match=r"no class for every image, .* set data.labels=false"):
        open_split(spec(root), "train")
    assert list(map(len, unlabelled(root))) == [24, 12]
    train, val = unlabelled(root, val_split="other", train_split="*.tar")  # five of the 36 are held out
    assert (len(train), len(val), {*train.names} & {*val.names}) == (31, 5, set())


# -- training ------------------------------------------------------------------------------------------------


def test_no_image_is_lost_or_seen_twice(shards: Path) -> None:
    section = spec(shards, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    images, train = open_split(section, "train"), Train(**{**FAST, "batch_size": 8})
    whole = TrainBatches(images, section, train, img_size=8)
    seen = [index for step in range(3) for part in whole.addresses(1)(step) for _, _, index in part]
    assert sorted(seen) == list(range(24))
    shared = [TrainBatches(images, section, train, img_size=8, rank=rank, processes=2) for rank in range(2)]
    for workers in (0, 2):
        halves = [list(made.epoch(1, 1)) for made in shared]
        for (one,), mine, yours in zip(whole.epoch(1, 1), *halves, strict=True):
            assert sorted(one[1].tolist()) == sorted([*mine[0][1].tolist(), *yours[0][1].tolist()])
        for made in shared:
            made.workers = workers


def test_training_is_that_on_a_folder_and_goes_on_in_the_middle_of_a_shard(
    images: Path, ancestry_folder: Path, tmp_path: Path, stop_after: Any
) -> None:
    root = make_shards(images, tmp_path / "s", lambda label: {"cls": NAMES[label].encode()})
    write_index(root)
    made = []
    for source, stop in ((str(images), 0), (f"wds/{root}", 0), (f"wds/{root}", 5)):  # steps of 8 of 24 images
        changes = {"data": {"source": source, "workers": 2 * (stop == 0)}, "train": HARD}
        out = tmp_path / f"run{len(made)}"
        if stop:
            ancestry = Ancestry(ancestry_folder)
            stop_after(ancestry, stop)
            with pytest.raises(InterruptedRun, match="step 1"):
                condensed(out, images, ancestry, **changes)
        made.append(dict(condensed(out, images, Ancestry(ancestry_folder), **changes).tensors()))
    assert same(made[0], made[1])
    assert same(made[1], made[2])


# -- refusals ------------------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"blue-02.png") + 150] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: cut(path, 1500), r"truncated, compressed or no tar \(no end and no file at byte 1024"),
        (lambda path: cut(path, 700), r"truncated, compressed or no tar \(unexpected end"),
        (lambda path: cut(path, 4 * 512), r"truncated, compressed or no tar \(no end and no file at byte 2048"),
        (flip_header, r"truncated, compressed or no tar \(no end and no file at byte"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "truncated, compressed or no tar"),
        (lambda path: path.write_bytes(b""), "truncated, compressed or no tar"),
        (lambda path: write_shard(path, [("a", {"png": b"", "cls": b"-1"})]), "a.cls has -1 for a class; expected a n"),
        (lambda path: write_shard(path, [("a", {"png": b"", "json": b"{"})]), "a.json is not JSON"),
        (lambda path: write_shard(path, [("a", {"png": b"", "cls": b"\xff"})]), "a.cls is not text"),
        (lambda path: write_shard(path, [("a", {"png": b""}), ("a", {"png": b""})]), "sample a has two files .png"),
        (lambda path: write_shard(path, [("a", {"png": b"", "jpg": b""})]), "sample a has the images .png and .jpg"),
    ],
)
def test_a_damaged_shard_is_named_and_left_out_only_if_asked(
    damage: Callable[[Path], object], said: str, images: Path, tmp_path: Path, cli: CLI
) -> None:
    root = make_shards(images, tmp_path)
    damage(root / "train-000.tar")
    done = cli("index", root)
    assert done.code == 2
    assert re.fullmatch(rf"learngene: .*train-000.tar: .*{said}.*--skip-corrupt\n", done.err)
    assert not (root / INDEX).exists()
    assert cli("index", root, "--skip-corrupt").out.splitlines()[1] == "left out: 1 damaged shards (train-000.tar)"
    train = open_split(spec(root), "train")
    assert len(train) == 19
    assert train.counted().endswith("; left out: 1 damaged shards (train-000.tar)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / INDEX).unlink(), "its shards have no index; run `learngene index"),
        (lambda root: cut(root / INDEX, 5), "the index is damaged; run `learngene index"),
        (lambda root: cut(root / INDEX, (root / INDEX).stat().st_size - 1), "the index is damaged; run"),
        (lambda root: os.utime(root / "val-001.tar"), "the index is older than shard val-001.tar; run"),
        (lambda root: write_shard(root / "val-9.tar", []), "the index is older than shard val-9.tar; run"),
        (lambda root: (root / "val-000.tar").unlink(), "shard val-000.tar is gone; put it back, or run"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    change: Callable[[Path], object], said: str, images: Path, tmp_path: Path
) -> None:
    write_index(make_shards(images, tmp_path))
    change(tmp_path)
    with pytest.raises(DataError, match=said):
        open_split(spec(tmp_path), "train")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: [path.unlink() for path in root.glob("*.tar")], "no shards; expected plain tars such as"),
        (lambda root: [write_shard(path, []) for path in root.glob("*.tar")], "none of 8 shards has an image"),
        (
            lambda root: write_shard(root / "val-000.tar", [("a", {"png": b"", "json": b'{"label": 1}'})]),
            "different fields: train-000.tar has a .cls with the class, val-000.tar has a .json with the class; all",
        ),
        (
            lambda root: write_shard(root / "u.tar", [("a", {"png": b""})]),
            "u.tar has no class; all must have the class",
        ),
        (
            lambda root: (root / "classes.txt").write_text("one\ntwo"),
            "classes.txt: 2 names, but the shards have class 2",
        ),
    ],
)
def test_shards_that_are_no_set_are_refused(
    change: Callable[[Path], object], said: str, images: Path, tmp_path: Path
) -> None:
    change(make_shards(images, tmp_path))
    with pytest.raises(DataError, match=said):
        write_index(tmp_path)


def test_no_folder_and_no_shards_are_refused(images: Path) -> None:
    with pytest.raises(DataError, match="no such folder of shards"):
        open_split(spec("nowhere"), "train")
    with pytest.raises(DataError, match="shards stand alone"):
        open_split(DataSpec(source=["wds/one", "wds/two"]), "train")
