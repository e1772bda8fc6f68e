"""The ledger's page and text, from hand-made verdict files."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learngene.comparing.claims.groups import ClaimGroup
from learngene.comparing.claims.ledger import figures, ledger_markdown, rule
from learngene.comparing.claims.page import ledger_page
from learngene.comparing.claims.verdict import Verdict
from learngene.comparing.claims.verdict_file import VerdictFile, read_verdicts

STATISTIC = {"metric": "last_top1", "of": {"contender": "sws"}, "minus": [{"contender": "scratch"}], "at_least": 2.0}
FOUND = {"outcome": "holds", "against": "scratch", "values": [11.0, 12.3, 13.6], "mean": 12.3, "low": 10.1,
         "high": 14.5, "reason": ""}  # fmt: skip
CLAIM = {"text": "SWS beats scratch", "printed": "by 9 points", "outcome": "holds", "exact": None, "figures": "",
         "statistic": STATISTIC, "verdicts": [FOUND], "finding": ""}  # fmt: skip


def verdict(claims: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    fields = {"kind": "learngene verdict", "version": 1, "id": "sws.table1", "scale": "laptop", "paper": "SWS"}
    fields |= {"source": "Table 1", "title": "Depths", "seeds": [0, 1, 2], "seconds": 90.0, "commit": "0123456789abcd"}
    fields |= {"environment": {"processor": "Some CPU", "threads": "1", "versions": {"torch": "2.8"}}}
    entry = {"task": "home", "budget": "short", "shape": "d4", "contender": "sws", "params": 348000, "epochs": 2}
    entry |= {"last_top1": [70.25, 0.5], "untuned_loss": [1.25, None], "gene_top1": None, "total_macs": 1.5e13}
    return {**fields, "run": {}, "claims": claims or [CLAIM], "table": [entry], "plots": [], **changes}


def group(text: str = CLAIM["text"], name: str = "sws.table1", **changes: Any) -> ClaimGroup:
    claim = {"text": text, "printed": "by 9 points", "statistic": {**STATISTIC, **changes}}
    return ClaimGroup.model_validate(
        {"id": name, "paper": "SWS", "source": "Table 1", "title": "Depths", "claims": [claim]}
    )


def write(root: Path, content: Any, name: str = "a.json", scale: str = "laptop") -> Path:
    path = root / scale / "claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class Outline(HTMLParser):
    """All text and all tags of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def html_of(folder: Path, *verdicts: dict[str, Any], groups: Any = {}, complaints: Any = ()) -> Outline:  # noqa: B006
    ledger_page(map(VerdictFile.model_validate, verdicts), folder / "ledger.html", groups, complaints)
    return Outline((folder / "ledger.html").read_text())


def markdown_of(*verdicts: dict[str, Any], groups: Any = {}) -> str:  # noqa: B006
    return ledger_markdown(map(VerdictFile.model_validate, verdicts), groups)


def cells(markdown: str, text: str) -> list[str]:
    """The cells of the line that has a text."""
    (line,) = [line for line in markdown.splitlines() if line.startswith("|") and text in line]
    return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def test_damaged_and_foreign_files_are_named_and_skipped(tmp_path: Path) -> None:
    good = write(tmp_path, verdict())
    skipped = {
        write(tmp_path, "{", "b.json"): "damaged, it is no JSON; skipped",
        write(tmp_path, [1], "c.json"): "not a verdict; skipped",
        write(tmp_path, {"kind": "learngene cell"}, "d.json"): "not a verdict; skipped",
        write(tmp_path, verdict(version=2), "e.json"): "damaged or of another version, 'version'",
        write(tmp_path, verdict(claims=[{**CLAIM, "outcome": "maybe"}]), "f.json"): "'claims.0.outcome'",
        write(tmp_path, verdict(), "g.json"): "is of the same claims at the same scale; skipped",
        write(tmp_path, verdict(table=5), "h.json"): "'table'",
    }
    found, complaints = read_verdicts(tmp_path)
    assert [file.file for file in found] == [good]
    for (path, reason), line in zip(skipped.items(), complaints, strict=True):
        assert line.startswith(f"{path}: ")
        assert reason in line
        assert "\n" not in line
    assert str(tmp_path / "laptop/claims/b.json") in html_of(tmp_path, complaints=complaints).text


def test_other_scales_are_read_beside_each_other(tmp_path: Path) -> None:
    write(tmp_path, verdict())
    write(tmp_path, verdict([{**CLAIM, "outcome": "does not hold"}], scale="gpu"), scale="gpu")
    found, complaints = read_verdicts(tmp_path)
    assert complaints == []
    assert cells(ledger_markdown(found, {}), "SWS beats scratch")[3:] == [
        "**holds**<br>+12.3 [10.1, 14.5], needed ≥ 2",
        "**does not hold**<br>+12.3 [10.1, 14.5], needed ≥ 2",
        "not run",
    ]


@pytest.mark.parametrize(
    ("numbers", "statistic", "text"),
    [
        ((12.3, 10.1, 14.5), STATISTIC, "+12.3 [10.1, 14.5]"),
        ((-0.512, -0.55, -0.474), STATISTIC, "−0.512 [−0.550, −0.474]"),
        ((0.5, 0.4, 0.6), {**STATISTIC, "relative": True}, "+50 % [40, 60]"),
        ((70.0, 70.0, 70.0), {"of": {}, "at_least": 1}, "70.00 [70.00, 70.00]"),
        ((3e12, 2e12, 4e12), {"of": {}, "at_most": 1}, "3e+12 [2e+12, 4e+12]"),
        ((None, None, None), STATISTIC, ""),
    ],
)
def test_figures(numbers: tuple[float | None, ...], statistic: dict[str, Any], text: str) -> None:
    found = Verdict(outcome="holds", **dict(zip(("mean", "low", "high"), numbers, strict=True)))
    assert figures(found, statistic) == text


