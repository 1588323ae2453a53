"""What the settings' fields are made of: types with their rules, and their descriptions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta

ENVIRONMENT_PREFIX = "CHECKPOINT_WATCHER_"

_ONE_GPU = r"gpu:[0-9]+|(?:GPU|MIG)-[0-9A-Za-z/-]+"
_DEVICE = re.compile(rf"cpu|auto|(?:{_ONE_GPU})(?:,(?:{_ONE_GPU}))*")

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Niceness = Annotated[int, Meta(ge=0, le=19)]


def about(description: str, metavar: str | None = None, **rules: Any) -> Meta:
    """Describe a field for `--help`; `rules` are msgspec's, such as `ge=0`."""
    return Meta(description=description, extra={"metavar": metavar}, **rules)


def check_device(device: str) -> str:
    """Return the setting; raises ValueError when it is nothing that can be asked for."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(
            "Expected cpu, auto, gpu:N or a GPU's UUID, or several GPUs as gpu:1,gpu:2"
        )
    return device
