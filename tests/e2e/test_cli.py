"""The command line from end to end on tiny images, in one process."""

import json
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
import yaml

import learngene
from comparisons import contents, counted_at_the_end, written
from learngene import load_descendant
from learngene.cli import app
from pico import CLI, FAST, condense_fields, finetune_fields, make_images, pico_gene, pico_shape


def test_from_an_ancestry_to_an_exported_descendant(cli: CLI, images: Path, tmp_path: Path) -> None:
    """The whole way: train an ancestry, condense it, plan, expand, fine-tune, measure, export."""
    shape = pico_shape(depth=2, num_heads=4).to_dict()
    ancestry = finetune_fields("scratch", images, tmp_path / "ancestry", shape=shape, train={**FAST, "epochs": 6})
    result = cli("finetune", written(tmp_path / "ancestry.yaml", ancestry))
    assert result.code == 0, result.err
    folder = tmp_path / "ancestry" / "descendant"
    assert f"{folder}: top-1" in result.out

    fields = condense_fields(folder, images, tmp_path / "gene", train={**FAST, "epochs": 12})
    result = cli("condense", written(tmp_path / "condense.yaml", fields))
    assert result.code == 0, result.err
    gene = tmp_path / "gene.safetensors"
    assert f"next: learngene plan {gene}" in result.out
    assert "8 px, 12 epochs of " in result.err
    meta = learngene.load(gene).metadata
    assert meta["accuracy"]["top1"] > 90
    assert meta["classes"] == ["blue", "green", "red"]
    assert meta["ancestry"]["source"] == "ancestry/descendant"

    result = cli("info", gene, "--verify")
    assert result.code == 0
    assert "Transformer as Linear Expansion of learnGene" in result.out
    assert f"{meta['digest']} (verified)" in result.out
    shown = json.loads(cli("info", gene, "--json").out)
    stored = sum(parameter.numel() for parameter in learngene.load(gene).parameters())
    assert (shown["method"], shown["stored_params"]) == ("tleg", stored)

    limit = pico_shape(depth=6).params()
    result = cli("plan", gene, "--max-params", limit, "--explain")
    assert result.code == 0
    assert result.out.startswith("depth   4")
    assert "    layer  2: B + 1/6 A" in result.out
    rows = json.loads(cli("plan", gene, "--max-params", limit, "--json").out)
    assert [row["shape"]["depth"] for row in rows] == [4, 3, 2, 1, 6, 5]
    assert rows[-2]["params"] == limit

    des = tmp_path / "des-6"
    result = cli("expand", gene, "--depth", 6, "--out", des)
    assert result.code == 0
    assert f"next: learngene finetune --model {des}" in result.out
    model = timm.create_model(f"local-dir:{des}", pretrained=True)
    assert len(model.blocks) == 6
    assert json.loads((des / "config.json").read_text())["label_names"] == ["blue", "green", "red"]

    untuned = json.loads(cli("eval", des, "--data", images, "--json").out)
    assert untuned["images"] == 12
    settings = [f"train.{key}={json.dumps(value)}" for key, value in FAST.items() if key != "epochs"]
    result = cli("finetune", *settings, "--model", des, "--data", images, "--epochs", 2, "--out", tmp_path / "tuned")
    assert result.code == 0, result.err
    assert f"top-1 {untuned['top1']:.2f} % untuned" in result.out
    tuned = tmp_path / "tuned" / "descendant"
    scored = json.loads(cli("eval", tuned, "--data", images, "--json").out)
    assert scored["top1"] > 90
    said = cli("eval", tuned, "--data", images, "--split", "train").out
    assert "top-1" in said
    assert "top-5" not in said  # of three classes it would be 100 %
    record = json.loads((tuned / "learngene.json").read_text())
    assert record["layers"][0] == "B"
    assert record["finetuned"]["accuracy"]["top1"] == scored["top1"]

    result = cli("export", tuned, "--out", tmp_path / "model.onnx")
    assert result.code == 0, result.err
    assert "logits agree at batch 1 and 8" in result.out


def test_a_gene_is_measured_and_finetuned_directly(cli: CLI, images: Path, tmp_path: Path) -> None:
    gene = tmp_path / "g.safetensors"
    pico_gene().save(gene)
    assert json.loads(cli("eval", gene, "--data", images, "--depth", 3, "--json").out)["images"] == 12
    fields = finetune_fields(gene, images, tmp_path / "run", shape={"depth": 3}, options={"layers": [1, 2]})
    result = cli("finetune", written(tmp_path / "r.yaml", fields))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "run" / "descendant" / "learngene.json").read_text())
    assert record["shape"]["depth"] == 3
    assert len(record["fresh"]) == 12


