"""Where the settings of a command come from: its flags, the environment, a file, the last start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec.structs import replace

from watcher.config import (
    ENVIRONMENT_PREFIX,
    LastStart,
    Loaded,
    Settings,
    load,
    read_toml,
    state_path,
)
from watcher.errors import ConfigError, StoreBusy, StoreError
from watcher.store.reading import read_last_start

# What `init` writes, and what every command takes that is started beside it.
FILE_HERE = Path("checkpoint-watcher.toml")

_SomeSettings = TypeVar("_SomeSettings", bound=Settings)


class Sources(msgspec.Struct, frozen=True):
    """What a command that takes settings was given.

    Attributes:
        flags: Setting to value; None means not given.
        file: The one of `--config`, or the one here.
        only_given: Take nothing from the last start.
        defaults: What the trainer's command says.
    """

    flags: Mapping[str, Any]
    file: Path | None
    only_given: bool = False
    defaults: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def load(self, kind: type[_SomeSettings]) -> Loaded[_SomeSettings]:
        """Return the settings that count now.

        Raises:
            ConfigError: they are incomplete or wrong.
            StoreError: they are incomplete, and what the last start said cannot be read.
        """
        last, unread = LastStart(), None
        folder = None if self.only_given else self._state_dir()
        try:
            # What cannot be read is told, or waited for, when it is opened.
            last = read_last_start(folder, timeout_seconds=1.0) if folder else last
        except StoreError as error:
            unread = error
        try:
            loaded = load(kind, self.flags, os.environ, self.file, self.defaults, last)
        except ConfigError as error:
            if error.message == "experiment is not set" and (told := self._of_trainer()):
                return replace(self, defaults={**self.defaults, **told}).load(kind)
            if unread and error.message.endswith("is not set"):
                raise unread from error
            raise
        return replace(loaded, unread=isinstance(unread, StoreBusy))

    def folders(self) -> tuple[str | None, str | None]:
        """Return MODEL_DIR and `state_dir` as they are set, before anything is checked."""
        held = read_toml(self.file) if self.file else {}
        model_dir, state_dir = (_first(name, self.flags, held, self.defaults) for name in _FOLDERS)
        return model_dir, state_dir

    def _of_trainer(self) -> dict[str, Any]:
        """Return experiment and what registers it of a trainer on MODEL_DIR, where one runs."""
        from watcher.launch.processes import trainer_on, trainers

        held = read_toml(self.file) if self.file else {}
        folder = _first("model_dir", self.flags, held, self.defaults)
        trainer = trainer_on(Path(folder), trainers()) if folder else None
        told = trainer.kind.settings(trainer.arguments) if trainer else {}
        return {name: told[name] for name in ("experiment", "garden_import") if name in told}

    def _state_dir(self) -> Path | None:
        model_dir, state_dir = self.folders()
        return state_path(Path(model_dir).absolute(), state_dir) if model_dir else None


_FOLDERS = ("model_dir", "state_dir")


def sources(
    flags: Mapping[str, Any],
    settings_file: Path | None,
    *,
    only_given: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Sources:
    """Return what a command was given, with the settings file that lies here; says so if it does.

    The file of the current folder is taken when it names no other MODEL_DIR than the one given.
    """
    file = settings_file
    if file is None:
        model_dir = _first("model_dir", flags, {}, defaults or {})
        if file := file_here(model_dir):
            click.echo(f"settings from ./{file}", err=True)
    return Sources(flags, file, only_given, defaults or {})


def file_here(model_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the settings file of the current folder, if it may be meant.

    Another user's is not taken: it names programs that are run. Nor is that of another MODEL_DIR.

    Raises:
        ConfigError: it cannot be read, and nothing else names the MODEL_DIR.
    """
    try:
        owner = FILE_HERE.stat().st_uid
    except OSError:
        return None
    if owner not in (os.geteuid(), 0):
        click.echo(f"./{FILE_HERE} is another user's, and only taken with --config", err=True)
        return None
    theirs = read_toml(FILE_HERE).get("model_dir")
    if model_dir and isinstance(theirs, str) and not _same(Path(theirs), Path(model_dir)):
        click.echo(f"./{FILE_HERE} is not taken: it is of MODEL_DIR {theirs}", err=True)
        return None
    return FILE_HERE


def model_dir_here() -> Path | None:
    """Return the MODEL_DIR of the settings file in the current folder, and say so; None for none.

    Raises:
        ConfigError: there is a file, and it is no TOML.
    """
    file = file_here(None)
    folder = read_toml(file).get("model_dir") if file else None
    if not isinstance(folder, str):
        return None
    click.echo(f"MODEL_DIR from ./{file}: {folder}", err=True)
    return Path(folder)


def state_dir_here(model_dir: Path) -> str | None:
    """Return the `state_dir` that the settings file in the current folder sets for a MODEL_DIR."""
    try:
        values = read_toml(FILE_HERE) if FILE_HERE.is_file() else {}
    except ConfigError:  # of no concern to who gave the folder
        return None
    theirs, state_dir = (values.get(name) for name in _FOLDERS)
    if not isinstance(theirs, str) or not isinstance(state_dir, str):
        return None
    return state_dir if _same(Path(theirs), model_dir) and file_here(model_dir) else None


def _first(
    name: str, flags: Mapping[str, Any], file: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str | None:
    variable = os.environ.get(f"{ENVIRONMENT_PREFIX}{name.upper()}")
    found = (flags.get(name), variable, file.get(name), defaults.get(name))
    return next((str(value) for value in found if value is not None), None)


def _same(one: Path, other: Path) -> bool:
    return one == other or one.absolute() == other.absolute() or one.resolve() == other.resolve()
