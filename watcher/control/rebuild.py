"""Rebuild: make a database again from `best.json`, `best/` and the pins, when the old one is lost.

What comes back: the run's identity, the promoted checkpoints with their scores, those that are kept
by hand, and the pins that still wait. The rest of the history does not; checkpoints that the
trainer still has are found and evaluated anew. Nothing is deleted: the damaged database is kept
beside the new one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec

from watcher.control.restore import boards_of, restore, whole_board
from watcher.errors import StoreBusy, StoreError, StoreLost
from watcher.files.atomic_io import fsync_folder
from watcher.ingest.adopt import adopt_pins, pin_folders
from watcher.promotion.placing import look_into
from watcher.promotion.promote import foreign_names
from watcher.protocols import CheckpointFormat, CheckpointSource
from watcher.store import Store, migrations
from watcher.store.database_file import (
    DATABASE_NAME,
    PINS_NAME,
    REBUILD_HINT,
    explained,
    has_run,
    is_whole,
    set_aside,
)


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild brought back.

    Attributes:
        scored: Names of checkpoints in `best/`, best first.
        kept: Names of checkpoints in `kept/`.
        pending: Names of pins that wait to be evaluated.
        lost: Names in `best.json`, or that of another board or of `kept/`, whose files are neither
            in that folder nor in the pins, whole.
        unnamed: Names of checkpoints in `best/` that `best.json` does not name. They may have been
            on their way out, or a user's; nothing tells now, so they stay.
        old: Where the old database is now, None when there was none.
    """

    scored: tuple[str, ...]
    kept: tuple[str, ...]
    pending: tuple[str, ...]
    lost: tuple[str, ...]
    unnamed: tuple[str, ...]
    old: Path | None


def refuse_lost(state_dir: Path, best_dir: Path, format: CheckpointFormat) -> None:
    """Raise StoreLost where a run has been whose database is gone: a new one would forget it."""
    database = state_dir / DATABASE_NAME
    if has_run(database):
        return
    if pin_folders(state_dir / PINS_NAME):
        trace = state_dir / PINS_NAME
    elif whole_board(best_dir, format):
        trace = best_dir
    else:
        return
    raise StoreLost(
        f"database {database} is gone or empty, but {trace} is that of a run",
        hint="give the --state-dir that the run was started with, where it had one; if the"
        f" database is lost, {REBUILD_HINT}; or move {trace} away to begin anew",
    )


def require_damage(database: Path) -> None:
    """Raise StoreError when a database is whole, another program's, or of a later version."""
    _refuse_foreign(database)
    if is_whole(database):
        raise StoreError(
            f"database {database} is whole: there is nothing to rebuild",
            hint="to make it anew all the same, move it away first",
        )


def _refuse_foreign(database: Path) -> None:
    if not database.is_file():
        return
    uri = f"{database.as_uri()}?mode=ro"
    try:
        with (
            explained(database),
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as db,
        ):
            migrations.refuse_foreign(db, database)
    except StoreBusy:
        raise
    except StoreError as error:
        # What cannot be read at all is damaged, whosever it was.
        if not isinstance(error.__cause__, sqlite3.Error):
            raise


def rebuild(
    state_dir: Path,
    best_dir: Path,
    kept_dir: Path,
    model_dir: Path,
    source: CheckpointSource,
    now: float,
) -> Rebuilt:
    """Make the database anew. The caller holds the run's lock.

    Raises:
        StoreError: the new database cannot be written; the old one is where it was.
        OSError: likewise, for a pin.
    """
    boards = boards_of(best_dir, kept_dir, model_dir, source.format)
    pins_dir, fresh = state_dir / PINS_NAME, state_dir / f"{DATABASE_NAME}.new"
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    main = next(iter(boards.values()), None)
    name = main.run if main else model_dir.name
    uuid = main.run_uuid if main else None
    with Store(fresh, run=name, model_dir=model_dir, now=now, run_uuid=uuid) as store:
        restored = restore(boards, store, pins_dir, source, now)
        pending = adopt_pins(store.queue, source, pins_dir, now)
        store.ledger.add_event(now, "rebuilt", "the database was made anew from best/ and the pins")
    old = set_aside(state_dir / DATABASE_NAME)
    fresh.rename(state_dir / DATABASE_NAME)
    fsync_folder(state_dir)
    best = boards.get(best_dir)
    named = [entry.checkpoint for entry in best.checkpoints] if best else []
    unnamed = tuple(sorted(foreign_names(look_into(best_dir, source.format), named)))
    return Rebuilt(
        restored.names.get(best_dir, ()),
        restored.names.get(kept_dir, ()),
        tuple(pending),
        restored.lost,
        unnamed,
        old,
    )
