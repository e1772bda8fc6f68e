"""Writing a gene file: whole or not at all."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from learngene.genes.gene_file import read_header
from learngene.methods import method
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file
from pico import pico_gene


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["os.fsync", "safetensors.torch.save_file", "pathlib.Path.replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.safetensors"
    pico_gene(seed=1).save(path)
    old = path.read_bytes()
    monkeypatch.setattr(place, no_space)
    with pytest.raises(LearngeneError, match=r"cannot write .*: no space left on the device; nothing was changed"):
        pico_gene(seed=2).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError(
            "[enforce fail at inline_container.cc:671] . unexpected pos 159040 vs 158928"
        ),  # seen on a full disk
    ],
    ids=["system", "safetensors", "torch"],
)
def test_a_full_disk_is_told_in_words_however_a_library_says_it(error: Exception, tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise error

    with pytest.raises(LearngeneError, match=r"cannot write .*: no space left on the device; nothing was changed"):
        write_file(tmp_path / "file", write)


def test_a_save_that_the_system_cuts_off_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path, large = tmp_path / "g.safetensors", pico_gene(embed_dim=64)
    pico_gene(seed=1).save(path)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(LearngeneError, match=f"^cannot write {path}: ") as error:
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(error.value).splitlines()) == 1
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "file/g.safetensors"])
def test_a_path_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LearngeneError, match="cannot write"):
        pico_gene().save(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("ancestry", "x"), ("ancestry", {"sha256": 5}), ("accuracy", {"top1": "a"}), ("data", {"source": [1]})],
)
def test_metadata_of_the_wrong_type_is_refused(tmp_path: Path, key: str, value: object) -> None:
    gene = pico_gene()
    gene.metadata[key] = value
    with pytest.raises(LearngeneError, match=key):
        gene.save(tmp_path / "gene.safetensors")
    assert not (tmp_path / "gene.safetensors").exists()


def test_saving_makes_the_folder(tmp_path: Path) -> None:
    pico_gene().save(tmp_path / "new" / "folder" / "g.safetensors")
    assert read_header(tmp_path / "new" / "folder" / "g.safetensors").method == method("tleg")


def test_a_gene_file_has_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        pico_gene().save(tmp_path / "g.safetensors")
    finally:
        os.umask(mask)
    assert (tmp_path / "g.safetensors").stat().st_mode & 0o777 == 0o640


def test_every_stored_tensor_changes_the_digest(tmp_path: Path) -> None:
    gene = pico_gene(embed_dim=8, depth=2)
    digests = set()
    for name in [None, *gene.tensors()]:
        if name:
            with torch.no_grad():
                gene.tensors()[name].view(-1)[-1] += 1
        gene.save(tmp_path / "g.safetensors")
        digests.add(gene.metadata["digest"])
    assert len(digests) == 1 + len(gene.tensors())
