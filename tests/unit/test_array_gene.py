"""Genes in numpy arrays: what they write is what torch and timm write, byte for byte."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_expand import CASES, METHODS, SHAPES, changed, gene_of

from hyper import HYPER, hyper_gene
from learngene import save_descendant
from learngene.genes.array_gene import ArrayGene
from learngene.genes.gene import STORAGE, Learngene
from learngene.genes.gene_file import read_header
from learngene.methods.blend import blend, fused_multiply_add
from learngene.system.errors import LearngeneError
from learngene.vits.stitched_shape import Shape
from pico import pico_gene, pico_shape

FILES = ("config.json", "learngene.json", "model.safetensors")


def assert_same_folder(gene: Learngene, shape: Shape, folder: Path, *, dtype: str = "float32", **choices: Any) -> None:
    """Writes the gene, expands the file both ways, and compares the folders' bytes."""
    gene.save(folder / "gene.safetensors", dtype=dtype)
    arrays = ArrayGene(read_header(folder / "gene.safetensors"))
    arrays.expand(shape, **choices).save(folder / "arrays")
    save_descendant(Learngene.load(folder / "gene.safetensors").expand(shape, **choices), folder / "model")
    for name in FILES:
        assert (folder / "arrays" / name).read_bytes() == (folder / "model" / name).read_bytes(), name
    fresh = bool(arrays.expand(shape, **choices).learngene["fresh"])
    resampled = shape.grid_size != gene.shape.grid_size
    assert arrays.needs_torch(shape, **{key: value for key, value in choices.items() if key != "seed"}) == (
        fresh or resampled or not gene.method.takes_arrays
    )


@pytest.mark.parametrize(("key", "what"), [case for case in CASES if case[0] != "scratch"][::2], ids=lambda part: part)
def test_a_folder_of_arrays_is_that_of_a_model(key: str, what: str, tmp_path: Path) -> None:
    assert_same_folder(gene_of(key), changed(pico_shape(), SHAPES[what]), tmp_path, seed=3, **METHODS[key][2])


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("key", ["tleg", "sws", "pool"])
def test_stored_types_are_read_alike(key: str, dtype: str, tmp_path: Path) -> None:
    gene = gene_of(key)
    assert_same_folder(gene, gene.shape.replace(depth=gene.shape.depth), tmp_path, dtype=dtype)


def test_what_the_file_says_of_images_and_classes_travels_along(tmp_path: Path) -> None:
    gene = pico_gene(in_chans=1, class_token=True)
    gene.metadata = {
        "ancestry": {"name": "levit_384"},
        "classes": ["cafe\u0301", "b", "c"],
        "preprocessing": {"mean": [0.1, 0.2, 0.4], "std": [0.4], "interpolation": "bilinear", "crop_pct": 1.0},
    }
    assert_same_folder(gene, gene.shape.replace(depth=3), tmp_path)


@pytest.mark.parametrize(
    "choices", [{"layers": [2]}, {"modules": ["msa", "ln"]}, {"layers": [], "modules": []}], ids=str
)
def test_layers_that_are_left_out_are_drawn_alike(choices: dict[str, Any], tmp_path: Path) -> None:
    assert_same_folder(gene_of("tleg"), gene_of("tleg").shape, tmp_path, seed=7, **choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"embed_dim": 32}, "embed_dim 16, not 32"), ({"depth": 3}, None), ({"order": "x"}, "expansion options")],
    ids=str,
)
def test_refusals_come_before_torch(changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    gene = gene_of("tleg")
    gene.save(tmp_path / "gene.safetensors")
    arrays, option = (
        ArrayGene(read_header(tmp_path / "gene.safetensors")),
        {k: v for k, v in changes.items() if k == "order"},
    )
    shape = gene.shape.replace(**{k: v for k, v in changes.items() if k != "order"})
    if message is None:
        assert not arrays.needs_torch(shape)
        return
    for step in (arrays.needs_torch, arrays.expand):
        with pytest.raises(LearngeneError, match=message):
            step(shape, **option)


def rounded_once(value: np.float32, coefficient: float, added: np.float32) -> np.float32:
    """The float32 number nearest to the exact result, by fractions; of two, the one whose last bit is 0."""
    exact = Fraction(float(value)) + Fraction(float(np.float32(coefficient))) * Fraction(float(added))
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view(np.int32)) & 1))


def test_a_sum_is_rounded_once() -> None:
    # (1 - 2^-18)(1 + 2^-18) = 1 - 2^-36, so the sum is 2^-60 below the middle between 1 + 2^-23 and 1 + 2^-22. Rounded
    # to 53 bits it is that middle, of which the even neighbour is above; rounded once, the number below is nearest.
    value, added = np.array([1 + 2**-23], np.float32), np.array([2**-24 * (1 + 2**-18)], np.float32)
    assert fused_multiply_add(value, 1 - 2**-18, added)[0] == np.float32(1 + 2**-23)
    assert np.float32(float(value[0]) + (1 - 2**-18) * float(added[0])) == np.float32(1 + 2**-22)
    random = np.random.default_rng(0)
    values, addeds = (random.standard_normal(2000).astype(np.float32) for _ in range(2))
    addeds[::3] *= np.float32(1e-7)
    values[::5], addeds[::5] = values[::5] * np.float32(1e-38), addeds[::5] * np.float32(1e-38)
    got = fused_multiply_add(values, 1 / 3, addeds)
    assert all(got[i] == rounded_once(values[i], 1 / 3, addeds[i]) for i in range(len(got)))


@pytest.mark.parametrize("size", [1, 7, 33, 70_001])
def test_arrays_are_blended_as_tensors_are(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tensors = [torch.randn(size, generator=generator) for _ in range(3)]
    rows = [[1.0, 1 / 3, 0.25], [0.5, 2 / 3, 11 / 12]]
    arrays = blend(rows, [value.numpy() for value in tensors])
    for array, tensor in zip(arrays, blend(rows, tensors), strict=True):
        assert np.array_equal(array.view(np.int32), tensor.numpy().view(np.int32))


@pytest.mark.filterwarnings("ignore:tal. no task is given")
@pytest.mark.parametrize("name", HYPER)
def test_a_hypernetwork_predicts_alike_without_a_model(name: str, tmp_path: Path) -> None:
    gene = hyper_gene(name)
    for number, changes in enumerate(({}, {"depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5})):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same_folder(gene, gene.shape.replace(**changes), folder)


COMMANDS = """
import sys
from learngene.cli import main
gene, out = sys.argv[1:]
for flags, absent in (([], {"torch", "timm", "pydantic"}), (["--num-classes", "5", "--img-size", "16"], {"timm"})):
    sys.argv = ["learngene", "expand", gene, "--depth", "3", *flags, "--out", out]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
    assert not absent & set(sys.modules), absent & set(sys.modules)
"""


@pytest.mark.slow
def test_expanding_imports_no_torch_unless_numbers_are_drawn_and_never_timm(tmp_path: Path) -> None:
    gene_of("tleg").save(tmp_path / "gene.safetensors")
    call = [sys.executable, "-c", COMMANDS, tmp_path / "gene.safetensors", tmp_path / "out"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 tensors start fresh" in done.stdout
