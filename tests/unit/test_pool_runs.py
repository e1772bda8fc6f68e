"""Whole runs that make a pool or an SN-Net: what they give, share, continue and refuse."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import learngene
import learngene.making.pool.make as pooling_run
from learngene import Ancestry, ElasticViT, condense, evaluate
from learngene.data.batches import eval_loader
from learngene.data.splits import open_splits
from learngene.genes.gene import Learngene
from learngene.making.pool.rows import row_recipe
from learngene.making.pool.stitches import least_squares_stitches
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import DataSpec
from learngene.system.errors import InterruptedRun, LearngeneError
from learngene.training.student import Student
from pico import FAST, batch, condense_fields, pico_shape
from pools import POOL, QUICK, WIDE, anchors, made, rows_of, snnet, teacher
from runs import HARD, same, state


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


# -- what a run gives --------------------------------------------------------------------------------------


def test_a_pool_says_what_every_path_scores(images: Path, tmp_path: Path) -> None:
    ancestry = teacher()
    gene = made(tmp_path / "pool", images, ancestry, train=FAST)
    paths = gene.metadata["paths"]
    kind = rows_of(gene)
    assert [path["path"] for path in paths] == [path.path for path in kind.paths(gene.shape)]
    assert [path["blocks"] for path in paths] == ["3+0", "0+3", "1+3", "1+2", "2+3", "2+2", "2+1", "3+2", "3+1"]
    data = {"source": str(images), "workers": 0}
    for path in paths:
        assert evaluate(gene.expand(path["path"]), data).top1 == pytest.approx(path["top1"], abs=1e-4)
    assert gene.metadata["accuracy"]["top1"] == paths[1]["top1"]
    assert gene.metadata["ancestry"] == ancestry.identity
    # Two rows and the paths, two epochs of three steps each.
    assert gene.metadata["training"]["updates"] == 18
    assert gene.metadata["training"]["images"] == 144
    loaded = learngene.load(str(tmp_path / "pool.safetensors"))
    assert loaded.metadata["paths"] == paths
    assert same(state(loaded), state(gene))
    assert learngene.plan(loaded)[0].top1 == max(path["top1"] for path in paths)


def test_a_pool_learns(images: Path) -> None:
    gene = made(None, images, train={**FAST, "epochs": 8}, distill={"preset": "pool", "alpha": 0.1})
    assert min(path["top1"] for path in gene.metadata["paths"]) > 60
    assert max(path["top1"] for path in gene.metadata["paths"]) > 90


@pytest.mark.parametrize("direction", ["up", "down"])
def test_untuned_stitch_layers_are_the_transformation_matrices(direction: str, images: Path) -> None:
    settings = {"rows": [16, 24, 32], "direction": direction, "nearest": False}
    gene = made(None, images, settings=settings, pool={"tune": None})
    tensors = gene.tensors()
    pairs = [(0, 1), (0, 2), (1, 2)] if direction == "up" else [(1, 0), (2, 0), (2, 1)]
    for a, b in pairs:
        first, second = (tensors[f"stitch.{a}.{b}.{layer}.weight"] for layer in (0, 1))
        assert torch.equal(first, second)
        assert first.abs().max() > 0.01
        assert not tensors[f"stitch.{a}.{b}.0.bias"].any()
    # The ancestry is as wide as the last row, so that what joins the others is composed of what joins them to it.
    to_wide = {row: tensors[f"stitch.{row}.2.0.weight"] if direction == "up" else tensors[f"stitch.2.{row}.0.weight"].T
               for row in (0, 1)}  # fmt: skip
    a, b = pairs[0]
    torch.testing.assert_close(tensors[f"stitch.{a}.{b}.0.weight"], to_wide[b].T @ to_wide[a])
    assert gene.metadata["training"]["updates"] == 9


def test_rows_and_paths_can_be_trained_differently(images: Path) -> None:
    gene = made(None, images, pool={"rows": {"epochs": 3}, "tune": {"batch_size": 24, "lr": 1e-3}})
    assert gene.metadata["training"]["updates"] == 2 * 3 * 3 + 1


def test_labels_alone_need_no_ancestry(images: Path) -> None:
    data = {"source": str(images), "workers": 0}
    spec = {"points": [0, 0], "stitches": "ls", "images": 12}
    gene = condense(**POOL, data=data, pool=spec, show=False, **QUICK)
    assert gene.metadata["ancestry"] == {}
    assert len(gene.metadata["paths"]) == 9
    with_teacher = made(None, images, pool=spec, data={**data, "mean": None})
    row = "row0.blocks.1.mlp.fc1.weight"
    assert torch.equal(gene.tensors()[row], with_teacher.tensors()[row])


def test_predictions_of_any_classifier_can_be_distilled(images: Path) -> None:
    torch.manual_seed(0)
    ancestry = Ancestry(timm.create_model("test_resnet", num_classes=3))
    gene = made(None, images, ancestry, pool={"terms": ["pred"], "stitches": "ls", "images": 12})
    labels = made(None, images, ancestry, pool={"points": [0, 0], "stitches": "ls", "images": 12})
    assert not torch.equal(gene.tensors()["row0.head.weight"], labels.tensors()["row0.head.weight"])


# -- stochastic depth --------------------------------------------------------------------------------------


def test_blocks_are_dropped_as_often_as_in_their_own_row(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {}
    models: list[ElasticViT] = []
    run_stages, run_stage = pooling_run.run_stages, pooling_run.run_stage

    def rates(model: Any) -> list[float]:
        assert [getattr(b.drop_path1, "drop_prob", 0) for b in model.blocks] == [
            getattr(b.drop_path2, "drop_prob", 0) for b in model.blocks
        ]
        return [round(getattr(block.drop_path1, "drop_prob", 0.0), 6) for block in model.blocks]

    def spy(stage: Any, *arguments: Any, **options: Any) -> Any:
        models.append(stage.module)
        seen.update({s.path: rates(view) for s, view in stage.module.views().items()})
        return run_stage(stage, *arguments, **options)

    def spy_rows(stages: Any, *arguments: Any, **options: Any) -> Any:
        seen.update({stage.name: rates(stage.module.student) for stage, _ in stages})
        return run_stages(stages, *arguments, **options)

    monkeypatch.setattr(pooling_run, "run_stage", spy)
    monkeypatch.setattr(pooling_run, "run_stages", spy_rows)
    gene = made(None, images, train={**QUICK, "drop_path": 0.2})
    assert seen["row 16"] == seen["row 32"] == seen["16:1-3"] == seen["32:1-3"] == [0.0, 0.1, 0.2]
    assert seen["16:1-2+32:3-3"] == [0.0, 0.1, 0.2]
    assert seen["16:1-2+32:1-3"] == [0.0, 0.1, 0.0, 0.1, 0.2]
    assert seen["16:1-1+32:2-3"] == [0.0, 0.1, 0.2]
    assert seen["16:1-3+32:2-3"] == [0.0, 0.1, 0.2, 0.1, 0.2]
    assert all(not any(rates(view)) for view in models[0].views().values())
    assert not any(rates(gene.expand("2+1")))


# -- kept rows ---------------------------------------------------------------------------------------------


def test_pools_share_their_rows(images: Path, tmp_path: Path) -> None:
    rows: dict[str, Any] = {"kept": str(tmp_path / "rows")}
    changes: dict[str, dict[str, Any]] = {
        "first": {},
        "tm": {"pool": {"tune": None}},
        "ls": {"pool": {"tune": None, "stitches": "ls", "images": 12}},
        "hard": {"pool": {"guide": "hard"}, "dtype": "float16"},
        "wider": {"settings": {"rows": [16, 24, 32]}},
    }
    states, before = {}, None
    for name, change in changes.items():
        gene = made(tmp_path / name, images, **{**change, "pool": {**rows, **change.get("pool", {})}})
        states[name], after = state(gene), files(tmp_path / "rows")
        before = before or after
        assert {path: content for path, content in after.items() if path in before} == before, name
        assert len(list((tmp_path / "rows").iterdir())) == (3 if name == "wider" else 2), name
    assert not any(same(states[one], states[other]) for one, other in itertools.combinations(states, 2))
    for key, value in states["tm"].items():
        assert torch.equal(value, states["ls"][key]) != ("stitch." in key), key
        if "stitch." in key and key.endswith("weight"):
            assert not torch.equal(value, states["first"][key])
    assert same(states["first"], state(made(None, images)))


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": {"terms": ["pred", "blk"]}},
        {"pool": {"points": [1, 1]}},
        {"pool": {"transform_bias": True}},
        {"pool": {"rows": {"lr": 1e-4}}},
        {"train": {**QUICK, "seed": 1}},
        {"distill": {"preset": "pool-official"}},
        {"ancestry": {"source": "another"}},
        {"shape": pico_shape(**{**WIDE, "class_token": True}).to_dict()},
    ],
    ids=str,
)
def test_rows_of_another_training_are_kept_apart(changes: dict[str, Any], images: Path, tmp_path: Path) -> None:
    def folder(**fields: Any) -> Path:
        plain = condense_fields("one", images, tmp_path / "pool", **POOL, train=QUICK)
        recipe = build_recipe({**plain, **fields})
        assert isinstance(recipe, CondenseRecipe)
        return row_recipe(recipe, 0).out

    assert folder(**changes) != folder()
    assert folder() == folder(pool={"tune": {"lr": 1.0}}) == folder(pool={"terms": ["att", "blk", "pred"]})
    assert folder() == folder(settings={"rows": [16, 32], "direction": "down", "final_norm": False})


# -- stopped and continued ---------------------------------------------------------------------------------


GUIDED: dict[str, Any] = {"train": HARD, "pool": {"guide": "soft"}}
"""The teacher sees every batch of every pass: six of both rows, then six of the paths."""


@pytest.fixture(scope="module")
def whole(images: Path) -> Learngene:
    """The pool of a run that nothing stopped; read only."""
    torch.manual_seed(1)
    return made(None, images, **GUIDED)


def test_a_stopped_and_continued_pool_is_the_same_pool(
    images: Path, tmp_path: Path, whole: Learngene, stop_after: Any
) -> None:
    # Counted anew in every run, of which the first call checks the image size.
    for step, where in (
        (1 + 2, "epoch 1, step 2"),  # of the rows
        (1 + 4, "epoch 2, step 3"),  # of the rows: all their steps, but not the scores behind them
        (1 + 1, "epoch 1, step 1"),  # of the paths
        (1 + 4, "epoch 2, step 2"),
    ):
        interrupted = teacher()
        stop_after(interrupted, step)
        with pytest.raises(InterruptedRun) as stop:
            made(tmp_path / "stopped", images, interrupted, **GUIDED)
        assert stop.value.where == where
        assert not (tmp_path / "stopped.safetensors").exists()
    torch.manual_seed(2)  # a run is a function of its recipe, not of its caller
    continued = made(tmp_path / "stopped", images, **GUIDED)
    assert same(state(continued), state(whole))
    for key in ("paths", "accuracy"):
        assert continued.metadata[key] == whole.metadata[key]
    assert continued.metadata["training"]["updates"] == whole.metadata["training"]["updates"] == 18


def test_rows_of_one_pass_are_those_of_passes_of_their_own(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wide row, distilled at more blocks, runs out of memory at once, and is trained alone by the next command."""
    changes: dict[str, Any] = {"train": HARD, "pool": {"tune": None, "points": [1, 3]}}
    ancestry, seen, step = teacher(), list[int](), Student.step
    ancestry.register_forward_hook(lambda *_: seen.append(1))
    together = made(None, images, ancestry, **changes)
    assert len(seen) == 1 + 6  # a look at its size, and once a step for both rows

    def full(student: Student, *given: Any) -> None:
        if student.stage.name == "row 32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(student, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "step", full)
        with pytest.raises(LearngeneError, match="out of memory"):
            made(tmp_path / "rows", images, **changes)
    assert [path.parent.name[:7] for path in (tmp_path / "rows").glob("*/result.json")] == ["row-w16"]
    assert same(state(made(tmp_path / "rows", images, **changes)), state(together))


