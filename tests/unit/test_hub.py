"""The hub: what is uploaded, what its card says, and what comes back; the hub is a folder behind HfApi's methods."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError

import learngene
from pico import CLI, FAST, pico_gene


class Hub:
    """What stands for the hub: a folder for each repository."""

    root = Path()

    def __init__(self, **_: Any) -> None:
        pass

    def create_repo(self, repo: str, **_: Any) -> str:
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo: str, *, local_dir: Path, **_: Any) -> None:
        shutil.copytree(self.root / repo, local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "root", tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture
def descendant(tmp_path: Path) -> Path:
    learngene.save_descendant(pico_gene().expand(2), tmp_path / "des")
    return tmp_path / "des"


def test_a_gene_comes_back_as_it_was(hub: Path, cli: CLI, tmp_path: Path) -> None:
    pico_gene().save(tmp_path / "g.safetensors")
    done = cli("push", tmp_path / "g.safetensors", "me/gene")
    assert (done.code, done.out) == (0, "https://hub/me/gene\n")
    again = cli("pull", "me/gene", "--out", tmp_path / "back")
    assert again.code == 0, again.err
    assert (tmp_path / "back/g.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()


def test_a_folder_of_ones_own_is_never_replaced(hub: Path, cli: CLI, descendant: Path, tmp_path: Path) -> None:
    pico_gene().save(tmp_path / "g.safetensors")
    assert cli("push", tmp_path / "g.safetensors", "me/project").code == 0
    Path("project").mkdir()
    Path("project/README.md").write_text("mine")
    for call in (["pull", "me/project", "--out", "project"], ["push", descendant, "me/project", "--dry-run"]):
        done = cli(*call)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert "project exists and was not written by learngene" in done.err
    assert [path.name for path in Path("project").iterdir()] == ["README.md"]


def test_two_genes_in_one_repository_are_not_chosen_between(hub: Path, cli: CLI, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pico_gene().save(hub / "me/both" / f"{name}.safetensors")
    line = cli("pull", "me/both", "--out", tmp_path / "back").err
    assert "me/both: holds 2 files with tensors and no learngene.json" in line
    assert not (tmp_path / "back").exists()


def test_a_card_claims_only_what_was_measured(hub: Path, cli: CLI, descendant: Path) -> None:
    done = cli("push", descendant, "me/small", "--dry-run", "--license", "mit")
    assert (done.code, done.out, hub.exists()) == (0, "small\n", False)
    card = Path("small/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"], "model-index" in head) == ("mit", "timm", False)
    assert "| top-1 | not measured |" in card
    assert "| data | none is recorded |" in card
    assert 'timm.create_model("hf-hub:me/small", pretrained=True)' in card
    assert {path.name for path in Path("small").iterdir()} == {
        ".learngene-hub", "README.md", "config.json", "learngene.json", "model.safetensors"
    }  # fmt: skip


def test_a_card_says_what_the_record_says(hub: Path, cli: CLI, tmp_path: Path, images: Path) -> None:
    data = {"source": str(images), "workers": 0}
    learngene.finetune(pico_gene().expand(2), data=data, **FAST, out=tmp_path / "run", show=False)
    assert cli("push", tmp_path / "run/descendant", "me/tuned", "--dry-run").code == 0
    card = Path("tuned/README.md").read_text()
    assert f"| data | {images.name} |" in card
    assert " % on 12 images of the validation split of the data above |" in card


def test_a_damaged_download_gets_no_name(hub: Path, cli: CLI, descendant: Path, tmp_path: Path) -> None:
    assert cli("push", descendant, "me/small").code == 0
    weights = hub / "me/small/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = cli("pull", "me/small", "--out", tmp_path / "back")
    assert (done.code, done.err.count("\n"), (tmp_path / "back").exists()) == (2, 1, False)


def test_no_permission_is_one_line(hub: Path, cli: CLI, descendant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        answer: Any = SimpleNamespace(status_code=403, headers={}, request=None)
        raise HfHubHTTPError("Forbidden", response=answer)

    monkeypatch.setattr(Hub, "create_repo", refuse)
    done = cli("push", descendant, "them/small")
    line = "them/small: no permission; see `hf auth whoami`, nothing was written here"
    assert (done.code, done.err) == (2, f"learngene: {line}\n")
    assert cli("push", descendant, "small").err == "learngene: small: no name of a repository; give OWNER/NAME\n"
