"""Teachers without our classes: their features become a gene of no classes, from images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import learngene
from learngene import Ancestry, save_descendant, scratch
from learngene.genes.elastic import ElasticViT
from learngene.genes.gene import Learngene
from learngene.making.condense import prepare
from learngene.making.feature_teacher import FeatureTeacher, patches_of
from learngene.making.features.stage import _total
from learngene.making.features.student import Match, reading
from learngene.making.pool.path_features import PathStudent
from learngene.methods import METHODS, method
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.content_hash import short_hash
from learngene.recipe.features import FeatureTarget
from learngene.recipe.loading import build_recipe
from learngene.recipe.sections import DataSpec, Distill
from learngene.system.errors import LearngeneError
from learngene.training.log import TrainLog
from pico import CLI, FAST, MIXED, batch, condense_fields, finetune_fields, make_images, pico_shape
from runs import condensed, metrics, same, state

BARE = {**pico_shape().to_dict(), "num_classes": 0}
FEATURES = {"distill": {"target": "features"}, "shape": BARE}
LABELS = {"distill": {"target": "features", "alpha": 0.5}, "shape": pico_shape().to_dict()}
POOL = {**LABELS, "method": "pool", "settings": {"rows": [[8, 4, 2], [16, 4, 2]]}}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def backbone(**changes: Any) -> nn.Module:
    """A ViT of width 8 without a head, with a class token, two registers and LayerScale, as DINOv2's are."""
    fields: dict[str, Any] = {"img_size": 12, "patch_size": 6, "embed_dim": 8, "depth": 2, "num_heads": 2}
    fields |= {"num_classes": 0, "reg_tokens": 2, "init_values": 1.0, "global_pool": "token"}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**fields, **changes})
    own = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **own}
    return model.eval()


@pytest.fixture(scope="module")
def teacher() -> Ancestry:
    """Read only."""
    return Ancestry(backbone())


def made(out: Path | None, images: Path, teacher: Ancestry, **changes: Any) -> Learngene:
    return condensed(out, images, teacher, **{**FEATURES, **changes})


def feature_teacher(model: nn.Module, spec: FeatureTarget | None = None, **shape: Any) -> FeatureTeacher:
    data = DataSpec(source="digits", **HALF)
    return FeatureTeacher(Ancestry(model), spec or FeatureTarget(), pico_shape(**shape), data)


# -- teachers ----------------------------------------------------------------------------------------------


def test_a_teacher_gets_the_same_pixels_at_its_own_size_and_normalisation() -> None:
    model = backbone()
    found = feature_teacher(model)
    images = batch(pico_shape())
    pixels = images * 0.5 + 0.5
    own = (pixels - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    larger = nn.functional.interpolate(own, (12, 12), mode="bicubic", antialias=True)  # 8 / 4 = 12 / 6 = 2 patches
    tokens = model.forward_features(larger)
    features = found(images)
    assert (found.size, found.grid, found.widths) == (12, 2, {"pooled": 8, "patches": 8})
    torch.testing.assert_close(features["pooled"], tokens[:, 0])
    torch.testing.assert_close(features["patches"], tokens[:, 3:])  # neither class token nor registers


def test_a_resized_teacher_leaves_the_ancestry_as_it_was() -> None:
    ancestry = Ancestry(backbone())
    before = state(ancestry)
    found = FeatureTeacher(ancestry, FeatureTarget(), pico_shape(img_size=16), DataSpec(source="digits", **HALF))
    assert (found.size, found.grid) == (24, 4)
    assert same(before, state(ancestry))


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [({"tokens": ["class"]}, {"class": 8}), ({"tokens": ["pooled"], "blocks": [[1, 2]]}, {"pooled": 8, "block 1": 8})],
)
def test_which_tokens_are_read(spec: dict[str, Any], kinds: dict[str, int]) -> None:
    assert feature_teacher(backbone(), FeatureTarget(**spec)).widths == kinds


