"""Commands for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learngene.cli.app import Followed, app, suggest
from learngene.system.speech import say

Repo = Annotated[str, typer.Argument(help="OWNER/NAME on the hub")]


@app.command(cls=Followed)
def push(
    path: Annotated[Path, typer.Argument(help="gene file or descendant folder")],
    repo: Repo,
    licence: Annotated[str | None, typer.Option("--license", help="such as apache-2.0; none is claimed")] = None,
    private: Annotated[bool, typer.Option("--private", help="of a new repository: only its owner sees it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the folder NAME instead")] = False,
) -> None:
    """Upload a gene or a descendant to the Hugging Face hub, with a card that says what its record says."""
    from learngene.shipping.hub import push as upload

    where = upload(path, repo, licence=licence, private=private, dry_run=dry_run)
    say(str(where), path=where)


@app.command(cls=Followed)
def pull(
    repo: Repo,
    out: Annotated[Path | None, typer.Option(help="folder to write; NAME by default")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
) -> None:
    """Download a gene or a descendant from the hub, and check every byte of it."""
    from learngene.shipping.hub import pull as download

    path = download(repo, out or Path(repo.rpartition("/")[2]), revision=revision)
    say(str(path), path=path)
    suggest("plan" if path.is_file() else "export", path)
