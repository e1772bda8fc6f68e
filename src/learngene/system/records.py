"""Records: JSON files that name their kind, version and digest, are written whole and checked when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from learngene.system.digest import DIGEST, content_digest
from learngene.system.errors import LearngeneError
from learngene.system.files import write_file


class RecordError(LearngeneError):
    """A file that is damaged, of another kind or version, or that must not be overwritten."""


class Record(BaseModel):
    """What a JSON file holds; entries that are not known are ignored.

    Attributes:
        kind: What the file says it is; None where files say nothing.
        version: Of the format; likewise.
        noun: What to call it in a refusal, with its article.
        indent: Of the JSON text; None writes one line without spaces.
    """

    model_config = ConfigDict(frozen=True)

    kind: ClassVar[str | None] = None
    version: ClassVar[int | None] = None
    noun: ClassVar[str]
    indent: ClassVar[int | None] = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            RecordError: One line that says what is wrong with it.
        """
        try:
            text = path.read_bytes()
            content = json.loads(text)
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise RecordError(f"{path}: damaged, it is no JSON") from None
        if not isinstance(content, dict) or (cls.kind and content.get("kind") != cls.kind):
            raise RecordError(f"{path}: not {cls.noun}")
        if cls.version and content.get("version") != cls.version:
            found = content.get("version")
            raise RecordError(
                f"{path}: damaged or of another version, 'version': {found!r} where {cls.version} is read"
            )
        if content.get(DIGEST, "") not in ("", content_digest(content)):  # older files have none
            raise RecordError(f"{path}: damaged, its content does not match its digest")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            if fault["type"] == "missing":
                raise RecordError(f"{path}: has no entry '{where}'") from None
            raise RecordError(f"{path}: damaged, '{where}': {fault['msg'].lower()}") from None

    def content(self) -> dict[str, Any]:
        """The entries as plain JSON values, without kind and version."""
        return self.model_dump(mode="json")

    def write(self, path: Path) -> None:
        """Writes the file, in place of an older one if there is one."""
        head = {name: value for name in ("kind", "version") if (value := getattr(self, name)) is not None}
        separators = (",", ":") if self.indent is None else None
        content = head | self.content()
        text = json.dumps(
            content | {DIGEST: content_digest(content)}, indent=self.indent, separators=separators, allow_nan=False
        )
        write_file(path, lambda temporary: temporary.write_text(text + "\n"))

    def write_new(self, path: Path) -> None:
        """Writes the file, unless there is one already.

        Raises:
            RecordError: If there is; it is left as it is.
        """
        if path.exists():
            raise RecordError(f"{path} exists already; it was not overwritten")
        self.write(path)
