"""Intake: compare model_dir with the database and close the difference, by pinning.

Wires discover, pin and queue. Every wake-up, timer, restart and crash leads into `look`.

A pin waits for nothing: a look links what is new at once, and verifies it in slices, in this turn
and those after it. What it finds out is only remembered, and `write_down` records it as soon as the
database takes it. Should the process end in between, the pins are adopted at its next start, so a
database that is locked for an hour costs no checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from watcher.checkpoints.bundle import index_path
from watcher.checkpoints.pin import (
    Verified,
    digest,
    found_at,
    release,
    settling,
    sweep,
)
from watcher.decision.generation import Save, is_older
from watcher.decision.queue_policy import QueuePolicy, thin
from watcher.decision.retain import RetainPolicy, as_pinned, retain
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError, StoreError, StoreLost
from watcher.files.slices import Job, Progress, Unfinished, Work, slice_end
from watcher.ingest.adopt import Orphan, orphans
from watcher.ingest.gaps import missed_numbers
from watcher.ingest.outcomes import FIRST_RETRY_SECONDS, Outcome, Outcomes, Waiting
from watcher.protocols import CheckpointSource
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Pin

_log = structlog.get_logger(__name__)

# A look links for so long at most. What is left is next, after the worker had its turn.
_LOOK_SECONDS = 0.25
# So many may be open at once, to be copied one after another.
_OPEN_AT_ONCE = 16
_LATE_SECONDS = 1.0


class Intake:
    """The first three stages of one run: model_dir to pins to queue.

    Attributes:
        more: True when a look ended with checkpoints left to take, so that another is due now.
        late: Names pinned by the last look that had been there for a while.
        copying: Why pins are copies that take space of their own, None while they are links.
    """

    def __init__(
        self,
        source: CheckpointSource,
        pins_dir: Path,
        queue: Queue,
        *,
        grace_seconds: float,
        policy: QueuePolicy | None = None,
        retain_policy: RetainPolicy | None = None,
        verified: Verified | None = None,
    ) -> None:
        self._source = source
        self._pins_dir = pins_dir
        self._queue = queue
        self._grace_seconds = grace_seconds
        self._policy = policy or QueuePolicy()
        self._retain = retain_policy or RetainPolicy()
        self._verified = verified
        self._settled: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._waiting: dict[str, Waiting] = {}
        self._last = queue.last_save()
        self._first_look = self._last is None
        self._outcomes = Outcomes(queue, pins_dir)
        self._readable = True
        self._away = False
        self._news: list[str] = []
        self.more = False
        self.late: list[str] = []
        self.copying: str | None = None

    @property
    def waiting(self) -> int:
        """How many checkpoints are seen but have no row yet."""
        return len(self._waiting) + sum(one.saves for one in self._outcomes)

    @property
    def recovering(self) -> bool:
        """True while a pin that a row speaks of is being made again, so is not there."""
        return any(outcome.row for outcome in self._outcomes)

    @property
    def progress(self) -> str | None:
        """What is being pinned and how far that is, None when nothing takes long."""
        return next((job.progress.text for _, job in self._outcomes.jobs()), None)

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
            entry.since + self._grace_seconds + 2 * FIRST_RETRY_SECONDS  # and one try after it
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
        """Put right at the start what a crash or a person left in the pins; may be repeated.

        What has all its files and no row is verified and recorded by the looks that follow, other
        half-made and unnamed pins are deleted. A pending checkpoint whose pin is gone is pinned
        again if the trainer still has it, else it is recorded as failed.

        Raises:
            StoreError: the database cannot be read or written.
        """
        self.close()
        self._pins_dir.mkdir(mode=0o700, exist_ok=True)
        self._last = self._queue.last_save()
        rows = self._queue.pinned()
        alone = orphans(self._queue, self._pins_dir)
        kept = {row["sha256"] for row in rows} | {one.found.prefix.parent.name for one in alone}
        sweep(self._pins_dir, kept)
        lost = [row for row in rows if not index_path(row["prefix"]).is_file()]
        here = {found.name: found for found in self._source.scan()} if lost or alone else {}
        for row in lost:
            shutil.rmtree(row["prefix"].parent, ignore_errors=True)
            self._pin_again(row, here.get(row["name"]), now)
        self._adopt(alone, {found.save_counter for found in here.values()}, now)
        self._say_copying(self._source.why_copies(self._pins_dir))

    def close(self) -> None:
        """End what is being pinned; what is linked is verified by the next `recover`."""
        self._outcomes.close()

    def _adopt(self, alone: list[Orphan], present: set[int], now: float) -> None:
        """Take up pins that a crash or a failing database left without a row."""
        for one in alone:
            self._count_gap(one.found, one.sha256, present, now)
            job = Job(partial(self._settle_orphan, one))
            at = min(one.pinned_at, now)
            self._outcomes.add(Outcome("pinned", one.found, at, job, one.sha256, alone=True))
        if alone:
            names = ", ".join(one.found.name for one in alone)
            _log.info("pins that have no row are taken up", checkpoints=names)

    def _settle_orphan(self, orphan: Orphan, progress: Progress) -> Work[Pin]:
        """Verify an orphan, and remove one that is not whole."""
        try:
            return (
                yield from settling(
                    orphan.found.prefix, self._pins_dir, "link", self._verified, progress
                )
            )
        except (OSError, CorruptCheckpoint):
            shutil.rmtree(orphan.found.prefix.parent, ignore_errors=True)
            raise

    def _pin_again(self, row: dict[str, Any], found: FoundCheckpoint | None, now: float) -> None:
        """Begin to make a lost pin again, where the trainer still has the checkpoint."""
        name, sha256 = row["name"], row["sha256"]
        lost = Outcome("unpinned", found or found_at(row["prefix"], name), now, row=row)
        self._outcomes.add(lost)
        if found is None or digest(found.prefix) != sha256:
            return
        job = Job(partial(self._source.take, found, self._pins_dir, self._verified))
        with contextlib.suppress(OSError, CorruptCheckpoint, PinError):
            job.begin()
            lost.job, lost.sha256 = job, sha256

    def look(self, now: float, steady: float) -> None:
        """Scan model_dir once, take hold of what is new, and pin; `write_down` records it.

        Writes nothing to the database, and does without it where it cannot be read. Ends early,
        with `more` set, when pinning takes long; what is new is linked all the same.

        Args:
            now: Seconds since the epoch, for the records.
            steady: Monotonic seconds, for the waiting.

        Raises:
            ModelDirError: model_dir is missing or cannot be listed.
            StoreLost: the database is damaged.
        """
        self.more, self.late, self._readable, self._away = False, [], True, True
        try:
            found = self._source.scan()
        except ModelDirError:
            self._go_on(now, steady)
            raise
        self._away = False
        names = {checkpoint.name for checkpoint in found}
        counters = {checkpoint.save_counter for checkpoint in found}
        self._settled = {name: sig for name, sig in self._settled.items() if name in names}
        for gone in [entry for name, entry in self._waiting.items() if name not in names]:
            self._give_up(gone, now)
        in_hand = {(one.found.name, one.found.signature) for one, _ in self._outcomes.jobs()}
        began = time.monotonic()
        for checkpoint in found:
            if self._settled.get(checkpoint.name) == checkpoint.signature:
                self._waiting.pop(checkpoint.name, None)  # it was another in between
                continue
            if (checkpoint.name, checkpoint.signature) in in_hand:
                continue
            if time.monotonic() - began > _LOOK_SECONDS or self._opened() >= _OPEN_AT_ONCE:
                self.more = True
                break
            self._handle(checkpoint, now, steady, counters)
        self._first_look = self._first_look and self.more
        self._go_on(now, steady)

    def _opened(self) -> int:
        return sum(job.progress.holds_open for _, job in self._outcomes.jobs())

    def _go_on(self, now: float, steady: float) -> None:
        """Go on with the pins in hand, in the order they were found, for a slice of time."""
        until, begun = slice_end(), False
        for outcome, job in self._outcomes.jobs():
            if begun and time.monotonic() >= until:
                self.more = True
                return
            begun = True
            try:
                taken = job.run(until)
            except Unfinished:
                self.more = True
                return
            except (OSError, CorruptCheckpoint, PinError) as error:
                outcome.job = None
                self._failed(outcome, error, now, steady)
            else:
                outcome.job = None
                self._pinned(outcome, taken)

    def write_down(self, now: float) -> list[str]:
        """Record what looks found out since the last time, in the order in which it was found.

        What comes after a pin that is still being verified waits for that.

        Returns:
            Names recorded, in whatever state; but for the saves that nobody saw.

        Raises:
            StoreError: the database cannot be written; the rest is kept for the next call.
        """
        self._outcomes.write()
        if self._outcomes.recorded:
            self._thin(now)
        return self._outcomes.take_recorded()

    def _handle(
        self, checkpoint: FoundCheckpoint, now: float, steady: float, present: set[int]
    ) -> None:
        waited = self._waiting.get(checkpoint.name)
        unchanged = waited is not None and waited.found.signature == checkpoint.signature
        if waited and unchanged and steady < waited.retry_at:
            return None
        taken = Outcome("pinned", checkpoint, now, waited=waited)
        try:
            if self._is(lambda: self._queue.known_damage(checkpoint)):
                return self._settle(checkpoint)
            taken.sha256 = self._source.identify(checkpoint)
            if self._is(lambda: self._queue.known(taken.sha256)):
                return self._settle(checkpoint)
            if self._is_in_hand(taken):
                return None
            if waited is None:
                self._count_gap(checkpoint, taken.sha256, present, now)
            job = Job(partial(self._source.take, checkpoint, self._pins_dir, self._verified))
            job.begin()
        except (OSError, CorruptCheckpoint, PinError) as error:
            if not (waited or taken.sha256) and self._readable and self._comes_next(taken, error):
                self._count_gap(checkpoint, "", present, now)
            return self._failed(taken, error, now, steady)
        taken.job = job
        self._outcomes.add(taken)
        self._waiting.pop(checkpoint.name, None)
        if waited is None and now - checkpoint.written_at > _LATE_SECONDS:
            self.late.append(checkpoint.name)
        return None

    def _is_in_hand(self, new: Outcome) -> bool:
        """True when this content is being pinned already, as a crash left it or by another name."""
        jobs = self._outcomes.jobs()
        held = next((one for one, _ in jobs if one.sha256 == new.sha256), None)
        if held and held.alone and held.found.name == new.found.name:
            held.found, held.alone = new.found, False  # the next look knows it by its files
        return held is not None

    def _pinned(self, outcome: Outcome, pin: Pin) -> None:
        """Note that a pin is made."""
        found = outcome.found
        if outcome.row:
            outcome.pin = pin if pin.sha256 == outcome.sha256 else None
            return
        outcome.pin = pin
        if pin.method == "copy":
            self._say_copying(f"{self._source} allows no hard link to {found.name}")
        if not outcome.alone:
            self._settle(found)

    def _failed(
        self,
        outcome: Outcome,
        error: OSError | CorruptCheckpoint | PinError,
        now: float,
        steady: float,
    ) -> None:
        """Note why there is no pin, and when to try again, if that may help."""
        found, waited = outcome.found, outcome.waited
        if outcome.row:
            return None
        self._outcomes.remove(outcome)
        if waited:
            self._waiting.setdefault(found.name, waited)
        if outcome.alone:
            # One that lies in MODEL_DIR too is looked at as any other.
            if not self._source.still_there(found):
                reason = f"what a crash left of it is damaged: {error}"
                self._outcomes.add(Outcome("missed", found, now, reason=reason))
            return None
        if isinstance(error, FileNotFoundError):
            if not self._is_gone(outcome, error):
                if self._source.still_there(found):
                    return self._wait(found, now, steady, damage="a shard is missing")
                return None
            return self._give_up(waited or Waiting(found, steady, steady), now)
        if isinstance(error, CorruptCheckpoint):
            return self._wait(found, now, steady, damage=error.message)
        if isinstance(error, PinError):
            # Nothing is wrong with the checkpoint: it stays in line until a pin succeeds.
            return self._wait(found, now, steady, problem=error.message)
        problem = f"cannot read {found.name}: {error.strerror or error}"
        return self._wait(found, now, steady, problem=problem)

    def _comes_next(self, outcome: Outcome, error: Exception) -> bool:
        """True when a save was seen, although it is gone by now or cannot be read."""
        if isinstance(error, FileNotFoundError):
            return self._is_gone(outcome, error)
        return isinstance(error, OSError)

    def _is_gone(self, outcome: Outcome, error: Exception) -> bool:
        """True when a checkpoint was rotated away, and is not one that was taken before."""
        gone = isinstance(error, FileNotFoundError) and not self._source.still_there(outcome.found)
        return gone and not self._is_settled(outcome.found)

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
        if any(one.state == "missed" and one.found == checkpoint for one in self._outcomes):
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
        barred = self._source.unreadable(checkpoint) if problem else None
        problem = barred or problem
        entry = self._waiting.get(checkpoint.name)
        if entry is None or entry.found.signature != checkpoint.signature:
            if barred and self._passed_over(checkpoint):
                self._waiting.pop(checkpoint.name, None)
                return
            entry = Waiting(checkpoint, since=steady, retry_at=steady)
            self._waiting[checkpoint.name] = entry
        entry.problem = problem
        if damage is not None and steady - entry.since >= self._grace_seconds:
            self._outcomes.add(Outcome("corrupt", checkpoint, now, reason=damage))
            self._settle(checkpoint)
            return
        if barred and steady - entry.since >= self._grace_seconds:
            self._outcomes.add(Outcome("missed", checkpoint, now, reason=barred))
            self._news.append(f"{checkpoint.name} is not evaluated: {barred}")
            self._waiting.pop(checkpoint.name, None)
            return
        remaining = max(entry.since + self._grace_seconds - steady, FIRST_RETRY_SECONDS)
        entry.retry_at = steady + min(entry.delay, remaining)
        entry.delay = min(entry.delay * 2, self._grace_seconds)

    def _count_gap(
        self, checkpoint: FoundCheckpoint, sha256: str, present: set[int], now: float
    ) -> None:
        """Note the saves between the one seen last and this one, which nobody saw."""
        last, save = self._last, Save(checkpoint.save_counter, saved_at=checkpoint.saved_at)
        if last and save.counter <= last.counter and is_older(save, last):
            return  # found late, or put back by hand: no trainer started over
        if self._passed_over(checkpoint):
            return  # seen and counted before
        written = self._source.format
        if written.counts_saves and not self._first_look:
            before = last.counter if last else None
            for numbers in missed_numbers(before, save.counter, present):
                missed = FoundCheckpoint(written.names(numbers), numbers[-1], Path(), ())
                count = f"{len(numbers)} checkpoints: " if len(numbers) > 1 else ""
                reason = f"{count}saved and rotated away while nobody looked"
                self._outcomes.add(
                    Outcome("missed", missed, now, reason=reason, before=sha256, saves=len(numbers))
                )
        self._last = save

    def _give_up(self, entry: Waiting, now: float) -> None:
        """Note a checkpoint as missed."""
        found, reason = entry.found, "rotated away before it could be pinned"
        if entry.problem:
            reason = f"{reason}: {entry.problem}"
        self._outcomes.add(Outcome("missed", found, now, reason=reason))
        self._waiting.pop(found.name, None)

    def _thin(self, now: float) -> None:
        """Skip what the queue policy does not let wait; its pins stay only where they are kept."""
        if self._policy == QueuePolicy():
            return
        queued, evaluated_step, held_bytes = self._queue.waiting()
        skips = thin(queued, self._policy, evaluated_step=evaluated_step, held_bytes=held_bytes)
        for skip in skips:
            self._queue.skip(skip.checkpoint.checkpoint_id, skip.reason, now)
        if skips:
            names = ", ".join(skip.checkpoint.name for skip in skips)
            _log.info("skipped", checkpoints=names, reason=skips[-1].reason)
        self._release_skipped()

    def _release_skipped(self) -> None:
        """Let go of what was skipped and is not kept whatever its score."""
        pinned = self._queue.pinned()
        kept = retain(map(as_pinned, pinned), self._retain)
        for row in pinned:
            if row["state"] == "skipped" and row["id"] not in kept:
                self._queue.forget_pin(row["id"])
                release(row["prefix"], self._pins_dir)
