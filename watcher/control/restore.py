"""Restore: what the folders of a run say of themselves becomes rows of a new database."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from watcher.checkpoints.pin import signature_at
from watcher.decision.board import AVERAGES_BOARD, KEPT_BOARD, MAIN_BOARD
from watcher.decision.metric import parse_metric
from watcher.decision.retain import BY_HAND
from watcher.files.slices import Progress, finish
from watcher.ingest.adopt import read_pin, repinning
from watcher.promotion.promote import BOARD_FILE, KEPT_FILE, BoardFile, Entry, read_board
from watcher.protocols import CheckpointFormat, CheckpointSource
from watcher.store import Store
from watcher.store.averages import AVERAGE
from watcher.store.rows import unscored
from watcher.types import FoundCheckpoint, Leader, Pin

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Restored(msgspec.Struct, frozen=True):
    """What came back.

    Attributes:
        names: Of the checkpoints by folder, in its order.
        lost: Names of those whose files are nowhere whole.
    """

    names: Mapping[Path, tuple[str, ...]]
    lost: tuple[str, ...]


def whole_board(folder: Path, format: CheckpointFormat, file: str = BOARD_FILE) -> BoardFile | None:
    """Read `best.json`; None when there is none, or none that a database can be made from."""
    board = read_board(folder, file)
    if board:  # of averages the new database knows nothing: their files stay where they are
        saved = tuple(one for one in board.checkpoints if AVERAGE not in one.saved_as)
        board = msgspec.structs.replace(board, checkpoints=saved)
    names = [one.checkpoint for one in board.checkpoints] if board else []
    if len(set(names)) < len(names):
        return None
    for entry in board.checkpoints if board else ():
        ours = format.is_placed(entry.checkpoint) and format.number(entry.saved_as)
        scored = entry.score is not None or file == KEPT_FILE
        if not ours or not scored or not _SHA256.fullmatch(entry.sha256):
            return None
    return board


def boards_of(
    best_dir: Path, kept_dir: Path, model_dir: Path, format: CheckpointFormat
) -> dict[Path, BoardFile]:
    """Return what the folders of a run say of themselves, that of the main board first.

    A folder that the settings gave another board is not known here; its files stay as they are. So
    do a person's copies of a board's folder, which say that they are that board.
    """
    main, kept = whole_board(best_dir, format), whole_board(kept_dir, format, KEPT_FILE)
    found = {best_dir: main} if main else {}
    for folder in sorted(model_dir.glob(f"{MAIN_BOARD}-*")):
        board = whole_board(folder, format)
        name = folder.name.removeprefix(f"{MAIN_BOARD}-")
        if board and board.board == name != AVERAGES_BOARD and folder != best_dir:
            found[folder] = board
    if kept and kept.board == KEPT_BOARD:
        found[kept_dir] = kept
    run = next((board.run_uuid for board in found.values()), None)
    return {folder: board for folder, board in found.items() if board.run_uuid == run}


def restore(
    boards: Mapping[Path, BoardFile],
    store: Store,
    pins_dir: Path,
    source: CheckpointSource,
    now: float,
) -> Restored:
    """Give a new database the checkpoints that folders name, their scores and their places.

    Args:
        boards: What each folder says; the first one tells how the run ranks.
        store: New.
        pins_dir: Gets what only a folder has.
        source: Where the checkpoints came from.
        now: Seconds since the epoch.

    Raises:
        StoreError: the database cannot be written.
        OSError: likewise, for a pin.
    """
    if not boards:
        return Restored({}, ())
    main = next(iter(boards.values()))
    name = MAIN_BOARD if main.board == KEPT_BOARD else main.board
    store.ledger.set_policy(parse_metric(main.metric), main.mode, now, board=name)
    store.ledger.set_fingerprint(main.fingerprint or "unknown", now)
    named: dict[str, list[_Named]] = {}
    for folder, board in boards.items():
        for entry in board.checkpoints:
            named.setdefault(entry.sha256, []).append(_Named(folder, board, entry))
    here, lost = set[str](), []
    # In the order in which they were saved, as the watcher would have met them.
    for places in sorted(named.values(), key=_saved):
        entry = places[0].entry
        pins = (_find_pin(one.entry, one.folder, pins_dir, source) for one in places)
        if pin := next(filter(None, pins), None):
            _restore(places, pin, main, store, source.format, now)
            here.add(entry.sha256)
        else:
            lost.append(entry.checkpoint)
    names = {folder: _place(folder, board, here, store, now) for folder, board in boards.items()}
    # The best of a run are alike, as scores that stand still are: nothing is to stop for them.
    store.ledger.resume(now)
    return Restored(names, tuple(lost))


class _Named(NamedTuple):
    """A checkpoint as the file of a folder names it."""

    folder: Path
    board: BoardFile
    entry: Entry


def _saved(places: Sequence[_Named]) -> tuple[int, int]:
    return places[0].entry.generation, places[0].entry.global_step


def _restore(
    places: Sequence[_Named],
    pin: Pin,
    main: BoardFile,
    store: Store,
    format: CheckpointFormat,
    now: float,
) -> None:
    """Give a checkpoint its row, and its score where that can be told; else it is measured anew."""
    entry = places[0].entry
    number = format.number(entry.saved_as) or 0
    found = FoundCheckpoint(entry.saved_as, number, pin.prefix, signature_at(pin.prefix))
    store.queue.record_pin(found, pin, now, generation=entry.generation)
    metrics = {(name, ""): value for name, value in entry.metrics.items()}
    for one in places:
        # Of the evaluation before, which a board keeps until all of it is measured anew.
        if one.board.fingerprint != main.fingerprint:
            return
        # What a board ranks by may be of a category, and files name overall metrics alone.
        told = one.board.metric == main.metric
        if not told and parse_metric(one.board.metric).value(metrics) != one.entry.score:
            return
    score = entry.score
    if places[0].board.metric != main.metric:
        score = parse_metric(main.metric).value(metrics)
    if score is not None:
        fingerprint = main.fingerprint or "unknown"
        store.ledger.restore_score(
            entry.sha256, fingerprint, score, entry.metrics, entry.evaluated_at, now
        )


def _place(
    folder: Path, board: BoardFile, here: set[str], store: Store, now: float
) -> tuple[str, ...]:
    """Give those of a folder that are there their places in it; returns their names."""
    pinned = {row["sha256"]: row for row in store.queue.pinned()}
    rows = {sha256: unscored(row) for sha256, row in pinned.items()}
    rows |= {row.sha256: row for row in store.ledger.scored()}
    entries = sorted((one for one in board.checkpoints if one.sha256 in here), key=_rank)
    leaders = [
        Leader(place, replace(rows[entry.sha256], score=entry.score), entry.checkpoint)
        for place, entry in enumerate(entries, start=1)
    ]
    for entry in entries:
        if board.board == KEPT_BOARD and BY_HAND in (entry.kept or BY_HAND):
            store.queue.keep(pinned[entry.sha256], True, now)
    store.promotions.place(board.board, leaders)
    paths = {leader.row.checkpoint_id: str(folder / leader.name) for leader in leaders}
    store.promotions.record(board.board, leaders, paths, board.metric, now)
    return tuple(leader.name for leader in leaders)


def _rank(entry: Entry) -> int:
    return entry.rank


def _find_pin(entry: Entry, folder: Path, pins_dir: Path, source: CheckpointSource) -> Pin | None:
    """Return the pin of a promoted checkpoint, made from its folder where it is gone."""
    pinned, copy = pins_dir / entry.sha256, folder / entry.checkpoint
    pin = read_pin(pinned / entry.saved_as, entry.sha256, source.format)
    if pin or not read_pin(copy, entry.sha256, source.format):
        return pin
    shutil.rmtree(pinned, ignore_errors=True)
    saved_as, sha256 = entry.saved_as, entry.sha256
    return finish(repinning(copy, saved_as, sha256, source, pins_dir, None, Progress()))
