"""What the trainer's command line tells. Pure: nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import msgspec

_PYTHON = re.compile(r"python[0-9.]*")
_PLAIN_OPTIONS = re.compile(r"-[bBdEIOPqRsSuvx]+|-[WX].+")
# Programs that run another one, on this machine and with its files, and their arguments.
_IN_FRONT = frozenset({"env", "nice", "nohup"})
_THEIR_ARGUMENT = re.compile(r"\w+=.*|-?n?-?[0-9]+|-n", re.DOTALL)
# Starts what comes after it, with the OD API's hooks in place: deploy/od-api-today.
_STARTER = "od_api_today"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class PythonCommand(msgspec.Struct, frozen=True):
    """A command that runs a Python of this machine.

    Attributes:
        interpreter: As it was typed.
        options: The interpreter's own, such as -u.
        variables: What `env` sets for it.
        program: The module or script that it runs.
        is_module: True for a module, after -m.
        arguments: The program's own.
    """

    interpreter: str
    options: tuple[str, ...]
    variables: Mapping[str, str]
    program: str
    is_module: bool
    arguments: tuple[str, ...] = ()


def python_command(command: Sequence[str]) -> PythonCommand | None:
    """Return what a Python runs; None behind programs or options that we do not know."""
    position = _interpreter_position(command)
    if position is None:
        return None
    front = command[:position]
    known = (word in _IN_FRONT or _THEIR_ARGUMENT.fullmatch(word) for word in front)
    if not all(known) or (front and front[0] not in _IN_FRONT):
        return None
    pairs = (word.partition("=") for word in front)
    variables = {name: value for name, equals, value in pairs if equals}
    words, options = list(command[position + 1 :]), list[str]()
    while words and words[0].startswith("-") and words[0] != "-m":
        count = 2 if words[0] in ("-W", "-X") else 1
        if count == 1 and not _PLAIN_OPTIONS.fullmatch(words[0]):
            return None
        options += words[:count]
        del words[:count]
    if words[:2] == ["-m", _STARTER]:
        del words[:2]
    is_module = bool(words) and words[0] == "-m"
    program = words[is_module : is_module + 1]
    if not program:
        return None
    arguments = tuple(words[is_module + 1 :])
    return PythonCommand(
        command[position], tuple(options), variables, program[0], is_module, arguments
    )


def flag_values(command: Sequence[str], name: str) -> list[str]:
    """Return all values of a flag as absl reads it: `--name=V`, `--name V` or with one dash."""
    found = list[str]()
    for position, word in enumerate(command, start=1):
        flag, equals, value = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found += [value] if equals else command[position : position + 1]
    return found


def flag_value(command: Sequence[str], name: str) -> str | None:
    """Return the value of a flag; the last one counts. None when it is not there or has none."""
    return next(reversed(flag_values(command, name)), None)


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
