"""The database, which is the truth about a run; everything on disk is a projection of it.

All SQL is here. What enters: what was found and pinned, what a worker measured, what lies on the
boards and what a person asks for, through `Store` and by one process, which holds the run's lock.
What leaves: rows for rank and stop, the same to whoever writes and whoever reads (`rows`); what
commands, pages and pictures ask, in any number of processes, through `reading.Reader`, which never
writes and imports plain sqlite3 alone; and the public views (`views`) for everyone else.

`migrations` has the tables, `database` and `connection` how they are written and read, `relocation`
how paths are recorded so that a run can be moved.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Self

from watcher.store.database import RunDatabase
from watcher.store.database_file import DATABASE_NAME, PINS_NAME, iso
from watcher.store.ledger import Ledger
from watcher.store.manual import Manual
from watcher.store.promotions import Promotions
from watcher.store.queue import LeaseLost, Queue

__all__ = [
    "DATABASE_NAME",
    "PINS_NAME",
    "LeaseLost",
    "Ledger",
    "Promotions",
    "Queue",
    "Store",
    "iso",
]


class Store:
    """The writing side of one run: `queue`, `ledger` of scores, `promotions`, and `manual`."""

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        model_dir: Path,
        now: float,
        run_uuid: str | None = None,
        busy_seconds: float = 2.0,
    ) -> None:
        """Open or create the database; raises StoreError when that cannot be done.

        Args:
            path: The database file.
            run: Name of the run.
            model_dir: Its folder.
            now: Seconds since the epoch.
            run_uuid: Identity of the run if it is created now; None for a new one.
            busy_seconds: How long to wait for another program's lock, before StoreBusy.
        """
        self._database = RunDatabase(
            path,
            run=run,
            model_dir=model_dir,
            now=now,
            new_uuid=run_uuid or str(uuid.uuid4()),
            busy_seconds=busy_seconds,
        )
        self.run_uuid = self._database.run_uuid
        self.queue = Queue(self._database)
        self.ledger = Ledger(self._database, self.queue)
        self.promotions = Promotions(self._database)
        self.manual = Manual(self._database)

    def set_patience(self, seconds: float) -> None:
        """Say how long a call waits for another program's lock, before StoreBusy."""
        self._database.set_patience(seconds)

    def require_present(self) -> None:
        """Raise StoreLost when the database was deleted, replaced or emptied under us."""
        self._database.require_present()

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
