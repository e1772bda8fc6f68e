"""What bad input gets from the command line: one line, exit code 2, nothing half-written."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import learngene
from comparisons import contents
from learngene.system.errors import LearngeneError
from pico import CLI, FAST, command, condense_fields, finetune_fields, make_images, pico_gene, pico_shape

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gene and a descendant; read only."""
    folder, gene = tmp_path_factory.mktemp("made"), pico_gene("sws", {"stages": (2, 1, 1)})
    gene.save(folder / "gene.safetensors")
    learngene.save_descendant(gene.expand(3), folder / "des")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, images: Path, ancestry_folder: Path) -> Path:
    """A folder with a gene, a descendant, and a recipe of each kind that works."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name, fields in (
        ("condense", condense_fields(ancestry_folder, images, tmp_path / "run")),
        ("finetune", finetune_fields(tmp_path / "gene.safetensors", images, tmp_path / "run", shape={"depth": 3})),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path


COMMANDS: dict[str, tuple[str, str]] = {
    "unknown key": ("condense condense.yaml train.epoch=3", "unknown key 'epoch'; did you mean 'epochs'"),
    "unknown key, finetune": ("finetune finetune.yaml train.lrr=3", "unknown key 'lrr'; did you mean 'lr'"),
    "wrong value": ("condense condense.yaml train.epochs=0", "train.epochs: Input should be greater than"),
    "not an override": ("condense condense.yaml epochs", "override 'epochs' is not of the form key.sub=value"),
    "no recipe": ("condense none.yaml", "none.yaml: cannot be read: No such file or directory"),
    "recipe of another kind": ("condense finetune.yaml", "a finetune recipe; run it with `learngene finetune`"),
    "recipe of yet another kind": ("finetune condense.yaml", "a condense recipe; run it with"),
    "width and heads": ("condense condense.yaml shape.num_heads=3", "embed_dim 16 is not divisible by num_heads 3"),
    "unknown method": ("condense condense.yaml method=tlegg", "unknown method 'tlegg'; did you mean 'tleg'"),
    "stages": ("condense condense.yaml method=sws settings.stages=[1,1]",
               "stages 1,1 add up to 2 layers, but the auxiliary shape has depth 4"),
    "ancestry": ("condense condense.yaml ancestry.source=levit_348", "did you mean 'levit_384'"),
    "classes of the shape": ("condense condense.yaml shape.num_classes=4", "the auxiliary shape has 4"),
    "normalisation": ("condense condense.yaml data.mean=[0,0,0]", "differs from the ancestry's"),
    "batch too large, finetune": ("finetune finetune.yaml train.batch_size=26", "24 training images are fewer"),
    "diverging": ("condense condense.yaml train.lr=1e30", "the loss became "),
    "depth below stages": ("finetune finetune.yaml shape.depth=2", "depth 2 is below the 3 stages"),
    "heads of another": ("finetune finetune.yaml shape.num_heads=4", "has num_heads 2, not 4"),
    "channels": ("finetune finetune.yaml data.mean=[1]", "data.mean"),
    "augmentation": ("finetune finetune.yaml train.augment.rand_augment=zzz", "train.augment.rand_augment"),
    "wrong choice": ("finetune finetune.yaml options.order=front", "unknown order 'front'"),
    "unknown choice": ("finetune finetune.yaml options.ordre=front", "did you mean 'order'"),
    "no gene": ("finetune finetune.yaml model=none.safetensors", "none.safetensors: no such gene file"),
    "no model": ("finetune finetune.yaml model=deit_smal shape=null", "no file or folder, and no timm model"),
    "scratch without shape": ("finetune finetune.yaml model=scratch shape=null", "scratch: needs a shape"),
    "shape of a descendant": ("finetune finetune.yaml model=des", "model des: shape means nothing for a descendant"),
    "shape of a timm model": ("finetune finetune.yaml model=resnet10t pretrained=false", "shape"),
    "wrong argument": ("finetune finetune.yaml model=resnet10t shape=null pretrained=false 'model_args={a: 1}'",
                       "model_args: timm's resnet10t takes no argument 'a'"),
    "dropped paths": ("finetune finetune.yaml model=resnet10t shape=null pretrained=false train.drop_path=0.1",
                      "ResNet is not a timm ViT"),
    "finetune nothing": ("finetune", "give a recipe, or --model and --data"),
    "finetune without data": ("finetune --model des", "give a recipe, or --model and --data"),
    "the same said twice": ("finetune finetune.yaml train.epochs=2 --epochs 3",
                            "--epochs and train.epochs= say the same; leave one out"),
    "data said twice": ("check --model des --data images data.source=digits",
                        "--data and data.source= say the same; leave one out"),
    "plan no gene": ("plan none.safetensors", "none.safetensors: no such gene file"),
    "plan a folder within limits": ("plan des --max-params 1M", "--max-params: des is one model, of one size"),
    "plan a recipe": ("plan condense.yaml", "not a gene file"),
    "plan nothing fits": ("plan gene.safetensors --max-params 10", "no shape fits this budget"),
    "plan nothing fits, in JSON": ("plan gene.safetensors --max-params 10 --json", "no shape fits this budget"),
    "plan no number": ("plan gene.safetensors --max-params tiny", "'tiny' is not a number such as 10M"),
    "plan negative": ("plan gene.safetensors --max-macs 0", "max_macs must be positive"),
    "plan unknown choice": ("plan gene.safetensors --set ordr=1", "did you mean 'order'"),
    "plan no choice": ("plan gene.safetensors --set order", "--set 'order' is not of the form key=value"),
    "expand too shallow": ("expand gene.safetensors --depth 2 --out new", "below the 3 stages"),
    "expand no layer": ("expand gene.safetensors --depth 3 --layers 9 --out new", "layer 9 does not exist"),
    "expand no layers": ("expand gene.safetensors --layers a-b --out new", "'a-b' is not a list"),
    "expand no module": ("expand gene.safetensors --modules mla --out new", "unknown module 'mla'"),
    "expand no ending": ("expand gene.safetensors --ending x --out new", "unknown ending 'x'"),
    "expand no size": ("expand gene.safetensors --img-size 9 --out new", "9 is not divisible"),
    "expand no depth": ("expand gene.safetensors --depth 0 --out new", "must be a positive integer"),
    "expand deepest": ("expand gene.safetensors --depth 2000000000 --out new", "depth"),
    "expand largest": ("expand gene.safetensors --img-size 160000 --out new", "img_size"),
    "expand last layer": ("expand gene.safetensors --layers 1-999999999 --out new", "layer"),
    "expand seed": (f"expand gene.safetensors --seed {'9' * 30} --out new", "--seed"),
    "expand a descendant": ("expand des --out new", "des: a folder with a model, not a gene"),
    "eval no data": ("eval des --data /nowhere", "/nowhere: no such folder or tar"),
    "eval other classes": ("eval des --data digits", "the model has 3 classes but digits has 10"),
    "eval no model": ("eval levit_348 --data digits", "did you mean 'levit_384'"),
    "eval no split": ("eval des --data digits --split dev", "unknown split 'dev'; give train or val"),
    "eval depth of a descendant": ("eval des --data digits --depth 4", "only a gene file"),
    "export a gene": ("export gene.safetensors --out new.onnx", "not a descendant folder"),
    "export otherwise": ("export des --out new.pt", "ONNX files have the suffix .onnx"),
    "export nothing": ("export nowhere --out new.onnx", "not a descendant folder (no config.json)"),
    "info of a recipe": ("info condense.yaml", "not a gene file"),
    "no argument": ("plan", "plan: give a gene file, or without one --sizes, --img-size and --num-classes"),
    "no number": ("plan x --max-latency fast", "see learngene plan --help"),
    "no such option": ("plan x --max-parms 1", "No such option: --max-parms"),
    "no data option": ("eval x", "Missing option '--data'; see learngene eval --help"),
    "no such command": ("expnd", "No such command 'expnd'"),
    "check unknown key": ("check condense.yaml train.epoch=3", "did you mean 'epochs'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments: str, expected: str, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = contents(place)
    assert expected in refused(*shlex.split(arguments))
    after = contents(place)
    if expected == "the loss became ":  # this run has begun: its folder is there, a gene is not
        after = {name: content for name, content in after.items() if not name.startswith("run/")}
    assert after == before


CHECKS: dict[str, tuple[list[str], str]] = {
    "data": (["data.source=/nowhere"], "no such folder or tar"),
    "batch": (["train.batch_size=26"], "24 training images are fewer than train.batch_size 26"),
    "micro batch": (["train.augment.mixup=1", "train.micro_batch=1"], "(mixing needs pairs)"),
    "classes": (["data.source=digits"], "3 classes but the data has 10"),
    "image size": (["shape.img_size=16"], "takes images of 8 px"),
    "ancestry": (["ancestry.sha256=abc"], "the name now means other weights"),
    "class names": (["data.source=other"], "other classes than the data has (blue, green, red against cat, dog, emu)"),
    "foreign folder": (["out=foreign"], "was not written by learngene"),
    "foreign gene": (["out=thesis"], "exists and is not a gene"),
    "optimizer": (["train.optimizer=adamx"], "unknown optimizer 'adamx'"),
    "folder in a file": (["out=thesis.safetensors/run"], "cannot write thesis.safetensors/run: "),
}


@pytest.mark.parametrize(("overrides", "expected"), CHECKS.values(), ids=CHECKS)
def test_check_refuses_what_the_run_would_refuse(
    overrides: list[str], expected: str, cli: CLI, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "foreign").mkdir()
    (place / "foreign" / "mine.txt").write_text("mine")
    (place / "thesis.safetensors").write_text("mine")
    make_images(place / "other", classes=("cat", "dog", "emu"))
    before = contents(place)
    for name in ("check", "condense"):
        result = cli(name, "condense.yaml", *overrides)
        assert result.code == 2
        *begun, line = result.err.splitlines()
        assert len(begun) <= (name == "condense")
        assert expected in line, name
        assert contents(place) == before, name


def test_check_of_a_finetune_recipe_refuses_too(cli: CLI, place: Path) -> None:
    result = cli("check", place / "finetune.yaml", "shape.depth=2")
    assert (result.code, "depth 2 is below the 3 stages" in result.err) == (2, True)


# -- output paths ------------------------------------------------------------------------------------------


OUTPUTS: list[tuple[str, str]] = [
    ("condense condense.yaml out=notes.txt", "exists and is a file, not a folder"),
    ("finetune finetune.yaml out=notes.txt/run", "write notes.txt/run: Not a directory; choose another"),
    ("finetune finetune.yaml out=foreign", "exists and was not written by learngene"),
    ("finetune finetune.yaml out=half", "by learngene (it has no learngene.json)"),
    ("expand gene.safetensors --out foreign", "exists and was not written by learngene"),
    ("expand gene.safetensors --out notes.txt", "exists and is a file, not a folder"),
    ("expand gene.safetensors --out notes.txt/des", "cannot write"),
    ("export des --out foreign", "of an export is beside it; choose another output path"),
    ("export des --out notes.txt", "of an export is beside it; choose another output path"),
    ("demo --out foreign", "exists and was not written by learngene"),
]


@pytest.mark.parametrize(("arguments", "expected"), OUTPUTS, ids=str)
def test_an_output_that_is_not_ours_is_refused_and_left_alone(
    arguments: str, expected: str, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for name in ("foreign/mine.txt", "half/descendant/mine.txt", "half/recipe.yaml", "notes.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    before = contents(place)
    assert expected in refused(*shlex.split(arguments))
    assert contents(place) == before


# -- gene files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["plan {0}", "expand {0} --out new", "info {0} --verify", "eval {0} --data digits", "finetune finetune.yaml"],
)
def test_every_command_refuses_a_damaged_gene(
    command: str, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    gene = place / "gene.safetensors"
    arguments, content = shlex.split(command.format(gene)), gene.read_bytes()
    gene.write_bytes(content[:-1])
    assert "truncated" in refused(*arguments)
    torch.save({"a": 1}, gene)
    assert "a pickle, not a gene file; learngene never unpickles a gene" in refused(*arguments)
    if not command.startswith("plan"):  # planning reads the header only
        gene.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "the content does not match its digest" in refused(*arguments)
    assert not (place / "new").exists()


def test_a_gene_may_be_read_unverified_if_asked(cli: CLI, place: Path) -> None:
    gene = place / "gene.safetensors"
    content = gene.read_bytes()
    gene.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cli("expand", gene, "--out", place / "new", "--no-verify").code == 0
    assert (place / "new" / "model.safetensors").exists()


# -- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["condense", "finetune", "eval"])
def test_corrupt_images_are_refused_with_their_number_and_skipped_only_if_asked(
    name: str, cli: CLI, refused: Refused, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    broken = make_images(tmp_path / "broken", train=9)
    for split in ("train", "val"):
        (broken / split / "red" / "02.png").write_bytes(b"x")
    arguments = ["eval", "des", "--data", broken] if name == "eval" else [name, f"{name}.yaml", f"data.source={broken}"]
    line = refused(*arguments)
    assert "images cannot be decoded, the first is" in line
    assert "1 of 12" in line if name == "eval" else "1 of 27" in line
    result = cli(*arguments, "--skip-corrupt" if name == "eval" else "data.skip_corrupt=true")
    assert result.code == 0, result.err
    if name == "eval":
        assert "11 images" in result.out
    else:
        left = "left out: 1 corrupt (train/red/02.png)\n"
        assert f"data {broken}: training 26 images (9 blue, 9 green, 8 red); {left}" in result.err
        assert json.loads((place / "run" / "result.json").read_text())["data"]["corrupt"] == 2


# -- the real command --------------------------------------------------------------------------------------


def test_the_real_command_exits_with_two_and_one_line(place: Path) -> None:
    gene = place / "gene.safetensors"
    done = command("plan", gene, "--max-params", 10)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"learngene: {gene}: no shape fits this budget; the smallest is depth 3 with 7.603K params, "
        "more than 10 of max_params; the largest is depth 48 with "
    )


def test_debug_raises_the_error_itself(place: Path, cli: CLI) -> None:
    with pytest.raises(LearngeneError, match="is below the 3 stages"):
        cli("--debug", "expand", place / "gene.safetensors", "--depth", 2, "--out", place / "new")


def test_a_bug_is_called_a_bug(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("learngene.genes.gene_file.read_header", broken)
    result = cli("info", "x.safetensors")
    assert (result.code, result.out) == (1, "")
    assert result.err == "learngene: ZeroDivisionError: division by zero (a bug; --debug shows where)\n"


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    script = Path(sys.executable).with_name("learngene")
    shell = f"set -o pipefail; {script} plan {place / 'gene.safetensors'} --explain | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("depth  48")
    assert done.stderr == ""


# -- no space left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["condense", "finetune"])
def test_a_run_that_would_not_fit_on_the_disk_is_refused_before_it_starts(
    name: str, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(place)
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert "are needed but only 0 MB are free; free some space" in refused(name, place / f"{name}.yaml")
    assert contents(place) == before


def test_a_disk_that_fills_up_while_training_stops_the_run_and_keeps_the_last_state(
    cli: CLI, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def filling(content: object, path: object) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path)

    monkeypatch.setattr(torch, "save", filling)
    recipe = [place / "condense.yaml", "train.epochs=4"]
    result = cli("condense", *recipe)
    assert result.code == 2
    assert "no space left on the device; nothing was changed" in result.err.splitlines()[-1]
    monkeypatch.undo()
    assert {path.name for path in (place / "run").iterdir() if path.suffix == ".pt"} <= {"best.pt", "last.pt"}
    assert not list(place.rglob("*.tmp"))
    assert cli("check", *recipe).code == 0
    assert cli("condense", *recipe).code == 0
    assert learngene.load(place / "run.safetensors").shape == pico_shape()
    assert FAST["epochs"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expand run/descendant --out x", "run/descendant: a folder with a model, not a gene"),
        ("info run", "run: a run folder; its model is run/descendant"),
        ("eval run --data digits", "run: a run folder; its model is run/descendant"),
        (
            "eval run/descendant/model.safetensors --data digits",
            "the weights of a model; give its folder, run/descendant",
        ),
        ("export run --out x.onnx", "run: a run folder; its model is run/descendant"),
        ("export gene.safetensors --out x.onnx", "a gene is expanded first (learngene expand)"),
        ("export run/descendant --out sealed/x.onnx", "cannot write sealed: "),
        ("extract run/descendant --method vanilla-lg --out sealed/x.safetensors", "cannot write sealed: "),
        ("expand wide.safetensors --embed-dim 6 --out x", "heads are 4 wide, and 6 is no multiple of that; give"),
        ("plan gene.safetensors --max-params 10", "no shape fits this budget; the smallest is depth "),
        ("plan gene.safetensors --max-params 10", "of max_params; the largest is depth 48 with "),
    ],
)
def test_a_wrong_path_or_width_is_told_with_what_would_be_right(
    refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(place)
    Path("run").mkdir()
    Path("des").rename("run/descendant")
    pico_gene("weight-selection", embed_dim=16, num_heads=4).save("wide.safetensors")
    Path("sealed").touch()  # a file where a folder should be, which not even root can write into
    assert message in refused(*line.split())
    assert not list(place.glob("x*"))


def test_a_gene_without_classes_names_a_next_command_that_works(cli: CLI, images: Path, tmp_path: Path) -> None:
    pico_gene(num_classes=0).save(tmp_path / "gene.safetensors")
    made = cli("expand", tmp_path / "gene.safetensors", "--out", tmp_path / "des").out
    line = made.split("(or: learngene ")[1].rstrip(")\n").replace("DATA", str(images))
    assert "kNN" in cli(*line.split()).out
