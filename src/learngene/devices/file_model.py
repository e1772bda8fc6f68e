"""An exported file as a model: its own runtime computes, and its record says what it takes and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learngene.devices.export import TARGETS, DeviceFile, record_path
from learngene.devices.target import Session
from learngene.system.digest import content_digest
from learngene.system.errors import LearngeneError


def is_exported(path: str | Path) -> bool:
    """Whether a path looks like the file of a runtime."""
    return Path(path).suffix in {target.suffix for target in TARGETS.values()} and Path(path).is_file()


class FileModel(nn.Module):
    """An exported classifier, asked as a timm model is; it cannot be trained."""

    def __init__(self, path: str | Path) -> None:
        """Loads a file into its runtime.

        Args:
            path: What ``export`` has written, with its record beside it.

        Raises:
            LearngeneError: If it has no record, is not what its record is of, or its runtime is not installed.
        """
        super().__init__()
        path = Path(path)
        if not record_path(path).is_file():
            raise LearngeneError(
                f"{path}: has no {record_path(path).name} beside it, which says how images are prepared for it; write "
                "both with `learngene export`"
            )
        record = DeviceFile.read(record_path(path))
        files = sorted((path.with_name(name) for name in record.files), key=lambda each: each == path)
        absent = [each for each in files if not each.is_file()]
        if absent or content_digest({}, *files) != record.files_digest:
            what = f"{absent[0].name} is missing" if absent else "a byte was changed"
            raise LearngeneError(f"{path}: not what {record_path(path).name} is of ({what}); export it again")
        target = TARGETS[record.target]()
        target.refuse(record.precision, "eval")
        self.session: Session = target.open(path, record.precision)
        self.batch = record.largest_batch
        size = record.preprocessing["input_size"]
        self.pretrained_cfg: dict[str, Any] = {
            **record.preprocessing,
            "fixed_input_size": True,
            "label_names": record.class_names,
        }
        self.in_chans, self.num_classes = size[0], self.session.run(torch.zeros(1, *size)).shape[1]
        self.device_of = nn.Parameter(torch.zeros(1), requires_grad=False)  # where those who ask keep their images

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of images, of which the runtime gets no more at a time than the file was checked with."""
        parts = [self.session.run(part) for part in images.cpu().split(self.batch)]
        return torch.cat(parts).to(images.device)