def test_a_convolutional_teacher_has_a_map_too() -> None:
    model = timm.create_model("test_efficientnet", pretrained=False)
    found = feature_teacher(model, img_size=16, patch_size=8)
    assert (found.size, found.grid) == (64, 2)  # of its 32 px steps
    features = found(batch(pico_shape(img_size=16)))
    plane = features["patches"].view(2, 2, 2, -1)
    again = model.eval().forward_features(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(patches_of(model, again).view(1, 2, 2, -1)[0, 1, 0], again[0, :, 1, 0])
    assert plane.shape[-1] == again.shape[1]
    assert feature_teacher(model, FeatureTarget(tokens=["pooled"])).size == 8  # takes any; no grid matters


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit3", 32),
        ("eva02_tiny_patch14_224", 28),  # rotary positions, a packed gate
        ("xcit_nano_12_p8_224", 16),
        ("vit_tiny_r_s16_p8_224", 64),  # convolutions before its patches
        ("convnext_atto", 64),
        ("deit_tiny_distilled_patch16_224", 32),
    ],
)
def test_teachers_of_many_kinds_meet_the_students_grid(name: str, size: int) -> None:
    found = feature_teacher(timm.create_model(name, pretrained=False), img_size=8)
    assert (found.size, found.grid) == (size, 2)


def test_a_teacher_of_one_size_keeps_it_where_no_grid_matters() -> None:
    model = timm.create_model("levit_128s", pretrained=False)
    assert feature_teacher(model, FeatureTarget(tokens=["pooled"])).size == 224
    with pytest.raises(
        LearngeneError, match=r"does not take images of 128 px: .*set shape.img_size=16, shape.patch_size=2"
    ):
        feature_teacher(model)
    assert feature_teacher(model, FeatureTarget(resize="bilinear")).grid == 4


def test_a_grey_student_has_a_coloured_teacher(tmp_path: Path) -> None:
    images = make_images(tmp_path / "grey")
    gene = made(None, images, Ancestry(backbone()), shape={**BARE, "in_chans": 1})
    assert gene.metadata["preprocessing"]["mean"] == [pytest.approx(0.5)]


