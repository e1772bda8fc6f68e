"""Every example in the README and in docs/ is run as it stands, on 100 digits, and recipes for two epochs."""

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sklearn.datasets
import yaml

import learngene
from learngene.methods import METHODS, default_settings, method
from learngene.recipe.genes import GenesRecipe
from learngene.recipe.loading import build_recipe
from pico import CLI, pico_gene

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# Not run here: targets that make the environment; a setting of the shell; two processes, torch.compile and, of all
# exports, those in docs/, which take long and have tests of their own.
SKIPPED = ("make ", "export ", "pip ", "ACCELERATE_USE_CPU=true torchrun", "torchrun")
SKIPPED_ARGUMENTS = {"train.compile=true"}
FEW_CELLS = ["run.seeds=[0]", "run.shapes=[d3]", "run.contenders=[tleg, scratch]", "run.budgets=[tuned]"]
FEW_CELLS += ["condense.epochs=5", "ancestries.teacher.train.epochs=2"]
FEW_EPOCHS = ["train.epochs=2", "train.schedule.warmup_epochs=0"]
PROGRAM = re.compile(r"(?:(.*) && )?python - <<\s*'?(\w+)'?\n(.*)\n\2", re.DOTALL)
"""A line that gives a program to Python, perhaps behind another command."""


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


def commands(text: str) -> Iterator[str]:
    """Shell commands, one by one: continued lines and here-documents in one piece."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = f"{line[:-1]} {next(lines)}"
        if end := re.search(r"<<\s*'?(\w+)'?", line):
            rest = []
            while not rest or rest[-1] != end.group(1):
                rest.append(next(lines))
            line = "\n".join([line, *rest])
        if line.strip() and not line.startswith("#"):
            yield line


def run_shell(text: str, cli: CLI, *, exports: bool) -> int:
    """Runs a block: learngene and Python in this process, which is faster and has few digits, the rest in bash."""
    count = 0
    for line in commands(text):
        if program := PROGRAM.fullmatch(line):
            line = program[1] or "true"
        arguments = shlex.split(line.split("\n")[0], comments=True)
        if line.startswith(SKIPPED) or SKIPPED_ARGUMENTS & set(arguments):
            continue
        if arguments[1:2] == ["export"] and not exports:
            continue
        if arguments[:2] == ["learngene", "compare"]:  # in one process, and few cells
            arguments = [part for part in arguments if part not in ("--processes", "2")] + FEW_CELLS
        if arguments[:2] == ["learngene", "ship"]:  # on a budget that is the same on every machine
            place = arguments.index("--hours")
            arguments[place : place + 2] = ["--budget-macs", "4G"]
        if arguments[1:2] in (["condense"], ["finetune"]) and arguments[2].startswith("recipes/"):
            arguments += FEW_EPOCHS
        if arguments[0] == "learngene":
            result = cli(*arguments[1:])
            assert result.code == 0, f"{line}\n{result.err}"
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-euc", line], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        if program:
            exec(compile(program[3], f"{line} (python)", "exec"), {"__name__": "__main__"})
        count += 1
    return count


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the repository's recipes, and few digits."""
    for folder in ("recipes", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    digits = sklearn.datasets.load_digits()
    digits.images, digits.target = digits.images[:100], digits.target[:100]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "programs"),
    [
        ("README.md", 7, 1),
        ("docs/guide.md", 7, 2),
        ("docs/pool.md", 7, 5),
        ("docs/lsamd.md", 2, 1),
        ("docs/tal.md", 7, 1),
    ],
)
def test_the_examples_run_as_they_stand(name: str, least: int, programs: int, cli: CLI, workplace: Path) -> None:
    counts = {"bash": 0, "python": 0, "yaml": 0}
    names: dict[str, object] = {"__name__": "example"}  # a document's programs follow each other
    for block in blocks(ROOT / name):
        if block.language == "bash":
            counts["bash"] += run_shell(block.text, cli, exports=name == "README.md")
        elif block.language == "python":
            exec(compile(block.text, f"{name} (python)", "exec"), names)
            counts["python"] += 1
        elif block.language == "yaml":
            recipe = build_recipe(yaml.safe_load(block.text))
            for one in recipe.genes.values() if isinstance(recipe, GenesRecipe) else [recipe]:
                assert one.train.epochs > 0
            counts["yaml"] += 1
    assert counts["bash"] >= least, counts
    assert counts["python"] == programs
    assert (workplace / "runs").is_dir()


