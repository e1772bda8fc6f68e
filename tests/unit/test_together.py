"""Several genes in one pass: each is the one that it would be alone, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hyper import written
from learngene import Ancestry, LearngeneError, condense, condense_together
from learngene.genes.gene import Learngene
from learngene.making.together import SomeGenesFailedError
from learngene.recipe.genes import GenesRecipe
from learngene.recipe.loading import build_recipe
from learngene.system.errors import InterruptedRun
from learngene.training.student import Student
from pico import CLI, FAST, condense_fields, pico_shape
from runs import HARD, condensed, metrics, same, state

SHARED: dict[str, Any] = {"method": "tleg", "shape": pico_shape().to_dict(), "train": {**HARD, "micro_batch": 4}}
GENES: dict[str, dict[str, Any]] = {
    "one": {},
    "other": {"method": "sws", "settings": {"stages": [2, 2]}, "distill": {"alpha": 0.5}, "train": {"lr": 1e-3}},
    "shallow": {"depths": [2, 4], "train": {"ema_decay": None, "clip_grad": None, "eval_every": 2}},
}
FEATURES: dict[str, dict[str, Any]] = {
    "pooled": {"features": {"tokens": ["pooled"]}},
    "both": {"method": "sws", "settings": {"stages": [2, 2]}, "features": {"tokens": ["pooled", "patches"]}},
}
TAUGHT: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any]]] = {
    "logits": (GENES, {}),
    "features": (FEATURES, {"shape": pico_shape(num_classes=0).to_dict(), "distill": {"target": "features"}}),
}


def together(genes: Any, images: Path, ancestry: Any, out: Path | None = None, **shared: Any) -> dict[str, Learngene]:
    data = {"source": str(images), "workers": 0}
    return condense_together(ancestry, genes, data=data, out=out, show=False, **{**SHARED, **shared})


def alone(own: dict[str, Any], images: Path, ancestry: Any, out: Path | None = None, **shared: Any) -> Learngene:
    given = {**SHARED, **shared}
    return condensed(out, images, ancestry, **{**given, **own, "train": {**given["train"], **own.get("train", {})}})


def asked(ancestry: Ancestry) -> list[int]:
    """Filled with the batches that an ancestry sees while students learn, not while they are judged."""
    seen: list[int] = []
    note = lambda _module, inputs: seen.append(len(inputs[0])) if not torch.is_inference_mode_enabled() else None  # noqa: E731
    ancestry.model.patch_embed.register_forward_pre_hook(note)
    return seen


def told(gene: Learngene) -> dict[str, Any]:
    """Its metadata, without what depends on the clock."""
    kept = {key: value for key, value in gene.metadata.items() if key not in ("training", "digest")}
    return kept | {key: gene.metadata["training"][key] for key in ("updates", "images", "recipe")}


@pytest.mark.parametrize(("genes", "shared"), TAUGHT.values(), ids=TAUGHT)
@pytest.mark.parametrize("stored", [False, True], ids=["asked", "stored"])
def test_each_gene_is_the_one_it_is_alone(
    genes: dict[str, Any], shared: dict[str, Any], stored: bool, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    teacher = Ancestry(ancestry_folder)
    given = dict(shared)
    if stored:
        replay = {"folder": str(tmp_path / "store"), "patches": "target" in shared.get("distill", {})}
        given["distill"] = {**shared.get("distill", {}), "replay": replay}
    seen = asked(teacher)
    made = together(genes, images, teacher, tmp_path / "together", **given)
    batches = seen.count(4)
    assert list(made) == list(genes)
    for name, own in genes.items():
        gene = alone(own, images, Ancestry(ancestry_folder), tmp_path / "alone" / name, **shared)
        assert same(state(made[name]), state(gene)), name
        assert told(made[name]) == told(gene)
        assert metrics(tmp_path / "together" / name) == metrics(tmp_path / "alone" / name)
        assert same(state(Learngene.load(tmp_path / "together" / f"{name}.safetensors")), state(gene))
    assert batches == 2 * 2 * 3  # epochs, parts and steps, once for all genes


def test_genes_that_stand_at_different_steps_meet(
    images: Path, ancestry_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gene goes on alone to the end, then the others from the midst of the first epoch; a third starts there."""
    stopped, step = {name: GENES[name] for name in ("one", "other")}, Student.step

    def stop(student: Student, *given: Any) -> None:
        step(student, *given)
        if student.stage.name == "gene one" and student.progress.updates == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "step", stop)
        with pytest.raises(InterruptedRun, match="epoch 1, step 2"):
            together(stopped, images, ancestry_folder, tmp_path / "run")
    together({"one": {}}, images, ancestry_folder, tmp_path / "run")
    made = together(GENES, images, ancestry_folder, tmp_path / "run")
    for name, own in GENES.items():
        assert same(state(made[name]), state(alone(own, images, Ancestry(ancestry_folder)))), name


