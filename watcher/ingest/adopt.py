"""Adopt: give pins that the database does not know a row, instead of losing their checkpoints.

A pin lies there before its row is written, and its files before it is verified. A crash or a
failing database in between leaves it alone, and the trainer may have rotated the checkpoint away.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from watcher.checkpoints import bundle
from watcher.checkpoints.pin import (
    digest,
    halves,
    has_all_files,
    make_folder,
    release,
    signature_at,
    sweep,
    taking_checkpoint,
)
from watcher.errors import CorruptCheckpoint, PinError
from watcher.files.slices import Job, Progress, Work, finish
from watcher.ingest.arrivals import Arrival
from watcher.protocols import CheckpointFormat, CheckpointSource
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Pin, Verified

_log = structlog.get_logger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


def orphans(queue: Queue, pins_dir: Path, format: CheckpointFormat) -> list[Arrival]:
    """Find the pins of contents that have no row yet, in the order in which they were saved.

    Half-made ones that have all their files are among them. Reads no shard.

    Returns:
        Each as it would have been found, with its prefix in the pins and the time of its pin.

    Raises:
        StoreError: the database cannot be read.
    """
    alone: dict[str, Arrival] = {}
    for prefix, sha256 in _candidates(pins_dir, format):
        number = format.number(prefix.name)
        if sha256 in alone or not number or queue.known(sha256) or digest(prefix) != sha256:
            continue
        try:
            # The shards are the trainer's own files, or have their times; the index is ours.
            pinned_at = bundle.index_path(prefix).stat().st_mtime
        except OSError:
            continue
        found = FoundCheckpoint(prefix.name, number, prefix, signature_at(prefix))
        alone[sha256] = Arrival(found, pinned_at, sha256=sha256, alone=True)
    return sorted(alone.values(), key=lambda one: (one.found.saved_at, one.found.save_counter))


def _candidates(pins_dir: Path, format: CheckpointFormat) -> Iterator[tuple[Path, str]]:
    for folder in pin_folders(pins_dir):
        prefixes = [index.with_suffix("") for index in folder.glob("*.index")]
        ours = [prefix for prefix in prefixes if format.number(prefix.name)]
        if len(ours) == 1:
            yield ours[0], folder.name
    yield from halves(pins_dir)


def left_over(
    queue: Queue, source: CheckpointSource, pins_dir: Path, verified: Verified | None, now: float
) -> tuple[list[Arrival], set[int]]:
    """Sort out what a crash or a person left in the pins, and begin to mend it.

    Half-made pins that lack files and pins that no row needs are deleted.

    Returns:
        The rows whose pin is lost, being made again where a copy of ours stands on a board, or the
        source has the checkpoint yet; then
        the pins without a row, being verified. And the numbers of what the source has now, empty
        where there is nothing to mend.

    Raises:
        StoreError: the database cannot be read.
        ModelDirError: the source cannot be listed.
    """
    pins_dir.mkdir(mode=0o700, exist_ok=True)
    rows, alone = queue.pinned(), orphans(queue, pins_dir, source.format)
    kept = {row["sha256"] for row in rows} | {one.found.prefix.parent.name for one in alone}
    sweep(pins_dir, kept)
    lost = [row for row in rows if not has_all_files(row["prefix"])]
    lost += queue.waiting_unpinned()
    complete = source.complete
    here = {found.name: found for found in source.scan()} if lost or alone else {}
    left = []
    for row in lost:
        found = here.get(row["name"])
        if copy := _copy_of(queue, row):
            left.append(_from_copy(copy, row, source, pins_dir, verified, now))
        elif found is None and not complete:
            shutil.rmtree(pins_dir / row["sha256"], ignore_errors=True)
            left.append(_held_up(row, OSError("it is not known yet what is there"), now))
        else:
            left.append(_pin_again(row, found, source, pins_dir, verified, now))
    for one in alone:
        one.at, one.job = min(one.at, now), _settle(one.found.prefix, source, pins_dir, verified)
    if alone:
        names = ", ".join(one.found.name for one in alone)
        _log.info("pins that have no row are taken up", checkpoints=names)
    return [*left, *alone], {found.save_counter for found in here.values()}


def _copy_of(queue: Queue, row: dict[str, Any]) -> Path | None:
    """Return where a checkpoint lies in the folder of a board, None for nowhere."""
    for copy in queue.promoted_as(row["id"]):
        if has_all_files(copy) and digest(copy) == row["sha256"]:
            return copy
    return None


def _from_copy(
    copy: Path,
    row: dict[str, Any],
    source: CheckpointSource,
    pins_dir: Path,
    verified: Verified | None,
    now: float,
) -> Arrival:
    """Begin to make a lost pin again from `best/`: the trainer may have the checkpoint no more."""
    work = partial(repinning, copy, row["name"], row["sha256"], source, pins_dir, verified)
    shutil.rmtree(pins_dir / row["sha256"], ignore_errors=True)
    lost = FoundCheckpoint(row["name"], 0, row["prefix"], ())
    _log.warning("a lost pin is made again", checkpoint=row["name"], of=str(copy.parent))
    return Arrival(lost, now, "unpinned", sha256=row["sha256"], job=Job(work), row=row)


def repinning(
    copy: Path,
    name: str,
    sha256: str,
    source: CheckpointSource,
    pins_dir: Path,
    verified: Verified | None,
    progress: Progress,
) -> Work[Pin]:
    """Make a lost pin again from a copy of ours, which may have another name there.

    Args:
        copy: Its prefix, in `best/` say.
        name: What the trainer called it.
        sha256: Of its index, which is to be the same.
        source: Where it came from once.
        pins_dir: Folder of the pins.
        verified: Gets the pin.
        progress: Is kept up to date.

    Raises:
        As `CheckpointSource.take` does.
    """
    working = make_folder(pins_dir, name)
    try:
        index, method = yield from taking_checkpoint(copy, working / name, progress)
        if hashlib.sha256(index).hexdigest() != sha256:
            raise CorruptCheckpoint(f"{copy} is another checkpoint")
        pin = yield from source.settle(working / name, pins_dir, verified, progress)
        return replace(pin, method=method)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _pin_again(
    row: dict[str, Any],
    found: FoundCheckpoint | None,
    source: CheckpointSource,
    pins_dir: Path,
    verified: Verified | None,
    now: float,
) -> Arrival:
    """Begin to make the lost pin of a row again; without a job where it stays lost.

    Where it cannot be begun now, that is what its job says.
    """
    shutil.rmtree(pins_dir / row["sha256"], ignore_errors=True)
    lost = found or FoundCheckpoint(row["name"], 0, row["prefix"], ())
    try:
        job = source.take_again(found, row["sha256"], pins_dir, verified) if found else None
    except (OSError, PinError) as error:
        return _held_up(row, error, now, found)
    return Arrival(lost, now, "unpinned", sha256=row["sha256"], job=job, row=row)


def _held_up(
    row: dict[str, Any],
    error: OSError | PinError,
    now: float,
    found: FoundCheckpoint | None = None,
) -> Arrival:
    def failing(_: Progress) -> Work[Pin]:
        raise error
        yield

    lost = found or FoundCheckpoint(row["name"], 0, row["prefix"], ())
    return Arrival(lost, now, "unpinned", sha256=row["sha256"], job=Job(failing), row=row)


def _settle(
    prefix: Path, source: CheckpointSource, pins_dir: Path, verified: Verified | None
) -> Job[Pin]:
    """Return the work of verifying a pin without a row, which removes one that is not whole."""

    def settling_or_removing(progress: Progress) -> Work[Pin]:
        try:
            return (yield from source.settle(prefix, pins_dir, verified, progress))
        except (OSError, CorruptCheckpoint):
            release(prefix, pins_dir)
            raise

    return Job(settling_or_removing)


def adopt_pins(queue: Queue, source: CheckpointSource, pins_dir: Path, now: float) -> list[str]:
    """Record each whole pin of a content that has no row yet; returns their names.

    Raises:
        StoreError: the database cannot be written; what was adopted stays so.
    """
    adopted = []
    for one in orphans(queue, pins_dir, source.format):
        try:
            pin = finish(source.settle(one.found.prefix, pins_dir, None, Progress()))
        except (OSError, CorruptCheckpoint):
            continue
        queue.record_pin(one.found, pin, min(one.at, now))
        adopted.append(pin.prefix.name)
    return adopted


def pin_folders(pins_dir: Path) -> list[Path]:
    """Return the folders of the pins, which are named by content."""
    if not pins_dir.is_dir():
        return []
    return sorted(entry for entry in pins_dir.iterdir() if _SHA256.fullmatch(entry.name))


def read_pin(prefix: Path, sha256: str, format: CheckpointFormat) -> Pin | None:
    """Verify what lies at a prefix; None unless it is the checkpoint of this digest, whole."""
    try:
        index = bundle.read_index(prefix)
        if hashlib.sha256(index).hexdigest() != sha256:
            return None
        return finish(format.verifying(prefix, index, Progress()))
    except (OSError, CorruptCheckpoint):
        return None
