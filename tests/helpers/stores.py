"""A run's store with a clock of its own, and checkpoints in it."""

from __future__ import annotations

from pathlib import Path

from watcher.store import Store
from watcher.types import FoundCheckpoint, Pin

NOW = 1_700_000_000.0
MAP = "DetectionBoxes_Precision/mAP"


def found_and_pinned(
    counter: int, *, step: int | None = None, model_variables: int = 5
) -> tuple[FoundCheckpoint, Pin]:
    """A checkpoint as it was found, and its pin; the files of neither are there."""
    name, sha256 = f"ckpt-{counter}", f"{counter:064x}"
    found = FoundCheckpoint(name, counter, Path("m") / name, ((counter, 10, counter * 10**9),))
    pin = Pin(
        prefix=Path("pins") / sha256 / name,
        method="link",
        sha256=sha256,
        global_step=100 * counter if step is None else step,
        size_bytes=10,
        model_variables=model_variables,
    )
    return found, pin


def add(store: Store, counter: int, *, model_variables: int = 5, step: int | None = None) -> str:
    found, pin = found_and_pinned(counter, step=step, model_variables=model_variables)
    return store.queue.record_pin(found, pin, NOW)