def test_teachers_are_prepared_once(images: Path, teacher: Ancestry, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, make = [], FeatureTeacher.__init__
    monkeypatch.setattr(FeatureTeacher, "__init__", lambda *given: (prepared.append(given[1]), make(*given))[1])
    made(None, images, teacher)
    assert prepared == [teacher]


# -- students ----------------------------------------------------------------------------------------------


def test_the_student_is_read_where_its_head_reads() -> None:
    shape = pico_shape(class_token=True, num_classes=0)
    gene = Learngene(method("tleg"), shape).eval()
    images = batch(shape)
    with reading(gene.skeleton(), [1, 4]) as read:
        out = gene(images)
    model = gene.expand()
    tokens = model.forward_features(images)
    assert read.prefix == 1
    assert read.pooled is not None
    assert read.last is not None
    torch.testing.assert_close(read.last, tokens)
    torch.testing.assert_close(read.pooled, tokens[:, 0])
    torch.testing.assert_close(out, read.pooled)
    torch.testing.assert_close(model.norm(read.blocks[4]), tokens)


def test_a_students_map_is_resized_to_the_teachers_grid_where_asked() -> None:
    spec = FeatureTarget(resize="bilinear", bridge="linear", scale="none")
    found = feature_teacher(backbone(img_size=24), spec)
    assert (found.size, found.grid) == (24, 4)
    match = Match(spec, found, 16, 10)
    with torch.no_grad():
        match.bridges["1"].weight.copy_(torch.eye(8, 16))  # type: ignore[operator,union-attr]
        match.bridges["1"].bias.zero_()  # type: ignore[operator,union-attr]
    gene = Learngene(method("tleg"), pico_shape(num_classes=0)).eval()
    with torch.no_grad(), reading(gene.skeleton(), []) as read:
        gene(batch(pico_shape()))
    read.last = torch.tensor([0.0, 4.0, 8.0, 12.0]).view(1, 4, 1).expand(1, 4, 16)
    plane = match(read)["patches"][0, :, 0].view(4, 4)
    # Between centres a quarter and three quarters of the way; flat at the border.
    torch.testing.assert_close(plane[0].detach(), torch.tensor([0.0, 1.0, 3.0, 4.0]))
    torch.testing.assert_close(plane[:, 0].detach(), torch.tensor([0.0, 2.0, 6.0, 8.0]))


# -- runs --------------------------------------------------------------------------------------------------


def test_a_gene_learns_features_without_classes(images: Path, teacher: Ancestry, tmp_path: Path) -> None:
    gene = made(tmp_path / "run", images, teacher, train={**FAST, "epochs": 8})
    history = metrics(tmp_path / "run")
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert {"pooled", "patches", "neighbours", "cosine", "val_loss"} <= set(history[-1])
    assert history[-1]["loss"] == pytest.approx(history[-1]["pooled"] + history[-1]["patches"])
    assert gene.shape.num_classes == 0
    assert not any(name.startswith(("head", "bridge")) for name in gene.tensors())
    assert not {"classes", "accuracy"} & set(gene.metadata)
    assert set(gene.metadata["agreement"]) == {"neighbours", "cosine", "loss", "images"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["best_neighbours"] >= result["metrics"]["final"]["neighbours"]
    model = Learngene.load(tmp_path / "run.safetensors").expand(2, num_classes=5, seed=3)
    assert model(batch(pico_shape())).shape == (2, 5)
    assert {"head.weight", "head.bias"} == set(model.learngene["fresh"])


METHODS_THAT_LEARN = [name for name, kind in METHODS.items() if kind.making == "stage" and "condense" in kind.origins]


@pytest.mark.parametrize("name", METHODS_THAT_LEARN)
def test_every_method_of_one_auxiliary_shape_learns_features(name: str, images: Path, teacher: Ancestry) -> None:
    train = {**FAST, "epochs": 1}
    settings = {"sws": {"stages": [2, 2]}, "mini-init": {"blocks": 2}, "lets": {"width": 8, "sources": 2}}.get(name, {})
    gene = made(None, images, teacher, method=name, settings=settings, train=train)
    assert gene.expand().num_classes == 0


@pytest.mark.parametrize("preset", ["cosine", "proteus", "theia", "radio", "lightly-v1", "lightly-v3"])
def test_every_preset_trains(preset: str, images: Path, teacher: Ancestry) -> None:
    gene = made(None, images, teacher, features={"preset": preset})
    fresh = Learngene(gene.method, gene.shape, seed=0)
    assert all(not torch.equal(v, fresh.tensors()[k]) for k, v in gene.tensors().items() if "norm" not in k)


def unlabelled_pool(**pool: Any) -> dict[str, Any]:
    return {**POOL, "shape": BARE, "distill": {"target": "features"}, "pool": pool, "features": {"blocks": [[2, 2]]}}


ALL_STATE = {"train": {**MIXED, "ema_decay": 0.7, "micro_batch": 4}}
PHI_S = {"scale": "phi-s", "bridge": "mlp", "hidden": 3, "pooled_loss": "smooth-l1", "patch_weight": 2.0}
BLOCKS = {"tokens": ["class"], "blocks": [[1, 2], [2, 4]], "pooled_loss": "queue-kl", "queue": 9}


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({**ALL_STATE, "features": PHI_S}, [1]),
        ({**ALL_STATE, "features": BLOCKS}, [1]),
        (unlabelled_pool(), [3, 5]),  # in the second row, and between two epochs of the paths
    ],
    ids=["phi-s", "blocks", "pool"],
)
def test_a_stopped_run_goes_on_as_if_it_was_not(
    changes: dict[str, Any], stops: list[int], images: Path, teacher: Ancestry, tmp_path: Path
) -> None:
    whole = made(tmp_path / "whole", images, teacher, **changes)
    log, entries = TrainLog.epoch, []

    def stop(self: TrainLog, entry: Any, parts: Any) -> None:
        log(self, entry, parts)
        entries.append(entry)
        if len(entries) in stops:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLog, "epoch", stop)
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                made(tmp_path / "stopped", images, teacher, **changes)
    assert same(state(whole), state(made(tmp_path / "stopped", images, teacher, **changes)))


