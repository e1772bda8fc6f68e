"""Runs the notebooks beside this file and writes what they print into them: python docs/notebooks/run.py [NAME ...].

A notebook is run here as a kernel would, cell by cell in one namespace, but in this process: to import torch once more
would be most of what it takes. What a cell shows is what it prints, and the value of its last line; no pictures.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def notebooks() -> list[Path]:
    """All notebooks, in order."""
    return sorted(HERE.glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    """A notebook; see nbformat's schema, version 4."""
    return json.loads(path.read_text(encoding="utf-8"))


def shown(cell: dict[str, Any]) -> str:
    """What a cell showed when it was run last; empty if it showed nothing."""
    return "".join("".join(output["text"]) for output in cell.get("outputs", ()))


def run(path: Path) -> list[str]:
    """Runs a notebook in its folder.

    Returns:
        What each cell of code shows.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
        return [_run("".join(cell["source"]), f"{path.name}[{number}]", namespace) for number, cell in enumerate(cells)]
    finally:
        os.chdir(before)


def _run(source: str, where: str, namespace: dict[str, Any]) -> str:
    tree, printed = ast.parse(source, where), io.StringIO()
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), namespace)
        value = eval(compile(last, where, "eval"), namespace) if last else None
        if value is not None:
            print(repr(value))
    return printed.getvalue()


def write(path: Path, texts: list[str]) -> None:
    """Puts what the cells of code show into a notebook."""
    notebook = read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(cells, texts, strict=True), start=1):
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [output] if text else []}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for notebook in [path for path in notebooks() if not sys.argv[1:] or path.stem in sys.argv[1:]]:
        write(notebook, run(notebook))
        print(notebook)
