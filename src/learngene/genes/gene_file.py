"""The gene file: one safetensors file with one JSON string of metadata. Reading never unpickles.

This module reads and checks the header, verifies the content and imports no torch; ``gene.py`` turns a checked
file into a ``Learngene``. The format is described in ``docs/format.md``; its number is ``Method.format_version``.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import xxhash

from learngene.genes.bridge import bridge_tensors
from learngene.methods import METHODS, Method, method
from learngene.system.errors import GeneFileError, LearngeneError
from learngene.vits.descendant_folder import WEIGHT_FILES, what_it_is
from learngene.vits.file_content import file_content
from learngene.vits.layout import Layout
from learngene.vits.shape import ViTShape

METADATA_KEY = "learngene"
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
"""safetensors' names of the storage types a gene may have, with their size in bytes."""

MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its type, shape and place, in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> TensorEntry:
        """Reads an entry of the header; ``ValueError`` unless its values have the types that safetensors writes."""
        found = cls(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        if not isinstance(found.dtype, str) or not all(type(n) is int for n in (*found.shape, found.begin, found.end)):
            raise ValueError("wrong types")
        return found


@dataclass(frozen=True)
class GeneHeader:
    """Everything a gene file says before its tensors.

    Attributes:
        path: Where the file lies.
        method: The method with the settings the gene was condensed with.
        shape: The auxiliary shape.
        metadata: The whole metadata, as documented in ``docs/format.md``.
        tensors: The table of tensors by name.
        data_start: Offset of the first tensor in the file, in bytes.
    """

    path: Path
    method: Method
    shape: ViTShape
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    data_start: int

    @property
    def stored_params(self) -> int:
        """Number of parameters the file stores, the papers' S-Params with every part counted."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """Size of the file in bytes."""
        return self.data_start + max((entry.end for entry in self.tensors.values()), default=0)


def read_header(path: str | Path) -> GeneHeader:
    """Reads and checks the header of a gene file; touches no tensor.

    Args:
        path: The gene file.

    Raises:
        GeneFileError: If the file is missing, is not safetensors (a pickle, say), is truncated, has another format
            version or method, or its tensors are not those that its method and shape require.
    """
    path = Path(path)
    embedded, tensors, data_start = _read_table(path)
    text = embedded.get(METADATA_KEY) if isinstance(embedded, dict) else None
    if text is None:
        inside = what_it_is(path) if path.name in WEIGHT_FILES else None
        some = f"{len(tensors)} tensors, the first is {next(iter(tensors))}" if tensors else "no tensors"
        inside = inside or f"its metadata has no '{METADATA_KEY}' entry; {some}"
        raise GeneFileError(f"{path}: a safetensors file, but not a gene ({inside})")
    try:
        metadata = json.loads(text)
        version = metadata["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GeneFileError(f"{path}: the gene's metadata is damaged; get or condense the file again") from None
    _refuse_version(path, version, metadata.get("method"))
    try:
        kind = method(metadata["method"], metadata["settings"])
        shape = ViTShape.from_dict(metadata["shape"])
        kind.refuse_auxiliary(shape)
        if shape.arch:
            shape.tell(Layout.from_dict(metadata["layout"]), proved=False)
    except LearngeneError as error:
        raise GeneFileError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise GeneFileError(f"{path}: the gene's metadata is damaged; get or condense the file again") from None
    check_metadata(path, metadata)
    result = GeneHeader(path, kind, shape, metadata, tensors, data_start)
    _check_tensors(result)
    return result


def _refuse_version(path: Path, version: object, name: object) -> None:
    """Refuses what another version of the format, or another reading of this method's tensors, would misread."""
    kind = METHODS.get(name) if isinstance(name, str) else None
    changes = kind.changes if kind else ()
    if version == 1 + len(changes):
        return
    if isinstance(version, int) and 1 <= version <= len(changes):
        raise GeneFileError(f"{path}: a gene of {name} of version {version}: {changes[version - 1]}; condense it again")
    raise GeneFileError(
        f"{path}: gene format version {version!r}, but this learngene reads version {1 + len(changes)}; "
        "use the learngene release that wrote it, or condense it again"
    )


def refuse_foreign_gene(path: Path, method: str | None = None) -> None:
    """Raises ``LearngeneError`` if another file stands where a gene shall be written.

    Args:
        path: Of the gene.
        method: Its method: a gene of another one is refused, too; by default any gene may be replaced.
    """
    if not path.exists():
        return
    try:
        found = read_header(path).method.name
    except GeneFileError as error:
        raise LearngeneError(f"{path} exists and is not a gene ({error}); choose another out") from None
    if method not in (None, found):
        raise LearngeneError(f"{path} exists and is a gene of {found}; choose another out")


def verify(header: GeneHeader) -> None:
    """Hashes the whole content and compares it with the digest in the metadata.

    Raises:
        GeneFileError: If any byte of a tensor, of the table or of the metadata differs from what was written.
    """
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _digest(header.metadata, header.tensors, memoryview(content)[header.data_start :])
    if found != header.metadata.get("digest"):
        raise GeneFileError(
            f"{header.path}: the content does not match its digest (a byte was changed); get or condense the file again"
        )


def refuse_damaged_table(header: GeneHeader) -> None:
    """Raises ``GeneFileError`` if tensors overlap or leave bytes out, which safetensors itself finds."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(header.path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise GeneFileError(f"{header.path}: the table of tensors is damaged ({str(error).splitlines()[0]})") from None


def not_finite(path: Path, name: str) -> GeneFileError:
    """What is raised if a tensor of a gene file has a NaN or an infinity."""
    return GeneFileError(f"{path}: {name} is not finite, so nothing good can come of it; make the gene again")


def seal(path: Path, metadata: Mapping[str, Any]) -> None:
    """Puts the metadata with its digest into a safetensors file that holds the tensors already.

    Args:
        path: A safetensors file whose metadata has a placeholder digest of the right length.
        metadata: The same metadata; only its ``digest`` is replaced.
    """
    _, tensors, data_start = _read_table(path)
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0) as content:
        with memoryview(content) as view, view[data_start:] as data:
            digest = _digest(dict(metadata), tensors, data)
        place = content.find(PLACEHOLDER.encode(), 0, data_start)
        content[place : place + len(digest)] = digest.encode()


PLACEHOLDER = "xxh3_128:" + "-" * 32


def _digest(metadata: dict[str, Any], tensors: Mapping[str, TensorEntry], data: memoryview) -> str:
    """XXH3 of the metadata without its digest, the table of tensors and all tensor bytes, in that order."""
    hasher = xxhash.xxh3_128()
    rest = {key: value for key, value in metadata.items() if key != "digest"}
    hasher.update(json.dumps(rest, sort_keys=True).encode())
    table = [[name, t.dtype, list(t.shape), t.begin, t.end] for name, t in sorted(tensors.items())]
    hasher.update(json.dumps(table).encode())
    hasher.update(data)
    data.release()
    return f"xxh3_128:{hasher.hexdigest()}"


def _read_table(path: Path) -> tuple[Any, dict[str, TensorEntry], int]:
    """The metadata and the table of tensors of a safetensors file, and the offset of the data behind them."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                # Read as a length, the first bytes of other files are far beyond any header.
                if content := file_content(path):
                    hint = "; give the folder that it was exported from" if content.startswith("an exported") else ""
                    hint = "; learngene never unpickles a gene" if content.endswith("a pickle") else hint
                    raise GeneFileError(f"{path}: {content}, not a gene file{hint}")
                raise GeneFileError(f"{path}: not a gene file, or truncated ({size} bytes)")
            header = json.loads(file.read(length))
        embedded = header.pop("__metadata__", None)
        tensors = {name: TensorEntry.of(entry) for name, entry in header.items()}
        expected = 8 + length + max((entry.end for entry in tensors.values()), default=0)
    except FileNotFoundError:
        raise GeneFileError(f"{path}: no such gene file") from None
    except IsADirectoryError:
        hint = what_it_is(path) or "a folder, not a gene, which is a .safetensors file"
        raise GeneFileError(f"{path}: {hint}") from None
    except OSError as error:
        raise GeneFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, GeneFileError):
            raise
        raise GeneFileError(f"{path}: the header is damaged; get or condense the file again") from None
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise GeneFileError(f"{path}: {state}: {size} bytes where the header says {expected}; get the file again")
    return embedded, tensors, 8 + length


