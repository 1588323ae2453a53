"""What the trainer's command line tells. Pure: nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

_PYTHON = re.compile(r"python[0-9.]*")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def flag_value(command: Sequence[str], name: str) -> str | None:
    """Return the value of a flag as absl reads it: `--name=V`, `--name V` or with one dash.

    The last one counts. None when it is not there or has no value.
    """
    found: str | None = None
    for position, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            continue
        if equals:
            found = value
        elif position + 1 < len(command):
            found = command[position + 1]
    return found


def interpreter(command: Sequence[str]) -> str | None:
    """Return the word that names a Python, also behind `nice -n 5` or `env NAME=VALUE`."""
    position = _interpreter_position(command)
    return None if position is None else command[position]


def visible_devices(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return CUDA_VISIBLE_DEVICES as the trainer will see it, None when it is not set."""
    visible = environment.get(_VISIBLE)
    for word in command[: _interpreter_position(command) or 0]:
        name, equals, value = word.partition("=")
        if equals and name == _VISIBLE:
            visible = value
    return visible


def _interpreter_position(command: Sequence[str]) -> int | None:
    for position, word in enumerate(command):
        if _PYTHON.fullmatch(PurePath(word).name):
            return position
    return None