def test_a_gene_that_diverges_leaves_the_others_alone(
    images: Path, ancestry_folder: Path, tmp_path: Path, cli: CLI
) -> None:
    genes = {"wild": {"train": {"lr": 1e30, "clip_grad": None}}, **GENES}
    fields = condense_fields(ancestry_folder, images, tmp_path / "run", **SHARED, genes=genes)
    done = cli("condense", written(fields, tmp_path / "recipe.yaml"))
    assert done.code == 2
    assert "gene wild: the loss became nan in epoch" in done.err
    assert done.out.count("at the auxiliary shape, 6 steps") == 3
    assert "the loss became nan" in json.loads((tmp_path / "run" / "wild" / "result.json").read_text())["error"]
    assert not (tmp_path / "run" / "wild.safetensors").exists()
    for name, own in GENES.items():
        gene = alone(own, images, Ancestry(ancestry_folder))
        assert same(state(Learngene.load(tmp_path / "run" / f"{name}.safetensors")), state(gene)), name


def test_a_gene_without_memory_goes_on_alone(
    images: Path, ancestry_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Student.step

    def full(student: Student, *given: Any) -> None:
        if student.stage.name == "gene other" and student.progress.updates == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        step(student, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "step", full)
        with pytest.raises(SomeGenesFailedError, match=r"^gene other: out of memory .*micro_batch") as failed:
            together(GENES, images, ancestry_folder, tmp_path / "run")
    whole = {name: state(alone(own, images, Ancestry(ancestry_folder))) for name, own in GENES.items()}
    assert sorted(failed.value.made) == ["one", "shallow"]
    assert all(same(state(each.gene), whole[name]) for name, each in failed.value.made.items())
    again = together(GENES, images, ancestry_folder, tmp_path / "run")
    assert all(same(state(again[name]), whole[name]) for name in GENES)


def test_a_recipe_says_what_is_shared_and_what_is_not(
    images: Path, ancestry_folder: Path, tmp_path: Path, cli: CLI
) -> None:
    fields = condense_fields(ancestry_folder, images, tmp_path / "run", **SHARED, genes={**GENES, "gone": None})
    recipe = build_recipe(fields)
    assert isinstance(recipe, GenesRecipe)
    assert {name: (one.method, one.train.lr, one.out.name) for name, one in recipe.genes.items()} == {
        "one": ("tleg", HARD["lr"], "one"),
        "other": ("sws", 1e-3, "other"),
        "shallow": ("tleg", HARD["lr"], "shallow"),
    }
    checked = cli("check", written(fields, tmp_path / "recipe.yaml"), "genes.other.train.lr=2e-3")
    assert checked.code == 0
    assert "other: gene: sws at" in checked.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("genes", "line"),
    [
        (
            {"b": {"train": {"seed": 1}}},
            "genes.b: train.seed is 1, but 0 in genes.a; genes of one pass see the same",
        ),
        ({"b": {"train": {"batch_size": 4}}}, "genes.b: train.batch_size is 4, but 8 in genes.a"),
        ({"b": {"train": {"epochs": 3}}}, "genes.b: train.epochs is 3, but 2 in genes.a"),
        ({"b": {"train": {"augment": {"hflip": 0.1}}}}, "genes.b: train.augment.hflip is 0.1, but 0.0 in genes.a"),
        ({"b": {"distill": {"replay": "store"}}}, "genes.b: distill.replay is folder="),
        ({"b": {"shape": {"img_size": 16}}}, "genes.b: shape.img_size is 16, but 8 in genes.a"),
        ({"b": {"data": {}}}, "genes.b: unknown key 'data'"),
        ({"b": {"methd": "sws"}}, "genes.b: unknown key 'methd'; did you mean 'method'?"),
        ({"b": {"method": "pool", "settings": {"rows": [8, 16]}}}, "genes.b.method: the rows of pool are a pass of"),
        ({"b": {"out": "run/a"}}, "genes.b.out: run/a is that of genes.a, or its gene file; choose another"),
        ({"b": {"out": "./other/../run/a"}}, "genes.b.out: other/../run/a is that of genes.a"),
        ({"a.safetensors": {}}, "genes.a.safetensors.out: run/a.safetensors is that of genes.a, or its gene file"),
        *(({name: {}}, f"genes.{name}: its run folder is named so") for name in ("../b", "..", "")),
        ({1: {}, "1": {}}, "genes.1: is named twice, as a number and as text; choose another name"),
        ({"b": 3}, "genes.b: give a mapping of what this gene has of its own, not 3"),
        ({"b": {"train": {"lr": -1}}}, "genes.b: train.lr: "),
        (None, "genes: give a mapping from names to what each gene has of its own"),
    ],
    ids=str,
)
def test_genes_that_cannot_share_a_pass_are_refused(genes: Any, line: str, images: Path, ancestry_folder: Path) -> None:
    fields = condense_fields(ancestry_folder, images, Path("run"), train=FAST)
    with pytest.raises(LearngeneError) as error:
        build_recipe({**fields, "genes": genes and {"a": {}, **genes}}, where="recipe.yaml")
    assert str(error.value).startswith(f"recipe.yaml: {line}")
    assert "\n" not in str(error.value)