def test_labels_count_if_they_have_a_weight(images: Path, teacher: Ancestry) -> None:
    gene = made(None, images, teacher, **LABELS)
    assert gene.metadata["classes"] == ["blue", "green", "red"]
    assert gene.tensors()["head.weight"].abs().sum() > 0
    assert gene.expand(2).num_classes == 3


def test_several_teachers_each_with_its_own_bridge(images: Path, teacher: Ancestry, ancestry_folder: Path) -> None:
    other = {"source": str(ancestry_folder), "features": {"tokens": ["pooled"], "pooled_loss": "mse", "weight": 3.0}}
    gene = made(None, images, teacher, teachers=[other])
    assert [each["source"] for each in gene.metadata["teachers"]] == [ancestry_folder.name]
    recipe = gene_recipe(images, teachers=[other])
    inputs = prepare(recipe, teacher)
    matches = [Match(s, t, 16, 24) for s, t in zip(recipe.feature_targets(), inputs.feature_teachers, strict=True)]
    assert [match.kinds for match in matches] == [["pooled", "patches"], ["pooled"]]
    parts = [{"pooled": torch.tensor(1.0), "patches": torch.tensor(2.0)}, {"pooled": torch.tensor(5.0)}]
    assert _total(matches, parts).item() == 1 + 2 + 3 * 5


def test_the_rows_of_a_pool_learn_features_beside_labels(images: Path, teacher: Ancestry, tmp_path: Path) -> None:
    pool = made(tmp_path / "run", images, teacher, **POOL, features={"blocks": [[2, 2]]})
    assert [path["blocks"] for path in pool.metadata["paths"]]
    (row,) = (tmp_path / "run").glob("row-w8*")
    (other,) = (tmp_path / "run").glob("row-w16*")
    for folder in (row, other):
        assert {"labels", "pooled", "patches", "block 2", "top1"} <= set(metrics(folder)[-1])
    made(tmp_path / "again", images, teacher, **POOL, features={"bridge": "mlp"}, pool={"kept": str(tmp_path / "run")})
    assert len(list((tmp_path / "run").glob("row-w8*"))) == 2  # other features, another row


def test_a_pool_learns_features_without_labels(cli: CLI, images: Path, teacher: Ancestry, tmp_path: Path) -> None:
    knn = {"source": str(images), "workers": 0}
    pool = made(tmp_path / "run", images, teacher, **unlabelled_pool(), knn=knn)
    logged = {run.parent.name: metrics(run.parent) for run in (tmp_path / "run").glob("*/metrics.jsonl")}
    assert len(logged) == 3
    for name, history in logged.items():
        assert {"pooled", "patches", "neighbours", "knn"} <= set(history[-1])
        assert ("block 2" in history[-1]) == name.startswith("row-")  # a path's blocks are others
    assert "paths" in logged
    assert not {"classes", "accuracy"} & set(pool.metadata)
    assert pool.metadata["agreement"]["knn"] == pytest.approx(logged["paths"][-1]["knn"], abs=1e-3)
    listed = pool.metadata["paths"]
    assert all(set(path) == {"path", "blocks", "neighbours"} for path in listed)
    widest = next(path for path in listed if path["blocks"] == "0+4")
    assert widest["neighbours"] == pytest.approx(pool.metadata["agreement"]["neighbours"], abs=1e-3)
    plan = learngene.plan(tmp_path / "run.safetensors", num_classes=7)
    assert [one.neighbours for one in plan] == sorted((path["neighbours"] for path in listed), reverse=True)
    model = Learngene.load(tmp_path / "run.safetensors").expand("2+2", num_classes=7)
    assert model(batch(pico_shape())).shape == (2, 7)
    assert "neighbours in common" in cli("plan", tmp_path / "run.safetensors").out
    assert cli("picture", tmp_path / "run.safetensors", "--out", tmp_path / "pool.png").code == 0


