"""Tells a sentinel of this run from a stale one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from watcher.errors import StoreError
from watcher.files.atomic_io import read_regular
from watcher.promotion.promote import BOARD_FILE
from watcher.promotion.sentinel import read_sentinel
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import open_reader


class Verdict(msgspec.Struct, frozen=True):
    """What a sentinel means.

    Attributes:
        kind: `none`: there is no file. `valid`: this run is to end. `stale`: it is of another run,
            or nobody can tell, and means nothing.
        message: Why the run is to end, or why the file means nothing.
    """

    kind: Literal["none", "valid", "stale"]
    message: str = ""


def judge(content: dict[str, Any] | None, identity: str | None, *, is_new: bool) -> Verdict:
    """Decide what a sentinel means.

    Args:
        content: What `watcher.promotion.sentinel.read_sentinel` gives.
        identity: Of this run; None while nobody can tell.
        is_new: The file appeared or changed since the launcher was started. Where the run's
            identity is unknown, only such a one is taken as this run's.
    """
    if content is None:
        return Verdict("none")
    run = content.get("run")
    if not isinstance(run, str):
        return Verdict("stale", "it is not the watcher's")
    if identity is not None and run != identity:
        return Verdict("stale", "it is of another run")
    if identity is None and not is_new:
        return Verdict("stale", "it was there before, and there is no database to tell whose it is")
    return Verdict("valid", str(content.get("message") or content.get("reason") or "no reason"))


class _Identity(msgspec.Struct):
    """All that counts here of `best.json`, whatever else a version writes."""

    run_uuid: str


def run_identity(state_dir: Path, best_dir: Path) -> str | None:
    """Return `runs.uuid`, from the database or else from `best.json`; None when there is neither.

    The folder of the database is closed to other users, `best/` is not.
    """
    with contextlib.suppress(StoreError, OSError), open_reader(state_dir) as reader:
        return str(reader.run()["uuid"])
    try:
        return msgspec.json.decode(read_regular(best_dir / BOARD_FILE), type=_Identity).run_uuid
    except (OSError, msgspec.DecodeError):
        return None


# The marks of all that a verdict depends on.
_Grounds = tuple[tuple[int, ...] | None, ...]


class Sentinel:
    """The sentinel file of a run, and what it meant when the launcher was started."""

    def __init__(self, path: Path, state_dir: Path, best_dir: Path) -> None:
        self.path = path
        self._state_dir, self._best_dir = state_dir, best_dir
        self._first = _mark(path)
        self._judged: tuple[_Grounds, Verdict] | None = None

    def look(self) -> Verdict:
        """Return what it means now. It is not read again while nothing that matters has changed."""
        mark = _mark(self.path)
        if mark is None:
            return Verdict("none")
        # A database keeps its run; where it is closed to us, best.json counts.
        database = _mark(self._state_dir / DATABASE_NAME)
        grounds = (mark, database and database[:2], _mark(self._best_dir / BOARD_FILE))
        if self._judged is None or self._judged[0] != grounds:
            identity = run_identity(self._state_dir, self._best_dir)
            verdict = judge(read_sentinel(self.path), identity, is_new=mark != self._first)
            self._judged = None if identity is None else (grounds, verdict)
            return verdict
        return self._judged[1]


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
