"""HTML pages that need no other file: Jinja templates, with pictures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from markupsafe import Markup

from learngene.system.files import write_file


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fills a template of the folder ``templates`` and writes the page; all text in the values is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = pages.get_template(template).render(values, picture=picture)
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def picture(png: bytes, caption: str) -> Markup:
    """A PNG as part of a page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Markup('<img loading="lazy" alt="{}" src="{}">').format(caption, source)
