"""Training hypernetworks: stage 1 on one data set, stage 2 on several tasks, through the library and the commands."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learngene as lg
from hyper import PICO, SHORT, home, token_shape, train_fields, tune_fields, tuned, written
from learngene import Ancestry
from learngene.genes.gene import Learngene
from learngene.system.errors import InterruptedRun, LearngeneError
from pico import CLI, FAST, MIXED, make_ancestry, make_images, pico_gene

HARD: dict[str, Any] = {**MIXED, "drop_path": 0.2, "ema_decay": 0.7, "clip_grad": 1.0}
"""Everything that draws random numbers or keeps a state."""


def same(one: Learngene, other: Learngene) -> bool:
    return all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


def changed(one: Learngene, other: Learngene) -> set[str]:
    return {name for name, value in one.tensors().items() if not torch.equal(value, other.tensors()[name])}


@pytest.fixture(scope="module")
def stage2(
    tmp_path_factory: pytest.TempPathFactory, stage1: Path, ancestry_folder: Path, tasks: dict[str, Path]
) -> Path:
    """The gene file of a stage 2 of TAL; read only."""
    out = tmp_path_factory.mktemp("stage2") / "tuned"
    tuned(tune_fields(stage1, ancestry_folder, tasks, out))
    return out.with_name("tuned.safetensors")


# -- stage 1 -----------------------------------------------------------------------------------------------

STAGE1: dict[str, dict[str, Any]] = {
    "tal, M learned": {"hyper": {"meta_batch": 2, "guidance": {"map": "learned"}}},
    "tal as printed": {"hyper": {"guidance": {"preset": "paper"}}},
    "tal as coded": {"hyper": {"guidance": {"preset": "code"}}},
    "tal alone": {"ancestry": None, "hyper": {"guidance": {"preset": "none"}}},
    "logah": {"method": "logah", "settings": PICO, "ancestry": None},
    "ghn3": {"method": "ghn3", "settings": PICO, "ancestry": None, "hyper": {"meta_batch": 2}},
}


@pytest.mark.parametrize("changes", STAGE1.values(), ids=STAGE1)
def test_a_stopped_and_continued_stage_1_is_the_one_that_was_not(
    changes: dict[str, Any], images: Path, ancestry_folder: Path, tmp_path: Path, stop_at: Any
) -> None:
    whole = home(ancestry_folder, images, tmp_path / "whole", train=HARD, **changes)
    stop_at(signal.SIGINT, epoch=1)
    with pytest.raises(InterruptedRun):
        home(ancestry_folder, images, tmp_path / "stopped", train=HARD, **changes)
    assert not (tmp_path / "stopped.safetensors").exists()
    continued = home(ancestry_folder, images, tmp_path / "stopped", train=HARD, **changes)
    assert same(continued, whole)
    assert continued.metadata["accuracy"] == whole.metadata["accuracy"]
    assert same(lg.load(tmp_path / "stopped.safetensors"), whole)


def test_the_accuracy_of_stage_1_is_that_of_the_expanded_gene(images: Path, ancestry_folder: Path) -> None:
    gene = home(ancestry_folder, images, None)
    with pytest.warns(UserWarning, match="no task is given"):
        model = gene.expand()
    score: Any = lg.evaluate(model, {"source": str(images), "workers": 0})
    assert gene.metadata["accuracy"]["top1"] == round(score.top1, 4)
    assert gene.metadata["ancestry"]["sha256"] == Ancestry(ancestry_folder).identity["sha256"]


def test_stage_1_trains_everything_but_task_layers(images: Path, ancestry_folder: Path, stage1: Path) -> None:
    start = Learngene(lg.load(stage1).method, token_shape())
    still = {name for name in start.tensors() if ".scale." in name or ".shift." in name} | {"class_position"}
    assert set(start.tensors()) - changed(lg.load(stage1), start) == still


# -- stage 2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_a_stopped_and_continued_stage_2_is_the_one_that_was_not(
    freeze: bool, stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path, stop_at: Any
) -> None:
    def fields(out: str) -> dict[str, Any]:
        changes: dict[str, Any] = {"train": HARD, "freeze_encoder": freeze, "hyper": {"meta_batch": 2}}
        return tune_fields(stage1, ancestry_folder, tasks, tmp_path / out, **changes)

    whole = tuned(fields("whole"))
    stop_at(signal.SIGINT, epoch=1)
    with pytest.raises(InterruptedRun):
        tuned(fields("stopped"))
    assert not (tmp_path / "stopped.safetensors").exists()
    continued = tuned(fields("stopped"))
    assert same(continued, whole)
    assert continued.metadata["tasks"] == whole.metadata["tasks"]
    assert same(lg.load(tmp_path / "stopped.safetensors"), whole)


def test_a_run_of_another_gene_is_not_continued(
    stage1: Path, images: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """Made again under the same name: what is saved belongs to weights that are gone."""
    gene = tmp_path / "home.safetensors"
    gene.write_bytes(stage1.read_bytes())
    fields = tune_fields(gene, ancestry_folder, tasks, tmp_path / "run")
    before = tuned(fields)
    assert same(tuned(fields), before)
    home(ancestry_folder, images, tmp_path / "home", train={**FAST, "seed": 1})
    with pytest.raises(LearngeneError, match="run holds a run of another gene; choose another out"):
        tuned(fields)
    assert same(lg.load(tmp_path / "run.safetensors"), before)


def test_a_run_of_another_ancestry_is_not_continued(images: Path, tmp_path: Path) -> None:
    guide = make_ancestry(tmp_path / "guide")
    home(guide, images, tmp_path / "run")
    make_ancestry(tmp_path / "guide", depth=1)
    with pytest.raises(LearngeneError, match="run holds a run of another ancestry; choose another out"):
        home(guide, images, tmp_path / "run")


@pytest.mark.parametrize("freeze", [False, True])
def test_a_frozen_encoder_keeps_all_but_its_task_layers(
    freeze: bool, stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    before = lg.load(stage1)
    after = tuned(
        tune_fields(stage1, ancestry_folder, tasks, tmp_path / "run", freeze_encoder=freeze, train=SHORT), keep=False
    )
    layers = {name for name in before.tensors() if ".scale." in name or ".shift." in name}
    encoder = {name for name in before.tensors() if name.startswith("encoder.")} - layers
    expected = set(before.tensors()) - {"class_position"} - (encoder if freeze else set())
    assert changed(before, after) == expected


def test_a_gene_in_memory_is_not_changed(stage1: Path, ancestry_folder: Path, tasks: dict[str, Path]) -> None:
    gene, data = lg.load(stage1), {name: str(folder) for name, folder in tasks.items()}
    after = lg.tune(gene, Ancestry(ancestry_folder), tasks=data, show=False, **SHORT)
    assert same(gene, lg.load(stage1))
    assert "tasks" not in gene.metadata
    assert changed(gene, after)
    assert list(after.tasks()) == ["colours", "pair"]
    assert "stage1" in after.metadata["training"]
    again = lg.tune(stage1, ancestry_folder, tasks=data, show=False, **SHORT)
    assert same(after, again)


def test_recorded_accuracies_are_those_of_expanded_genes(stage2: Path, tasks: dict[str, Path]) -> None:
    gene = lg.load(stage2)
    assert [entry["task"] for entry in gene.metadata["tasks"]] == list(tasks)
    for entry in gene.metadata["tasks"]:
        model = gene.expand(task=entry["task"])
        assert model.num_classes == len(entry["classes"])
        assert model.learngene["class_names"] == entry["classes"]
        score: Any = lg.evaluate(model, {"source": str(tasks[entry["task"]]), "workers": 0})
        assert entry["top1"] == round(score.top1, 4)
    mean = sum(entry["top1"] for entry in gene.metadata["tasks"]) / 2
    assert gene.metadata["accuracy"]["top1"] == pytest.approx(mean, abs=1e-3)


def test_tuning_learns_its_tasks(ancestry_folder: Path, tasks: dict[str, Path], stage1: Path) -> None:
    data = {name: {"source": str(folder), "workers": 0} for name, folder in tasks.items()}
    gene = lg.tune(stage1, ancestry_folder, tasks=data, show=False, **{**FAST, "epochs": 14})
    assert {entry["task"]: entry["top1"] for entry in gene.metadata["tasks"]} == {"colours": 100.0, "pair": 100.0}


def test_embeddings_are_the_mean_features(ancestry_folder: Path, stage2: Path, tasks: dict[str, Path]) -> None:
    from learngene.data.batches import eval_loader
    from learngene.data.open_split import open_split
    from learngene.recipe.sections import DataSpec

    ancestry, gene = Ancestry(ancestry_folder), lg.load(stage2)
    for name, folder in tasks.items():
        given = ancestry.preprocessing
        spec = DataSpec(source=str(folder), workers=0, **{k: tuple(given[k]) for k in ("mean", "std")},
                        interpolation=given["interpolation"], crop_pct=given["crop_pct"])  # fmt: skip
        views: list[Tensor] = [x for x, _ in eval_loader(open_split(spec, "train"), spec, img_size=8, batch_size=3)]
        tokens = torch.cat([ancestry.model.forward_features(x) for x in views])  # type: ignore[operator]
        expected = tokens.mean(dim=1).mean(dim=0)  # this ancestry's head reads the mean of its tokens
        found = gene.tasks()[name]
        torch.testing.assert_close(torch.tensor(found.vector), expected.detach(), rtol=1e-5, atol=1e-6)
        assert found == lg.embed_task(ancestry, {"source": str(folder), "workers": 0}, name=name)
        assert (found.images, found.ancestry) == (len(tokens), ancestry.identity["sha256"])


@pytest.mark.parametrize("name", ["logah", "ghn3", "tal"])
def test_a_fresh_network_can_be_tuned(name: str, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path) -> None:
    """LoGAH v3, and TAL without its first stage."""
    settings = {**PICO, "task_dim": 16} if name == "tal" else PICO
    fields = {"method": name, "settings": settings, "shape": token_shape().to_dict(), "train": SHORT}
    guide = ancestry_folder if name == "tal" else None
    gene = tuned(tune_fields(None, guide, tasks, tmp_path / "run", **fields))
    assert same(gene, lg.load(tmp_path / "run.safetensors"))
    assert [entry["task"] for entry in gene.metadata["tasks"]] == ["colours", "pair"]
    assert all(("embedding" in entry) is (name == "tal") for entry in gene.metadata["tasks"])


# -- commands ----------------------------------------------------------------------------------------------


def test_both_stages_by_command(
    cli: CLI, images: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    first = cli(
        "condense", written(train_fields(ancestry_folder, images, tmp_path / "one", train=SHORT), tmp_path / "1")
    )
    assert first.code == 0, first.err
    gene = tmp_path / "one.safetensors"
    fields = tune_fields(gene, ancestry_folder, tasks, tmp_path / "two", train=SHORT)
    second = cli("tune", written(fields, tmp_path / "2.yaml"), "train.epochs=2")
    assert second.code == 0, second.err
    loaded = lg.load(tmp_path / "two.safetensors")
    assert loaded.metadata["training"]["epochs"] == 2
    assert all(f"{entry['task']}: top-1 {entry['top1']:.2f} %" in second.out for entry in loaded.metadata["tasks"])
    again = tuned({**fields, "train": FAST, "out": str(tmp_path / "three")})
    assert same(loaded, again)
    shown = cli("info", tmp_path / "two.safetensors")
    assert "colours" in shown.out, shown
    assert cli("plan", tmp_path / "two.safetensors").out.count("width") == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_expand_for_a_task_that_is_known_or_a_folder(
    cli: CLI, stage2: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    gene, unseen = lg.load(stage2), make_images(tmp_path / "unseen", classes=("a", "b", "c", "d"))
    named = cli("expand", stage2, "--out", tmp_path / "named", "--task", "pair", "--depth", 3)
    assert named.code == 0, named.err
    expected = gene.expand(3, task="pair").state_dict()
    found = Ancestry(tmp_path / "named")
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in expected.items())
    assert found.class_names == ["blue", "red"]
    assert cli("expand", stage2, "--out", tmp_path / "bare", "--task", "pair", "--num-classes", 0).code == 0
    assert Ancestry(tmp_path / "bare").model.num_classes == 0
    folder = cli("expand", stage2, "--out", tmp_path / "new", "--task", unseen, "--ancestry", ancestry_folder)
    assert folder.code == 0, folder.err
    embedding = lg.embed_task(str(ancestry_folder), str(unseen))
    expected = gene.expand(task=embedding).state_dict()
    found = Ancestry(tmp_path / "new")
    assert found.class_names == ["a", "b", "c", "d"]
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in expected.items())
    scored = cli("eval", tmp_path / "new", "--data", unseen)
    assert scored.code == 0, scored.err


def test_a_plan_for_a_task_counts_its_classes(stage2: Path) -> None:
    gene = lg.load(stage2)
    for name, task in gene.tasks().items():
        found = lg.plan(gene, task=name)
        assert {candidate.shape.num_classes for candidate in found} == {len(task.classes)}
        assert found[0].params == sum(p.numel() for p in gene.expand(found[0].shape, task=name).parameters())
    assert {candidate.shape.num_classes for candidate in lg.plan(gene, task="pair", num_classes=7)} == {7}


def test_tasks_that_expand_cannot_take(
    refused: Any, stage1: Path, stage2: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "x")
    assert "which was tuned on colours, pair; did you mean 'pair'" in refused("expand", stage2, *out, "--task", "pairs")
    assert "which was tuned on none" in refused("expand", stage1, *out, "--task", "pair")
    assert "--ancestry: only needed for the images of --task" in refused("expand", stage2, *out, "--ancestry", "x")
    other = make_ancestry(tmp_path / "other", depth=1)
    foreign = refused("expand", stage2, *out, "--task", tasks["pair"], "--ancestry", other)
    assert "--ancestry: must be the ancestry that the gene was trained under" in foreign
    assert "sha256" in foreign
    needless = refused("expand", stage2, *out, "--task", "pair", "--ancestry", other)
    assert "--ancestry: the gene has the embedding of task pair already; leave it out" in needless
    assert "--task: is empty; give images or a task of this gene: colours, pair" in refused(
        "expand", stage2, *out, "--task", ""
    )
    missing = tmp_path / "gone"
    assert "gone" in refused("expand", stage2, *out, "--task", tasks["pair"], "--ancestry", missing)
    plain = pico_gene()
    plain.save(tmp_path / "plain.safetensors")
    message = refused("expand", tmp_path / "plain.safetensors", *out, "--task", "pair")
    assert "--task: a gene of tleg predicts for no task; leave it out" in message
    assert not (tmp_path / "x").exists()


def test_a_loss_that_is_not_finite_ends_in_one_line(
    cli: CLI, stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    train = {**FAST, "lr": 1e30, "epochs": 3}
    fields = tune_fields(stage1, ancestry_folder, tasks, tmp_path / "run", train=train)
    result = cli("tune", written(fields, tmp_path / "r.yaml"))
    assert result.code != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("learngene: ")]
    assert "loss" in line
    assert "Traceback" not in result.err
    assert not (tmp_path / "run.safetensors").exists()


def test_a_descendant_prepares_images_as_its_task_did(
    ancestry_folder: Path, tasks: dict[str, Path], stage1: Path
) -> None:
    own = {"mean": [0.1] * 3, "std": [0.4] * 3, "interpolation": "bilinear"}
    given = {
        name: {"source": str(folder), "workers": 0, **(own if name == "pair" else {})} for name, folder in tasks.items()
    }
    gene = lg.tune(stage1, ancestry_folder, tasks=given, show=False, **SHORT)
    recorded = {task["task"]: task["top1"] for task in gene.metadata["tasks"]}
    for name, data in given.items():
        model = gene.expand(task=name)
        cfg = model.pretrained_cfg
        assert (list(cfg["mean"]) == own["mean"], cfg["interpolation"] == "bilinear") == ((name == "pair"),) * 2
        plain = {key: value for key, value in data.items() if key not in ("mean", "std")}
        assert lg.evaluate(model, plain).top1 == pytest.approx(recorded[name], abs=1e-3)
