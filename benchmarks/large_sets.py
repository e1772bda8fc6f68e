"""Large sets: shards against the folder that they were made of, in CPU time, and the memory and time of many images.

Throughput is that of whole epochs of a run's batches on a warm cache, of one process and thread, each round both. Many
images are 1,000,000 samples of a few bytes in 100 shards, of which an epoch's order is made and a thousand batches are
read, and 1,300,000 empty files in 1,000 class folders; both are deleted at the end, and need 3 GB meanwhile. Memory is
the highest that a process has held above what it held behind the imports.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import finish, paired_rounds, ratio, target
from loader import IMAGES, draw_images, ours
from PIL import Image

ROUNDS, SHARDS, PER_SHARD = 15, 100, 10_000
CLASSES, PER_CLASS = 1_000, 1_300
MEMORY = """
import sys, time
import torch
from learngene.data.batches import TrainBatches
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec, Train

def held(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

before, start = held("VmRSS"), time.process_time()
spec = DataSpec(source=sys.argv[1], workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)
splits = open_splits(spec)
opened = time.process_time()
splits.train.fingerprint()
printed = time.process_time()
if sys.argv[2] != "0":
    train = Train(batch_size=64, augment={"preset": "none"})
    batches = TrainBatches(splits.train, spec, train, img_size=8)
    assert sum(1 for _ in batches.epoch(0, end=int(sys.argv[2]))) == int(sys.argv[2])
print(held("VmHWM") - before, opened - start, printed - opened)
"""


def main() -> None:
    times: dict[str, list[float]] = {}
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for label, size in IMAGES.items():
            root = Path(name) / label.replace(" ", "")
            draw_images(root / "plain", size)
            pack(root / "plain", root / "shards")
            index(root / "shards")
            light = {"preset": "light"}
            cases = {"folder": ours(root / "plain", light), "shards": ours(f"wds/{root / 'shards'}", light)}
            own = paired_rounds(cases, ROUNDS)
            times |= {f"{label}: {case}": values for case, values in own.items()}
            targets.append(target(f"{label}: shards over folder", ratio(own, "shards", "folder"), 1 / 0.95))
        root = Path(name) / "many"
        tiny(root)
        times["index 1,000,000 samples"] = [index(root)]
        memory, opening, printing = measured(f"wds/{root}", 1_000)
        targets.append(target("1,000,000 samples in shards: MB above the imports", memory, 300))
        times |= {"open 1,000,000 samples": [opening], "fingerprint of 1,000,000 samples": [printing]}
        root = Path(name) / "files"
        empty(root)
        memory, opening, printing = measured(str(root), 0)
        targets.append(target("1,300,000 files: CPU seconds to list and fingerprint", opening + printing, 5))
        targets.append(target("1,300,000 files: MB above the imports", memory, 200))
        times |= {"list 1,300,000 files": [opening], "fingerprint of 1,300,000 files": [printing]}
    finish("large_sets", times, targets, rounds=ROUNDS)


def pack(folder: Path, root: Path) -> None:
    """The images of a folder in its order, 32 to a shard."""
    root.mkdir()
    for split in ("train", "val"):
        paths = sorted((folder / split).rglob("*.jpg"))
        for number in range(0, len(paths), 32):
            with tarfile.open(root / f"{split}-{number // 32:06d}.tar", "w") as archive:
                for path in paths[number : number + 32]:
                    add(archive, f"{path.parent.name}-{path.stem}.jpg", path.read_bytes())
                    add(archive, f"{path.parent.name}-{path.stem}.cls", path.parent.name.encode())


def tiny(root: Path) -> None:
    """A million samples with the same image."""
    root.mkdir()
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "png")
    for shard in range(SHARDS):
        split = "val" if shard == SHARDS - 1 else "train"
        with tarfile.open(root / f"{split}-{shard:06d}.tar", "w") as archive:
            for number in range(PER_SHARD):
                add(archive, f"{shard:06d}{number:06d}.png", content.getvalue())
                add(archive, f"{shard:06d}{number:06d}.cls", str(number % 1000).encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    archive.members.clear()  # type: ignore[attr-defined]


def empty(root: Path) -> None:
    """Empty files, as many as ImageNet has images."""
    for split, count in (("train", PER_CLASS - 50), ("val", 50)):
        for label in range(CLASSES):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"n{label:08d}_{number}.JPEG").touch()


def index(root: Path) -> float:
    """Writes an index, in seconds of CPU."""
    from learngene.data.shard_index import write_index

    start = time.process_time()
    write_index(root)
    return time.process_time() - start


def measured(source: str, batches: int) -> tuple[float, float, float]:
    """MB above the imports, and CPU seconds to open a set and to make its fingerprint."""
    command = [sys.executable, "-c", MEMORY, source, str(batches)]
    memory, opening, printing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return float(memory), float(opening), float(printing)


if __name__ == "__main__":
    main()
