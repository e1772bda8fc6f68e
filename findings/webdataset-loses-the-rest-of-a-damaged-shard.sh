#!/usr/bin/env bash
# One changed byte in the header of the second of four samples, and webdataset reads one sample of the shard, without an
# error, a warning or a call of its handler, which by default raises. It reads with Python's tarfile as a stream, which
# takes a header whose checksum is wrong for the end of the archive, unless it is the first. A shard that is cut within a file
# raises; cut between two files it is short as silently. So a set can lack images and be trained on all the same. Counting
# samples per shard, or looking for the blocks of zeros that end a tar, tells.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
uv venv -q --python 3.11 "$work/env"
uv pip install -q --python "$work/env/bin/python" "webdataset==1.0.2" "numpy==2.4.6"
cd "$work"
"$work/env/bin/python" - 2>"$work/log" <<'P' || { tail -20 "$work/log"; exit 1; }
import importlib.metadata
import io
import tarfile
import warnings
from pathlib import Path

import webdataset

print("webdataset", importlib.metadata.version("webdataset"))
warnings.simplefilter("error")


def samples(content: bytes) -> str:
    Path("shard.tar").write_bytes(content)
    try:
        return " ".join(sample["__key__"] for sample in webdataset.WebDataset("shard.tar", shardshuffle=False))
    except Exception as error:
        return type(error).__name__


whole = io.BytesIO()
with tarfile.open(fileobj=whole, mode="w") as archive:
    for number in range(4):
        member = tarfile.TarInfo(f"{number}.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
content = whole.getvalue()
damaged = bytearray(content)
damaged[1024 + 150] ^= 1  # in the checksum of the second header; each sample takes two blocks of 512 bytes
seen = {
    "whole": samples(content),
    "byte in the second header": samples(bytes(damaged)),
    "cut behind the second sample": samples(content[:2048]),
    "cut within the third": samples(content[: 2048 + 514]),
}
for what, found in seen.items():
    print(f"{what}: {found}")
assert list(seen.values()) == ["0 1 2 3", "0", "0 1", "ReadError"], seen
P
