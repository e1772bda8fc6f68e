"""The picture of a pool: what is drawn of a gene file's header, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learngene import save_descendant, scratch
from learngene.cli.pictures.pool import pool_picture
from learngene.system.errors import GeneFileError, LearngeneError
from pico import CLI, pico_gene, pico_shape
from pools import POOLS, full_names, pool


@pytest.fixture
def gene_file(tmp_path: Path) -> Path:
    """Two rows of three blocks, without scores."""
    pool().save(tmp_path / "gene.safetensors")
    return tmp_path / "gene.safetensors"


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a whole PNG that shows something."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
        return image.size


@pytest.mark.parametrize(("name", "settings"), POOLS.values(), ids=POOLS)
def test_every_kind_of_pool_is_drawn(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pool(name, settings).save(tmp_path / "gene.safetensors")
    pool_picture(tmp_path / "gene.safetensors", tmp_path / "pool.png")
    assert min(size_of(tmp_path / "pool.png")) > 100


def test_measured_paths_get_a_plot_beside_the_rows(gene_file: Path, tmp_path: Path) -> None:
    gene = pool()
    gene.metadata["paths"] = [
        {"path": name, "blocks": "1+1", "top1": 50.0 + at} for at, name in enumerate(full_names(gene))
    ]
    gene.save(tmp_path / "measured.safetensors")
    gene.metadata["paths"] = gene.metadata["paths"][:1]
    gene.save(tmp_path / "partly.safetensors")
    for path in (gene_file, tmp_path / "measured.safetensors", tmp_path / "partly.safetensors"):
        pool_picture(path, path.with_suffix(".png"))
    plain, measured, partly = (size_of(tmp_path / f"{name}.png") for name in ("gene", "measured", "partly"))
    assert measured == partly
    assert measured[0] > plain[0] + 300


def test_the_command_draws_a_pool_and_highlights_a_path(cli: CLI, gene_file: Path, tmp_path: Path) -> None:
    pictures = []
    for flags in ([], ["--path", "1+2"], ["--path", "16:1-1+32:2-3"], ["--path", "0+3"]):
        done = cli("picture", gene_file, "--out", tmp_path / "pool.png", *flags)
        assert (done.code, done.out) == (0, f"{tmp_path / 'pool.png'}\n")
        size_of(tmp_path / "pool.png")
        pictures.append((tmp_path / "pool.png").read_bytes())
    assert pictures[1] == pictures[2]
    assert len({pictures[1], pictures[3]}) == 2


def test_what_has_no_rows_or_no_such_path_is_refused(cli: CLI, gene_file: Path, tmp_path: Path) -> None:
    pico_gene("tleg").save(tmp_path / "tleg.safetensors")
    out = tmp_path / "pool.png"
    with pytest.raises(
        LearngeneError,
        match="of method tleg, trained at one shape, which has nothing to draw; pictures of layers",
    ):
        pool_picture(tmp_path / "tleg.safetensors", out)
    with pytest.raises(LearngeneError, match=r"^pool: the pool has no path 3\+3; the nearest of its 9 paths are"):
        pool_picture(gene_file, out, "3+3")
    with pytest.raises(GeneFileError, match="no such gene file"):
        pool_picture(tmp_path / "none.safetensors", out)
    done = cli("picture", tmp_path / "tleg.safetensors", "--out", out)
    assert done.code != 0
    assert done.err.count("\n") == 1
    done = cli("picture", tmp_path, "--out", out, "--path", "1+2")
    assert done.err == f"learngene: --path 1+2: only the gene file of a pool has paths, and {tmp_path} is not one\n"
    assert not out.exists()


def test_weights_that_are_no_numbers_are_not_drawn(refused: Callable[..., str], tmp_path: Path) -> None:
    model = scratch(pico_shape())
    model.blocks[0].mlp.fc1.weight.data[0, 0] = float("inf")
    save_descendant(model, tmp_path / "model")
    assert "is not finite" in refused("picture", tmp_path / "model", "--out", tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
