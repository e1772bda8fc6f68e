"""What the site has besides ``docs/``: the pages at the root of the repository, and files that pages point to.

A hook of mkdocs. Links out of ``docs/``, and into it from the root, are right for whoever reads the repository.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}}
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./|docs/)?[\w./-]+)(#[\w-]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root, one of the library, and every file outside that a page points to."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=_as_page(notebook)))
    files.append(File.generated(config, "api.md", content=f"# The library\n\n{_reference()}"))
    for page in [*files.documentation_pages()]:
        for _, link, _ in LINK.findall(page.content_string):
            name = link.removeprefix("../")
            inside = name.startswith("docs/") or name.endswith(".md") or files.get_file_from_path(name)
            if not inside and (ROOT / name).is_file():
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, files: Files, **_: Any) -> str:
    """Turns links of the repository into those of the site; one to a folder, or a page it has not, into its words."""

    def turned(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        name = link.removeprefix("../").removeprefix("docs/")
        name = PAGES.get(name, name)
        outside = name != link and files.get_file_from_path(name) is None
        return words if outside else f"[{words}]({name}{anchor or ''})"

    return LINK.sub(turned, markdown)


def _as_page(notebook: Path) -> str:
    """A notebook as Markdown: its words, its code, and below each piece of code what it shows."""
    out = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        out.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        shown = "".join("".join(output["text"]) for output in cell.get("outputs", ()))
        out += [f"```text\n{shown}```"] if shown else []
    return "\n\n".join([*out, f"[This notebook as a file]({notebook.name})"])


def _reference() -> str:
    """What the library's public names are, each from the file that has it."""
    tree = ast.parse((ROOT / "src/learngene/__init__.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    homes = ast.literal_eval(values["_HOMES"])
    return "\n\n".join(f"::: learngene.{home}.{name}" for name, home in sorted(homes.items()))
