"""A task as a hypernetwork sees it. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from learngene.system.errors import LearngeneError


@dataclass(frozen=True)
class TaskEmbedding:
    """The mean of an ancestry's features over a task's training images, and where it comes from.

    Attributes:
        name: Of the task.
        vector: As many numbers as the ancestry has features.
        ancestry: SHA-256 of the ancestry's weights.
        data: Fingerprint of the images.
        images: How many there were.
        classes: Names of the classes.
        preprocessing: How the ancestry got the images: mean, std, interpolation, crop_pct, input_size.
    """

    name: str
    vector: tuple[float, ...]
    ancestry: str
    data: str
    images: int
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            right = bool(self.vector) and all(math.isfinite(float(value)) for value in self.vector)
        except (TypeError, ValueError, OverflowError):
            right = False
        if not right:
            raise LearngeneError(f"task {self.name}: its embedding is empty or not finite; compute it again")

    @property
    def fingerprint(self) -> str:
        """A short hash of ancestry, preprocessing, images and numbers."""
        content = json.dumps([self.ancestry, dict(self.preprocessing), self.data, list(self.vector)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the fingerprint."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskEmbedding:
        """Reads what ``to_dict`` gave.

        Raises:
            LearngeneError: If an entry is missing or the numbers are not those of the fingerprint.
        """
        try:
            fields = {key: values[key] for key in cls.__dataclass_fields__}
            fields |= {key: tuple(fields[key]) for key in ("vector", "classes")}
            out = cls(**fields)
        except (KeyError, TypeError):
            raise LearngeneError("task embedding: an entry is missing or of the wrong type; compute it again") from None
        if values.get("fingerprint") != out.fingerprint:
            raise LearngeneError(f"task {out.name}: its embedding does not match its fingerprint; compute it again")
        return out
