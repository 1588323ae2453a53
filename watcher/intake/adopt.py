"""Adopt: give pins that the database does not know a row, instead of losing their checkpoints.

A pin lies there before its row is written. A crash or a failing database in between leaves a pin
alone, and the trainer may have rotated the checkpoint away by then.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from watcher.checkpoints import bundle
from watcher.data import FoundCheckpoint, Pin
from watcher.errors import CorruptCheckpoint
from watcher.store import Queue

_NAME = re.compile(r"ckpt-([1-9][0-9]{0,17})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def orphans(queue: Queue, pins_dir: Path) -> list[tuple[FoundCheckpoint, Pin, float]]:
    """Find the whole pins of contents that have no row yet.

    Returns:
        Each as it would have been found, its pin, and when that was made (seconds since the
        epoch), in the order in which the trainer saved them.

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
            # The shards are the trainer's own files, or have their times; the index is ours.
            pinned_at = bundle.index_path(pin.prefix).stat().st_mtime
            found.append((found_as(pin.prefix.name, pin.prefix), pin, pinned_at))
    return sorted(found, key=lambda one: (one[0].saved_at, one[0].save_counter))


def adopt_pins(queue: Queue, pins_dir: Path, now: float) -> list[str]:
    """Record each whole pin of a content that has no row yet; returns their names.

    Raises:
        StoreError: the database cannot be written; what was adopted stays so.
    """
    adopted = orphans(queue, pins_dir)
    for found, pin, pinned_at in adopted:
        queue.record_pin(found, pin, min(pinned_at, now))
    return [found.name for found, _, _ in adopted]


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
    """Return a checkpoint under the name that the trainer saved it as, `ckpt-12`.

    Its signature is that of the files at the prefix, empty where there are none.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    signature = []
    with contextlib.suppress(OSError):
        for file in (bundle.index_path(prefix), *sorted(prefix.parent.glob(f"{name}.data-*"))):
            status = file.stat()
            signature.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return FoundCheckpoint(name, int(match[1]), prefix, tuple(signature))
