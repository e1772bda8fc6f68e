"""What is optional: TensorBoard events, other trackers, and packages that are missing."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import learngene
from learngene import LearngeneError, finetune, scratch
from pico import CLI, FAST, pico_gene, pico_shape


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path))
    found.Reload()
    return {key: [(event.step, event.value) for event in found.Scalars(key)] for key in found.Tags()["scalars"]}


def test_a_run_writes_its_epochs_as_tensorboard_events(images: Path, tmp_path: Path) -> None:
    data = {"source": str(images), "workers": 0}
    result = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST)
    found = events(tmp_path / "run")
    for key in ("loss", "lr", "top1", "val_loss"):
        assert [step for step, _ in found[key]] == [1, 2]
        assert [value for _, value in found[key]] == pytest.approx([entry[key] for entry in result.history], rel=1e-5)


def test_a_run_needs_no_tensorboard(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    data = {"source": str(images), "workers": 0}
    result = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST)
    assert result.updates == 6
    assert not list((tmp_path / "run").glob("events*"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


class Recorded(ModuleType):
    """Stands for trackio or wandb, as Accelerate calls them, and remembers the runs that were begun."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.runs: list[Recorded.Run] = []

    def init(self, **settings: Any) -> "Recorded.Run":
        print(f"{self.__name__} says hello")
        self.runs.append(self.Run(settings))
        return self.runs[-1]

    def finish(self) -> None:
        raise RuntimeError("no run")

    class Run:
        def __init__(self, settings: dict[str, Any]) -> None:
            self.settings, self.steps, self.finished = settings, dict[int, dict[str, float]](), False

        def log(self, values: dict[str, float], step: int) -> None:
            self.steps[step] = values

        def finish(self) -> None:
            self.finished = True


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    made = {name: Recorded(name) for name in ("trackio", "wandb")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_the_epochs_and_the_recipe_of_a_run_and_goes_on_with_it(
    name: str,
    recorded: dict[str, Recorded],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, spec = {"source": str(images), "workers": 0}, {**FAST, "epochs": 1}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    first = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **spec, track=[name])
    finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **spec, track=[name])
    run, again = recorded[name].runs
    assert run.settings["project"] == "learngene"
    assert run.settings["config"]["train"]["lr"] == FAST["lr"]
    assert run.finished
    assert run.steps == {1: {key: value for key, value in first.history[0].items() if isinstance(value, float)}}
    assert again.steps == {}
    key = "id" if name == "wandb" else "name"
    assert again.settings[key] == run.settings[key]
    assert "hello" not in capsys.readouterr().out  # which is for what comes out


def test_no_tracker_where_none_is_wished_for(images: Path, tmp_path: Path) -> None:
    data = {"source": str(images), "workers": 0}
    finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST, track=[])
    assert not list((tmp_path / "run").glob("events*"))


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "track"), ("trackio", "trackio"), ("wandb", "wandb")])
def test_a_tracker_without_its_extra_says_what_to_install(
    name: str, extra: str, cli: CLI, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learngene.save_descendant(scratch(pico_shape()), tmp_path / "des")
    monkeypatch.setitem(sys.modules, name, None)
    flags = ("--model", tmp_path / "des", "--data", images, f"train.track=[{name}]", "--epochs", 1, "--batch-size", 8)
    for command in ("check", "finetune"):
        result = cli(command, *flags, "train.preset=laptop", f"out={tmp_path / 'run'}")
        assert result.code == 2
        assert result.err.splitlines()[-1] == (
            f"learngene: train.track: package '{name}' is missing; pip install 'learngene[{extra}]'"
        )
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_begin_is_told(
    recorded: dict[str, Recorded], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("no API key\nconfigured")

    monkeypatch.setattr(recorded["wandb"], "init", refuse)
    data = {"source": str(images), "workers": 0}
    with pytest.raises(LearngeneError, match=r"^train.track: wandb does not begin \(no API key configured\); log in"):
        finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST, track=["wandb"])


def test_wandb_itself_keeps_a_run_offline(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    data = {"source": str(images), "workers": 0}
    finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST, track=["wandb"])
    identity = (tmp_path / "run" / "track-id").read_text()
    (kept,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb")
    assert b"val_loss" in kept.read_bytes()


def test_trackio_itself_keeps_a_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    data = {"source": str(images), "workers": 0}
    result = finetune(scratch(pico_shape()), data=data, out=tmp_path / "run", show=False, **FAST, track=["trackio"])
    (run,) = trackio.Api().runs("learngene")
    assert run.name == f"run-{(tmp_path / 'run' / 'track-id').read_text()}"
    assert len(result.history) == 2


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_an_export_without_its_extra_says_what_to_install(
    package: str, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learngene.save_descendant(pico_gene().expand(2), tmp_path / "des")
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("export", tmp_path / "des", "--out", tmp_path / "m.onnx")
    assert result.code == 2
    assert result.err.splitlines() == [
        f"learngene: export: package '{package}' is missing; pip install 'learngene[export]'"
    ]
    assert not (tmp_path / "m.onnx").exists()
