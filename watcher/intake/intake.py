"""Intake: compare model_dir with the database and close the difference, by pinning.

Wires discover, pin and queue. Every wake-up, timer, restart and crash leads into `look`.

A pin waits for nothing: what `look` finds out is only remembered, and `write_down` records it as
soon as the database takes it. Should the process end in between, the pins are adopted at its next
start, so a database that is locked for an hour costs no checkpoint.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from watcher.checkpoints.bundle import index_path
from watcher.checkpoints.discover import scan
from watcher.checkpoints.pin import (
    Verified,
    identify,
    pin,
    probe,
    release,
    sweep,
    unreadable,
)
from watcher.data import FoundCheckpoint, Pin
from watcher.errors import CorruptCheckpoint, PinError, StoreError, StoreLost
from watcher.intake.adopt import found_as, orphans
from watcher.intake.gaps import missed_counters
from watcher.intake.thin import QueuePolicy, thin
from watcher.store import Queue

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


@dataclass(slots=True)
class _Outcome:
    """What became of a checkpoint, until the database has it.

    Attributes:
        state: `pinned`, `corrupt` or `missed`.
        before: Digest of the checkpoint whose coming showed that nobody saw this one.
    """

    state: str
    found: FoundCheckpoint
    at: float
    pin: Pin | None = None
    reason: str = ""
    before: str | None = None


class Intake:
    """The first three stages of one run: model_dir to pins to queue.

    Attributes:
        more: True when a look ended with checkpoints left to take, so that another is due now.
        late: Names pinned by the last look that had been there for a while.
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
        self._outcomes: deque[_Outcome] = deque()
        self._recorded: list[str] = []
        self._readable = True
        self._away = False
        self._news: list[str] = []
        self.more = False
        self.late: list[str] = []
        self.copying: str | None = None

    @property
    def waiting(self) -> int:
        """How many checkpoints are seen but have no row yet."""
        return len(self._waiting) + len(self._outcomes)

    @property
    def problem(self) -> str | None:
        """Why a checkpoint that may be whole cannot be pinned, None when none is held up."""
        return next((entry.problem for entry in self._waiting.values() if entry.problem), None)

    @property
    def held_up(self) -> list[str]:
        """Which of those wait for something that is no fault of theirs to pass."""
        return [name for name, entry in self._waiting.items() if self._away or entry.problem]

    def given_up_at(self) -> float:
        """Return the steady time from which all that waits has waited in vain for long enough.

        Infinite while some of it has an outcome to come, minus infinity when none waits.
        """
        if self._outcomes:
            return math.inf
        held_up = set(self.held_up)
        waited = (
            entry.since + self._grace_seconds + 2 * _FIRST_RETRY_SECONDS  # and one try after it
            if name in held_up
            else math.inf
            for name, entry in self._waiting.items()
        )
        return max(waited, default=-math.inf)

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
        adopted = orphans(self._queue, self._pins_dir)
        present = {found.save_counter for found in scan(self._model_dir)} if adopted else set()
        for orphan, pinned_at in adopted:
            found = found_as(orphan.prefix.name, orphan.prefix)
            self._count_gap(found, orphan.sha256, present, now)
            self._outcomes.append(_Outcome("pinned", found, min(pinned_at, now), orphan))
        if adopted:
            names = ", ".join(self.write_down(now))
            _log.info("pins that had no row are recorded", checkpoints=names)

    def _pin_again(self, found: FoundCheckpoint | None, sha256: str) -> bool:
        try:
            return (
                found is not None
                and identify(found) == sha256
                and pin(found, self._pins_dir).sha256 == sha256
            )
        except (OSError, CorruptCheckpoint, PinError):
            return False

    def look(self, now: float, steady: float) -> None:
        """Scan model_dir once, and pin what is new; `write_down` records it.

        Writes nothing to the database, and does without it where it cannot be read. Ends early,
        with `more` set, when pinning takes long.

        Args:
            now: Seconds since the epoch, for the records.
            steady: Monotonic seconds, for the waiting.

        Raises:
            ModelDirError: model_dir is missing or cannot be listed.
            StoreLost: the database is damaged.
        """
        self.more, self.late, self._readable, self._away = False, [], True, True
        found = scan(self._model_dir)
        self._away = False
        names = {checkpoint.name for checkpoint in found}
        counters = {checkpoint.save_counter for checkpoint in found}
        self._settled = {name: sig for name, sig in self._settled.items() if name in names}
        for gone in [entry for name, entry in self._waiting.items() if name not in names]:
            self._give_up(gone, now)
        began = time.monotonic()
        for checkpoint in found:
            if self._settled.get(checkpoint.name) == checkpoint.signature:
                self._waiting.pop(checkpoint.name, None)  # it was another in between
                continue
            if time.monotonic() - began > _LOOK_SECONDS:
                self.more = True
                break
            self._handle(checkpoint, now, steady, counters)
        self._first_look = self._first_look and self.more

    def write_down(self, now: float) -> list[str]:
        """Record all that looks found out since the last time, in the order it happened.

        Returns:
            Names recorded, in whatever state; but for the saves that nobody saw.

        Raises:
            StoreError: the database cannot be written; the rest is kept for the next call.
        """
        while self._outcomes:
            if self._write(self._outcomes[0]):
                self._recorded.append(self._outcomes[0].found.name)
            self._outcomes.popleft()
        if self._recorded:
            self._thin(now)
        recorded, self._recorded = self._recorded, []
        return recorded

    def _write(self, outcome: _Outcome) -> bool:
        """Record one outcome; False when that is no news."""
        found, pin, queue = outcome.found, outcome.pin, self._queue
        if pin:
            known = queue.known(pin.sha256)
            queue.record_pin(found, pin, outcome.at)
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
            queue.record_missed(found, outcome.reason, outcome.at)
        return outcome.before is None

    def _handle(
        self, checkpoint: FoundCheckpoint, now: float, steady: float, present: set[int]
    ) -> None:
        waited = self._waiting.get(checkpoint.name)
        unchanged = waited is not None and waited.found.signature == checkpoint.signature
        if waited and unchanged and steady < waited.retry_at:
            return None
        sha256 = ""
        try:
            if self._is(lambda: self._queue.known_damage(checkpoint)):
                return self._settle(checkpoint)
            sha256 = identify(checkpoint)
            if self._is(lambda: self._queue.known(sha256)):
                return self._settle(checkpoint)
            if waited is None:
                self._count_gap(checkpoint, sha256, present, now)
            taken = pin(checkpoint, self._pins_dir, self._verified)
        except FileNotFoundError:
            if index_path(checkpoint.prefix).exists():
                return self._wait(checkpoint, now, steady, damage="a shard is missing")
            if self._is_settled(checkpoint):
                return None
            if waited is None and not sha256 and self._readable:
                self._count_gap(checkpoint, sha256, present, now)
            return self._give_up(waited or _Waiting(checkpoint, steady, steady), now)
        except CorruptCheckpoint as error:
            return self._wait(checkpoint, now, steady, damage=error.message)
        except PinError as error:
            # Nothing is wrong with the checkpoint: it stays in line until a pin succeeds.
            return self._wait(checkpoint, now, steady, problem=error.message)
        except OSError as error:
            if waited is None and not sha256 and self._readable:
                self._count_gap(checkpoint, sha256, present, now)
            problem = f"cannot read {checkpoint.name}: {error.strerror or error}"
            return self._wait(checkpoint, now, steady, problem=problem)
        self._outcomes.append(_Outcome("pinned", checkpoint, now, taken))
        if taken.method == "copy":
            self._say_copying(f"{self._model_dir} allows no hard link to {checkpoint.name}")
        self._settle(checkpoint)
        if waited is None and now - checkpoint.written_at > _LATE_SECONDS:
            self.late.append(checkpoint.name)
        return None

    def _is(self, question: Callable[[], bool]) -> bool:
        """Ask the database; while it cannot be read the answer is no: a pin too many is released
        when its row is met, one too few is lost.
        """
        if self._readable:
            try:
                return question()
            except StoreLost:
                raise
            except StoreError:
                self._readable = False
        return False

    def _passed_over(self, checkpoint: FoundCheckpoint) -> bool:
        """True when these files have the outcome already that they cannot be read."""
        if any(outcome.found == checkpoint for outcome in self._outcomes):
            return True
        return self._is(lambda: self._queue.known_unreadable(checkpoint))

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
    ) -> None:
        """Look again later, each time after twice as long; lasting damage makes it corrupt.

        One that may not be read has an outcome after as long. It goes on being looked at, by a
        scan: a change of its mode is no change of its signature.
        """
        barred = unreadable(checkpoint) if problem else None
        problem = barred or problem
        entry = self._waiting.get(checkpoint.name)
        if entry is None or entry.found.signature != checkpoint.signature:
            if barred and self._passed_over(checkpoint):
                self._waiting.pop(checkpoint.name, None)
                return
            entry = _Waiting(checkpoint, since=steady, retry_at=steady)
            self._waiting[checkpoint.name] = entry
        entry.problem = problem
        if damage is not None and steady - entry.since >= self._grace_seconds:
            self._outcomes.append(_Outcome("corrupt", checkpoint, now, reason=damage))
            self._settle(checkpoint)
            return
        if barred and steady - entry.since >= self._grace_seconds:
            self._outcomes.append(_Outcome("missed", checkpoint, now, reason=barred))
            self._news.append(f"{checkpoint.name} is not evaluated: {barred}")
            self._waiting.pop(checkpoint.name, None)
            return
        remaining = max(entry.since + self._grace_seconds - steady, _FIRST_RETRY_SECONDS)
        entry.retry_at = steady + min(entry.delay, remaining)
        entry.delay = min(entry.delay * 2, self._grace_seconds)

    def _count_gap(
        self, checkpoint: FoundCheckpoint, sha256: str, present: set[int], now: float
    ) -> None:
        """Note the saves between the one seen last and this one, which nobody saw."""
        if self._passed_over(checkpoint):
            return  # seen and counted before
        if not self._first_look:
            seen, reason = checkpoint.save_counter, "saved and rotated away while nobody looked"
            for counter in missed_counters(self._last_counter, seen, present):
                missed = found_as(f"ckpt-{counter}", self._model_dir)
                self._outcomes.append(_Outcome("missed", missed, now, None, reason, sha256))
        self._last_counter = checkpoint.save_counter

    def _give_up(self, entry: _Waiting, now: float) -> None:
        """Note a checkpoint as missed."""
        found, reason = entry.found, "rotated away before it could be pinned"
        if entry.problem:
            reason = f"{reason}: {entry.problem}"
        self._outcomes.append(_Outcome("missed", found, now, reason=reason))
        self._waiting.pop(found.name, None)

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
