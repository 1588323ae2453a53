"""Arrivals: checkpoints on their way from the source to a row, until the database has them.

They are recorded in the order in which they were found, so one whose pin is still being verified
holds up those after it: the queue and the history are in the order of the saves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from watcher.checkpoints.pin import release
from watcher.files.slices import Job
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Pin

_log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class Arrival:
    """One checkpoint from when it was found to when its outcome is recorded.

    Attributes:
        found: The checkpoint, as it was found.
        at: When, in seconds since the epoch.
        state: What becomes of it: `pinned`, `corrupt`, `missed`, or `unpinned` for a row whose pin
            is lost.
        reason: Why, but for a pin.
        sha256: The digest of its index, where that is known.
        job: Makes the pin; None before, and once it is known what became of it.
        pin: What came of that.
        since: The steady time from which it waited to be pinned, infinite where it never did.
        retry_at: When it is worth another look, and `delay` how much later the one after that.
        problem: Why it waits, where that is no fault of its own.
        alone: It was found in the pins, and not at the source.
        row: The row whose lost pin this brings back.
        before: Digest of the checkpoint whose coming showed that nobody saw this one.
        saves: Of how many that is the outcome, one after another, this being the last.
    """

    found: FoundCheckpoint
    at: float
    state: str = "pinned"
    reason: str = ""
    sha256: str = ""
    job: Job[Pin] | None = None
    pin: Pin | None = None
    since: float = math.inf
    retry_at: float = 0.0
    delay: float = FIRST_RETRY_SECONDS
    problem: str | None = None
    alone: bool = False
    row: dict[str, Any] | None = None
    before: str | None = None
    saves: int = 1


class Arrivals:
    """Those that are being pinned or have an outcome, in the order found.

    Attributes:
        recorded: Names that were recorded, until they are taken; none of saves that nobody saw.
    """

    def __init__(self, queue: Queue | None, pins_dir: Path) -> None:
        self._queue = queue
        self._pins_dir = pins_dir
        self._line: deque[Arrival] = deque()
        self.recorded: list[str] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._line)

    def add(self, arrival: Arrival) -> None:
        """Take one in, after those that were found before it."""
        self._line.append(arrival)

    def remove(self, arrival: Arrival) -> None:
        """Take out one that has no outcome yet; nothing happens when it is not there."""
        if arrival in self._line:
            self._line.remove(arrival)

    def jobs(self) -> list[tuple[Arrival, Job[Pin]]]:
        """Return those whose pin is being made, and how."""
        return [(one, one.job) for one in self._line if one.job]

    @property
    def problem(self) -> str | None:
        """What held up one that is tried again right now, None when nothing did."""
        return next((one.problem for one, _ in self.jobs() if one.problem), None)

    def write(self) -> None:
        """Record them, up to the first whose pin is still being made.

        Raises:
            StoreError: the database cannot be written; the rest is kept for the next call.
        """
        while self._line and self._line[0].job is None:
            if self._write(self._line[0]):
                self.recorded.append(self._line[0].found.name)
            self._line.popleft()

    def take_recorded(self) -> list[str]:
        """Return the names recorded since the last call."""
        recorded, self.recorded = self.recorded, []
        return recorded

    def close(self) -> None:
        """End what is being made, and forget all; what has its files is found in the pins again."""
        for _, job in self.jobs():
            job.close()
        self._line.clear()

    def _write(self, arrival: Arrival) -> bool:
        """Record one outcome; False when that is no news."""
        assert self._queue is not None
        found, pin, queue = arrival.found, arrival.pin, self._queue
        if arrival.row:
            if not pin:
                _forget(queue, arrival.row, arrival.problem, arrival.at)
                return False
            if arrival.row["pin_path"] is None:
                queue.note_pin(arrival.row["id"], pin)
            if arrival.since < math.inf:
                queue.put_off(arrival.row["id"], 0.0)  # it need not wait for its pin any more
            return False
        if pin:
            known, generation = queue.known(pin.sha256), queue.generation()
            queue.record_pin(found, pin, arrival.at)
            if (begun := queue.generation()) > generation:
                _log.info("the trainer started over", checkpoint=found.name, generation=begun)
            if not queue.has_pin(pin.sha256):
                # Untrained; or released before, and known only now that it can be read.
                release(pin.prefix, self._pins_dir)
            return not known
        if arrival.state == "corrupt":
            if not queue.known_damage(found):
                queue.record_corrupt(found, arrival.reason, arrival.at)
            return True
        if arrival.before is None and found.signature and queue.known_unreadable(found):
            return False
        if arrival.before is None or not queue.known(arrival.before):
            queue.record_missed(found, arrival.reason, arrival.at, arrival.saves)
        return arrival.before is None


def _forget(queue: Queue, row: dict[str, Any], problem: str | None, now: float) -> None:
    if row["state"] in ("pending", "leased"):
        why = "and the trainer no longer has it"
        if problem:
            why = f"and cannot be made again: {problem}"
        reason = f"its pin was deleted {why}"
        queue.fail_unpinned(row["id"], row["name"], reason, now)
    else:
        queue.forget_pin(row["id"])