def test_classes_are_renamed_with_the_task(cli: CLI, tmp_path: Path) -> None:
    two = make_images(tmp_path / "two", classes=("green", "red"))
    pico_gene().save(tmp_path / "g.safetensors")
    fields = finetune_fields(tmp_path / "g.safetensors", two, tmp_path / "run", shape={"depth": 2})
    assert cli("finetune", written(tmp_path / "r.yaml", fields)).code == 0
    config = json.loads((tmp_path / "run" / "descendant" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (2, ["green", "red"])
    again = finetune_fields(tmp_path / "run" / "descendant", tmp_path / "three", tmp_path / "again")
    make_images(tmp_path / "three")
    assert cli("finetune", written(tmp_path / "again.yaml", again)).code == 0
    config = json.loads((tmp_path / "again" / "descendant" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (3, ["blue", "green", "red"])
    assert load_descendant(tmp_path / "again" / "descendant")(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_larger_images_stay_larger_in_the_descendant(cli: CLI, tmp_path: Path) -> None:
    large = make_images(tmp_path / "large", size=16)
    pico_gene().save(tmp_path / "g.safetensors")
    assert cli("expand", tmp_path / "g.safetensors", "--img-size", 16, "--out", tmp_path / "des").code == 0
    fields = finetune_fields(tmp_path / "des", large, tmp_path / "run")
    assert cli("finetune", written(tmp_path / "r.yaml", fields)).code == 0
    model = load_descendant(tmp_path / "run" / "descendant")
    assert model.pos_embed.shape == (1, 16, 16)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 16, 16)


@pytest.mark.parametrize(
    ("flags", "fresh"),
    [([], 0), (["--layers", "1-3"], 12), (["--layers", "1,4", "--modules", "msa,ln"], 32), (["--num-classes", 9], 2)],
    ids=str,
)
def test_partial_expansion_by_flags_says_what_starts_fresh(
    cli: CLI, flags: list[Any], fresh: int, tmp_path: Path
) -> None:
    pico_gene().save(tmp_path / "g.safetensors")
    result = cli("expand", tmp_path / "g.safetensors", "--out", tmp_path / "des", "--seed", 3, *flags)
    assert result.code == 0, result.err
    assert len(json.loads((tmp_path / "des" / "learngene.json").read_text())["fresh"]) == fresh
    assert (f"{fresh} tensors start fresh" in result.out) == (fresh > 0)


@pytest.mark.parametrize(
    ("method", "settings", "flags", "layers"),
    [
        ("tleg", {}, ["--depth", 2], ["B", "B + 1/2 A"]),
        ("sws", {"stages": (2, 1, 1)}, ["--depth", 4, "-s", "order=[2,1,0]"], [f"stage{m}" for m in (0, 1, 2, 2)]),
        ("sws", {"stages": (2, 1, 1)}, ["--depth", 5], [f"stage{m}" for m in (0, 0, 1, 1, 2)]),
        ("sws", {"stages": (2, 1, 1)}, ["--depth", 5, "--set", "order=front-last-mid"],
         [f"stage{m}" for m in (0, 0, 1, 2, 2)]),
        ("lsamd", {"layers": (1, 3)}, ["--depth", 3], [f"base block {block}" for block in (1, 3, 3)]),
        ("pool", {"rows": (8, 16)}, ["--path", "2+2"],
         ["row0 block 1", "row0 block 2", "stitch.0.1.1, row1 block 3", "row1 block 4"]),
        ("vanilla-lg", {"last": 1}, ["--depth", 2], ["fresh", "layer3"]),
        ("tleg", {}, ["--depth", 3, "--layers", "2"], ["fresh", "B + 1/3 A", "fresh"]),
    ],
    ids=str,
)  # fmt: skip
def test_expanding_explains_every_layer(
    cli: CLI, method: str, settings: dict[str, Any], flags: list[Any], layers: list[str], tmp_path: Path
) -> None:
    gene = tmp_path / "g.safetensors"
    pico_gene(method, settings).save(gene)
    told = [f"    layer {number:2d}: {text}" for number, text in enumerate(layers, start=1)]
    result = cli("expand", gene, "--out", tmp_path / "des", "--explain", *flags)
    assert result.out.splitlines()[1 : 1 + len(layers)] == told, result.err
    assert "layer  1" not in cli("expand", gene, "--out", tmp_path / "des", *flags).out
    if "--layers" not in flags:
        options = flags[2:]
        assert "\n".join(told) in cli("plan", gene, "--explain", *options).out


METHODS = ("tleg ", "sws ", "settings.stages = (3, 3, 4, 3, 3)", "settings.first_layer = 1", "--set order=...")
HELP = (
    " demo ",
    " condense ",
    " plan ",
    " expand ",
    " finetune ",
    " eval ",
    " export ",
    " info ",
    " check ",
    " methods ",
)


@pytest.mark.parametrize(
    ("argument", "texts"),
    [("methods", METHODS), ("--help", HELP), ("--version", [f"learngene {learngene.__version__}\n"])],
)
def test_what_the_program_says_of_itself(cli: CLI, argument: str, texts: list[str]) -> None:
    result = cli(argument)
    assert (result.code, result.err) == (0, "")
    assert all(text in result.out for text in texts)


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_help_ends_with_two_examples_that_can_be_called(cli: CLI, name: str) -> None:
    shown = cli(name, "--help").out.partition("Examples:\n")[2].splitlines()
    assert [line.split()[:2] for line in shown] == [["learngene", name]] * 2
    for line in shown:
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, shlex.split(line)[2:])  # raises what a wrong call would


def test_the_program_is_also_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["learngene", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("learngene", run_name="__main__")
    assert (end.value.code, capsys.readouterr().out) == (0, f"learngene {learngene.__version__}\n")


def test_latency_limits_a_plan(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learngene.vits.speed.latency", lambda shape, **_: float(shape.depth))
    monkeypatch.setenv("LEARNGENE_CACHE", str(tmp_path / "cache"))
    pico_gene().save(tmp_path / "g.safetensors")
    result = cli("plan", tmp_path / "g.safetensors", "--max-latency", 3, "--max-params", "1M")
    assert result.code == 0, result.err
    assert [line.split()[1] for line in result.out.splitlines()[:-1]] == ["3", "2", "1"]
    assert "3.00 ms" in result.out


def test_the_next_command_repeats_what_was_asked_for(cli: CLI, tmp_path: Path) -> None:
    gene = tmp_path / "my gene.safetensors"
    pico_gene("sws", {"stages": (2, 1, 1)}).save(gene)
    flags = ["--num-classes", 7, "--img-size", 16, "--set", "assign=random", "--set", "assign_seed=3"]
    line = cli("plan", gene, "--max-params", 20_000, *flags).out.splitlines()[-1]
    assert line.startswith("next: learngene expand ")
    result = cli(*shlex.split(line.removeprefix("next: learngene ").replace(" DIR", f" {tmp_path / 'des'}")))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "des" / "learngene.json").read_text())
    assert (record["shape"]["num_classes"], record["shape"]["img_size"]) == (7, 16)
    assert record["options"] == {"assign": "random", "assign_seed": 3}


def test_scores_of_outputs_that_are_not_finite_are_refused(refused: Any, images: Path, tmp_path: Path) -> None:
    gene = pico_gene()
    with torch.no_grad():
        gene.tensors()["head.weight"].fill_(3e38)
    gene.save(tmp_path / "g.safetensors")
    line = refused("eval", tmp_path / "g.safetensors", "--data", images)
    assert line.endswith("g.safetensors: its outputs are not finite numbers, so its scores mean nothing")


def test_grey_images_train_a_grey_model(cli: CLI, images: Path, tmp_path: Path) -> None:
    shape = pico_shape(depth=2, in_chans=1).to_dict()
    recipe = written(tmp_path / "r.yaml", finetune_fields("scratch", images, tmp_path / "run", shape=shape))
    assert cli("finetune", recipe).code == 0
    folder = tmp_path / "run" / "descendant"
    model = load_descendant(folder)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (1, 8, 8)
    assert json.loads(cli("eval", folder, "--data", images, "--json").out)["images"] == 12


def test_a_timm_model_remembers_the_size_it_was_trained_at(cli: CLI, images: Path, tmp_path: Path) -> None:
    fields = finetune_fields("resnet10t", images, tmp_path / "run", pretrained=False)
    fields["data"]["img_size"] = 32
    result = cli("finetune", written(tmp_path / "r.yaml", fields), "train.epochs=1")
    assert result.code == 0, result.err
    folder = tmp_path / "run" / "descendant"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    assert model.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    assert json.loads(cli("eval", folder, "--data", images, "--json").out)["images"] == 12


def test_the_fresh_head_of_a_descendant_is_a_function_of_the_seed(cli: CLI, tmp_path: Path) -> None:
    two = make_images(tmp_path / "two", classes=("green", "red"))
    learngene.save_descendant(pico_gene().expand(2), tmp_path / "des")
    heads = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        out = tmp_path / f"run{number}"
        recipe = written(tmp_path / "r.yaml", finetune_fields(tmp_path / "des", two, out))
        # A rate of nearly nothing leaves the fresh head as it was drawn.
        still = ["train.lr=1e-30", "train.schedule.min_lr=0", f"train.seed={seed}"]
        assert cli("finetune", recipe, *still).code == 0
        heads.append(load_descendant(out / "descendant").head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])


# -- check -------------------------------------------------------------------------------------------------


def test_check_says_what_is_in_order_and_writes_nothing(
    cli: CLI, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    recipe = written(tmp_path / "r.yaml", condense_fields(ancestry_folder, images, tmp_path / "run"))
    result = cli("check", recipe, "train.epochs=5")
    assert result.code == 0, result.err
    for text in (
        "data: 24 training and 12 validation images, 3 classes",
        "training: 5 epochs, 15 steps of 8 images",
        "ancestry: vit_base_patch16_224 learngene_scratch, sha256 ",
        "gene: tleg at 4 layers x 16 (2 heads)",
        f"out: {tmp_path / 'run'} is new",
        f"next: learngene condense {recipe} train.epochs=5",
    ):
        assert text in result.out
    assert counted_at_the_end(result.out, 1) == [f"data {images}"]
    assert result.out.splitlines()[-3:-1] == [
        f"data {images}: training 24 images (8 blue, 8 green, 8 red)",
        f"data {images}: validation 12 images (4 blue, 4 green, 4 red)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_check_of_a_descendant_names_its_model(cli: CLI, images: Path, tmp_path: Path) -> None:
    pico_gene("sws", {"stages": (2, 2)}).save(tmp_path / "g.safetensors")
    fields = finetune_fields(tmp_path / "g.safetensors", images, tmp_path / "run", shape={"depth": 3})
    result = cli("check", written(tmp_path / "r.yaml", fields))
    assert result.code == 0, result.err
    assert f"model: sws, {pico_shape(depth=3).params() / 1e6:.3f} M parameters" in result.out


def test_check_takes_flags_of_finetune(cli: CLI, images: Path, tmp_path: Path) -> None:
    pico_gene("sws", {"stages": (2, 2)}).save(tmp_path / "g.safetensors")
    flags = ["--model", tmp_path / "g.safetensors", "--data", images, "--depth", 3, "--epochs", 2, "--batch-size", 6]
    flags += ["--lr", "1e-2", "--warmup-epochs", 0, "--seed", 5, "--out", tmp_path / "run"]
    result = cli("check", *flags)
    assert result.code == 0, result.err
    assert "training: 2 epochs, 8 steps of 6 images" in result.out  # of 24 images
    assert f"model: sws, {pico_shape(depth=3).params() / 1e6:.3f} M parameters" in result.out
    told = result.out.splitlines()[-1].removeprefix("next: learngene ")
    assert shlex.split(told) == ["finetune", *map(str, flags)]
    assert cli(*shlex.split(told)).code == 0
    train = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train"]
    assert [train[key] for key in ("lr", "batch_size", "seed")] == [1e-2, 6, 5]
    assert train["schedule"]["warmup_epochs"] == 0


@pytest.mark.parametrize("kind", ["condense", "finetune"])
def test_check_sees_a_run_that_is_finished(
    cli: CLI, kind: str, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    make = condense_fields if kind == "condense" else finetune_fields
    recipe = written(tmp_path / "r.yaml", make(ancestry_folder, images, tmp_path / "run"))
    assert cli(kind, recipe).code == 0
    before = contents(tmp_path)
    result = cli("check", recipe)
    assert result.code == 0, result.err
    assert f"out: {tmp_path / 'run'} is finished" in result.out
    assert contents(tmp_path) == before


# -- export ------------------------------------------------------------------------------------------------


def test_an_exported_file_takes_any_batch_and_one_that_differs_gets_no_name(
    cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("des", 0), ("other", 1)):
        model = pico_gene(seed=seed).expand(pico_shape(depth=1, ending="official"))
        learngene.save_descendant(model, tmp_path / name)
    import onnxruntime

    result = cli("export", tmp_path / "other", "--out", tmp_path / "model.onnx")
    assert (result.code, result.err) == (0, "")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3, 5):
        images = torch.randn(count, 3, 8, 8)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-3, atol=1e-4)
    export = "learngene.devices.onnxruntime.write_onnx"
    monkeypatch.setattr(export, lambda _model, _images, path: shutil.copy(tmp_path / "model.onnx", path))
    result = cli("export", tmp_path / "des", "--out", tmp_path / "wrong.onnx")
    assert result.code == 2
    assert "export: the file's logits differ by" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"des", "other", "model.onnx", "model.onnx.json"}
