"""Connections: how the database is asked, and opened by those who only read."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from watcher.errors import StoreBusy, StoreError
from watcher.store.database_file import PINS_NAME, encodable, explained


class Connection:
    """An open database of one run; a context manager, which closes it.

    Attributes:
        path: Its file.
        run_id: The row of its run.
    """

    path: Path
    run_id: int
    _sqlite: sqlite3.Connection

    def close(self) -> None:
        """Close it; the object is of no use afterwards."""
        self._sqlite.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pin_prefix(self, pin_path: str) -> Path:
        """Return the prefix of a pin; rows hold it relative, so that a run can be moved."""
        return _pin_prefix(self.path, pin_path)

    def all(self, sql: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with explained(self.path):
            cursor = self._execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def _execute(self, sql: str, arguments: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return self._sqlite.execute(sql, arguments)
        except UnicodeEncodeError:
            return self._sqlite.execute(sql, encodable(arguments))

    def one(self, sql: str, arguments: Sequence[Any] = ()) -> dict[str, Any] | None:
        """Return the first row of a query, None when it has none."""
        rows = self.all(sql, arguments)
        return rows[0] if rows else None

    def value(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """Return the first value of the first row, None when there is none."""
        row = self.one(sql, arguments)
        return next(iter(row.values())) if row else None


class ReadOnly(Connection):
    """A database that another process may be writing meanwhile.

    Attributes:
        frozen: Nobody writes it, and it is read as a file that never changes.
    """

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        """Open read-only; raises StoreError when there is no database or it cannot be read."""
        try:
            there = path.is_file()
        except OSError as error:
            raise StoreError(
                f"cannot read {path}: {error.strerror}",
                hint="it is its owner's alone, unless `run` was given a --group to share it with",
            ) from error
        if not there:
            raise StoreError(
                f"no database at {path}{_nearest_trouble(path.parent)}",
                hint=_lost_hint(path.parent)
                or "give the model_dir that `checkpoint-watcher run` was started on,"
                " or its database with --state-dir",
            )
        self.path = path
        self.frozen = False
        try:
            self._open("mode=ro", timeout_seconds)
        except StoreBusy:
            raise
        except StoreError:
            # One that nobody has open, in a folder where we may not write: SQLite wants to create
            # a WAL there to read it. There is none, so all there is lies in the one file.
            if path.with_name(path.name + "-wal").exists() or os.access(path.parent, os.W_OK):
                raise
            self._open("mode=ro&immutable=1", timeout_seconds)
            self.frozen = True

    def _open(self, how: str, timeout_seconds: float) -> None:
        with explained(self.path):
            # Plain sqlite3: the commands that read answer sooner without a library to import.
            uri = f"{self.path.absolute().as_uri()}?{how}"
            self._sqlite = sqlite3.connect(uri, uri=True, timeout=timeout_seconds)
            try:
                run = self.one("SELECT uuid, id FROM runs ORDER BY id LIMIT 1")
            except BaseException:
                self.close()
                raise
            self.run_id = run["id"] if run else 1


@lru_cache(maxsize=4096)  # a board may have a thousand places, and is looked at again and again
def _pin_prefix(database: Path, pin_path: str) -> Path:
    return database.parent / PINS_NAME / pin_path


def _lost_hint(state: Path) -> str | None:
    """Say what makes the database anew where something of a run is left; None where nothing is."""
    usual = state.name == "watcher"
    board = (state.parent if usual else state) / "best" / "best.json"
    try:
        left = board if board.is_file() else next((state / PINS_NAME).iterdir(), None)
    except OSError:
        left = None
    if left is None:
        return None
    model_dir = [str(state.parent)] if usual else ["MODEL_DIR", "--state-dir", str(state)]
    command = shlex.join(["checkpoint-watcher", "rebuild", *model_dir])
    return (
        f"{left} is that of a run: `{command}` makes a new database from best.json and the pins,"
        " unless the run was started with another --state-dir"
    )


def _nearest_trouble(folder: Path) -> str:
    """Say which part of a path is not there or no folder; nothing for what `run` makes itself."""
    if folder.parent.is_dir() and not folder.exists():
        return ""
    for there in (folder, *folder.parents):
        if there.exists():
            return "" if there.is_dir() else f": {there} is not a folder"
        if there.parent.is_dir():
            return f": {there} does not exist"
    return ""
