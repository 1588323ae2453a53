"""The database as a file: its name, its times, and how its failures are told.

What the daemon, which writes, and the commands, which only read, have in common.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from watcher.errors import StoreError

DATABASE_NAME = "watcher.db"
PINS_NAME = "pins"


def iso(seconds: float) -> str:
    """Format seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the ways in which SQLite and the file system fail into a StoreError with a hint."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            hint = "another program holds a write lock on it; close that and try again"
        elif "not a database" in text or "malformed" in text:
            hint = "move the file aside; a new one is begun from the checkpoints that are there"
        else:
            hint = f"check free space and permissions of {path.parent}, or set --state-dir"
        raise StoreError(f"database {path}: {text}", hint=hint) from error
    except OSError as error:
        raise StoreError(
            f"database {path}: {error.strerror}",
            hint=f"check permissions of {path.parent}, or set --state-dir to another folder",
        ) from error
