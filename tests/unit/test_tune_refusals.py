"""What either stage of a hypernetwork refuses, before anything is trained or written."""

from pathlib import Path
from typing import Any

import pytest

import learngene as lg
from comparisons import counted_at_the_end
from hyper import PICO, SHORT, home, token_shape, tune_fields, tuned, written
from learngene.system.errors import LearngeneError
from masked import make_masked
from pico import CLI, FAST, make_ancestry, make_images, pico_gene


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ancestry": None}, "ancestry is missing: it guides, unless hyper.guidance.preset is none"),
        ({"hyper": {"guidance": {"preset": "none"}}}, "ancestry: guides nothing with hyper.guidance.preset none"),
        ({"method": "logah", "settings": PICO}, "ancestry: guides nothing"),
        ({"method": "tleg", "settings": {}, "hyper": {}}, "hyper: method tleg is no hypernetwork; leave it out"),
        ({"distill": {"alpha": 0.5}}, "distill: means nothing for tal, which hyper describes; leave it out"),
        ({"pool": {}}, "pool: method tal has no rows; leave it out"),
        ({"hyper": {"meta_batch": 0}}, "hyper.meta_batch"),
        ({"hyper": {"guidance": {"preset": "papers"}}}, "papers"),
        ({"hyper": {"guidance": {"alpha": 1.5}}}, "hyper.guidance.alpha"),
        ({"shape": token_shape(class_token=False).to_dict()}, "tal: predicts ViTs with a class token"),
        ({"train": {**FAST, "layer_decay": 0.7}}, "layer_decay is for fine-tuning"),
        ({"settings": {**PICO, "task_dim": 768}}, "has 16 features, but the task layers take 768; set .*task_dim=16"),
        ({"shape": token_shape(num_classes=4).to_dict()}, "has 4 classes but .* has 3; set shape.num_classes"),
        ({"shape": token_shape(img_size=16).to_dict()}, "does not take images of 16 px|change shape.img_size"),
        (
            {"shape": token_shape(patch_size=2).to_dict(), "hyper": {"guidance": {"preset": "paper"}}},
            "has 4 patches but the predicted ViTs have 16; channel-wise guidance needs as many",
        ),
    ],
    ids=str,
)
def test_a_wrong_stage_1_is_refused(
    changes: dict[str, Any], message: str, images: Path, ancestry_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LearngeneError, match=message):
        home(ancestry_folder, images, tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_guide_that_m_cannot_reach_is_refused(images: Path, tmp_path: Path) -> None:
    """M has as many rows as the ancestry has features; it needs a factor of as many."""
    guide = make_ancestry(tmp_path / "wide", embed_dim=272, num_heads=4)
    settings = {**PICO, "task_dim": 272}
    with pytest.raises(LearngeneError, match=r"has 272 features, .*expansion=272"):
        home(guide, images, None, settings=settings)
    home(guide, images, None, settings=settings, train=SHORT, hyper={"guidance": {"map": "learned"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ancestry": None}, "ancestry is missing: the task embeddings of tal are its features"),
        ({"hyper": {"guidance": {"alpha": 0.2}}}, "hyper: unknown key 'guidance'"),
        ({"method": "tal"}, "method: the gene has one already; leave it out, or leave out gene"),
        ({"settings": PICO}, "settings: the gene has one already"),
        ({"shape": token_shape().to_dict()}, "shape: the gene has one already"),
        ({"gene": None}, "gene is missing: name the file of stage 1, or give method and shape"),
        ({"gene": None, "method": "tal"}, "gene is missing"),
        ({"tasks": {}}, "tasks: empty; give at least one$"),
        ({"tasks": {"pair": None}}, "tasks: empty; give at least one$"),
        ({"tasks": None}, "tasks: Input should be a mapping of keys to values$"),
        ({"tasks": {"pair": {}}}, "tasks.pair.data: required, but missing$"),
        ({"tasks": {"pair ": {"data": {"source": "digits"}}}}, "tasks: 'pair ' is no name for a task"),
        ({"tasks": {"pair": {"data": "digits"}}}, "data: .* [(]given: 'digits'[)]; did you mean its source?"),
        ({"temperature": 0}, "temperature"),
        ({"train": {**FAST, "layer_decay": 0.7}}, "layer_decay is for fine-tuning"),
        ({"freeze_encoders": True}, "unknown key 'freeze_encoders'; did you mean 'freeze_encoder'"),
    ],
    ids=str,
)
def test_a_wrong_stage_2_is_refused(
    changes: dict[str, Any],
    message: str,
    stage1: Path,
    ancestry_folder: Path,
    tasks: dict[str, Path],
    tmp_path: Path,
    refused: Any,
) -> None:
    fields = tune_fields(stage1, ancestry_folder, tasks, tmp_path / "run", **changes)
    with pytest.raises(LearngeneError, match=message):
        tuned(fields)
    refused("tune", written(fields, tmp_path / "r.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("method", "ancestry", "message"),
    [
        ("logah", True, "ancestry: without task layers no embeddings are needed; leave it out"),
        ("tal", False, "ancestry is missing"),
        ("tleg", False, "method tleg is no hypernetwork; use tal, logah or ghn3"),
        ("lgah", False, "unknown method 'lgah'; did you mean 'logah'"),
    ],
)
def test_a_fresh_network_that_does_not_fit_is_refused(
    method: str, ancestry: bool, message: str, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    fields = {"method": method, "settings": {} if method == "tleg" else PICO, "shape": token_shape().to_dict()}
    with pytest.raises(LearngeneError, match=message):
        tuned(tune_fields(None, ancestry_folder if ancestry else None, tasks, tmp_path / "run", **fields))


def test_a_gene_that_predicts_nothing_is_refused(tasks: dict[str, Path], tmp_path: Path, refused: Any) -> None:
    pico_gene().save(tmp_path / "g.safetensors")
    fields = tune_fields(tmp_path / "g.safetensors", None, tasks, tmp_path / "run")
    with pytest.raises(LearngeneError, match="a gene of tleg, which predicts nothing; use tal, logah or ghn3"):
        tuned(fields)
    assert "which predicts nothing" in refused("tune", written(fields, tmp_path / "r.yaml"))
    with pytest.raises(LearngeneError, match="a gene of tleg"):
        lg.tune(pico_gene(), tasks={"pair": str(tasks["pair"])}, show=False)
    with pytest.raises(LearngeneError, match="tasks must be a mapping from names of data sets, not list"):
        lg.tune(pico_gene(), tasks=[str(tasks["pair"])], show=False)  # type: ignore[arg-type]


def test_an_ancestry_of_another_gene_is_refused(stage1: Path, tasks: dict[str, Path], tmp_path: Path) -> None:
    other = make_ancestry(tmp_path / "other", depth=1)
    with pytest.raises(
        LearngeneError, match=r"is not the one that .* was trained under .*its features mean something else"
    ):
        tuned(tune_fields(stage1, other, tasks, tmp_path / "run"))
    wide = make_ancestry(tmp_path / "wide", embed_dim=32)
    with pytest.raises(LearngeneError, match="has 32 features, but the task layers take 16"):
        tuned(tune_fields(stage1, wide, tasks, tmp_path / "run"))


def test_every_task_that_does_not_fit_is_named(
    stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    one = make_images(tmp_path / "one", classes=("blue",))
    few = make_images(tmp_path / "few", train=2, classes=("a", "b"))
    many = make_images(tmp_path / "many", train=1, val=1, classes=tuple(f"c{i:03d}" for i in range(130)))
    wrong = {"one": one, "few": few, "many": many, "gone": tmp_path / "gone"}
    with pytest.raises(LearngeneError) as error:
        tuned(tune_fields(stage1, ancestry_folder, {**tasks, **wrong}, tmp_path / "run"))
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"task {name}" for name in wrong]
    assert "class" in lines[0]
    assert "4 training images are fewer than train.batch_size 8" in lines[1]
    assert "factors of 256 rows are too small" in lines[2]
    assert not (tmp_path / "run").exists()


def test_a_task_of_masks_is_refused(stage1: Path, ancestry_folder: Path, tmp_path: Path) -> None:
    folder = make_masked(tmp_path / "masks")
    with pytest.raises(LearngeneError, match=r"task masks: .*mask"):
        tuned(tune_fields(stage1, ancestry_folder, {"masks": folder}, tmp_path / "run"))
    with pytest.raises(LearngeneError, match="a task embedding is of images with a class each, not of masks"):
        lg.embed_task(str(ancestry_folder), str(folder))


def test_an_augmentation_of_one_task_that_is_wrong_is_refused(
    stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    fields = tune_fields(stage1, ancestry_folder, tasks, tmp_path / "run")
    fields["tasks"]["pair"]["augment"] = {"hflips": 0.5}
    with pytest.raises(LearngeneError, match=r"tasks.pair.augment.*hflips"):
        tuned(fields)


@pytest.mark.parametrize("architectures", ["laptop", [[2, 16, 2], [2, 128, 4]]], ids=str)
def test_a_trained_size_that_cannot_be_predicted_is_refused_at_once(
    architectures: Any, images: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """Not at the step that draws it."""
    settings = {**PICO, "task_dim": 16, "architectures": architectures}
    with pytest.raises(LearngeneError, match="factors of 256 rows are too small for the widest weight of"):
        home(ancestry_folder, images, tmp_path / "run", settings=settings)
    fields = {"method": "tal", "settings": settings, "shape": token_shape().to_dict()}
    with pytest.raises(LearngeneError, match="factors of 256 rows are too small for the widest weight of"):
        tuned(tune_fields(None, ancestry_folder, tasks, tmp_path / "run", **fields))
    assert list(tmp_path.iterdir()) == []


def test_what_a_user_types_by_mistake_is_one_line(
    cli: CLI, ancestry_folder: Path, tasks: dict[str, Path], stage1: Path, tmp_path: Path
) -> None:
    tune = written(tune_fields(stage1, ancestry_folder, tasks, tmp_path / "t"), tmp_path / "t.yaml")
    out = ["--out", tmp_path / "d"]
    for arguments, text in (
        (("tune", tune, "hyper=5"), "hyper"),
        (("tune", tune, 'tasks={"a\\nb": {data: {source: digits}}}'), "is no name for a task"),
        (("expand", stage1, *out, "--set", "task=5"), "--task 5: no folder or tar of images, and no task of this gene"),
        (("expand", stage1, *out, "--set", "task=a", "--task", "b"), "--task: given twice"),
        (("expand", stage1, *out, "--task", tmp_path / "nix" / "nix"), "nix"),
    ):
        done = cli(*arguments)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert text in done.err
    assert "ancestry" not in cli("expand", stage1, *out, "--task", tmp_path / "nix" / "nix").err
    gene = lg.load(stage1)
    for call in (
        lambda: lg.tune(None, ancestry_folder, tasks={"a": "digits"}),  # type: ignore[arg-type]
        lambda: lg.tune(gene, object(), tasks={"a": "digits"}),  # type: ignore[arg-type]
        lambda: lg.tune(gene, ancestry_folder, tasks={"a": "digits"}, hyper=5),  # type: ignore[arg-type]
        lambda: lg.embed_task(5, "digits"),  # type: ignore[arg-type]
    ):
        with pytest.raises(LearngeneError):
            call()


def test_stage_2_does_not_write_over_its_gene(
    stage1: Path, ancestry_folder: Path, tasks: dict[str, Path], tmp_path: Path, refused: Any
) -> None:
    gene = tmp_path / "home.safetensors"
    gene.write_bytes(stage1.read_bytes())
    recipe = written(tune_fields(gene, ancestry_folder, tasks, tmp_path / "home"), tmp_path / "r.yaml")
    for command in ("check", "tune"):
        assert "home.safetensors is the gene that is tuned and would be lost" in refused(command, recipe)
    assert gene.read_bytes() == stage1.read_bytes()


def test_null_leaves_a_task_out(
    cli: CLI, ancestry_folder: Path, tasks: dict[str, Path], stage1: Path, tmp_path: Path
) -> None:
    tune = written(tune_fields(stage1, ancestry_folder, tasks, tmp_path / "t"), tmp_path / "t.yaml")
    done = cli("check", tune, f"tasks.{next(iter(tasks))}=null")
    assert done.code == 0, done.err
    assert sum(line.startswith("task ") for line in done.out.splitlines()) == len(tasks) - 1
    assert counted_at_the_end(done.out, 1) == [f"data {path}" for path in list(tasks.values())[1:]]
