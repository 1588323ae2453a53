"""Leftovers: the folders of a start that came to nothing, and that was the first to make them.

Removed is only what this start made, and only while there is nothing of value in it: of MODEL_DIR
and the folders above it what is empty, and of the watcher's state folder a database in which no
checkpoint is, with what the watcher itself lays beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from watcher.errors import StoreError
from watcher.evaluation.snapshot import FOLDER_NAME as SNAPSHOT
from watcher.store.database_file import DATABASE_NAME, PINS_NAME, REQUESTS_NAME
from watcher.store.reading import open_reader

_LOCK = "lock"
_FOLDERS = frozenset({REQUESTS_NAME, SNAPSHOT})
_FILES = frozenset({_LOCK, "tensorboard.lock", "watcher.log", DATABASE_NAME}) | {
    f"{DATABASE_NAME}{end}" for end in ("-wal", "-shm", "-journal")
}


class Leftovers:
    """What was not there when it was made."""

    def __init__(self, model_dir: Path, state_dir: Path) -> None:
        self._model_dir, self._state_dir = model_dir, state_dir
        above = [model_dir, *model_dir.parents]
        self._missing = [folder for folder in above if not os.path.lexists(folder)]
        self._had_state = os.path.lexists(state_dir)

    def remove(self) -> None:
        """Remove what is of no value; nobody of this start may be at work there any more."""
        # What somebody else works on raises, and stays, and so does what is above it.
        with contextlib.suppress(OSError, StoreError):
            if self._missing or not self._had_state:
                _refuse_at_work(self._model_dir)
            if not self._had_state and self._state_dir.is_dir():
                _remove_state(self._state_dir)
            for folder in self._missing:
                folder.rmdir()  # which does nothing to one that is not empty


def _refuse_at_work(model_dir: Path) -> None:
    """Raise OSError while a trainer that was left behind still holds the launcher's lock."""
    descriptor = os.open(model_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _remove_state(state_dir: Path) -> None:
    """Remove a state folder without a checkpoint.

    Raises:
        OSError: there is none, or it is in use.
        StoreError: nobody can tell whether it is of value.
    """
    descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_bare(state_dir):
            return
        (state_dir / PINS_NAME).rmdir()
        for name in _FOLDERS:
            shutil.rmtree(state_dir / name, ignore_errors=True)
        names = [entry.name for entry in state_dir.iterdir()]
        for name in sorted(names, key=lambda name: name == _LOCK):  # the lock last
            (state_dir / name).unlink()
        state_dir.rmdir()
    finally:
        os.close(descriptor)


def _is_bare(state_dir: Path) -> bool:
    """Tell whether there is nothing but what a watcher makes before there is a checkpoint."""
    for entry in state_dir.iterdir():
        name = entry.name
        ours = name in _FILES or (name.startswith("worker") and entry.suffix in (".log", ".lock"))
        if name == PINS_NAME:
            ours = not any(entry.iterdir())
        if not (ours or name in _FOLDERS):
            return False
    if not (state_dir / DATABASE_NAME).exists():
        return True
    with open_reader(state_dir) as reader:
        return not reader.history(1)
