"""Streams of Hugging Face's data sets, written once into shards: their images byte for byte, in their order.

A stream gives one image after the other. It could not give them in an order that seed and epoch alone decide, nor again
from where a run was stopped, however many processes share it; shards can. A file of the stream becomes a shard.
"""

from __future__ import annotations

import functools
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from learngene.data.file_kinds import says_image
from learngene.data.shard_index import CLASS_FILES, ShardIndex, write_index
from learngene.data.timm_sets import STREAMED
from learngene.system.errors import DataError
from learngene.system.files import refuse_foreign, write_file
from learngene.system.speech import counted

RECORD = "stream.json"


@dataclass(frozen=True)
class Stream:
    """What of a data set becomes shards.

    Attributes:
        name: On the hub, or its folder here.
        image: The column of images.
        label: The column of classes; None if it has none.
    """

    name: str
    image: str
    label: str | None

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"data {STREAMED}{self.name}"


def write_shards(
    name: str, out: Path, *, image: str | None = None, label: str | None = None, processes: int = 1
) -> ShardIndex:
    """Reads a stream once and writes its shards and their index; what an earlier call has written stays.

    Args:
        name: Of the data set on the hub, or a folder of its files.
        out: Folder to write.
        image: The column of images; by default the only one, or the one called ``image``.
        label: The column of classes; by default the only one, or the one called ``label`` or ``cls``.
        processes: That read files at the same time.

    Raises:
        DataError: If the data set cannot be opened or read, or its columns do not say what is what.
    """
    _opened.cache_clear()  # of an earlier call, since when the set may have changed
    splits = _opened(name)
    stream, names = _chosen(name, next(iter(splits.values())).features or {}, image, label)
    refuse_foreign(out, RECORD)
    said = json.dumps(asdict(stream))
    if (out / RECORD).exists() and (out / RECORD).read_text("utf-8") != said:
        raise DataError(f"{out}: holds another stream, see {RECORD}; choose another --out")
    write_file(out / RECORD, lambda temporary: temporary.write_text(said, "utf-8"))
    if names:
        text = "".join(f"{' '.join(each.split())}\n" for each in names)
        write_file(out / CLASS_FILES[0], lambda temporary: temporary.write_text(text, "utf-8"))
    files = [(split, number, rows.num_shards) for split, rows in splits.items() for number in range(rows.num_shards)]
    for _ in counted(f"{stream.where}: files", _written(stream, out, files, processes), len(files)):
        pass
    return write_index(out, processes=processes)


@functools.lru_cache(maxsize=1)
def _opened(name: str) -> dict[str, Any]:
    """The streams of a data set by split."""
    try:
        from datasets import disable_progress_bars, load_dataset
        from datasets.utils.logging import CRITICAL, set_verbosity
    except ImportError:
        raise DataError(
            f"data {STREAMED}{name}: package 'datasets' is missing; pip install 'learngene[data]'"
        ) from None
    set_verbosity(CRITICAL)  # what it would log is raised, too
    disable_progress_bars()
    try:
        return dict(load_dataset(name, streaming=True))
    except Exception as error:  # of the network, of files, of what a repository lacks
        raise DataError(f"data {STREAMED}{name}: cannot be opened ({_reason(error)})") from None


def _chosen(name: str, features: dict[str, Any], image: str | None, label: str | None) -> tuple[Stream, list[str]]:
    """The columns to read, and the names of classes that are numbers, if it has any."""
    from datasets import ClassLabel
    from datasets import Image as Images

    def one(flag: str, given: str | None, found: list[str], usual: tuple[str, ...]) -> str | None:
        if given is not None and given not in features:
            raise DataError(f"data {STREAMED}{name}: has no column '{given}'; it has {', '.join(features)}; {flag}")
        picked = given or next((column for column in usual if column in found), None)
        if picked is None and len(found) > 1:
            raise DataError(f"data {STREAMED}{name}: say with {flag} which of the columns {', '.join(found)} counts")
        return picked or next(iter(found), None)

    images = [column for column, kind in features.items() if isinstance(kind, Images)]
    picked = one("--image", image, images, ("image",))
    if picked not in images:
        raise DataError(f"data {STREAMED}{name}: has no column of images; it has {', '.join(features) or 'none'}")
    classes = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    plain = [column for column in features if column in ("label", "cls")]
    column = one("--label", label, classes or plain, ("label", "cls"))
    kind = features[column] if column else None
    return Stream(name, str(picked), column), list(kind.names) if isinstance(kind, ClassLabel) else []


def _written(stream: Stream, out: Path, files: list[tuple[str, int, int]], processes: int) -> Iterator[Path]:
    if processes == 1:
        for file in files:
            yield _write_shard(stream, out, *file)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            yield from pool.map(_write_shard, *zip(*((stream, out, *file) for file in files), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)


def _write_shard(stream: Stream, out: Path, split: str, number: int, of: int) -> Path:
    """Writes what one file of a split holds, whole or not at all."""
    path = out / f"{split}-{number:05d}-of-{of:05d}.tar"
    if not path.exists():
        rows = _rows(stream, split, number, of)
        write_file(path, lambda temporary: _pack(temporary, rows))
    return path


def _rows(stream: Stream, split: str, number: int, of: int) -> Iterator[tuple[dict[str, Any] | None, Any]]:
    """The images of a file with their classes, not decoded."""
    from datasets import Image as Images

    try:
        rows = _opened(stream.name)[split].shard(of, number)
        rows = rows.select_columns([column for column in (stream.image, stream.label) if column])
        for row in rows.cast_column(stream.image, Images(decode=False)):
            yield row[stream.image], row[stream.label] if stream.label else None
    except Exception as error:  # of the network, of pyarrow, of whatever unpacks the files
        where = f"{stream.where}: file {number + 1} of {of} of split {split}"
        raise DataError(f"{where} cannot be read ({_reason(error)}); the same command goes on with it") from None


def _pack(path: Path, rows: Iterator[tuple[dict[str, Any] | None, Any]]) -> None:
    with tarfile.open(path, "w") as archive:
        for number, (image, label) in enumerate(rows):
            fields = {}
            if image is not None:
                content = _content(image)
                fields[_suffix(str(image["path"] or ""), content)] = content
            if label is not None and label != -1:  # how Hugging Face marks images whose class is kept secret
                fields["cls"] = str(label).encode()
            for suffix, data in fields.items():
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            archive.members.clear()  # type: ignore[attr-defined]  # which would grow with the shard


def _content(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    import fsspec

    with fsspec.open(image["path"], "rb") as file:  # a stream of folders gives paths, here or on the hub
        return bytes(file.read())


def _suffix(name: str, content: bytes) -> str:
    """The suffix of an image: that of its name, or what its content says."""
    base = posixpath.basename(name).lower()
    if says_image(base):
        return base.rpartition(".")[2]
    try:
        kind = (Image.open(io.BytesIO(content)).format or "").lower()
    except (OSError, ValueError):
        kind = ""
    return kind if says_image(f"x.{kind}") else "jpg"  # a broken image is found where images are counted


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
