"""What is released: sdist and wheel, installed into an environment of its own, away from the checkout.

The environment has nothing but the wheel and sees the packages of this one, so that none is installed twice. That what
the wheel says it needs is enough, `make release-check` tries, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def ran(*words: object, folder: Path) -> str:
    """What a program prints in a folder that has nothing to do with this suite's environment."""
    strange = {name for name in os.environ if name.startswith("PYTHON") or name == "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in strange}
    done = subprocess.run([*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel that is built of what is in it, and the programs of an environment with that wheel."""
    folder = tmp_path_factory.mktemp("released")
    ran(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdist", folder=ROOT)
    (sdist,) = (folder / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheel", folder=source)
    (wheel,) = (folder / "wheel").iterdir()
    shutil.rmtree(source)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    assert uv, "uv is missing; `make test-all` installs it"
    programs = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    ran(uv, "venv", "-q", "--python", sys.executable, folder / "environment", folder=folder)
    python = programs / "python"
    ran(uv, "pip", "install", "-q", "--no-deps", "--no-index", "--python", python, wheel, folder=folder)
    packages = Path(ran(python, "-c", "import site; print(site.getsitepackages()[-1])", folder=folder).strip())
    (packages / "elsewhere.pth").write_text(
        "\n".join(site.getsitepackages())
    )  # behind its own; its .pth files play no part
    return {"sdist": sdist, "wheel": wheel, "programs": programs}


def test_the_wheel_has_what_commands_read_without_a_checkout(released: dict[str, Path]) -> None:
    with zipfile.ZipFile(released["wheel"]) as archive:
        inside = set(archive.namelist())
    demos = {f"learngene/comparing/recipes/{path.name}" for path in (ROOT / "recipes/demo").iterdir()}
    pages = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.html")}
    assert demos
    assert pages
    read = {"learngene/py.typed", "learngene/vits/families.json", "learngene/shipping/ship_evidence.json"}
    assert demos | pages | read <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"learngene"}
    assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_the_sdist_has_what_the_house_is_tested_with(released: dict[str, Path]) -> None:
    with tarfile.open(released["sdist"]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "requirements.txt", "tests/conftest.py", "recipes/demo/genes.yaml"} <= inside
    assert not [name for name in inside if name.startswith((".venv", ".git/", "runs/", "dist/"))]


def test_the_installed_command_works_in_an_empty_folder(released: dict[str, Path], tmp_path: Path) -> None:
    python, learngene = released["programs"] / "python", released["programs"] / "learngene"
    where = ran(python, "-c", "import learngene; print(learngene.__file__)", folder=tmp_path).strip()
    assert Path(where).is_relative_to(released["programs"].parent)
    assert ran(learngene, "--version", folder=tmp_path).split() == ["learngene", version()]
    assert "tleg" in ran(learngene, "methods", folder=tmp_path)
    assert "refused" in ran(learngene, "methods", "--families", folder=tmp_path)
    demos = "[load_recipe(path).kind for path in Path(learngene.__file__).parent.glob('comparing/recipes/*.yaml')]"
    imports = "import learngene; from pathlib import Path; from learngene.recipe.loading import load_recipe"
    assert set(ran(python, "-c", f"{imports}; print(*{demos})", folder=tmp_path).split()) == {"compare"}
    shape = "shape={embed_dim: 16, depth: 1, num_heads: 1, img_size: 8, patch_size: 4, num_classes: 10}"
    words = ["--model", "scratch", "--data", "digits", "--preset", "laptop", "--epochs", 1, "--out", tmp_path / "run"]
    told = ran(learngene, "finetune", *words, shape, "data.img_size=8", "data.workers=0", folder=tmp_path)
    assert "fine-tuned" in told


def version() -> str:
    import learngene

    return learngene.__version__