def check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses optional entries whose type is not the documented one, so that whoever shows them need not ask.

    Raises:
        GeneFileError: For the first such entry.
    """
    for key in ("ancestry", "data", "training", "accuracy", "preprocessing"):
        if not isinstance(metadata.get(key, {}), dict):
            raise GeneFileError(f"{path}: metadata entry '{key}' must be a JSON object")
    if metadata.keys() & {"paths", "shapes", "search", "tasks", "bridge"}:
        from learngene.genes.metadata import fault_of_records

        if fault := fault_of_records(metadata):
            raise GeneFileError(f"{path}: metadata entry {fault}")
    entries: dict[str, dict[str, type | UnionType]] = {
        "ancestry": {"name": str, "tag": str, "sha256": str},
        "data": {"source": list},
        "accuracy": {"top1": int | float, "top5": int | float, "loss": int | float},
    }
    for key, fields in entries.items():
        for field, kinds in fields.items():
            value = metadata.get(key, {}).get(field)
            bad_list = isinstance(value, list) and not all(isinstance(item, str) for item in value)
            if value is not None and (not isinstance(value, kinds) or bad_list):
                raise GeneFileError(f"{path}: metadata entry '{key}.{field}' has the wrong type")


def _check_tensors(header: GeneHeader) -> None:
    """Refuses missing, extra and misshapen tensors, and types that are no floats."""
    path, expected = header.path, header.method.gene_tensors(header.shape)
    expected |= bridge_tensors(header.shape, header.metadata)
    if missing := [name for name in expected if name not in header.tensors]:
        raise GeneFileError(f"{path}: tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra := [name for name in header.tensors if name not in expected]:
        raise GeneFileError(f"{path}: unexpected tensor '{extra[0]}' ({len(extra)} in all)")
    for name, entry in header.tensors.items():
        if entry.shape != expected[name]:
            raise GeneFileError(f"{path}: tensor '{name}' has shape {entry.shape}, but should have {expected[name]}")
        if entry.dtype not in DTYPES:
            raise GeneFileError(f"{path}: tensor '{name}' has type {entry.dtype}; known: {', '.join(DTYPES)}")
        if entry.end - entry.begin != math.prod(entry.shape) * DTYPES[entry.dtype]:
            raise GeneFileError(f"{path}: tensor '{name}' has the wrong number of bytes; get the file again")
