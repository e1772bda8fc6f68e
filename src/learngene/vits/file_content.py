"""What a file is by its content, for messages about one that is not what was wanted."""

from __future__ import annotations

import zipfile
from pathlib import Path

PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
BEGINNINGS = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` fetches the file)",
    b"<!DOCTYPE html": "a web page",
    b"<?xml": "an XML file",
}


def file_content(path: Path) -> str | None:
    """What a file is, by its first bytes; None if they are none that are known."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        return _zip(path)
    if start.startswith(PICKLES):
        return "a pickle"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[:1] == b"\x08" and path.suffix == ".onnx":  # field 1 of protobuf, the version of ONNX
        return "an exported ONNX file"
    if start[4:8] == b"ET12":
        return "an exported program of ExecuTorch"
    return next((text for beginning, text in BEGINNINGS.items() if start.startswith(beginning)), None)


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive"
    if any(name.endswith("/data.pkl") for name in names):
        return "a checkpoint of torch, a pickle"
    return (
        "an exported program of torch" if any(name.endswith("/archive_format") for name in names) else "a zip archive"
    )
