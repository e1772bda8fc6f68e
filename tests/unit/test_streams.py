"""Streams of Hugging Face's: written once into shards, they are a set like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from learngene.data.open_split import open_split
from learngene.data.shard_index import INDEX
from learngene.recipe.sections import DataSpec
from learngene.system.errors import DataError
from pico import CLI, COLOURS

NAMES = sorted(COLOURS)


def write_parquet(root: Path, images: Path, names: Iterable[str] = NAMES, **more: Any) -> Path:
    """The images of a folder in its order, two files to a split, with the columns image and label and ``more``."""
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    for folder, split in (("train", "train"), ("val", "validation")):
        paths = sorted(images.glob(f"{folder}/*/*.png"))
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
            "label": [NAMES.index(path.parent.name) for path in paths],
        }
        rows |= {name: rows[str(of)] for name, (of, _) in more.items()}
        features = datasets.Features({**kinds, **{name: kind for name, (_, kind) in more.items()}})
        whole = datasets.Dataset.from_dict(rows, features=features)
        for number in range(2):
            (root / "data").mkdir(parents=True, exist_ok=True)
            file = root / "data" / f"{split}-{number:05d}-of-00002.parquet"
            whole.shard(2, number, contiguous=True).to_parquet(file)
    return root


@pytest.fixture(scope="module")
def parquet(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub keeps most sets of images; read only."""
    return write_parquet(tmp_path_factory.mktemp("hub") / "colours", images)


def test_a_stream_becomes_what_a_folder_of_its_images_is(images: Path, parquet: Path, tmp_path: Path, cli: CLI) -> None:
    out = tmp_path / "shards"
    done = cli("index", f"hfids/{parquet}", "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        f"{out / INDEX}: 4 shards, 36 images, 3 classes",
        f"in a recipe: data.source=wds/{out.as_posix()}",
    ]
    for split in ("train", "val"):
        made, plain = (open_split(DataSpec(source=str(of)), split) for of in (f"wds/{out}", images))
        assert made.class_names == plain.class_names == NAMES
        assert list(made.labels) == list(plain.labels)
        assert [made.image(i).tobytes() for i in range(len(made))] == [
            plain.image(i).tobytes() for i in range(len(plain))
        ]


def test_a_stopped_stream_goes_on_with_the_files_that_are_missing(parquet: Path, tmp_path: Path, cli: CLI) -> None:
    call = ["index", f"hfids/{parquet}", "--out", tmp_path / "s", "--json"]
    assert cli(*call).code == 0
    lost, kept = (tmp_path / "s" / f"train-0000{number}-of-00002.tar" for number in range(2))
    content, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    outcome = json.loads(cli(*call).out.splitlines()[0])
    assert (outcome["event"], outcome["images"]) == ("outcome", 36)
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (content, time)


@pytest.mark.slow
def test_files_are_read_by_several_processes(parquet: Path, tmp_path: Path, cli: CLI) -> None:
    made = [tmp_path / f"{number}" for number in (1, 2)]
    for number, out in enumerate(made, start=1):
        assert cli("index", f"hfids/{parquet}", "--out", out, "--processes", number).code == 0
    one, other = ({path.name: path.read_bytes() for path in out.glob("*.tar")} for out in made)
    assert one == other


def test_columns_and_classes_are_the_sets(images: Path, tmp_path: Path, cli: CLI) -> None:
    datasets = pytest.importorskip("datasets")
    more = {"shade": ("label", datasets.ClassLabel(names=["z", "y", "x"])), "mask": ("image", datasets.Image())}
    root = write_parquet(tmp_path / "in", images, **more)
    call = ["index", f"hfids/{root}", "--out", tmp_path / "out"]
    assert cli(*call, "--label", "shade").code == 0
    assert open_split(DataSpec(source=f"wds/{tmp_path / 'out'}"), "train").class_names == ["z", "y", "x"]
    assert cli(*call, "--label", "label").err.endswith("holds another stream, see stream.json; choose another --out\n")


def test_a_file_that_is_damaged_is_named(images: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    root = write_parquet(tmp_path / "in", images)
    path = root / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    said = refused("index", f"hfids/{root}", "--out", tmp_path / "out")
    assert "file 2 of 2 of split train cannot be read (" in said
    assert not (tmp_path / "out" / INDEX).exists()


def test_other_columns_are_refused(images: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "in"
    call = ["index", f"hfids/{root}", "--out", tmp_path / "out"]
    write_parquet(root, images, kind=("label", datasets.ClassLabel(names=NAMES)))
    assert "has no column 'img'; it has image, label, kind; --image" in refused(*call, "--image", "img")
    assert "has no column of images; it has image, label, kind" in refused(*call, "--image", "kind")
    for path in root.rglob("*.parquet"):
        datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(path)
    assert "has no column of images; it has text" in refused(*call)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("index hfids/owner/name", "hfids/owner/name: say with --out where its shards shall be written"),
        ("index hfids/owner/name --out s --skip-corrupt", "--skip-corrupt: is of shards; a stream is read whole"),
        ("index shards --label fine", "--label: is of hfids/NAME; shards are indexed where they lie"),
    ],
)
def test_wrong_calls_are_refused(words: str, said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*words.split())


def test_a_stream_is_no_data_set_before_it_is_written() -> None:
    with pytest.raises(DataError, match=r"with `learngene index hfids/owner/name --out FOLDER`, and give wds/FOLDER"):
        open_split(DataSpec(source="hfids/owner/name"), "train")


def test_the_extra_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refused("index", "hfids/owner/name", "--out", tmp_path / "out")
    assert said == "learngene: data hfids/owner/name: package 'datasets' is missing; pip install 'learngene[data]'"
