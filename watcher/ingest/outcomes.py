"""Outcomes: what becomes of each checkpoint that was seen, until the database has it.

They are recorded in the order in which the checkpoints were found, so one whose pin is still being
verified holds up those after it: the queue and the history are in the order of the saves.
"""

from __future__ import annotations

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


@dataclass(slots=True)
class Waiting:
    """A checkpoint that could not be pinned yet, `problem` if that is no fault of its own."""

    found: FoundCheckpoint
    since: float
    retry_at: float
    delay: float = FIRST_RETRY_SECONDS
    problem: str | None = None


@dataclass(slots=True, eq=False)
class Outcome:
    """What becomes of one checkpoint.

    Attributes:
        state: `pinned`, `corrupt`, `missed`, or `unpinned` for a row whose pin is lost.
        found: The checkpoint.
        at: When, in seconds since the epoch.
        job: Makes the pin; None once it is known what became of it.
        sha256: The digest of its index, where a job was begun.
        waited: How it waited before this attempt.
        alone: True when it was found in the pins, and not in MODEL_DIR.
        row: The row whose lost pin this brings back.
        before: Digest of the checkpoint whose coming showed that nobody saw this one.
        saves: Of how many that is the outcome, one after another, this being the last.
    """

    state: str
    found: FoundCheckpoint
    at: float
    job: Job[Pin] | None = None
    sha256: str = ""
    waited: Waiting | None = None
    alone: bool = False
    row: dict[str, Any] | None = None
    pin: Pin | None = None
    reason: str = ""
    before: str | None = None
    saves: int = 1


class Outcomes:
    """The outcomes that are not recorded yet, in the order found.

    Attributes:
        recorded: Names that were recorded, until they are taken; none of saves that nobody saw.
    """

    def __init__(self, queue: Queue, pins_dir: Path) -> None:
        self._queue = queue
        self._pins_dir = pins_dir
        self._line: deque[Outcome] = deque()
        self.recorded: list[str] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._line)

    def add(self, outcome: Outcome) -> None:
        """Take in an outcome, after those that were found before it."""
        self._line.append(outcome)

    def remove(self, outcome: Outcome) -> None:
        """Take out one that is not an outcome yet; nothing happens when it is not there."""
        if outcome in self._line:
            self._line.remove(outcome)

    def jobs(self) -> list[tuple[Outcome, Job[Pin]]]:
        """Return those whose pin is being made, and how."""
        return [(one, one.job) for one in self._line if one.job]

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

    def _write(self, outcome: Outcome) -> bool:
        """Record one outcome; False when that is no news."""
        found, pin, queue = outcome.found, outcome.pin, self._queue
        if outcome.row:
            if not pin:
                self._forget(outcome.row, outcome.at)
            return False
        if pin:
            known, generation = queue.known(pin.sha256), queue.generation()
            queue.record_pin(found, pin, outcome.at)
            if (begun := queue.generation()) > generation:
                _log.info("the trainer started over", checkpoint=found.name, generation=begun)
            if not queue.has_pin(pin.sha256):
                # Untrained; or released before, and known only now that it can be read.
                release(pin.prefix, self._pins_dir)
            return not known
        if outcome.state == "corrupt":
            if not queue.known_damage(found):
                queue.record_corrupt(found, outcome.reason, outcome.at)
            return True
        if outcome.before is None and found.signature and queue.known_unreadable(found):
            return False
        if outcome.before is None or not queue.known(outcome.before):
            queue.record_missed(found, outcome.reason, outcome.at, outcome.saves)
        return outcome.before is None

    def _forget(self, row: dict[str, Any], now: float) -> None:
        if row["state"] in ("pending", "leased"):
            reason = "its pin was deleted and the trainer no longer has it"
            self._queue.fail_unpinned(row["id"], row["name"], reason, now)
        else:
            self._queue.forget_pin(row["id"])