def test_the_rule_is_told_in_words() -> None:
    assert rule(STATISTIC) == "last top-1 of sws, less that of scratch: at least 2"
    shapes = ["d4", "d5", "d6", "d7", "d8"]
    slope = {"metric": "untuned_loss", "of": {"contender": "sws", "shape": shapes}, "slope": True, "at_most": -0.5}
    assert rule(slope) == "slope over depth of untuned loss of sws d4–d8 (5): at most −0.5"
    relative = {**STATISTIC, "minus": [{"contender": "a"}, {"contender": ["b", "c"]}], "relative": True}
    assert rule(relative).endswith("less that of a and that of b/c, as a share of what is subtracted: at least 200 %")


def test_several_comparisons_exact_tests_and_reasons() -> None:
    both = {**CLAIM, "verdicts": [FOUND, {**FOUND, "against": "he", "mean": None, "reason": "2 seeds, fewer than 3"}]}
    exact = {"text": "Five fit", "outcome": "holds", "exact": "order_identity", "figures": "10 and 11"}
    text = markdown_of(verdict([both, exact]))
    measured = cells(text, "SWS beats scratch")[3]
    assert measured.endswith("against scratch: +12.3 [10.1, 14.5], needed ≥ 2<br>against he: (2 seeds, fewer than 3)")
    assert cells(text, "Five fit")[3] == "**holds**<br>10 and 11"


def test_markdown_keeps_its_columns_whatever_the_text_says() -> None:
    claim = {**CLAIM, "text": "a | b\nand <c>", "finding": "took | longer\nthan <b>thought</b>"}
    text = markdown_of(verdict([claim]), groups={"tleg.x": group("Another", "tleg.x")})
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
        assert set(table[1]) == {"|", "-"}
    assert cells(text, "a \\| b")[1] == "a / b<br>and &lt;c>"
    assert "**Table 1: Depths**" in text
    assert "- a \\| b and &lt;c> (laptop): took \\| longer than &lt;b>thought&lt;/b>" in text


def test_groups_that_were_not_run_are_shown_and_counted(tmp_path: Path) -> None:
    groups = {"sws.table1": group(), "sws.table2": group("Another claim", "sws.table2")}
    text = markdown_of(verdict(), groups=groups)
    assert cells(text, "Another claim")[3:] == ["not run"] * 3
    assert cells(text, "laptop | 1") == ["laptop", "1", "0", "0", "1"]
    assert cells(text, "gpu | 0") == ["gpu", "0", "0", "0", "2"]
    outline = html_of(tmp_path, verdict(), groups=groups)
    assert "Another claim" in outline.text
    assert ("section", {"id": "sws.table2"}) in outline.tags


def test_a_rule_that_changed_since_is_told(tmp_path: Path) -> None:
    assert "older rule" not in markdown_of(verdict(), groups={"sws.table1": group()})
    changed = {"sws.table1": group(at_least=3.0)}
    assert "**holds** (by an older rule)" in markdown_of(verdict(), groups=changed)
    assert "by an older rule" in html_of(tmp_path, verdict(), groups=changed).text


def test_the_page_escapes_all_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    claim = {**CLAIM, "text": evil, "printed": evil, "finding": evil, "verdicts": [{**FOUND, "against": evil}] * 2}
    claim["statistic"] = {**STATISTIC, "of": {"contender": evil}}
    content = verdict([claim], id=evil, title=evil, source=evil, paper=evil, commit=evil, plots=[evil], run={"a": evil})
    content |= {"environment": {"processor": evil, "versions": {evil: evil}}, "table": [{"task": evil, evil: evil}]}
    outline = html_of(tmp_path, content, complaints=[evil])
    assert "script" not in {tag for tag, _ in outline.tags}
    assert outline.text.count(evil) >= 12


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    plot = tmp_path / "laptop" / "claims" / "sws.table1" / "plot.png"
    plot.parent.mkdir(parents=True)
    Image.new("RGB", (2, 2), "red").save(plot)
    (tmp_path / "secret.png").write_bytes(plot.read_bytes())
    (plot.parent / "text.png").write_text("no picture")
    write(tmp_path, verdict(plots=["sws.table1/plot.png", "../../secret.png", "sws.table1/text.png", "gone.png"]))
    ledger_page(read_verdicts(tmp_path)[0], tmp_path / "ledger.html", {})
    outline = Outline((tmp_path / "ledger.html").read_text())
    (image,) = [attributes for tag, attributes in outline.tags if tag == "img"]
    source = image["src"] or ""
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == plot.read_bytes()
    assert not {"link", "script"} & {tag for tag, _ in outline.tags}
    assert all((a.get("href") or "#").startswith("#") for _, a in outline.tags)
    for name in ("../../secret.png", "sws.table1/text.png", "gone.png"):
        assert f"{name} is not there, or is no PNG file" in outline.text


def test_the_page_shows_verdict_figures_and_results(tmp_path: Path) -> None:
    outline = html_of(tmp_path, verdict())
    for part in ("✓ holds", "+12.3 [10.1, 14.5], needed ≥ 2", "by 9 points", "0.348 M", "70.25 ± 0.50", "1.250",
                 "1.5 minutes of training", "torch 2.8", "commit 0123456789ab"):  # fmt: skip
        assert part in outline.text
    assert "svg" in {tag for tag, _ in outline.tags}


def test_nothing_at_all_is_a_page_too(tmp_path: Path) -> None:
    assert read_verdicts(tmp_path / "none") == ([], [])
    assert "Ledger of claims" in html_of(tmp_path).text
    assert cells(markdown_of(), "laptop") == ["laptop", "0", "0", "0", "0"]
