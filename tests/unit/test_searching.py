"""Searching: paths, usage and selection, runs in memory and in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import learngene
import learngene.making.search.make as searching
import learngene.making.search.task_search as task_search
from comparisons import written
from learngene import Ancestry
from learngene.data.batches import eval_loader
from learngene.making.search.make import run
from learngene.making.search.paths import TaskPath, above, read_path, selected, soft_usage, usage
from learngene.making.search.task_search import SearchInputs, prepare, search_task, super_stage
from learngene.making.search.usage_map import usage_picture
from learngene.recipe.search import Routing, Selection
from learngene.system.errors import LearngeneError
from pico import CLI, FAST, condense_fields, make_images
from searches import path_of, search_fields, search_recipe


def prepared_of(ancestry: Path, sets: dict[str, Path], out: Path, **changes: Any) -> SearchInputs:
    return prepare(search_recipe(search_fields(ancestry, sets, out, **changes)))


def without_time(path: TaskPath) -> dict[str, Any]:
    return {key: value for key, value in vars(path).items() if key != "seconds"}


# -- paths and selection -----------------------------------------------------------------------------------


def test_half_of_the_samples_are_enough_for_the_base_block() -> None:
    path = path_of("a", [0.499999, 0.5, 1.0, 0.0])
    assert path.uses == (0, 1, 1, 0)
    assert path.base_layers == (2, 3)


PATHS = [
    path_of("a", [1.0, 1.0, 0.0, 0.6], [0.6, 0.5, 0.4, 0.5]),
    path_of("b", [1.0, 0.0, 0.0, 0.6], [0.6, 0.5, 0.4, 0.9]),
    path_of("c", [1.0, 0.0, 0.0, 0.2], [0.6, 0.1, 0.4, 0.4]),
    path_of("d", [0.2, 0.9, 0.0, 0.1], [0.2, 0.5, 0.4, 0.4]),
]
"""Used by 3, 2, 0 and 2 of four data sets; in probabilities, layer 4 is ahead of layer 2."""


def test_usage_is_counted_by_paths_and_summed_by_probabilities() -> None:
    assert usage(PATHS) == [3, 2, 0, 2]
    assert soft_usage(PATHS) == pytest.approx([2.0, 1.6, 1.6, 2.2])


@pytest.mark.parametrize(("tau", "layers"), [(0, (1, 2, 4)), (1, (1, 2, 4)), (2, (1,))])
def test_the_threshold_itself_is_not_enough(tau: int, layers: tuple[int, ...]) -> None:
    assert selected(PATHS, Selection(tau=tau), tau) == layers == above([3, 2, 0, 2], tau)


@pytest.mark.parametrize(("k", "layers"), [(1, (4,)), (2, (1, 4)), (3, (1, 2, 4)), (4, (1, 2, 3, 4))])
def test_the_most_probable_are_kept_and_ties_go_by_choices(k: int, layers: tuple[int, ...]) -> None:
    assert selected(PATHS, Selection(rule="top_k", k=k), 2) == layers


def test_an_empty_selection_says_which_thresholds_would_not_be() -> None:
    with pytest.raises(LearngeneError) as error:
        selected(PATHS, Selection(tau=3), 3)
    assert str(error.value) == (
        "select: no base block is used by more than tau=3 of 4 data sets (used by 3,2,0,2): tau=2 keeps 1; "
        "tau=1 keeps 1,2,4; tau=0 keeps 1,2,4; or use select.rule=top_k select.tau=null"
    )
    with pytest.raises(LearngeneError, match=r"no base block is used by any data set; or use select\.rule=top_k"):
        selected([path_of("a", [0.1, 0.2])], Selection(rule="threshold"), 0)


def test_a_path_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = path_of("a", [0.25, 1.0], [0.5, 0.75])
    path.write(tmp_path / "path.json")
    assert read_path(tmp_path) == path
    assert read_path(tmp_path / "none") is None


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something"}, {"version": 2}, {"share": [0.5]}, {"share": [], "soft": []}, {"share": ["x", 0.5]},
        {"share": [1.5, 0]}, {"soft": [float("nan"), 0]}, {"task": 3}, {"score": "high"}, {"epochs": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_path_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path_of("a", [0.25, 1.0]).write(tmp_path / "path.json")
    file = tmp_path / "path.json"
    for text in (json.dumps({**json.loads(file.read_text()), **change}), "", "[]", "{", "\x00"):
        file.write_text(text)
        with pytest.raises(LearngeneError) as error:
            read_path(tmp_path)
        assert str(error.value) == f"{file}: damaged; delete {tmp_path} to search this data set again"


def test_a_map_is_drawn_with_and_without_a_selection(tmp_path: Path) -> None:
    tasks = [{"task": name, "layers": [1], "share": [1.0, 0.2], "score": 50.0} for name in "ab"]
    for name, record in (("with", {"layers": [1]}), ("without", {})):
        usage_picture({"tasks": tasks, "usage": [2, 0], **record}, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# -- runs --------------------------------------------------------------------------------------------------


def test_a_search_in_memory_writes_nothing_and_keeps_the_ancestrys_blocks(
    ancestry: Path,
    sets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    vit = Ancestry(ancestry)
    before = {name: value.clone() for name, value in vit.model.state_dict().items()}
    tasks = {name: {"source": str(path), "workers": 0} for name, path in sets.items()}
    gene = learngene.search(vit, tasks=tasks, select={"rule": "top_k", "k": 3}, rates={"two": 1e-2}, show=False, **FAST)
    assert capsys.readouterr().out == ""
    record = gene.metadata["search"]
    assert [task["task"] for task in record["tasks"]] == list(sets)
    assert [task["lr"] for task in record["tasks"]] == [3e-3, 1e-2, 3e-3]
    assert [task["metric"] for task in record["tasks"]] == ["top-1", "top-1", "mean IoU"]
    assert record["layers"] == list(gene.method.layers)  # type: ignore[attr-defined]
    assert len(record["layers"]) == 3
    for layer in record["layers"]:
        for name, value in before.items():
            if name.startswith(f"blocks.{layer - 1}."):
                key = name.replace("blocks.", "layer", 1)
                assert torch.equal(gene.tensors()[key], value), name
    assert all(torch.equal(value, before[name]) for name, value in vit.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in vit.model.parameters())
    assert list(tmp_path.iterdir()) == []
    assert torch.isfinite(gene.expand(5, num_classes=2)(torch.zeros(1, 3, 8, 8))).all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rates": {"tow": 1.0}}, "rates: no data set 'tow' among two"),
        ({"processes": 2}, "several processes share a run folder; give out"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"tasks": ["two"]}, "search: tasks must be a mapping from names of data sets"),
        ({"rates": 1e-3}, "search: rates must be a mapping from names of data sets"),
        ({"select": "top_k"}, "select: Input should be"),
        ({"routing": "img"}, "routing: Input should be"),
    ],
    ids=str,
)
def test_what_python_is_given_by_mistake_is_refused_in_one_line(
    changes: dict[str, Any], line: str, ancestry: Path, sets: dict[str, Path]
) -> None:
    with pytest.raises(LearngeneError, match=line):
        learngene.search(ancestry, **{"tasks": {"two": str(sets["two"])}, **changes})


def test_processes_load_the_ancestry_themselves(ancestry: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match="every process loads the ancestry itself; give its timm name"):
        learngene.search(Ancestry(ancestry), tasks={"two": str(sets["two"])}, processes=2, out=tmp_path / "s")


@pytest.mark.parametrize(("route", "noise"), [("img", "gaussian"), ("batch", "literal"), ("img", "none")])
def test_a_path_is_read_without_noise(
    route: str, noise: str, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"routing": {"route": route, "noise": noise}}
    made = prepared_of(ancestry, {"two": sets["two"]}, tmp_path, **changes)
    net = super_stage(made, "two").module
    torch.manual_seed(3)
    for layer in net.layers:  # type: ignore[union-attr]
        torch.nn.init.normal_(layer.adapter.W1, std=2.0)
        torch.nn.init.normal_(layer.adapter.W2, std=2.0)
    loader = eval_loader(made.images["two"].val, made.specs["two"].data, img_size=8)
    found = [net.train().layer_usage(loader) for _ in range(2)]  # type: ignore[arg-type]
    assert found[0] == found[1]
    assert len({value for values in found[0] for value in values}) > 2
    path = search_task(made, "two", keep=False, show=False)
    again = search_task(made, "two", keep=False, show=False)
    assert without_time(path) == without_time(again)
    if noise == "none":  # ties go to the base block, whose copies then learn nothing
        assert path.base_layers == (1, 2, 3, 4)


def test_a_preference_for_base_blocks_raises_their_share(ancestry: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    soft = []
    for weight in (0.0, 5.0):
        changes = {"routing": {"prefer_base": weight}, "train": {"epochs": 6, "lr": 1e-2}}
        made = prepared_of(ancestry, {"colours": sets["colours"]}, tmp_path, **changes)
        soft.append(sum(search_task(made, "colours", keep=False, show=False).soft))
    assert soft[1] > soft[0] + 0.2


def test_a_literal_search_of_an_image_each_differs_from_the_default(
    ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    paths = []
    for routing in (
        {},
        {"route": "img"},
        {"noise": "literal"},
        {"gate": "two-branch", "noise": "gaussian"},
        {"descriptor": "vote"},
    ):
        made = prepared_of(ancestry, {"two": sets["two"]}, tmp_path, routing=routing, train={"epochs": 2})
        paths.append(search_task(made, "two", keep=False, show=False).soft)
    assert len(set(paths)) == len(paths)


def test_a_data_set_may_be_trained_in_its_own_way(ancestry: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    changes = {"tasks": {"two": {"train": {"lr": 1e-2, "epochs": 3}}}}
    recipe = search_recipe(search_fields(ancestry, sets, tmp_path / "s", **changes))
    done = run(recipe, show=False, say=lambda _: None)
    assert [(task["lr"], task["epochs"]) for task in done.metadata["search"]["tasks"]] == [
        (3e-3, 1),
        (1e-2, 3),
        (3e-3, 1),
    ]
    log = (recipe.task("two").out / "metrics.jsonl").read_text().splitlines()
    assert len(log) == 3


def test_images_of_another_size_are_searched_at_that_size(
    ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    made = prepared_of(ancestry, {"two": sets["two"]}, tmp_path, tasks={"two": {"data": {"img_size": 16}}})
    assert super_stage(made, "two").img_size == 16
    assert len(search_task(made, "two", keep=False, show=False).share) == 4


@pytest.mark.parametrize("name", ["two", "blocks"])
def test_a_searched_super_net_trains_specific_blocks_adapters_norm_and_head(
    name: str, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    made = prepared_of(ancestry, {name: sets[name]}, tmp_path, routing={"route": "img", "gate": "scale"})
    net = super_stage(made, name).module
    trained = {key for key, value in net.named_parameters() if value.requires_grad}
    assert all(
        ".specific." in key or ".adapter." in key or key.rpartition(".")[0].endswith(("norm", "fc_norm"))
        or key.startswith("model.head.") for key in trained
    )  # fmt: skip
    assert {key for key, _ in net.named_parameters() if ".specific." in key} <= trained
    assert all(layer.spec == Routing(route="img", gate="scale") for layer in net.layers)  # type: ignore[union-attr]


# -- what fails, and what is there already -----------------------------------------------------------------


def test_a_data_set_that_fails_does_not_lose_the_others(
    ancestry: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = search_recipe(search_fields(ancestry, sets, tmp_path / "s"))
    real = task_search.run_stage

    def full(stage: Any, *args: Any, **kwargs: Any) -> Any:
        if stage.name == "search colours":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.")
        if stage.name == "search two":
            raise MemoryError
        return real(stage, *args, **kwargs)

    monkeypatch.setattr(task_search, "run_stage", full)
    lines: list[str] = []
    with pytest.raises(LearngeneError) as error:
        run(recipe, show=False, say=lines.append)
    assert str(error.value).splitlines() == [
        "task colours: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); lower train.micro_batch, "
        "data.img_size or data.workers",
        "task two: out of memory (MemoryError); lower train.micro_batch, data.img_size or data.workers",
        "search: 1 of 3 data sets are searched; correct what failed and run the same command again",
    ]
    assert [line.partition(":")[0] for line in lines] == list(sets)
    assert not (tmp_path / "s.safetensors").exists()
    monkeypatch.setattr(task_search, "run_stage", real)
    lines.clear()
    run(recipe, show=False, say=lines.append)
    assert (tmp_path / "s.safetensors").exists()
    assert [line.partition(":")[0] for line in lines] == ["colours", "two"]


def test_an_error_of_ours_is_not_taken_for_a_data_sets(
    ancestry: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(task_search, "run_stage", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(search_recipe(search_fields(ancestry, sets, tmp_path / "s")), show=False, say=lambda _: None)


def test_paths_of_another_ancestry_or_other_images_are_refused_before_training(
    ancestry: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = search_recipe(search_fields(ancestry, sets, tmp_path / "s"))
    monkeypatch.setattr(searching, "search_task", None)
    folder = recipe.task("blocks").out
    prepared = prepare(recipe)
    identity, images = prepared.ancestry.identity["sha256"], prepared.data["blocks"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "recipe.yaml").touch()
    for change, line in (
        ({"ancestry": "0" * 64}, f"{folder} was searched with another ancestry; delete it, or choose another out"),
        ({"data": "0" * 16}, f"{folder} was searched with other images; delete it, or choose another out"),
        ({"task": "two"}, f"{folder / 'path.json'}: damaged; delete {folder} to search this data set again"),
        ({"share": (0.5,), "soft": (0.5,)}, f"{folder / 'path.json'}: damaged; delete {folder} to search this"),
    ):
        fields = {**path_of("blocks", [0.5] * 4).model_dump(), "ancestry": identity, "data": images, **change}
        TaskPath(**fields).write(folder / "path.json")
        with pytest.raises(LearngeneError) as error:
            run(recipe, show=False)
        assert str(error.value).startswith(f"task blocks: {line}")
        assert [path.name for path in (tmp_path / "s").rglob("*") if path.is_file() and path.stat().st_size] == [
            "path.json"
        ]


def test_a_path_is_refused_once_its_validation_images_differ(ancestry: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "mine")
    recipe = search_recipe(search_fields(ancestry, {"mine": folder}, tmp_path / "s"))
    run(recipe, show=False, say=lambda _: None)
    one = next((folder / "val" / "red").iterdir())
    one.rename(one.with_name("other.png"))
    with pytest.raises(LearngeneError, match="was searched with other images"):
        run(recipe, show=False, say=lambda _: None)


def test_folders_and_genes_of_other_commands_are_left_alone(
    cli: CLI, images: Path, ancestry: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    condense = written(
        tmp_path / "c.yaml", condense_fields(ancestry, images, tmp_path / "c", train={**FAST, "epochs": 1})
    )
    search = written(tmp_path / "s.yaml", search_fields(ancestry, {"two": sets["two"]}, tmp_path / "s"))
    assert cli("condense", condense).code == 0
    assert cli("search", search).code == 0
    for command, recipe, out, line in (
        ("search", search, "c", f"{tmp_path}/c.safetensors exists and is a gene of tleg"),
        ("condense", condense, "s", f"{tmp_path}/s.safetensors exists and is a gene of lsamd"),
    ):
        for each in (command, "check"):
            done = cli(each, recipe, f"out={tmp_path / out}")
            assert (done.code, done.err.splitlines()[-1]) == (2, f"learngene: {line}; choose another out")
    for name in ("c", "s"):
        (tmp_path / f"{name}.safetensors").unlink()
    assert "holds a condense run" in cli("search", search, f"out={tmp_path / 'c'}").err
    assert "holds a search run" in cli("condense", condense, f"out={tmp_path / 's'}").err
