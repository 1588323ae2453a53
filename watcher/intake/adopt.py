"""Adopt: give pins that the database does not know a row, instead of losing their checkpoints.

A pin lies there before its row is written. A crash or a failing database in between leaves a pin
alone, and the trainer may have rotated the checkpoint away by then.
"""

from __future__ import annotations

import re
from pathlib import Path

from watcher.checkpoints import bundle
from watcher.data import FoundCheckpoint, Pin
from watcher.errors import CorruptCheckpoint
from watcher.store import Queue

_NAME = re.compile(r"ckpt-([1-9][0-9]{0,17})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def orphans(queue: Queue, pins_dir: Path) -> list[tuple[Pin, float]]:
    """Find the whole pins of contents that have no row yet.

    Returns:
        Each with the time it was pinned (seconds since the epoch), in the order in which the
        trainer saved them.

    Raises:
        StoreError: the database cannot be read.
    """
    found = []
    for folder in pin_folders(pins_dir):
        if queue.known(folder.name):
            continue
        prefixes = [index.with_suffix("") for index in folder.glob("ckpt-*.index")]
        pin = read_pin(prefixes[0], folder.name) if len(prefixes) == 1 else None
        if pin and _NAME.fullmatch(pin.prefix.name):
            # The shard is the trainer's own file, or has its time; the index was written by us.
            shard = min(folder.glob("ckpt-*.data-*")).stat()
            pinned_at = bundle.index_path(pin.prefix).stat().st_mtime
            found.append((shard.st_mtime_ns, pin, pinned_at))
    found.sort(key=lambda one: (one[0], found_as(one[1].prefix.name, one[1].prefix).save_counter))
    return [(pin, pinned_at) for _, pin, pinned_at in found]


def adopt_pins(queue: Queue, pins_dir: Path, now: float) -> list[str]:
    """Record each whole pin of a content that has no row yet; returns their names.

    Raises:
        StoreError: the database cannot be written; what was adopted stays so.
    """
    adopted = orphans(queue, pins_dir)
    for pin, pinned_at in adopted:
        found = found_as(pin.prefix.name, pin.prefix)
        queue.record_pin(found, pin, min(pinned_at, now))
    return [pin.prefix.name for pin, _ in adopted]


def pin_folders(pins_dir: Path) -> list[Path]:
    """Return the folders of the pins, which are named by content."""
    if not pins_dir.is_dir():
        return []
    return sorted(entry for entry in pins_dir.iterdir() if _SHA256.fullmatch(entry.name))


def read_pin(prefix: Path, sha256: str) -> Pin | None:
    """Verify what lies at a prefix; None unless it is the checkpoint of this digest, whole."""
    try:
        facts = bundle.verify(prefix)
    except (OSError, CorruptCheckpoint):
        return None
    if facts.sha256 != sha256:
        return None
    return Pin(prefix, "link", sha256, facts.global_step, facts.size_bytes, facts.model_variables)


def found_as(name: str, prefix: Path) -> FoundCheckpoint:
    """Return a checkpoint under the name that the trainer saved it as, `ckpt-12`."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return FoundCheckpoint(name=name, save_counter=int(match[1]), prefix=prefix, signature=())