def test_paths_learn_with_the_bridges_of_the_row_in_which_they_end(images: Path, teacher: Ancestry) -> None:
    inputs = prepare(gene_recipe(images, **unlabelled_pool()), teacher)
    rows = [[Match(FeatureTarget(blocks=[[2, 2]]), inputs.feature_teachers[0], w, 24)] for w in (8, 16)]
    student = PathStudent(ElasticViT(inputs.gene), rows, [8, 16]).eval()
    pictures = batch(pico_shape())
    for path, width in (("4+0", 8), ("2+2", 16), ("0+4", 16)):
        student.elastic.set_path(path)
        _, pooled, (mine,) = student(pictures, True)
        assert pooled.shape == (2, width)
        assert set(mine) == {"pooled", "patches"}
        assert student.current == rows[width == 16]
        torch.testing.assert_close(mine["pooled"], rows[width == 16][0].bridges["0"](pooled))


def test_paths_without_labels_may_stay_untuned(images: Path, teacher: Ancestry) -> None:
    pool = made(None, images, teacher, **unlabelled_pool(tune=None))
    assert pool.metadata["agreement"]["neighbours"] >= 0
    assert len(pool.metadata["paths"]) == len(ElasticViT(pool).views())


def test_the_command_line_makes_a_gene_of_a_flat_folder(cli: CLI, images: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        (flat / f"{number:03d}.png").write_bytes(path.read_bytes())
    save_descendant(scratch(pico_shape(num_classes=0, depth=2), seed=1), tmp_path / "teacher")
    fields = condense_fields(tmp_path / "teacher", flat, tmp_path / "run", distill={"target": "features"})
    shape = {key: value for key, value in pico_shape().to_dict().items() if key != "num_classes"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**fields, "shape": shape}))
    assert cli("check", recipe).code == 0
    done = cli("condense", recipe)
    assert done.code == 0, done.err
    assert "neighbours in common" in done.out
    assert "agreement" in cli("info", tmp_path / "run.safetensors").out
    assert cli("plan", tmp_path / "run.safetensors").code == 0
    tuning = finetune_fields(tmp_path / "run.safetensors", images, tmp_path / "tuned")
    (tmp_path / "tuning.yaml").write_text(json.dumps(tuning))
    assert "top-1" in cli("finetune", tmp_path / "tuning.yaml").out
    assert cli("expand", tmp_path / "run.safetensors", "--num-classes", 3, "--out", tmp_path / "model").code == 0


# -- keys and refusals -------------------------------------------------------------------------------------


def gene_recipe(images: Path, **changes: Any) -> CondenseRecipe:
    recipe = build_recipe(condense_fields("in memory", images, Path("unused"), **{**FEATURES, **changes}))
    assert isinstance(recipe, CondenseRecipe)
    return recipe