def test_genes_that_see_other_images_once_these_are_read_are_refused(images: Path, ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match=r"genes\.b: ancestry pico-vit has 3 classes but"):
        together({"a": {}, "b": {"shape": {"num_classes": 7}, "distill": {"alpha": 0.5}}}, images, ancestry_folder)


def test_arguments_of_a_wrong_kind_are_told(images: Path, ancestry_folder: Path) -> None:
    with pytest.raises(LearngeneError, match=r"unknown argument 'lr'; write train=\{'lr': \.\.\.\}"):
        together({"a": {}}, images, ancestry_folder, lr=1e-3)
    with pytest.raises(LearngeneError, match="depths: Input should be a valid list"):
        condense(ancestry_folder, method="tleg", shape=pico_shape(), data=str(images), depths=3)  # type: ignore[arg-type]
    with pytest.raises(LearngeneError, match="recipe: out: must be the path of a folder, not 5"):
        build_recipe({**condense_fields(ancestry_folder, images, Path("run")), "out": 5, "genes": {"a": {}}})


@pytest.mark.parametrize(("target", "stores", "notes"), [("logits", 1, 1), ("features", 3, 3)])
def test_what_teachers_say_is_stored_ahead_for_all_genes(
    target: str, stores: int, notes: int, images: Path, ancestry_folder: Path, tmp_path: Path, cli: CLI
) -> None:
    """Of features also what they say of images that scales are fitted on, and of held-out ones: each image once."""
    genes, shared = TAUGHT[target]
    fields = condense_fields(ancestry_folder, images, tmp_path / "run", **{**SHARED, **shared}, genes=genes)
    folder = [f"distill.replay.folder={tmp_path / 'store'}", "distill.replay.patches=true"]
    recipe = written(fields, tmp_path / "recipe.yaml")
    stored = cli("targets", recipe, *folder)
    assert (stored.code, stored.out.count("bytes a view")) == (0, stores), stored.err
    made = cli("condense", recipe, *folder, "distill.replay.make=false")
    assert (made.code, made.err.count("so the teacher is not loaded")) == (0, notes), made.err
