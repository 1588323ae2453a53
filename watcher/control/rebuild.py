"""Rebuild: make a database again from `best.json`, `best/` and the pins, when the old one is lost.

What comes back: the run's identity, the promoted checkpoints with their scores, and the pins that
still wait. The rest of the history does not; checkpoints that the trainer still has are found and
evaluated anew. Nothing is deleted: the damaged database is kept beside the new one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

import msgspec

from watcher.checkpoints.pin import signature_at
from watcher.decision.metric import parse_metric
from watcher.errors import StoreBusy, StoreError, StoreLost
from watcher.files.atomic_io import fsync_folder
from watcher.files.slices import Progress, finish
from watcher.ingest.adopt import adopt_pins, pin_folders, read_pin, repinning
from watcher.promotion.placing import look_into
from watcher.promotion.promote import BoardFile, Entry, foreign_names, read_board
from watcher.protocols import CheckpointFormat, CheckpointSource
from watcher.store import Store, migrations
from watcher.store.averages import AVERAGE
from watcher.store.database_file import (
    DATABASE_NAME,
    PINS_NAME,
    REBUILD_HINT,
    explained,
    has_run,
    is_whole,
    set_aside,
)
from watcher.types import FoundCheckpoint, Leader, Pin

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild brought back.

    Attributes:
        scored: Names of checkpoints in `best/`, best first.
        pending: Names of pins that wait to be evaluated.
        lost: Names in `best.json` whose files are neither in `best/` nor in the pins, whole.
        unnamed: Names of checkpoints in `best/` that `best.json` does not name. They may have been
            on their way out, or a user's; nothing tells now, so they stay.
        old: Where the old database is now, None when there was none.
    """

    scored: tuple[str, ...]
    pending: tuple[str, ...]
    lost: tuple[str, ...]
    unnamed: tuple[str, ...]
    old: Path | None


def whole_board(best_dir: Path, format: CheckpointFormat) -> BoardFile | None:
    """Read `best.json`; None when there is none, or none that a database can be made from."""
    board = read_board(best_dir)
    if board:  # of averages the new database knows nothing: their files stay where they are
        saved = tuple(one for one in board.checkpoints if AVERAGE not in one.saved_as)
        board = msgspec.structs.replace(board, checkpoints=saved)
    for entry in board.checkpoints if board else ():
        ours = format.is_placed(entry.checkpoint) and format.number(entry.saved_as)
        if not ours or entry.score is None or not _SHA256.fullmatch(entry.sha256):
            return None
    return board


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
    state_dir: Path, best_dir: Path, model_dir: Path, source: CheckpointSource, now: float
) -> Rebuilt:
    """Make the database anew. The caller holds the run's lock.

    Raises:
        StoreError: the new database cannot be written; the old one is where it was.
        OSError: likewise, for a pin.
    """
    board = whole_board(best_dir, source.format)
    pins_dir, fresh = state_dir / PINS_NAME, state_dir / f"{DATABASE_NAME}.new"
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    name = board.run if board else model_dir.name
    uuid = board.run_uuid if board else None
    with Store(fresh, run=name, model_dir=model_dir, now=now, run_uuid=uuid) as store:
        scored, lost = _restore_board(store, board, best_dir, pins_dir, source, now)
        pending = adopt_pins(store.queue, source, pins_dir, now)
        store.ledger.add_event(now, "rebuilt", "the database was made anew from best/ and the pins")
    old = set_aside(state_dir / DATABASE_NAME)
    fresh.rename(state_dir / DATABASE_NAME)
    fsync_folder(state_dir)
    named = [entry.checkpoint for entry in board.checkpoints] if board else []
    unnamed = tuple(sorted(foreign_names(look_into(best_dir, source.format), named)))
    return Rebuilt(tuple(scored), tuple(pending), tuple(lost), unnamed, old)


def _restore_board(
    store: Store,
    board: BoardFile | None,
    best_dir: Path,
    pins_dir: Path,
    source: CheckpointSource,
    now: float,
) -> tuple[list[str], list[str]]:
    if board is None:
        return [], []
    store.ledger.set_policy(parse_metric(board.metric), board.mode, now, board=board.board)
    fingerprint = board.fingerprint or "unknown"
    store.ledger.set_fingerprint(fingerprint, now)
    names: dict[str, str] = {}
    lost = []
    for entry in sorted(board.checkpoints, key=lambda entry: (entry.generation, entry.global_step)):
        pin = _find_pin(entry, best_dir, pins_dir, source)
        if pin is None:
            lost.append(entry.checkpoint)
            continue
        number = source.format.number(entry.saved_as) or 0
        found = FoundCheckpoint(entry.saved_as, number, pin.prefix, signature_at(pin.prefix))
        store.queue.record_pin(found, pin, now, generation=entry.generation)
        assert entry.score is not None  # see `whole_board`
        store.ledger.restore_score(
            entry.sha256, fingerprint, entry.score, entry.metrics, entry.evaluated_at, now
        )
        names[entry.sha256] = entry.checkpoint
    rows = {row.sha256: row for row in store.ledger.scored()}
    kept = [entry for entry in board.checkpoints if entry.sha256 in names]
    leaders = [
        Leader(rank=place, row=rows[entry.sha256], name=names[entry.sha256])
        for place, entry in enumerate(sorted(kept, key=lambda entry: entry.rank), start=1)
    ]
    store.promotions.place(board.board, leaders)
    paths = {leader.row.checkpoint_id: str(best_dir / leader.name) for leader in leaders}
    store.promotions.record(board.board, leaders, paths, board.metric, now)
    return [leader.name for leader in leaders], lost


def _find_pin(entry: Entry, best_dir: Path, pins_dir: Path, source: CheckpointSource) -> Pin | None:
    """Return the pin of a promoted checkpoint, made from `best/` where it is gone."""
    folder, copy = pins_dir / entry.sha256, best_dir / entry.checkpoint
    pin = read_pin(folder / entry.saved_as, entry.sha256, source.format)
    if pin or not read_pin(copy, entry.sha256, source.format):
        return pin
    shutil.rmtree(folder, ignore_errors=True)
    saved_as, sha256 = entry.saved_as, entry.sha256
    return finish(repinning(copy, saved_as, sha256, source, pins_dir, None, Progress()))
