"""The database as a file: its name, its times, and how its failures are told.

What the daemon, which writes, and the commands, which only read, have in common.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher.errors import StoreBusy, StoreError, StoreLost, StoreRefused

DATABASE_NAME = "watcher.db"
PINS_NAME = "pins"
REQUESTS_NAME = "requests"
REBUILD_HINT = (
    "`checkpoint-watcher rebuild MODEL_DIR` makes a new one from best.json and the pins;"
    " the old file is kept beside it"
)

# What SQLite says of a file that no waiting will repair.
_DAMAGE = ("not a database", "malformed")
# What it says of values that it does not take, with a disk that is well.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)


def iso(seconds: float) -> str:
    """Format seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


def encodable(value: Any) -> Any:
    """Return texts, or whatever holds some, with the odd bytes of a name not in UTF-8 written out.

    Python reads such a name of a file, or of the command line, as text that nothing can encode.
    """
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(one) for key, one in value.items()}
        case list() | tuple():
            return [encodable(one) for one in value]
    return value


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the ways in which SQLite and the file system fail into a StoreError with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if isinstance(error, _REFUSALS) or "binding" in text:
            raise StoreRefused(
                f"the database refuses it: {error}", hint="what was to be recorded is at fault"
            ) from error
        if any(sign in text for sign in _DAMAGE):
            raise StoreLost(f"database {path}: {text}", hint=REBUILD_HINT) from error
        if "locked" in text or "busy" in text:
            hint = "another program holds a write lock on it; close that and try again"
            raise StoreBusy(f"database {path}: {text}", hint=hint) from error
        hint = f"check free space and permissions of {path.parent}, or set --state-dir"
        if "no such table" in text or "no such column" in text:
            hint = (
                "it is of another program, or of another version; `checkpoint-watcher run` brings"
                " that of an earlier one up to date"
            )
        raise StoreError(f"database {path}: {text}", hint=hint) from error
    except OSError as error:
        raise StoreError(
            f"database {path}: {error.strerror}",
            hint=f"check permissions of {path.parent}, or set --state-dir to another folder",
        ) from error


def has_run(database: Path) -> bool:
    """True when a run is recorded there, or something that is damaged."""
    if not database.is_file():
        return False
    uri = f"{database.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as db:
        try:
            return db.execute("SELECT 1 FROM runs").fetchone() is not None
        except sqlite3.OperationalError as error:
            return "no such table" not in str(error)
        except sqlite3.DatabaseError:
            return True  # damaged: that is told when it is opened


def set_aside(database: Path) -> Path | None:
    """Move a database and what belongs to it; a `-wal` left behind would be read into the new."""
    if not database.exists():
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        return None
    aside = database.with_name(f"{database.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("-wal", "-shm", ""):
        file = database.with_name(database.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def is_whole(database: Path) -> bool:
    """True when a run is recorded there and SQLite finds nothing wrong with the file."""
    if not has_run(database):
        return False
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        try:
            return bool(db.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
        except sqlite3.DatabaseError:
            return False