def test_older_results_keep_their_keys() -> None:
    older = {key: value for key, value in Distill().model_dump().items() if key not in ("target", "replay")}
    assert short_hash(Distill()) == short_hash(older)
    assert short_hash(Distill(target="features")) != short_hash(Distill())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": pico_shape().to_dict()}, r"num_classes 3: features train no head; use 0"),
        ({"distill": {"target": "features", "alpha": 0.5}}, r"alpha 0.5: labels need a head"),
        ({"distill": {"target": "features", "alpha": 0}}, "mean nothing with distill.alpha 0"),
        ({"distill": {}, "features": {"bridge": "mlp"}}, "features: only for distill.target=features"),
        ({"distill": {}, "knn": {"source": "digits"}}, "knn: only for distill.target=features"),
        ({"method": "tal", "shape": pico_shape(class_token=True).to_dict()}, "means nothing for tal"),
        (POOL | {"distill": {"target": "features"}}, "num_classes 3: features train no head"),
        (POOL | {"distill": {"target": "features", "alpha": 0}}, "mean nothing with distill.alpha 0"),
        (POOL | {"pool": {"points": [1, 1]}}, "pool.points means nothing for distill.target=features"),
        (POOL | {"pool": {"stitches": "tm"}}, "tm needs the matrices"),
        (POOL | {"knn": {"source": "digits"}}, "learns labels, too, is judged on them"),
        ({"features": {"tokens": ["pooled", "class"]}}, "use one"),
        ({"features": {"queue": 5}}, "only pooled_loss=queue-kl"),
        ({"features": {"blocks": [[2, 1], [1, 2]]}}, "must rise"),
        ({"teachers": [{"source": "x", "features": {"los": 1}}]}, "unknown key 'los'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str, images: Path) -> None:
    with pytest.raises(LearngeneError, match=message):
        gene_recipe(images, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"img_size": 24}}, r"4 x 4 patches at 24 px, but the auxiliary shape 2 x 2; set shape.img_size="),
        ({"features": {"img_size": 10}}, r"does not take images of 10 px"),
        ({"features": {"preset": "lightly-v3", "queue": 25}}, r"queue 25 is longer than the 24 training images"),
        ({"features": {"blocks": [[3, 1]]}}, r"^features.blocks: .*has 2 blocks, but block 3"),
        ({"knn": {"source": "x"}}, r"^knn: data x: no such folder"),
        ({"teachers": [{"source": "x"}]}, r"^teachers: 'x' is no file or folder"),
        (LABELS | {"data": {"source": "recipes"}}, r"SPLIT/CLASS/ folders; .*; distill.alpha 0.5 gives labels a wei"),
        ({"features": {"blocks": [[1, 5]]}}, r"block 5 of a gene that is trained with 4 blocks"),
        ({"data": {"source": "x", "img_size": 12}}, r"no such folder"),
        ({"data": {"source": "digits", "mean": [0.5, 0.5]}}, r"data.mean has 2 values, but the images have 3 channels"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    changes: dict[str, Any], message: str, images: Path, teacher: Ancestry
) -> None:
    with pytest.raises(LearngeneError, match=message) as error:
        prepare(gene_recipe(images, **changes), teacher)
    assert "\n" not in str(error.value)


def test_among_few_held_out_images_there_are_no_neighbours(teacher: Ancestry, tmp_path: Path) -> None:
    with pytest.raises(LearngeneError, match="3 val images; neighbours in common need 5 or more"):
        prepare(gene_recipe(make_images(tmp_path, val=1)), teacher)


def test_a_further_teacher_is_told_of_as_one(images: Path, teacher: Ancestry, tmp_path: Path) -> None:
    save_descendant(scratch(pico_shape(in_chans=1)), tmp_path / "grey")
    with pytest.raises(LearngeneError, match=r"^teachers: grey takes images with 1 channels.*teachers.model_args"):
        prepare(gene_recipe(images, teachers=[{"source": str(tmp_path / "grey")}]), teacher)


def test_a_shape_in_python_has_no_classes_either_unless_it_says_so(images: Path) -> None:
    fields = {key: value for key, value in BARE.items() if key != "num_classes"}
    assert gene_recipe(images, shape=learngene.ViTShape(**fields)).shape.num_classes == 0
    with pytest.raises(LearngeneError, match="num_classes 7: features train no head"):
        gene_recipe(images, shape=pico_shape(num_classes=7))


def test_a_teacher_without_the_wanted_token_is_refused(images: Path, tmp_path: Path) -> None:
    grey = backbone(in_chans=1)
    grey.pretrained_cfg = {**grey.pretrained_cfg, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(LearngeneError, match="takes images with 1 channels, but the auxiliary shape has 3"):
        prepare(gene_recipe(images, data={"source": str(images), **HALF}), Ancestry(grey))
    averaging = Ancestry(backbone(class_token=False, reg_tokens=0, global_pool="avg"))
    with pytest.raises(LearngeneError, match="no class token; use pooled"):
        prepare(gene_recipe(images, features={"tokens": ["class"]}), averaging)
