"""The picture of a hypernetwork's graphs by task, and what the metadata of a tuned gene must hold."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import learngene as lg
from learngene.cli.pictures.tasks import task_picture
from learngene.genes.gene_file import check_metadata, read_header
from learngene.making.hyper.task_graphs import principal, task_graphs
from learngene.methods import method
from learngene.system.errors import GeneFileError, LearngeneError
from pico import CLI, FAST, make_images, pico_gene, pico_shape

SETTINGS: dict[str, Any] = {"size": "pico", "task_dim": 16, "architectures": [[1, 16, 2], [2, 16, 2], [4, 24, 2]]}


@pytest.fixture(scope="module")
def home() -> lg.Learngene:
    """A fresh gene of TAL, as after stage 1."""
    return lg.Learngene(method("tal", SETTINGS), pico_shape(depth=2, class_token=True))


@pytest.fixture(scope="module")
def tuned(home: lg.Learngene, ancestry_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a gene that was tuned for one epoch on two sets of two colours."""
    root = tmp_path_factory.mktemp("tuned")
    colours = {"warm": ("green", "red"), "cold": ("blue", "green")}
    tasks = {
        name: {"source": str(make_images(root / name, classes=classes)), "workers": 0}
        for name, classes in colours.items()
    }
    gene = lg.tune(home, ancestry_folder, tasks=tasks, show=False, **{**FAST, "epochs": 1})
    gene.save(root / "gene.safetensors")
    return root / "gene.safetensors"


def test_the_command_draws_the_graphs_of_every_task_and_depth(cli: CLI, tuned: Path, tmp_path: Path) -> None:
    done = cli("picture", tuned, "--out", tmp_path / "graphs.png")
    assert (done.code, done.out) == (0, f"{tmp_path / 'graphs.png'}\n")
    with Image.open(tmp_path / "graphs.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    found = task_graphs(tuned)
    assert (found.tasks, found.depths) == (("warm", "cold"), (1, 2, 4))
    assert found.points.shape == (2, 3, 2)
    assert 0 < found.shares[1] <= found.shares[0] <= 1
    assert sum(found.shares) <= 1 + 1e-9
    assert not np.allclose(found.points[0], found.points[1])


def test_without_task_layers_the_graphs_of_all_tasks_are_the_same(tuned: Path, tmp_path: Path) -> None:
    gene = lg.load(str(tuned))
    with torch.no_grad():
        for name, tensor in gene.tensors().items():
            if {"scale", "shift"} & set(name.split(".")):
                tensor.zero_()
    found = task_graphs(gene)
    np.testing.assert_array_equal(found.points[0], found.points[1])
    assert not np.allclose(found.points[0, 0], found.points[0, 1])
    task_picture(gene, tmp_path / "graphs.png")
    assert (tmp_path / "graphs.png").is_file()


def test_a_named_range_shows_the_depths_of_the_paper(tuned: Path) -> None:
    gene = lg.load(str(tuned))
    kind = method("tal", {**SETTINGS, "architectures": "laptop"})
    found = task_graphs(lg.Learngene(kind, gene.shape, gene.tensors(), metadata=gene.metadata))
    assert found.depths == tuple(range(3, 13))


def test_genes_without_tasks_are_refused_in_one_line(cli: CLI, home: lg.Learngene, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "graphs.png"
    home.save(tmp_path / "home.safetensors")
    done = cli("picture", tmp_path / "home.safetensors", "--out", out)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "home.safetensors: knows no tasks, only stage 1 was done; tune it" in done.err
    pico_gene("logah", {"size": "pico"}, class_token=True).save(tmp_path / "logah.safetensors")
    done = cli("picture", tmp_path / "logah.safetensors", "--out", out)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "a gene of method logah, which has no task layers" in done.err
    with pytest.raises(LearngeneError, match=r"^gene: a gene of method tleg, which has no task layers"):
        task_graphs(pico_gene("tleg"))
    done = cli("picture", tuned, "--out", out, "--path", "1+2")
    assert "is of tal, which has no paths; leave it out" in done.err
    assert not out.exists()


@pytest.mark.parametrize(("count", "shares"), [(1, (0.0, 0.0)), (2, (1.0, 0.0)), (3, None)])
def test_few_points_have_components_too(count: int, shares: tuple[float, float] | None) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, 5))
    points, found = principal(vectors)
    assert points.shape == (count, 2)
    assert sum(found) == pytest.approx(0.0 if count == 1 else 1.0)
    if shares:
        assert found == pytest.approx(shares)
    apart = [np.linalg.norm(each[:, None] - each[None], axis=-1) for each in (points, vectors)]
    np.testing.assert_allclose(*apart, atol=1e-12)
    np.testing.assert_array_equal(principal(vectors.copy())[0], points)


# -- the metadata ------------------------------------------------------------------------------------------

NO_NAME = "every task needs a printable name of its own"
DAMAGED: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "no name": (NO_NAME, lambda task: task.pop("task")),
    "a name of another's": (NO_NAME, lambda task: task.update(task="cold")),
    "a name that cannot be shown": (NO_NAME, lambda task: task.update(task="a\nb")),
    "source of a word": ("source", lambda task: task.update(source="folder")),
    "no classes": ("classes", lambda task: task.update(classes=[])),
    "mean of words": ("mean", lambda task: task.update(mean=["x"])),
    "std missing": ("std", lambda task: task.pop("std")),
    "std of nothing": ("std", lambda task: task.update(std=[0.0])),
    "top1 of words": ("top1", lambda task: task.update(top1="high")),
    "embedding of numbers": ("embedding", lambda task: task.update(embedding=[1.0])),
    "vector of words": ("embedding", lambda task: task["embedding"].update(vector=["x"])),
    "vector missing": ("embedding", lambda task: task["embedding"].pop("vector")),
    "another number": ("embedding", lambda task: task["embedding"]["vector"].__setitem__(0, 7.0)),
    "not finite": ("embedding", lambda task: task["embedding"]["vector"].__setitem__(0, float("nan"))),
    "preprocessing of words": ("embedding", lambda task: task["embedding"].update(preprocessing="x")),
    "images of words": ("embedding", lambda task: task["embedding"].update(images="many")),
    "fingerprint missing": ("embedding", lambda task: task["embedding"].pop("fingerprint")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_task_is_refused(case: str, tuned: Path) -> None:
    metadata = copy.deepcopy(read_header(tuned).metadata)
    check_metadata(Path("g"), metadata)
    what, damage = DAMAGED[case]
    name = metadata["tasks"][0]["task"]
    damage(metadata["tasks"][0])
    fault = what if what == NO_NAME else f"task {name}: its {what} is missing, damaged or not its own"
    with pytest.raises(GeneFileError, match=f"g: metadata entry 'tasks': {fault}, see docs/format"):
        check_metadata(Path("g"), metadata)


def test_tasks_are_a_list_of_objects(tuned: Path) -> None:
    metadata = read_header(tuned).metadata
    for wrong in ({}, "x", 3, None, [1]):
        with pytest.raises(GeneFileError, match="'tasks': must be a list of tuned tasks"):
            check_metadata(Path("g"), {**metadata, "tasks": wrong})
    without = [{key: value for key, value in task.items() if key != "embedding"} for task in metadata["tasks"]]
    check_metadata(Path("g"), {**metadata, "tasks": without})
