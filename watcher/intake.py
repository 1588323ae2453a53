"""Intake: compare model_dir with the database and close the difference, by pinning.

Wires discover, pin and queue. Every wake-up, timer, restart and crash leads into `look`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from watcher.adopt import adopt_pins
from watcher.bundle import index_path
from watcher.data import FoundCheckpoint
from watcher.discover import scan
from watcher.errors import CorruptCheckpoint, PinError
from watcher.gaps import missed_counters
from watcher.pin import Verified, identify, pin, probe, release, sweep
from watcher.store import Queue
from watcher.thin import QueuePolicy, thin

_log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS = 0.1
# A look pins for so long at most. What is left is next, after the worker had its turn.
_LOOK_SECONDS = 0.5
_LATE_SECONDS = 1.0


@dataclass(slots=True)
class _Waiting:
    """A checkpoint that could not be pinned yet, `problem` if that is no fault of its own."""

    found: FoundCheckpoint
    since: float
    retry_at: float
    delay: float = _FIRST_RETRY_SECONDS
    problem: str | None = None


class Intake:
    """The first three stages of one run: model_dir to pins to queue.

    Attributes:
        more: True when a look ended with checkpoints left to take, so that another is due now.
        late: Names recorded by the last look that had been there for a while.
        copying: Why pins are copies that take space of their own, None while they are links.
    """

    def __init__(
        self,
        model_dir: Path,
        pins_dir: Path,
        queue: Queue,
        *,
        grace_seconds: float,
        policy: QueuePolicy | None = None,
        verified: Verified | None = None,
    ) -> None:
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._queue = queue
        self._grace_seconds = grace_seconds
        self._policy = policy or QueuePolicy()
        self._verified = verified
        self._settled: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._last_counter = queue.last_save_counter()
        self._first_look = self._last_counter is None
        self._counted: FoundCheckpoint | None = None
        self._news: list[str] = []
        self._unrecorded = False
        self.more = False
        self.late: list[str] = []
        self.copying: str | None = None

    @property
    def waiting(self) -> int:
        """How many checkpoints are seen but could not be pinned yet."""
        return len(self._waiting)

    @property
    def problem(self) -> str | None:
        """Why a checkpoint that may be whole cannot be pinned, None when none is held up."""
        return next((entry.problem for entry in self._waiting.values() if entry.problem), None)

    def next_retry(self) -> float | None:
        """Return the steady time at which a waiting checkpoint is worth another look."""
        return min((entry.retry_at for entry in self._waiting.values()), default=None)

    def take_news(self) -> list[str]:
        """Return what is to be told about pinning since the last call, in order."""
        news, self._news = self._news, []
        return news

    def recover(self, now: float) -> None:
        """Put right at the start what a crash or a person left in the pins.

        Half-made and unnamed pins are deleted. A pending checkpoint whose pin is gone is pinned
        again if the trainer still has it, else it is recorded as failed.
        """
        self._pins_dir.mkdir(mode=0o700, exist_ok=True)
        self._adopt(now)
        rows = self._queue.pinned()
        sweep(self._pins_dir, {row["sha256"] for row in rows})
        lost = [row for row in rows if not index_path(row["prefix"]).is_file()]
        here = {found.name: found for found in scan(self._model_dir)} if lost else {}
        for row in lost:
            shutil.rmtree(row["prefix"].parent, ignore_errors=True)
            if self._pin_again(here.get(row["name"]), row["sha256"]):
                continue
            if row["state"] in ("pending", "leased"):
                reason = "its pin was deleted and the trainer no longer has it"
                self._queue.fail_unpinned(row["id"], row["name"], reason, now)
            else:
                self._queue.forget_pin(row["id"])
        self._say_copying(probe(self._model_dir, self._pins_dir))

    def _adopt(self, now: float) -> None:
        """Record pins that a crash or a failing database left without a row."""
        adopted = adopt_pins(self._queue, self._pins_dir, now)
        if adopted:
            _log.info("pins that had no row are recorded", checkpoints=", ".join(adopted))

    def _pin_again(self, found: FoundCheckpoint | None, sha256: str) -> bool:
        try:
            return (
                found is not None
                and identify(found) == sha256
                and pin(found, self._pins_dir).sha256 == sha256
            )
        except (OSError, CorruptCheckpoint, PinError):
            return False

    def look(self, now: float, steady: float) -> list[str]:
        """Scan model_dir once, and pin and record what is new.

        It ends early, with `more` set, when pinning takes long.

        Args:
            now: Seconds since the epoch, for the records.
            steady: Monotonic seconds, for the waiting.

        Returns:
            Names recorded now, in whatever state.

        Raises:
            ModelDirError: model_dir is missing or cannot be listed.
            StoreError: the database cannot be written.
        """
        self.more, self.late = False, []
        if self._unrecorded:  # the trainer may not have it any more
            self._adopt(now)
            self._unrecorded = False
        found = scan(self._model_dir)
        present = {checkpoint.name for checkpoint in found}
        self._settled = {name: sig for name, sig in self._settled.items() if name in present}
        recorded = self._give_up_gone(present, now)
        began = time.monotonic()
        for checkpoint in found:
            if self._settled.get(checkpoint.name) == checkpoint.signature:
                continue
            if time.monotonic() - began > _LOOK_SECONDS:
                self.more = True
                break
            if self._handle(checkpoint, now, steady, found):
                recorded.append(checkpoint.name)
        self._first_look = self._first_look and self.more
        if recorded:
            self._thin(now)
        return recorded

    def _handle(
        self, checkpoint: FoundCheckpoint, now: float, steady: float, found: list[FoundCheckpoint]
    ) -> bool:
        waited = self._waiting.get(checkpoint.name)
        unchanged = waited is not None and waited.found.signature == checkpoint.signature
        if waited and unchanged and steady < waited.retry_at:
            return False
        try:
            if self._queue.known_damage(checkpoint) or self._queue.known(identify(checkpoint)):
                self._settle(checkpoint)
                return False
            if waited is None:
                self._count_gap(checkpoint, found, now)
            taken = pin(checkpoint, self._pins_dir, self._verified)
        except FileNotFoundError:
            if index_path(checkpoint.prefix).exists():
                return self._wait(checkpoint, now, steady, damage="a shard is missing")
            if self._is_settled(checkpoint):
                return False
            if waited is None:
                self._count_gap(checkpoint, found, now)
            return self._give_up(waited or _Waiting(checkpoint, steady, steady), now)
        except CorruptCheckpoint as error:
            return self._wait(checkpoint, now, steady, damage=error.message)
        except PinError as error:
            # Nothing is wrong with the checkpoint: it stays in line until a pin succeeds.
            return self._wait(checkpoint, now, steady, problem=error.message)
        self._unrecorded = True
        state = self._queue.record_pin(checkpoint, taken, now)
        self._unrecorded = False
        if state == "untrained":
            release(taken.prefix, self._pins_dir)
        elif taken.method == "copy":
            self._say_copying(f"{self._model_dir} allows no hard link to {checkpoint.name}")
        self._settle(checkpoint)
        if waited is None and now - checkpoint.written_at > _LATE_SECONDS:
            self.late.append(checkpoint.name)
        return True

    def _settle(self, checkpoint: FoundCheckpoint) -> None:
        self._settled[checkpoint.name] = checkpoint.signature
        self._waiting.pop(checkpoint.name, None)

    def _is_settled(self, checkpoint: FoundCheckpoint) -> bool:
        """True when it is the one of this name that was taken before, seen again as it goes.

        A new generation under the same name has another data file, or another index file.
        """
        before = self._settled.get(checkpoint.name)
        if before is None:
            return False
        index, *shards = checkpoint.signature
        return index == before[0] or (index[0] == before[0][0] and set(shards) <= set(before[1:]))

    def _say_copying(self, reason: str | None) -> None:
        if reason and not self.copying:
            self.copying = reason
            self._news.append(f"pins are copies, which take space of their own: {reason}")

    def _wait(
        self,
        checkpoint: FoundCheckpoint,
        now: float,
        steady: float,
        *,
        damage: str | None = None,
        problem: str | None = None,
    ) -> bool:
        """Look again later, each time after twice as long; lasting damage makes it corrupt."""
        entry = self._waiting.get(checkpoint.name)
        if entry is None or entry.found.signature != checkpoint.signature:
            entry = _Waiting(checkpoint, since=steady, retry_at=steady)
            self._waiting[checkpoint.name] = entry
        entry.problem = problem
        if damage is not None and steady - entry.since >= self._grace_seconds:
            self._queue.record_corrupt(checkpoint, damage, now)
            self._settle(checkpoint)
            return True
        remaining = max(entry.since + self._grace_seconds - steady, _FIRST_RETRY_SECONDS)
        entry.retry_at = steady + min(entry.delay, remaining)
        entry.delay = min(entry.delay * 2, self._grace_seconds)
        return False

    def _count_gap(
        self, checkpoint: FoundCheckpoint, found: list[FoundCheckpoint], now: float
    ) -> None:
        """Record the saves between the one seen last and this one, which nobody saw."""
        if self._counted == checkpoint:
            return  # the database could not be written after it was counted
        if not self._first_look:
            present = {other.save_counter for other in found}
            seen, reason = checkpoint.save_counter, "saved and rotated away while nobody looked"
            for counter in missed_counters(self._last_counter, seen, present):
                self._queue.record_missed(f"ckpt-{counter}", counter, reason, now)
                self._last_counter = counter
        self._last_counter, self._counted = checkpoint.save_counter, checkpoint

    def _give_up(self, entry: _Waiting, now: float) -> bool:
        """Record a checkpoint as missed; it stays in the waiting until that is written."""
        found, reason = entry.found, "rotated away before it could be pinned"
        self._waiting[found.name] = entry
        if entry.problem:
            reason = f"{reason}: {entry.problem}"
        self._queue.record_missed(found.name, found.save_counter, reason, now)
        del self._waiting[found.name]
        return True

    def _give_up_gone(self, present: set[str], now: float) -> list[str]:
        gone = [entry for name, entry in self._waiting.items() if name not in present]
        for entry in gone:
            self._give_up(entry, now)
        return [entry.found.name for entry in gone]

    def _thin(self, now: float) -> None:
        """Skip what the queue policy does not let wait, and release its pins."""
        if self._policy == QueuePolicy():
            return
        queued, evaluated_step, held_bytes = self._queue.waiting()
        skips = thin(queued, self._policy, evaluated_step=evaluated_step, held_bytes=held_bytes)
        for skip in skips:
            prefix = self._queue.skip(skip.checkpoint.checkpoint_id, skip.reason, now)
            if prefix:
                release(prefix, self._pins_dir)
        if skips:
            names = ", ".join(skip.checkpoint.name for skip in skips)
            _log.info("skipped", checkpoints=names, reason=skips[-1].reason)
