"""Recipes: closed keys, overrides, inheritance, presets, ranges, and errors that name the place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from learngene.making.condense import condense
from learngene.recipe.condense import CondenseRecipe
from learngene.recipe.finetune import FinetuneRecipe
from learngene.recipe.loading import apply_overrides, build_recipe, dump_recipe, load_recipe, load_yaml
from learngene.system.errors import LearngeneError, RecipeError
from pico import pico_gene, pico_shape

CONDENSE: dict[str, Any] = {
    "kind": "condense",
    "method": "sws",
    "settings": {"stages": [2, 2]},
    "ancestry": {"source": "levit_384.fb_dist_in1k"},
    "shape": {"embed_dim": 16, "num_heads": 2, "depth": 4},
    "data": {"source": "digits"},
}
POOL: dict[str, Any] = {
    **CONDENSE,
    "method": "pool",
    "settings": {"rows": [8, 16]},
    "pool": {"points": [2, 1], "terms": ["blk"], "tune": {"epochs": 7}, "guide": "soft", "kept": "runs/rows"},
}
SN_NET: dict[str, Any] = {
    **{key: value for key, value in CONDENSE.items() if key != "ancestry"},
    "method": "sn-net",
    "settings": {"rows": [[8, 2, 1], 16]},
    "anchors": [{"source": "a"}, {"source": "b", "pretrained": False}],
}
FINETUNE: dict[str, Any] = {"kind": "finetune", "model": "gene.safetensors", "data": {"source": "digits"}}


def written(path: Path, fields: object) -> Path:
    path.write_text(yaml.safe_dump(fields))
    return path


def one_line(error: pytest.ExceptionInfo[RecipeError]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


# -- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind"),
    [(CONDENSE, CondenseRecipe), (POOL, CondenseRecipe), (SN_NET, CondenseRecipe), (FINETUNE, FinetuneRecipe)],
)
def test_a_recipe_survives_being_written_out(fields: dict[str, Any], kind: type, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "r.yaml", fields))
    assert isinstance(recipe, kind)
    (tmp_path / "all.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "all.yaml") == recipe


def test_every_default_is_written_out() -> None:
    resolved = yaml.safe_load(dump_recipe(build_recipe(CONDENSE)))
    assert resolved["train"]["augment"]["mixup"] == 0.8
    assert resolved["shape"]["img_size"] == 224
    assert resolved["distill"]["alpha"] == 1.0
    assert resolved["data"]["workers"] == 2


def test_the_kind_may_be_left_out() -> None:
    assert build_recipe({k: v for k, v in CONDENSE.items() if k != "kind"}).kind == "condense"
    assert build_recipe({k: v for k, v in FINETUNE.items() if k != "kind"}).kind == "finetune"


def test_the_defaults_are_the_papers() -> None:
    train = build_recipe(CONDENSE).train
    assert (train.batch_size, train.lr, train.lr_batch, train.weight_decay) == (512, 5e-4, 512, 0.05)
    assert (train.optimizer, train.betas, train.eps, train.clip_grad) == ("adamw", (0.9, 0.999), 1e-8, None)
    assert (train.schedule.warmup_epochs, train.schedule.warmup_lr, train.schedule.min_lr) == (5, 1e-6, 1e-5)
    augment = train.augment
    assert (augment.rand_augment, augment.erasing, augment.erasing_mode) == ("rand-m9-mstd0.5-inc1", 0.25, "pixel")
    assert (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.smoothing, augment.repeats, augment.hflip, augment.scale) == (0.1, 3, 0.5, (0.08, 1.0))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epochs=7"], {"epochs": 7}),
        (["train.lr=1e-3"], {"lr": 1e-3}),
        (["train.lr=.002", "train.lr=3.0e-3"], {"lr": 3e-3}),
        (["train.betas=[0.8, 0.9]"], {"betas": (0.8, 0.9)}),
        (["train.clip_grad=null"], {"clip_grad": None}),
        (["train={epochs: 9, seed: 4}"], {"epochs": 9, "seed": 4}),
        (["train.compile=true"], {"compile": True}),
    ],
    ids=str,
)
def test_overrides_are_yaml_assignments(overrides: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "r.yaml", {**FINETUNE, "train": {"seed": 3}}), overrides)
    assert {key: getattr(recipe.train, key) for key in expected} == expected
    assert recipe.train.seed == expected.get("seed", 3)


def test_overrides_reach_settings_shapes_and_sources(tmp_path: Path) -> None:
    given = ["settings.stages=[1, 3]", "shape.img_size=32", "data.source=[a, b]", "out=runs/other", "data.root=/x=y"]
    recipe = load_recipe(written(tmp_path / "r.yaml", CONDENSE), given)
    assert recipe.settings == {"stages": [1, 3]}
    assert (recipe.shape.img_size, recipe.shape.embed_dim) == (32, 16)
    assert recipe.data.sources == ["a", "b"]
    assert (str(recipe.out), str(recipe.data.root)) == ("runs/other", "/x=y")


def test_a_recipe_extends_others_and_wins(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    written(tmp_path / "base.yaml", {**FINETUNE, "train": {"epochs": 3, "seed": 5, "schedule": {"min_lr": 0}}})
    written(tmp_path / "sub" / "middle.yaml", {"extends": "../base.yaml", "train": {"epochs": 20}})
    top = written(tmp_path / "top.yaml", {"extends": "sub/middle.yaml", "train": {"schedule": {"warmup_epochs": 2}}})
    train = load_recipe(top, ["train.lr=1"]).train
    assert (train.epochs, train.seed, train.lr) == (20, 5, 1)
    assert (train.schedule.min_lr, train.schedule.warmup_epochs) == (0, 2)


def test_what_is_given_wins_over_a_preset() -> None:
    fields = {**FINETUNE, "train": {"preset": "laptop", "epochs": 4, "augment": {"preset": "none", "hflip": 0.25}}}
    train = build_recipe(fields).train
    assert (train.batch_size, train.lr, train.lr_batch, train.precision) == (64, 1e-3, None, "fp32")
    assert train.schedule.warmup_epochs == 0.5
    assert (train.augment.mixup, train.augment.scale, train.augment.hflip) == (0.0, None, 0.25)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("deit", {"precision": "fp32", "ema_decay": None}),
        ("official", {"precision": "fp16", "ema_decay": 0.99996, "use_ema": False}),
        ("laptop", {"batch_size": 64, "lr": 1e-3}),
    ],
)
def test_training_presets(preset: str, expected: dict[str, Any]) -> None:
    train = build_recipe({**FINETUNE, "train": {"preset": preset}}).train
    assert {key: getattr(train, key) for key in expected} == expected
    assert train.schedule.stepping == ("official" if preset == "official" else "step")


@pytest.mark.parametrize(
    ("preset", "expected"), [("deit", (0.8, 1.0, 0.25, 3)), ("light", (0.0, 0.0, 0.0, 1)), ("none", (0.0, 0.0, 0.0, 1))]
)
def test_augmentation_presets(preset: str, expected: tuple[float, ...]) -> None:
    augment = build_recipe({**FINETUNE, "train": {"augment": {"preset": preset}}}).train.augment
    assert (augment.mixup, augment.cutmix, augment.erasing, augment.repeats) == expected
    assert augment.hflip == (0.0 if preset == "none" else 0.5)


def test_a_pool_brings_its_distillation_and_an_snnet_none() -> None:
    for fields, preset in ((POOL, "pool"), (SN_NET, "none")):
        recipe = build_recipe(fields)
        assert recipe.distill.preset == preset


def test_rows_and_paths_differ_from_train_in_what_the_pool_says(tmp_path: Path) -> None:
    train = {"preset": "laptop", "epochs": 4, "lr": 0.5}
    fields = {**POOL, "train": train, "pool": {"rows": {"lr": 0.25}, "tune": {"epochs": 7}}}
    recipe = load_recipe(written(tmp_path / "r.yaml", fields), ["pool.tune.lr=0.125"])
    rows, paths = recipe.row_train(), recipe.path_train()
    assert (rows.epochs, rows.lr, rows.batch_size) == (4, 0.25, 64)
    assert (paths.epochs, paths.lr, paths.batch_size) == (7, 0.125, 64)
    untuned = load_recipe(tmp_path / "r.yaml", ["pool.tune=null"])
    assert untuned.path_train() is None


@pytest.mark.parametrize("method", ["tleg", "sws"])
def test_a_method_brings_its_distillation(method: str) -> None:
    fields = {**CONDENSE, "method": method, "settings": {} if method == "tleg" else {"stages": [4]}}
    recipe = build_recipe(fields)
    assert recipe.distill.preset == f"{method}-official"
    other = build_recipe({**fields, "distill": {"preset": "tleg-paper"}})
    assert other.distill.reduction == "batch"


def test_the_shape_of_a_descendant_is_what_differs() -> None:
    recipe = build_recipe({**FINETUNE, "shape": {"depth": 6}})
    assert recipe.shape == {"depth": 6}
    whole = build_recipe({**FINETUNE, "shape": "deit_tiny_patch16_224"})
    assert (whole.shape["embed_dim"], whole.shape["depth"]) == (192, 12)


def test_recipes_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build_recipe(FINETUNE).train.epochs = 3  # type: ignore[misc]


# -- refusals ----------------------------------------------------------------------------------------------

UNKNOWN_KEYS = {
    "metod=sws": "unknown key 'metod'; did you mean 'method'",
    "ancestry.sorce=x": "ancestry: unknown key 'sorce'; did you mean 'source'",
    "ancestry.sha=x": "ancestry: unknown key 'sha'",
    "data.img_siz=8": "data: unknown key 'img_siz'; did you mean 'img_size'",
    "train.epoch=3": "train: unknown key 'epoch'; did you mean 'epochs'",
    "train.augment.mixupp=0": "augment: unknown key 'mixupp'; did you mean 'mixup'",
    "train.schedule.warmup=1": "schedule: unknown key 'warmup'; did you mean 'warmup_lr'",
    "distill.temprature=2": "distill: unknown key 'temprature'; did you mean 'temperature'",
    "shape.dept=3": "shape: unknown key 'dept'; did you mean 'depth'",
    "shape.patch=4": "shape: unknown key 'patch'; did you mean 'patch_size'",
    "shape.reg_tokens=4": "shape: unknown key 'reg_tokens'; known: arch, arch_args, class_token, depth, embed_dim, ",
    "shape.init_values=1": "shape: unknown key 'init_values'; known: arch, arch_args, class_token, ",
    "shape.norm_layer=x": "shape: unknown key 'norm_layer'; known: arch, arch_args, class_token, ",
    "settings.stage=[4]": "settings of method 'sws': unknown key 'stage'; did you mean 'stages'",
    "zzz=1": "unknown key 'zzz'; known: ",
}


@pytest.mark.parametrize(("override", "message"), UNKNOWN_KEYS.items())
def test_an_unknown_key_is_refused_with_the_nearest_right_one(override: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "r.yaml", CONDENSE)
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override])
    assert message in one_line(error)
    assert one_line(error).startswith(str(path))


def test_an_unknown_key_of_a_descendants_shape_is_refused() -> None:
    with pytest.raises(RecipeError, match="shape: unknown key 'dpth'; did you mean 'depth'"):
        build_recipe({**FINETUNE, "shape": {"dpth": 6}})


WRONG_VALUES = {
    "train.epochs=0": "train.epochs",
    "train.epochs=many": "train.epochs",
    "train.epochs=2.5": "train.epochs",
    "train.batch_size=-8": "train.batch_size",
    "train.batch_size=9": "mixup and cutmix pair images, so batch_size must be even, not 9",
    "train.micro_batch=0": "train.micro_batch",
    "train.lr=0": "train.lr",
    "train.lr=fast": "train.lr",
    "train.lr=.inf": "train.lr",
    "train.betas=[2, 3]": "train.betas",
    "train.seed=-1": "train.seed",
    f"train.seed={2**70}": "train.seed",
    "train.weight_decay=-1": "train.weight_decay",
    "train.clip_grad=0": "train.clip_grad",
    "train.drop_path=1.5": "train.drop_path",
    "train.precision=fp8": "train.precision",
    "train.ema_decay=1": "train.ema_decay",
    "train.use_ema=true": "r.yaml: train: use_ema needs ema_decay",
    "train.layer_decay=2": "train.layer_decay",
    "train.schedule.warmup_epochs=100": "warmup_epochs 100 leave nothing of 100 epochs",
    "train.schedule.warmup_epochs=-1": "train.schedule.warmup_epochs",
    "train.schedule.stepping=daily": "train.schedule.stepping",
    "train.schedule.kind=linear": "train.schedule.kind",
    "train.schedule.power=0": "train.schedule.power",
    "train.schedule=cosine": "train.schedule",
    "train.augment.mixup=-0.1": "train.augment.mixup",
    "train.augment.erasing=2": "train.augment.erasing",
    "train.augment.repeats=0": "train.augment.repeats",
    "train.augment.scale=[0.5]": "train.augment.scale",
    "train.augment.scale=[0, 0]": "augment",
    "train.augment.scale=[0.9, 0.1]": "augment",
    "train.augment.ratio=[-1, 1]": "augment",
    "train.augment.erasing_mode=black": "train.augment.erasing_mode",
    "train.preset=deit3": "train: unknown preset 'deit3'; did you mean 'deit'",
    "train.augment.preset=lite": "augment: unknown preset 'lite'; did you mean 'light'",
    "distill.preset=tleg": "distill: unknown preset 'tleg'; did you mean 'tleg-",
    "distill.alpha=1.1": "distill.alpha",
    "distill.temperature=0": "distill.temperature",
    "distill.reduction=mean": "distill.reduction",
    "data.source=null": "data.source: Input should be a valid string or a valid list",
    "data.source=3": "data.source: Input should be a valid string or a valid list (given: 3)",
    "data.source=[a, 3]": "data.source.1: Input should be a valid string (given: 3)",
    "data.mask_classes=many": "data.mask_classes: Input should be a valid list or a valid integer, unable to parse",
    "data.mask_classes=1": "data: mask_classes 1 must be 2 to 256 classes",
    "data.crop_pct=0": "data.crop_pct",
    "data.std=[0, 0, 0]": "data",
    "data.std=[.nan, 1, 1]": "data",
    "data.interpolation=foo": "data",
    "data.workers=-1": "data.workers",
    "data.img_size=0": "data.img_size",
    "data=digits": "data: Input should be a mapping of keys to values (given: 'digits')",
    "dtype=float64": "dtype",
    "method=swss": "unknown method 'swss'; did you mean 'sws'",
    "method=null": "method: Input should be a valid string",
    "method=[sws]": "method: Input should be a valid string",
    "kind=train": "unknown kind 'train'",
    "shape.num_heads=3": "embed_dim 16 is not divisible by num_heads 3",
    "shape.depth=5": "stages 2,2 add up to 4 layers, but the auxiliary shape has depth 5",
    "shape=deit_huge": "unknown name 'deit_huge'",
    "shape=3": "shape: must be a name or a mapping of fields, not 3",
    "settings.stages=[2, x]": "stages must be a list of positive integers",
    "settings=3": "settings",
}


@pytest.mark.parametrize(("override", "message"), WRONG_VALUES.items())
def test_a_wrong_value_is_refused_where_it_stands(override: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "r.yaml", CONDENSE)
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override])
    assert message in one_line(error)
    assert one_line(error).startswith(f"{path}: ")


@pytest.mark.parametrize("key", ["method", "shape", "data"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}: required, but missing"):
        build_recipe({k: v for k, v in CONDENSE.items() if k != key}, where="recipe")


def test_an_ancestry_may_be_left_out_only_where_nothing_is_distilled() -> None:
    without = {k: v for k, v in CONDENSE.items() if k != "ancestry"}
    with pytest.raises(RecipeError, match=r"ancestry is missing: distill.alpha 1 needs a teacher"):
        build_recipe(without, where="recipe")
    with pytest.raises(RecipeError, match=r"ancestry is missing: distill.alpha 0.5 needs a teacher"):
        build_recipe({**without, "distill": {"preset": "tleg-paper"}}, where="recipe")
    bare = {**without, "settings": {}}
    for fields in (
        {**without, "distill": {"preset": "none"}},
        {**bare, "method": "pre-fin"},
        {**bare, "method": "share-init"},
    ):
        recipe = build_recipe(fields, where="recipe")
        assert recipe.ancestry is None
        assert recipe.distill.alpha == 0


@pytest.mark.parametrize(
    ("name", "how"), [("vanilla-lg", "its gene is made by `learngene extract`"), ("scratch", "it needs no gene")]
)
def test_a_method_that_is_not_trained_is_refused(name: str, how: str) -> None:
    with pytest.raises(RecipeError, match=f"method {name} is not trained: {how}"):
        build_recipe({**CONDENSE, "method": name, "settings": {}}, where="recipe")


def test_a_key_twice_is_refused_in_overrides_and_in_what_is_extended(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"override 'train=\{lr: 1, lr: 2\}': key 'lr' is given twice, in line 1"):
        apply_overrides(FINETUNE, ["train={lr: 1, lr: 2}"])
    (tmp_path / "base.yaml").write_text("out: a\nout: b\n")
    path = tmp_path / "r.yaml"
    path.write_text("extends: base.yaml\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert one_line(error).startswith(f"{tmp_path / 'base.yaml'}: key 'out' is given twice, in lines 1 and 2")


def test_a_key_that_was_merged_may_be_said_again() -> None:
    text = "a: &a {lr: 1, epochs: 2}\nb: &b {<<: *a, lr: 3}\nc: {<<: *b, lr: 4}\nd: {1: x, '1': y}\n"
    expected = {"b": {"lr": 3, "epochs": 2}, "c": {"lr": 4, "epochs": 2}, "d": {1: "x", "1": "y"}}
    assert {key: value for key, value in load_yaml(text).items() if key != "a"} == expected


@pytest.mark.parametrize("override", ["train.epochs", "=3", "epochs 3", "train.epochs=[1", "a: b"])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(RecipeError) as error:
        apply_overrides(FINETUNE, [override])
    assert f"override '{override}'" in one_line(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\tkind: finetune", "not valid YAML"),
        ("- 1\n- 2\n", "a recipe is a mapping of keys to values"),
        ("hello", "a recipe is a mapping of keys to values"),
        ("", "a recipe is a mapping of keys to values"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("out: a\ntrain: {}\nout: b", "key 'out' is given twice, in lines 1 and 3; leave one out"),
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 2\n", "key 'lr' is given twice, in lines 2 and 4"),
        ("tasks: [{a: 1, b: 2, a: 3}]", "key 'a' is given twice, in line 1"),
        ("extends: nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
        ("extends: r.yaml", "extends itself"),
        ("extends: 3", "extends must name one recipe, not 3"),
        ("extends: [r.yaml]", "extends must name one recipe, not ['r.yaml']"),
    ],
    ids=str,
)
def test_a_file_that_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in one_line(error)
    assert str(tmp_path) in one_line(error)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "r.yaml")


def test_a_circle_of_recipes_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.yaml", {"extends": "b.yaml"})
    written(tmp_path / "b.yaml", {"extends": "./a.yaml"})
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file or directory"):
        load_recipe(tmp_path / "none.yaml")


def test_what_is_no_plain_value_is_refused_with_its_kind() -> None:
    with pytest.raises(
        LearngeneError, match=r"^recipe: start: Input should be a mapping of keys to values, not Learngene$"
    ):
        condense(method="any-size", shape=pico_shape(), data="digits", start=pico_gene("any-size"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {"target": "features"}}, "not with distill.target=features, whose teacher each process asks"),
        ({"distill": {"replay": "store"}}, "not with distill.replay, whose teacher each process asks by itself"),
        ({"ancestry": None, "distill": {"alpha": 0}}, "this recipe has no teacher; leave it out"),
        ({"method": "pool", "settings": {}, "shape": "deit_base_patch16_224"}, "not with a pool"),
    ],
)
def test_a_teacher_is_shared_where_processes_ask_it_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe({**CONDENSE, **changes, "train": {"shard_teachers": True}})


@pytest.mark.parametrize("other", [{"compile": True}, {"ema_decay": 0.9}, {"precision": "fp16"}])
def test_a_model_is_shared_without_what_would_need_it_whole(other: dict[str, Any]) -> None:
    fields = {"kind": "finetune", "model": "scratch", "train": {"shard": True, **other}}
    with pytest.raises(RecipeError, match=f"shard: not together with {next(iter(other))}"):
        build_recipe({**fields, "data": {"source": "digits"}})
    with pytest.raises(RecipeError, match="shard is for fine-tuning"):
        build_recipe({**CONDENSE, "train": {"shard": True}})


def test_a_compiled_model_is_not_told_what_to_keep() -> None:
    with pytest.raises(RecipeError, match=r"recompute: a compiled model decides by itself what it keeps"):
        build_recipe({**CONDENSE, "train": {"recompute": True, "compile": True}})
