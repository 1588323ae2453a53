"""Intake: compare model_dir with the database and close the difference, by pinning.

Wires discover, pin and queue. Every wake-up, timer, restart and crash leads into `look`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog

from watcher.bundle import index_path
from watcher.data import FoundCheckpoint
from watcher.discover import scan
from watcher.errors import CorruptCheckpoint, PinError
from watcher.pin import identify, pin, release, sweep
from watcher.store import Queue

_log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS = 0.1
_GAP_LIMIT = 1000


@dataclass(slots=True)
class _Waiting:
    """A checkpoint that could not be pinned yet."""

    found: FoundCheckpoint
    since: float
    retry_at: float
    delay: float = _FIRST_RETRY_SECONDS


class Intake:
    """The first three stages of one run: model_dir to pins to queue."""

    def __init__(
        self, model_dir: Path, pins_dir: Path, queue: Queue, *, grace_seconds: float
    ) -> None:
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._queue = queue
        self._grace_seconds = grace_seconds
        self._settled: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._frontier = queue.last_save_counter()
        self._said_copied = False
        self.problem: str | None = None

    @property
    def waiting(self) -> int:
        """How many checkpoints are seen but could not be pinned yet."""
        return len(self._waiting)

    def next_retry(self) -> float | None:
        """Return the steady time at which a waiting checkpoint is worth another look."""
        return min((entry.retry_at for entry in self._waiting.values()), default=None)

    def recover(self, now: float) -> None:
        """Put right at the start what a crash or a person left in the pins.

        Half-made and unnamed pins are deleted. A pending checkpoint whose pin is gone is pinned
        again if the trainer still has it, else it is recorded as failed.
        """
        self._pins_dir.mkdir(mode=0o700, exist_ok=True)
        rows = self._queue.pinned()
        sweep(self._pins_dir, {row["sha256"] for row in rows})
        lost = [row for row in rows if not index_path(row["prefix"]).is_file()]
        for row in lost:
            shutil.rmtree(row["prefix"].parent, ignore_errors=True)
            if self._pin_again(row["name"], row["sha256"]):
                continue
            if row["state"] in ("pending", "leased"):
                reason = "its pin was deleted and the trainer no longer has it"
                self._queue.fail_unpinned(row["id"], row["name"], reason, now)
            else:
                self._queue.forget_pin(row["id"])

    def _pin_again(self, name: str, sha256: str) -> bool:
        for found in scan(self._model_dir):
            if found.name == name:
                try:
                    if identify(found) == sha256:
                        return pin(found, self._pins_dir).sha256 == sha256
                except (OSError, CorruptCheckpoint, PinError):
                    return False
        return False

    def look(self, now: float, steady: float) -> list[str]:
        """Scan model_dir once, and pin and record what is new.

        Args:
            now: Seconds since the epoch, for the records.
            steady: Monotonic seconds, for the waiting.

        Returns:
            Names recorded now, in whatever state.

        Raises:
            ModelDirError: model_dir is missing or cannot be listed.
            StoreError: the database cannot be written.
        """
        found = scan(self._model_dir)
        present = {checkpoint.name for checkpoint in found}
        self._settled = {name: sig for name, sig in self._settled.items() if name in present}
        recorded = self._give_up_gone(present, now)
        first_look = self._frontier is None
        for checkpoint in found:
            if self._settled.get(checkpoint.name) == checkpoint.signature:
                continue
            if self._handle(checkpoint, now, steady, present, count_gaps=not first_look):
                recorded.append(checkpoint.name)
        return recorded

    def _handle(
        self,
        checkpoint: FoundCheckpoint,
        now: float,
        steady: float,
        present: set[str],
        *,
        count_gaps: bool,
    ) -> bool:
        waited = self._waiting.get(checkpoint.name)
        unchanged = waited is not None and waited.found.signature == checkpoint.signature
        if waited and unchanged and steady < waited.retry_at:
            return False
        try:
            if self._queue.known_damage(checkpoint) or self._queue.known(identify(checkpoint)):
                self._settle(checkpoint)
                return False
            taken = pin(checkpoint, self._pins_dir)
        except FileNotFoundError:
            if index_path(checkpoint.prefix).exists():
                return self._wait(checkpoint, "a shard is missing", now, steady)
            self._waiting.pop(checkpoint.name, None)
            self._advance(checkpoint, waited, present, now, count_gaps)
            return self._missed(checkpoint, now)
        except CorruptCheckpoint as error:
            return self._wait(checkpoint, error.message, now, steady)
        except PinError as error:
            # Nothing is wrong with the checkpoint: it stays in line until a pin succeeds.
            self.problem = error.message
            self._wait(checkpoint, None, now, steady)
            return False
        self.problem = None
        self._advance(checkpoint, waited, present, now, count_gaps)
        if self._queue.record_pin(checkpoint, taken, now) == "untrained":
            release(taken.prefix, self._pins_dir)
        elif taken.method != "link" and not self._said_copied:
            self._said_copied = True
            _log.warning("pins cannot be hard links here", method=taken.method)
        self._settle(checkpoint)
        return True

    def _settle(self, checkpoint: FoundCheckpoint) -> None:
        self._settled[checkpoint.name] = checkpoint.signature
        self._waiting.pop(checkpoint.name, None)

    def _wait(
        self, checkpoint: FoundCheckpoint, reason: str | None, now: float, steady: float
    ) -> bool:
        """Look again later; after the grace period a reason makes it corrupt."""
        entry = self._waiting.get(checkpoint.name)
        if entry is None or entry.found.signature != checkpoint.signature:
            entry = _Waiting(checkpoint, since=steady, retry_at=steady)
            self._waiting[checkpoint.name] = entry
        if reason is not None and steady - entry.since >= self._grace_seconds:
            self._queue.record_corrupt(checkpoint, reason, now)
            self._settle(checkpoint)
            return True
        remaining = max(entry.since + self._grace_seconds - steady, _FIRST_RETRY_SECONDS)
        entry.retry_at = steady + min(entry.delay, remaining)
        entry.delay = min(entry.delay * 2, self._grace_seconds)
        return False

    def _advance(
        self,
        checkpoint: FoundCheckpoint,
        waited: _Waiting | None,
        present: set[str],
        now: float,
        count_gaps: bool,
    ) -> None:
        """Record the saves between the newest known and this one, which nobody saw."""
        counter, frontier = checkpoint.save_counter, self._frontier
        if frontier is not None and counter < frontier and waited is not None:
            return  # it only took its time; the newer ones have been counted
        self._frontier = counter
        if frontier is None or not count_gaps or counter <= frontier:
            return  # a counter that falls back means that the trainer started over
        for missed in range(max(frontier + 1, counter - _GAP_LIMIT), counter):
            name = f"ckpt-{missed}"
            if name not in present:
                reason = "saved and rotated away while nobody looked"
                self._queue.record_missed(name, missed, reason, now)

    def _missed(self, checkpoint: FoundCheckpoint, now: float) -> bool:
        reason = "rotated away before it could be pinned"
        self._queue.record_missed(checkpoint.name, checkpoint.save_counter, reason, now)
        return True

    def _give_up_gone(self, present: set[str], now: float) -> list[str]:
        gone = [entry.found for name, entry in self._waiting.items() if name not in present]
        for checkpoint in gone:
            del self._waiting[checkpoint.name]
            self._missed(checkpoint, now)
        return [checkpoint.name for checkpoint in gone]
