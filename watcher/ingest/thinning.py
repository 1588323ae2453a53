"""Thinning: what the queue policy does not let wait is skipped, and let go of unless it is kept."""

from __future__ import annotations

from pathlib import Path

import structlog

from watcher.checkpoints.pin import release
from watcher.decision.queue_policy import QueuePolicy, thin
from watcher.decision.retain import RetainPolicy, as_pinned, retain
from watcher.store import Queue

_log = structlog.get_logger(__name__)


def thin_out(
    queue: Queue,
    policy: QueuePolicy,
    retain_policy: RetainPolicy,
    pins_dir: Path,
    now: float,
    *,
    counts_saves: bool,
) -> None:
    """Skip what may not wait; its pins stay only where they are kept whatever the score.

    Raises:
        StoreError: the database cannot be written.
    """
    if policy == QueuePolicy():
        return
    queued, evaluated_step, held_bytes = queue.waiting(counts_saves=counts_saves)
    skips = thin(queued, policy, evaluated_step=evaluated_step, held_bytes=held_bytes)
    for skip in skips:
        queue.skip(skip.checkpoint.checkpoint_id, skip.reason, now)
    if skips:
        names = ", ".join(skip.checkpoint.name for skip in skips)
        _log.info("skipped", checkpoints=names, reason=skips[-1].reason)
    pinned = queue.pinned()
    kept = retain(map(as_pinned, pinned), retain_policy)
    for row in pinned:
        if row["state"] == "skipped" and row["id"] not in kept:
            queue.forget_pin(row["id"])
            release(row["prefix"], pins_dir)
