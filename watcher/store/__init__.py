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

from watcher.store.averages import Averages
from watcher.store.database import RunDatabase
from watcher.store.database_file import DATABASE_NAME, PINS_NAME, iso
from watcher.store.ledger import Ledger
from watcher.store.machines import Machines
from watcher.store.promotions import Promotions
from watcher.store.queue import LeaseLost, Queue
from watcher.store.replicates import Replicates

__all__ = [
    "DATABASE_NAME",
    "PINS_NAME",
    "LeaseLost",
    "Ledger",
    "Machines",
    "Promotions",
    "Queue",
    "Replicates",
    "Store",
    "iso",
]


class Store(RunDatabase):
    """The writing side of one run.

    It has `queue`, `ledger`, `promotions`, `replicates`, `averages` and `machines`.
    """

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
        super().__init__(
            path,
            run=run,
            model_dir=model_dir,
            now=now,
            new_uuid=run_uuid or str(uuid.uuid4()),
            busy_seconds=busy_seconds,
        )
        self.queue = Queue(self)
        self.ledger = Ledger(self, self.queue)
        self.promotions = Promotions(self)
        self.replicates = Replicates(self)
        self.averages = Averages(self, self.queue)
        self.machines = Machines(self)
