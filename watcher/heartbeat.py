"""Heartbeat: what the daemon shows of itself after each turn of its loop.

The loop makes one and hands it to whoever looks: the live view, the service manager, the HTTP
endpoints, the notifications. It is never changed, so any thread may keep and read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

# At rest: nothing waits, and the device is left to other watchers meanwhile.
_AT_WORK = ("ready", "evaluating", "at rest")


class Heartbeat(msgspec.Struct, frozen=True):
    """One turn of the loop.

    Attributes:
        turned: Steady time (seconds) at which the turn ended.
        due: Steady time by which the loop means to turn again at the latest.
        worker_due: Steady time by which the worker has to be ready, or to have come further in
            what it evaluates; infinite when nothing is awaited of it.
        status: What `runs.status` holds since the last turn that could write it; empty before.
        failure: Why this turn could not do its work (the disk, the database), None when it could.
        worker_starts: Workers started since the daemon was.
        worker_losses: Those of them that died, hung or spoke nonsense.
        worker_failing: Losses in a row, since a worker was ready last.
    """

    turned: float
    due: float
    worker_due: float = math.inf
    status: Mapping[str, Any] = msgspec.field(default_factory=dict)
    failure: str | None = None
    worker_starts: int = 0
    worker_losses: int = 0
    worker_failing: int = 0

    @property
    def ready(self) -> bool:
        """True when a worker is ready, or none is needed, and the loop can do its work."""
        return self.failure is None and self.status.get("worker") in _AT_WORK

    @property
    def degraded(self) -> dict[str, str]:
        """What does not work as it should, and why; empty when all does.

        The keys are of `DEGRADATIONS`.
        """
        found: dict[str, str | None] = {"store": self.failure}
        if self.status.get("watch", "events") != "events":
            found["events"] = f"polling instead: {self.status['watch']}"
        if self.status.get("pins", "links") != "links":
            found["pins"] = f"copies instead of links: {self.status['pins']}"
        found["problem"] = self.status.get("problem")
        if self.worker_failing > 1:
            found["worker"] = f"{self.worker_failing} workers in a row were lost"
        found["device"] = self.status.get("held_back")
        found["tensorboard"] = self.status.get("tensorboard")
        return {what: why for what, why in found.items() if why}


# store: the database or the disk under it fails. events: MODEL_DIR is polled. pins: they are
# copies. problem: MODEL_DIR, a pin or best/ cannot be read or written. worker: none gets ready.
# device: different checkpoints in a row broke off on it. tensorboard: its event files cannot be
# written.
DEGRADATIONS = ("store", "events", "pins", "problem", "worker", "device", "tensorboard")


def stuck(heartbeat: Heartbeat, steady: float, patience_seconds: float) -> str | None:
    """Say why the daemon makes no progress, None when it does.

    Args:
        heartbeat: Its last turn.
        steady: The present steady time.
        patience_seconds: How much later than it meant to the loop may turn, and how long a worker
            that has stalled may still be there.
    """
    if steady > heartbeat.due + patience_seconds:
        return f"the loop is overdue by {steady - heartbeat.due:.0f} s"
    if steady > heartbeat.worker_due + patience_seconds:
        return f"the worker stalled {steady - heartbeat.worker_due:.0f} s ago and is still there"
    return None
