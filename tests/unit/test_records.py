"""Records: written once, and read only as what they are."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from learngene.comparing.claims.verdict_file import VerdictFile
from learngene.comparing.results import CellResult
from learngene.system.records import Record, RecordError

RESULTS = Path(__file__).parents[2] / "results"


class Note(Record):
    kind: ClassVar = "note"
    version: ClassVar = 1
    noun: ClassVar = "a note"

    text: str
    count: int = 0


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "damaged, it is no JSON"),
        ([], "not a note"),
        ({"kind": "other", "version": 1, "text": "x"}, "not a note"),
        ({"kind": "note", "version": 2, "text": "x"}, "damaged or of another version, 'version': 2 where 1 is read"),
        ({"kind": "note", "version": 1}, "has no entry 'text'"),
        ({"kind": "note", "version": 1, "text": 3}, "damaged, 'text': input should be a valid string"),
        ({"kind": "note", "version": 1, "text": "x", "count": "3"}, "damaged, 'count': input should be a valid int"),
    ],
)
def test_any_other_file_is_refused_in_one_line(content: Any, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RecordError) as error:
        Note.read(path)
    assert str(error.value).startswith(f"{path}: {fault}")
    assert len(str(error.value).splitlines()) == 1


def test_a_record_is_not_overwritten_unless_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.json"
    Note(text="a").write_new(path)
    lines = path.read_text().splitlines()
    assert lines[:-2] == ["{", ' "kind": "note",', ' "version": 1,', ' "text": "a",', ' "count": 0,']
    assert lines[-2].startswith(' "digest": "xxh3_128:')
    with pytest.raises(RecordError, match="exists already; it was not overwritten"):
        Note(text="b").write_new(path)
    assert Note.read(path) == Note(text="a")
    Note(text="b").write(path)
    assert Note.read(path).text == "b"
    with pytest.raises(RecordError, match="No such file"):
        Note.read(tmp_path / "none.json")


@pytest.mark.parametrize(("record", "pattern"), [(CellResult, "**/cells/*.json"), (VerdictFile, "**/claims/*.json")])
def test_committed_results_are_written_again_as_they_are(record: type[Record], pattern: str, tmp_path: Path) -> None:
    paths = sorted(RESULTS.glob(pattern))
    assert paths
    for path in paths[:: max(1, len(paths) // 50)]:
        record.read(path).write(tmp_path / "again.json")
        again, before = (json.loads(each.read_text()) for each in (tmp_path / "again.json", path))
        assert again.pop("digest").startswith("xxh3_128:")
        assert list(again.items()) == [item for item in before.items() if item[0] != "digest"]


def test_a_changed_value_is_noticed_and_other_spaces_are_not(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    Note(text="a", count=17).write(path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert Note.read(path).count == 17
    path.write_text(path.read_text().replace("17", "71"))
    with pytest.raises(RecordError, match="does not match its digest"):
        Note.read(path)