def test_the_papers_parts_are_there_one_by_one() -> None:
    (program,) = [block.text for block in blocks(ROOT / "docs" / "parts.md") if block.language == "python"]
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(program, "docs/parts.md (python)", "exec"), names)
    assert names["weight"].shape == (16, 16)
    assert names["nodes"].shape[0] == len(names["graph"].nodes)
    calls = set(re.findall(r"lg\.(\w+\.\w+|[a-zA-Z]\w*)", (ROOT / "docs" / "parts.md").read_text()))
    for call in calls:
        value: Any = learngene
        for name in call.split("."):
            value = getattr(value, name)
        assert value.__doc__, call


def test_the_library_in_twelve_lines_has_twelve_lines() -> None:
    (example,) = [block.text for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert len([line for line in example.splitlines() if line and not line.startswith("import")]) <= 12


def test_the_program_that_checks_a_digest_agrees(tmp_path: Path) -> None:
    (program,) = [block.text for block in blocks(ROOT / "docs" / "format.md") if block.language == "python"]
    gene = pico_gene()
    gene.metadata = {"classes": ["Größe", '"quoted"', "c"], "training": {"eps": 1e-8}}
    gene.save(tmp_path / "g.safetensors")
    content = bytearray((tmp_path / "g.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    for name, answer in (("g", "ok\n"), ("changed", "changed\n")):
        call = [sys.executable, "-c", program, str(tmp_path / f"{name}.safetensors")]
        assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == answer


def test_the_example_of_a_new_method_works(
    workplace: Path, capsys: pytest.CaptureFixture[str], cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition, registration, use = (
        block.text for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.language == "python"
    )
    module = types.ModuleType("learngene.methods.shared")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(definition, "shared.py", "exec"), module.__dict__)
    assert "KINDS: tuple[type[Method], ...] = (\n    TLEG,\n" in registration
    assert "    Shared,\n)" in registration
    monkeypatch.setitem(METHODS, "shared", module.Shared)
    exec(compile(use, "use.py", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == "['shared0', 'shared1', 'shared0', 'shared1', 'shared0']\n"
    assert "shared  One block for all layers" in cli("methods").out
    assert cli("plan", "shared.safetensors").code == 0


def test_every_command_is_in_the_readme_and_every_method_in_its_document(cli: CLI) -> None:
    text = (ROOT / "README.md").read_text()
    listed = re.findall(r"^  (\w+) {2,}", cli("--help").out, flags=re.MULTILINE)
    assert len(listed) >= 10
    assert [name for name in listed if f"| `{name}` |" not in text] == []
    assert [name for name in ("TLEG", "SWS", "Learngene Pool") if f"**{name}**" not in text] == []
    described = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in METHODS if f"`{name}`" not in described] == []
    assert [o for name in METHODS for o in method(name).options if f"`{o}`" not in described] == []
    assert [s for kind in METHODS.values() for s in default_settings(kind) if f"`{s}`" not in described] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links: list[str] = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    missing = []
    for link in local:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(document: Path) -> set[str]:
    """Names of a document's headings, as hosting sites make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = {"benchmarks/peers.json": "foundation.md", "benchmarks/replay.json": "teacher-cost.md",
         "laptop/tal-more-seeds": "tal.md", "any_size_ideas.json": "any-size-experiments.md",
         "ship_evidence.json": "which-method.md",
         "benchmarks/devices.json": "devices.md", "device_files.json": "devices.md",
         "int8_training.json": "devices.md",
         "laptop/claims/any-size.six-shapes.json": "any-size-experiments.md",
         "laptop/claims/any-size.fresh-seeds.json": "any-size-experiments.md",
         "laptop": "any-size-experiments.md"}  # fmt: skip


@pytest.mark.parametrize(("name", "page"), PAGES.items())
def test_the_table_is_that_of_the_result(name: str, page: str) -> None:
    program = runpy.run_path(str(ROOT / "benchmarks" / "pages.py"))
    source, text = ROOT / "results" / name, (ROOT / "docs" / page).read_text()
    assert program["with_table"](f"results/{name}") == text
    if name == "laptop":
        cells = [
            json.loads(path.read_text()) for path in source.glob("cells/wave-d[56]w*-fashion-mnist-*-e0-s[12]-*.json")
        ]
        sizes = [(64, 5), (80, 6)]
        tops = [
            cell["untuned"]["top1"]
            for cell in cells
            if cell["contender"] == "wave-depths" and (cell["shape"]["embed_dim"], cell["shape"]["depth"]) in sizes
        ]
        assert len(tops) == 4
        line = next(line for line in text.splitlines() if line.startswith("| wave-depths | 2 | "))
        assert line.split(" | ")[3] == f"{sum(tops) / 4:.1f}"
        return
    if source.is_dir():
        with (source / "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["seed"] == "3"]
        tal, v4 = ([float(row["top1"]) for row in rows if row["contender"] == each] for each in ("tal", "v4"))
        assert len(tal) == len(v4) == 18
        assert f"| 3 | {sum(tal) / 18:.2f} | {sum(tal) / 18 - sum(v4) / 18:+.2f} | " in text
        return
    result = json.loads(source.read_text())
    if "ideas" in result:
        runs = result["ideas"]["wave"].values()
        six = [run["top1"][size] for run in runs for size in ("32x4", "32x8", "48x6", "64x8", "96x4", "96x8")]
        row = next(line for line in text.splitlines() if line.startswith("| WAVE, scalers"))
        assert f" | {sum(six) / len(six):.1f} | " in row
    elif "claims" in result:
        by_hand = {"any-size": "111,290", "any-size-6-ends": "194,858"}  # 111,290, two layers more and the ends
        row = next(row for row in result["table"] if row["contender"] in by_hand and row["budget"] == "untuned")
        start = f"| {row['contender']}, untuned | "
        line = next(line for line in text.splitlines() if line.startswith(start))
        assert line.startswith(f"{start}{row['seeds']} | {by_hand[row['contender']]} | {row['last_top1'][0]:.1f} | ")
    elif "cells" in result:
        for cell in result["cells"]:
            assert any(
                f"{cell['mean']:.1f}" in line for line in text.splitlines() if line.startswith(f"| {cell['data']} |")
            )
    elif "over_eager" in result:
        for found in result["over_eager"].values():
            assert f" {found['ONNX Runtime fp32']:.2f} " in text
    elif "files" in result:
        for each in result["files"]:
            name = f"| {each['depth']} | {each['target']} | {each['precision']} | "
            assert "missing" in each or f"{name}{each['computed_in']} | {each['bytes'] / 1e3:,.0f} | " in text
    elif "models" in result:
        for each in result["models"]:
            same = [one for one in result["models"] if (one["depth"], one["way"]) == (each["depth"], each["way"])]
            model, file = (sum(one[key] for one in same) / len(same) for key in ("model_score", "score"))
            assert f"| {each['depth']} | {each['way']} | {model:.2f} | {file:.2f} | " in text
    elif "scores" in result:
        peer = result["scores"]["peer"]["3"].values()
        assert f"| {sum(score['knn'] for score in peer) / len(peer):.1f}, " in text
    else:
        assert f"| step with stored logits | {result['seconds']['B/8 stored logits']['median']:.3f} s | " in text


def test_the_methods_page_lists_every_setting_of_a_pool_and_of_features() -> None:
    from learngene.recipe.features import FeatureTarget
    from learngene.recipe.pool import PoolSpec
    from learngene.recipe.sections import Distill

    text = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in PoolSpec.model_fields if f"`{name}`" not in text] == []
    assert [name for name in (*FeatureTarget.model_fields, *FeatureTarget.presets) if f"`{name}`" not in text] == []
    assert [name for name in Distill.presets if f"`{name}`" not in text] == []


def test_the_guide_lists_every_setting() -> None:
    from learngene.recipe.sections import Augment, DataSpec, Schedule, Train

    text = (ROOT / "docs" / "guide.md").read_text()
    for section in (Train, Schedule, Augment, DataSpec):
        missing = [name for name in section.model_fields if f"`{name}`" not in text and f"train.{name}" not in text]
        assert missing == [], section.__name__
