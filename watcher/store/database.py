"""One writer's connection to the database: opening, transactions, the run's row, events."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from watcher.errors import StoreLost
from watcher.files.mounts import mount_now
from watcher.store.connection import Connection
from watcher.store.database_file import REBUILD_HINT, explained, iso
from watcher.store.relocation import inside, recorded_settings, with_paths

_BUSY_SECONDS = 2.0
RESCUED_SUFFIX = ".rescued"


class RunDatabase(Connection):
    """The writing connection, bound to one run.

    Attributes:
        run_uuid: The run's identity, as it stands in the sentinel.
        model_dir: Its folder; paths inside of it are recorded relative to it.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        model_dir: Path,
        now: float,
        new_uuid: str,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        """Open the database, create or migrate it, and find or create the run.

        Raises:
            StoreError: it cannot be opened or written, or is not a database.
        """
        self.path = path
        self.model_dir = model_dir
        with explained(path):
            # Scores are nobody else's business by default; sqlite3 would obey the umask alone.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._sqlite = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
            try:
                self._prepare()
                self.run_id, self.run_uuid = self._find_run(run, now, new_uuid)
            except BaseException:
                self._sqlite.close()
                raise
        self._identities = {file: _identity(file) for file in (path, self._wal_path)}

    def _prepare(self) -> None:
        # Only here: who reads does without the library that they need.
        from watcher.store import migrations

        migrations.refuse_foreign(self._sqlite, self.path)
        self._sqlite.execute("PRAGMA foreign_keys = ON")
        self._choose_journal()
        self._sqlite.execute("PRAGMA synchronous = FULL")
        migrations.migrate(self._sqlite)

    def _choose_journal(self) -> None:
        """Use write-ahead logging but where the file system is another machine's or a program's.

        It shares memory between connections through a mapped file, and SQLite takes it there too:
        connections of two machines, or of two mounts, would damage the database
        (sqlite.org/wal.html).
        """
        mount = mount_now(self.path.parent)
        if mount is None or not mount.is_remote:
            self._sqlite.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        # One that an earlier version left in WAL mode stays so while a reader has it open.
        with contextlib.suppress(sqlite3.OperationalError):
            self._sqlite.execute("PRAGMA journal_mode = DELETE").fetchone()

    @property
    def _wal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def require_present(self) -> None:
        """Raise StoreLost when the database was deleted or replaced under us, or lost its tables.

        SQLite would go on writing into deleted files, and all of it would be lost. What they hold
        is saved beside the database first.
        """
        for file, identity in self._identities.items():
            if identity is not None and _identity(file) != identity:
                raise StoreLost(
                    f"database {file} was deleted or replaced while in use{self._rescue()}",
                    hint=REBUILD_HINT,
                )
        with explained(self.path):
            try:
                found = self._sqlite.execute("SELECT uuid FROM runs").fetchone()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    return  # it cannot even be read now; that may pass
                found = None
        if found is None or found[0] != self.run_uuid:
            raise StoreLost(f"database {self.path} was emptied while in use", hint=REBUILD_HINT)

    def _rescue(self) -> str:
        rescued = self.path.with_name(self.path.name + RESCUED_SUFFIX)
        try:
            rescued.unlink(missing_ok=True)
            os.close(os.open(rescued, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(rescued)) as copy:
                self._sqlite.backup(copy)
        except (OSError, sqlite3.Error):
            return ""
        return f"; all it held is in {rescued.name}, rename that to {self.path.name} to go on"

    def encoded(self, settings: Mapping[str, Any]) -> str:
        """Return settings as they are recorded."""
        recorded = with_paths(settings, lambda path: inside(path, self.model_dir))
        return msgspec.json.encode(recorded).decode()

    def set_patience(self, seconds: float) -> None:
        """Say how long to wait for a lock that another program holds, before StoreBusy."""
        self._sqlite.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}").fetchone()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Run one write transaction. The lock is taken first, so it cannot be lost half-way.

        Raises:
            StoreError: the database is locked, full, read-only or damaged; nothing was written.
        """
        with explained(self.path):
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sqlite.commit()
            except BaseException:
                # After a full disk SQLite has rolled back by itself, and there is nothing to do.
                if self._sqlite.in_transaction:
                    self._sqlite.rollback()
                raise

    def run(self, sql: str, arguments: Sequence[Any] = ()) -> int:
        """Execute one statement inside `write()` and return how many rows it changed."""
        return self._execute(sql, arguments).rowcount

    def update(self, table: str, id_: int, **columns: Any) -> None:
        """Change columns of one row, inside `write()`."""
        changes = ", ".join(f"{name} = ?" for name in columns)
        self.run(f"UPDATE {table} SET {changes} WHERE id = ?", [*columns.values(), id_])

    def wait_anew(self, checkpoint_id: int, reason: str) -> None:
        """Put a checkpoint into the queue with all its attempts before it, inside `write()`."""
        again: dict[str, Any] = {"state": "pending", "attempts": 0, "not_before_seconds": 0}
        self.update("all_checkpoints", checkpoint_id, **again, reason=reason)

    def insert(self, table: str, row: dict[str, Any], *, ignore: bool = False) -> int:
        """Insert a row inside `write()`; returns 0 when `ignore` met an existing one, else 1."""
        conflict = " ON CONFLICT DO NOTHING" if ignore else ""
        marks = ", ".join("?" * len(row))
        return self.run(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks}){conflict}",
            list(row.values()),
        )

    def event(self, now: float, kind: str, message: str, checkpoint: str | None = None) -> None:
        """Add a line to the run's diary, inside `write()`."""
        row = {"run_id": self.run_id, "at": iso(now), "kind": kind}
        self.insert("events", {**row, "checkpoint": checkpoint, "message": message})

    def _find_run(self, name: str, now: float, new_uuid: str) -> tuple[int, str]:
        # The database lies with the model_dir, so the first run in it is the run, however the
        # folder is called today.
        model_dir = str(self.model_dir)
        run = self.one("SELECT * FROM runs ORDER BY id LIMIT 1")
        with self.write():
            if run is None:
                run = {"id": 1, "uuid": new_uuid, "name": name, "model_dir": model_dir}
                self.insert("runs", {**run, "created_at": iso(now), "metric": "", "mode": ""})
            elif run["model_dir"] != model_dir:
                # Its name is that of before until it is decided by these settings.
                settings = self.encoded(recorded_settings(run, self.model_dir))
                self.update("runs", run["id"], model_dir=model_dir, settings=settings)
        return run["id"], run["uuid"]


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
