"""Adopt: give pins that the database does not know a row, instead of losing their checkpoints.

A pin lies there before its row is written, and its files before it is verified. A crash or a
failing database in between leaves it alone, and the trainer may have rotated the checkpoint away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import digest, found_at, halves, settling
from watcher.errors import CorruptCheckpoint
from watcher.files.slices import Progress, finish
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Pin

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pin that has no row: not verified yet, as far as is known.

    Attributes:
        found: As it would have been found; its prefix is in the folder of a pin, or in a half-made
            one.
        sha256: The digest of its index.
        pinned_at: When it was pinned, in seconds since the epoch.
    """

    found: FoundCheckpoint
    sha256: str
    pinned_at: float


def orphans(queue: Queue, pins_dir: Path) -> list[Orphan]:
    """Find the pins of contents that have no row yet, in the order in which they were saved.

    Half-made ones that have all their files are among them. Reads no shard.

    Raises:
        StoreError: the database cannot be read.
    """
    found: dict[str, Orphan] = {}
    for prefix, sha256 in _candidates(pins_dir):
        if sha256 in found or not OD_API.number(prefix.name) or queue.known(sha256):
            continue
        if digest(prefix) != sha256:
            continue
        try:
            # The shards are the trainer's own files, or have their times; the index is ours.
            pinned_at = bundle.index_path(prefix).stat().st_mtime
        except OSError:
            continue
        found[sha256] = Orphan(found_at(prefix, prefix.name), sha256, pinned_at)
    return sorted(
        found.values(), key=lambda orphan: (orphan.found.saved_at, orphan.found.save_counter)
    )


def _candidates(pins_dir: Path) -> Iterator[tuple[Path, str]]:
    for folder in pin_folders(pins_dir):
        prefixes = [index.with_suffix("") for index in folder.glob(f"{OD_API.stem}*.index")]
        if len(prefixes) == 1:
            yield prefixes[0], folder.name
    yield from halves(pins_dir)


def adopt_pins(queue: Queue, pins_dir: Path, now: float) -> list[str]:
    """Record each whole pin of a content that has no row yet; returns their names.

    Raises:
        StoreError: the database cannot be written; what was adopted stays so.
    """
    adopted = []
    for orphan in orphans(queue, pins_dir):
        try:
            pin = finish(settling(orphan.found.prefix, pins_dir, "link"))
        except (OSError, CorruptCheckpoint):
            continue
        queue.record_pin(orphan.found, pin, min(orphan.pinned_at, now))
        adopted.append(pin.prefix.name)
    return adopted


def pin_folders(pins_dir: Path) -> list[Path]:
    """Return the folders of the pins, which are named by content."""
    if not pins_dir.is_dir():
        return []
    return sorted(entry for entry in pins_dir.iterdir() if _SHA256.fullmatch(entry.name))


def read_pin(prefix: Path, sha256: str) -> Pin | None:
    """Verify what lies at a prefix; None unless it is the checkpoint of this digest, whole."""
    try:
        index = bundle.read_index(prefix)
        if hashlib.sha256(index).hexdigest() != sha256:
            return None
        return finish(OD_API.verifying(prefix, index, Progress()))
    except (OSError, CorruptCheckpoint):
        return None