class CrashError(Exception):
    pass


def test_a_crashed_pool_goes_on(
    images: Path, tmp_path: Path, whole: Learngene, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[Path, bytes] = {}
    for place, count in (("run_stage", 4), ("accuracies", 6)):  # of the paths

        def crash(*_arguments: Any, **_options: Any) -> Any:
            raise CrashError

        with monkeypatch.context() as patch:
            patch.setattr(pooling_run, place, crash)
            with pytest.raises(CrashError):
                made(tmp_path / "run", images, **GUIDED)
        found = files(tmp_path / "run")
        there = {path: found[path] for path in found if path.name in ("last.pt", "result.json")}
        assert len(there) == count
        assert there.items() >= trained.items()
        trained = there
    continued = made(tmp_path / "run", images, **GUIDED)
    assert same(state(continued), state(whole))
    assert continued.metadata["paths"] == whole.metadata["paths"]
    assert files(tmp_path / "run").items() >= trained.items()


def test_a_pool_whose_folder_is_removed_goes_on(
    images: Path, tmp_path: Path, whole: Learngene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the paths are tuned, which then go on or crash; the next command begins with the rows again."""
    tune = pooling_run.run_stage

    def vanish(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(tmp_path / "run")
        return tune(*arguments, **options)

    def crash(*_arguments: Any, **_options: Any) -> Any:
        shutil.rmtree(tmp_path / "run")
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(pooling_run, "run_stage", vanish)
        made(tmp_path / "run", images, **GUIDED)
    made(tmp_path / "run", images, **GUIDED)

    with monkeypatch.context() as patch:
        patch.setattr(pooling_run, "run_stage", crash)
        with pytest.raises(CrashError):
            made(tmp_path / "run", images, **GUIDED)
    continued = made(tmp_path / "run", images, **GUIDED)
    assert same(state(continued), state(whole))


def test_a_finished_pool_is_found_and_another_recipe_in_its_folder_refused(images: Path, tmp_path: Path) -> None:
    first = made(tmp_path / "pool", images)
    folders = sorted(path.name.partition("-s0-")[0] for path in (tmp_path / "pool").iterdir() if path.is_dir())
    assert folders == ["paths", "row-w16d3", "row-w32d3"]
    before = {path: content for path, content in files(tmp_path).items() if "tfevents" not in path.name}
    assert same(state(made(tmp_path / "pool", images)), state(first))
    for changes in ({"train": {**QUICK, "lr": 0.5}}, {"pool": {"tune": {"lr": 0.5}}}):
        with pytest.raises(LearngeneError, match=r"holds a run with .*lr=.*, but this one has .*lr=0.5"):
            made(tmp_path / "pool", images, **changes)
    after = {path: content for path, content in files(tmp_path).items() if "tfevents" not in path.name}
    assert after == before


def test_a_folder_that_is_no_run_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "thesis.txt").write_text("the only copy")
    with pytest.raises(LearngeneError, match="exists and was not written by learngene"):
        made(tmp_path / "pool", images)
    assert [path.name for path in (tmp_path / "pool").iterdir()] == ["thesis.txt"]


# -- SN-Net ------------------------------------------------------------------------------------------------

ANCHORS: dict[str, tuple[list[tuple[int, int]], dict[str, Any], int]] = {
    "equal depth": ([(16, 3), (32, 3)], {}, 9),
    "unequal depth": ([(16, 2), (32, 4)], {}, 10),
    "deeper and narrower": ([(16, 5), (32, 2)], {}, 12),
    "three": ([(16, 2), (24, 2), (32, 3)], {}, 3 + 4 + 6),
    "class token": ([(16, 3), (32, 3)], {"class_token": True}, 9),
    "official": ([(16, 3), (32, 3)], {"ending": "official"}, 9),
}


@pytest.mark.parametrize(("sizes", "changes", "paths"), ANCHORS.values(), ids=ANCHORS)
def test_anchors_become_rows(sizes: list[tuple[int, int]], changes: dict[str, Any], paths: int, images: Path) -> None:
    models = anchors(*sizes, **changes)
    width, depth = sizes[-1]
    shape = pico_shape(**{**WIDE, "embed_dim": width, "depth": depth, **changes})
    settings = {"rows": [[w, d, w // 8] for w, d in sizes]}
    gene = snnet(images, models, shape, settings=settings, pool={"tune": None})
    assert len(gene.metadata["paths"]) == paths
    assert gene.metadata["anchors"] == [model.identity for model in models]
    assert gene.metadata["ancestry"] == {}
    pixels = batch(gene.shape)
    for model, (w, d) in zip(models, sizes, strict=True):
        assert torch.equal(gene.expand(f"{w}:1-{d}")(pixels), model(pixels))
        scored = next(path for path in gene.metadata["paths"] if path["path"] == f"{w}:1-{d}")
        assert scored["top1"] == pytest.approx(evaluate(model.model, str(images)).top1, abs=1e-4)


def test_an_snnet_starts_with_least_squares_on_training_images(images: Path) -> None:
    models = anchors((16, 3), (32, 3))
    gene = snnet(images, models, pool={"tune": None})
    again = Learngene(gene.method, gene.shape, {key: value.detach().clone() for key, value in gene.tensors().items()})
    data = DataSpec(source=str(images), workers=0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    loader = eval_loader(open_splits(data)[0], data, img_size=8, in_chans=3)
    least_squares_stitches(again, [pixels for pixels, _ in loader], print)
    for key, value in gene.tensors().items():
        torch.testing.assert_close(value, again.tensors()[key], rtol=1e-3, atol=1e-4)
    tuned = snnet(images, models)
    assert not same(state(tuned), state(gene))
    assert tuned.metadata["training"]["updates"] == 3


def test_few_images_for_least_squares_are_warned_of(images: Path) -> None:
    models, data = anchors((16, 3), (32, 3)), {"source": str(images), "workers": 0}
    fields: dict[str, Any] = {"method": "sn-net", "anchors": models, "data": data, "settings": {"rows": [16, 32]}}
    with pytest.warns(UserWarning, match="^pool.stitches: 12 tokens for the 17 unknowns"):
        condense(**fields, shape=pico_shape(**WIDE), pool={"images": 3, "tune": None}, **QUICK)


def test_a_stopped_and_continued_snnet_is_the_same(images: Path, tmp_path: Path, stop_after: Any) -> None:
    def run(out: Path, guide: Ancestry) -> Learngene:
        spec = {"guide": "hard"}
        return snnet(images, anchors((16, 3), (32, 3)), ancestry=guide, pool=spec, out=out, epochs=2)

    whole = run(tmp_path / "whole", teacher())
    interrupted = teacher()
    stop_after(interrupted, 1 + 2)
    with pytest.raises(InterruptedRun):
        run(tmp_path / "stopped", interrupted)
    assert same(state(run(tmp_path / "stopped", teacher())), state(whole))
