"""Intake: compare the source with the database and close the difference, by pinning.

Wires source, pins and queue. Every wake-up, timer, restart and crash leads into `look`.

A pin waits for nothing: a look links what is new at once, and verifies it in slices, in this turn
and those after it. What it finds out is only remembered, and `write_down` records it as soon as the
database takes it. Should the process end in between, the pins are adopted at its next start, so a
database that is locked for an hour costs no checkpoint. Nor does one that cannot be opened yet: a
look needs none.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import structlog

from watcher.decision.queue_policy import QueuePolicy
from watcher.decision.retain import RetainPolicy
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError
from watcher.files.slices import Job, Unfinished, slice_end
from watcher.ingest.adopt import left_over
from watcher.ingest.arrivals import Arrival, Arrivals
from watcher.ingest.gaps import Gaps
from watcher.ingest.hints import Hints
from watcher.ingest.known import Known
from watcher.ingest.lost import LostPins
from watcher.ingest.thinning import thin_out
from watcher.ingest.waiting import Waiting
from watcher.protocols import CheckpointSource
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Pin, Verified

_log = structlog.get_logger(__name__)

# A look links for so long at most. What is left is next, after the worker had its turn.
_LOOK_SECONDS = 0.25
# Of so many checkpoints and files some may be open at once, to be copied one after another: a
# process may often have 1024, and a checkpoint hundreds of shards.
_OPEN_AT_ONCE = 16
_FILES_AT_ONCE = 128
_LATE_SECONDS = 1.0


class Intake:
    """The first stages of one run: source to pins to queue.

    Attributes:
        source: Where checkpoints come from.
        more: True when a look ended with checkpoints left to take, so that another is due now.
        problem: What keeps checkpoints from being found or pinned, None when nothing does.
        hints: The watch, and what is to be told.
    """

    def __init__(
        self,
        source: CheckpointSource,
        pins_dir: Path,
        queue: Queue | None,
        *,
        grace_seconds: float,
        policy: QueuePolicy | None = None,
        retain_policy: RetainPolicy | None = None,
        verified: Verified | None = None,
    ) -> None:
        """Look at nothing yet.

        Args:
            source: Where checkpoints come from.
            pins_dir: Folder of the pins.
            queue: Where they go; None while there is no database. What is pinned then is taken up
                by the `recover` of an intake that has one.
            grace_seconds: What is incomplete for longer is corrupt, what cannot be read is missed.
            policy: What may wait to be evaluated.
            retain_policy: What keeps its pin all the same.
            verified: Gets each pin, so that a link to it needs no verification of its own.
        """
        self.source = source
        self._pins_dir = pins_dir
        self._queue = queue
        self._policies = policy or QueuePolicy(), retain_policy or RetainPolicy()
        self._verified = verified
        self._known = Known(queue)
        self._waiting = Waiting(grace_seconds)
        self._lost = LostPins(source, pins_dir, verified, grace_seconds)
        self._arrivals = Arrivals(queue, pins_dir)
        self._gaps = self._follow_gaps()
        self._away = False
        self._late: list[str] = []
        self._now = self._steady = 0.0  # of the present look
        self.hints = Hints(source)
        self.more = False
        self.problem: str | None = None

    @property
    def waiting(self) -> int:
        """How many checkpoints are known of but have no row yet."""
        return len(self._waiting) + sum(one.saves for one in self._arrivals) + len(self._lost)

    @property
    def unpinned(self) -> int:
        """How many rows wait for a pin that cannot be made again now."""
        return len(self._lost)

    @property
    def recovering(self) -> bool:
        """True while it is not known of each row whether its pin can be made again at once."""
        return any(one.row and one.since == math.inf for one in self._arrivals)

    @property
    def progress(self) -> str | None:
        """What is being pinned and how far that is, None when nothing takes long."""
        return next((job.progress.text for _, job in self._arrivals.jobs()), None)

    @property
    def held_up(self) -> list[str]:
        """Which of those that wait do so for something that is no fault of theirs to pass."""
        waiting = [*self._waiting.values(), *self._lost.values()]
        return [one.found.name for one in waiting if self._away or one.problem]

    def given_up_at(self) -> float:
        """Return the steady time from which all that waits has waited in vain for long enough.

        Infinite while some of it has an outcome to come, minus infinity when none waits.
        """
        if self._arrivals:
            return math.inf
        lost = self._lost.given_up_at(self._lost)
        return max(self._waiting.given_up_at(set(self.held_up)), lost)

    def due(self) -> float:
        """Return the steady time of the next look, if no rescan or event comes before it."""
        return self.hints.due(self._waiting.next_retry(self._lost))

    def recover(self, now: float) -> None:
        """Put right at the start what a crash or a person left in the pins; may be repeated.

        What has all its files and no row is verified and recorded by the looks that follow, other
        half-made and unnamed pins are deleted. A pending checkpoint whose pin is gone is pinned
        again if the trainer still has it, else it is recorded as failed.

        Raises:
            StoreError: the database cannot be read or written.
        """
        assert self._queue is not None
        self._now = now
        # What was looked at before is looked at anew, now that it can be known what has a row.
        self._arrivals.close()
        self._waiting.clear()
        self._lost.clear()
        self._known.begin()
        self._known.forget()
        self._gaps = self._follow_gaps()
        left, present = left_over(self._queue, self.source, self._pins_dir, self._verified, now)
        for one in left:
            if one.alone:
                self._count_gap(one.found, one.sha256, present)
            self._arrivals.add(one)
        self.hints.tell_copying(self.source.why_copies(self._pins_dir))

    def close(self) -> None:
        """End what is being pinned; what is linked is verified by the next `recover`."""
        self._arrivals.close()

    def look(self, now: float, steady: float, *, announced: bool = True) -> None:
        """Scan the source once, take hold of what is new, and pin; `write_down` records it.

        Writes nothing to the database, and does without it where it cannot be read. Ends early,
        with `more` set, when pinning takes long; what is new is linked all the same.

        Args:
            now: Seconds since the epoch, for the records.
            steady: Monotonic seconds, for the waiting.
            announced: An event asked for it.

        Raises:
            StoreLost: the database is damaged.
        """
        self.more, self._late, self._now, self._steady = False, [], now, steady
        self._known.begin()
        self.hints.begin(steady)
        complete = self.source.complete
        try:
            found = self.source.scan()
        except ModelDirError as error:
            self._away = True
            self._go_on()
            self.problem = error.message
            return
        self._away = False
        self._take(found)
        names = {one.name: one for one in found}
        for one in self._lost.try_again(names, complete, steady):
            self._arrivals.add(one)
        self._go_on()
        self.problem = self._waiting.problem or self._lost.problem or self._arrivals.problem
        self.hints.end(steady, self._late[-1] if self._late and not announced else None)

    def write_down(self, now: float) -> list[str]:
        """Record what looks found out since the last time, in the order in which it was found.

        What comes after a pin that is still being verified waits for that.

        Returns:
            Names recorded, in whatever state; but for the saves that nobody saw.

        Raises:
            StoreError: the database cannot be written; the rest is kept for the next call.
        """
        if self._queue is None:
            return []
        self._arrivals.write()
        again = [one for one in self._arrivals if one.row and one.since < math.inf]
        self._lost.put_off(self._queue, again, now, self._steady)
        if self._arrivals.recorded:
            counted = self.source.format.counts_saves
            thin_out(self._queue, *self._policies, self._pins_dir, now, counts_saves=counted)
        recorded = self._arrivals.take_recorded()
        if recorded:
            _log.info("found", checkpoints=", ".join(recorded))
        return recorded

    def _follow_gaps(self) -> Gaps:
        last = self._queue.last_save() if self._queue else None
        return Gaps(last, counts_saves=self.source.format.counts_saves)

    # -- a look

    def _take(self, found: list[FoundCheckpoint]) -> None:
        """Take hold of what is new, until that takes long."""
        names = {checkpoint.name for checkpoint in found}
        present = {checkpoint.save_counter for checkpoint in found}
        self._known.forget(but=names)
        if found and self._gaps.last is None and not self._gaps.silent:
            told = map(self.source.format.number, self.hints.announced_until(found[0].name))
            self._gaps.announced = {number for number in told if number}
        for gone in [one for name, one in self._waiting.items() if name not in names]:
            self._give_up(gone)
        in_hand = {(one.found.name, one.found.signature) for one, _ in self._arrivals.jobs()}
        began = time.monotonic()
        for checkpoint in found:
            if self._known.is_settled(checkpoint):
                self._waiting.pop(checkpoint.name, None)  # it was another in between
                continue
            if (checkpoint.name, checkpoint.signature) in in_hand:
                continue
            opened = [job.progress.holds_open for _, job in self._arrivals.jobs()]
            full = sum(map(bool, opened)) >= _OPEN_AT_ONCE or sum(opened) >= _FILES_AT_ONCE
            if full or time.monotonic() - began > _LOOK_SECONDS:
                self.more = True
                break
            self._handle(checkpoint, present)
        self._gaps.silent = self._gaps.silent and self.more

    def _handle(self, checkpoint: FoundCheckpoint, present: set[int]) -> None:
        waited = self._waiting.get(checkpoint.name)
        taken = waited or Arrival(checkpoint, self._now)
        if waited and waited.found.signature != checkpoint.signature:
            taken = Arrival(checkpoint, self._now, problem=waited.problem)
        elif waited and self._steady < waited.retry_at:
            return None
        taken.at = self._now
        try:
            if self._known.is_damaged(checkpoint):
                return self._settle(checkpoint)
            taken.sha256 = self.source.identify(checkpoint)
            if self._known.is_recorded(taken.sha256):
                return self._settle(checkpoint)
            if self._is_in_hand(taken):
                return None
            if waited is None:
                self._count_gap(checkpoint, taken.sha256, present)
            job = Job(partial(self.source.take, checkpoint, self._pins_dir, self._verified))
            job.begin()
        except (OSError, CorruptCheckpoint, PinError) as error:
            seen = isinstance(error, OSError)  # although it is gone by now, or cannot be read
            if isinstance(error, FileNotFoundError):
                seen = self._is_gone(checkpoint)
            if seen and not (waited or taken.sha256) and self._known.readable:
                self._count_gap(checkpoint, "", present)
            return self._failed(taken, error)
        taken.job = job
        self._arrivals.add(taken)
        self._waiting.pop(checkpoint.name, None)
        if waited is None and self._now - checkpoint.written_at > _LATE_SECONDS:
            self._late.append(checkpoint.name)
        return None

    def _is_in_hand(self, new: Arrival) -> bool:
        """True when this content is pinned or about to be, as a crash left it or by another name.

        Whether one that has a pin has a row is asked again when the database can be read.
        """
        jobs = self._arrivals.jobs()
        held = next((one for one, _ in jobs if one.sha256 == new.sha256), None)
        if held and held.alone and held.found.name == new.found.name:
            held.found, held.alone = new.found, False  # the next look knows it by its files
        return held is not None or (
            not self._known.readable and (self._pins_dir / new.sha256).is_dir()
        )

    def _go_on(self) -> None:
        """Go on with the pins in hand, in the order they were found, for a slice of time."""
        until, begun = slice_end(), False
        for one, job in self._arrivals.jobs():
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
                one.job = None
                self._failed(one, error)
            else:
                one.job = None
                self._pinned(one, taken)

    def _pinned(self, one: Arrival, pin: Pin) -> None:
        """Note that a pin is made."""
        one.pin = pin if not one.row or pin.sha256 == one.sha256 else None
        if one.row:
            return
        if pin.method == "copy":
            self.hints.tell_copying(f"{self.source} allows no hard link to {one.found.name}")
        if not one.alone:
            self._settle(one.found)

    def _failed(self, one: Arrival, error: OSError | CorruptCheckpoint | PinError) -> None:
        """Note why there is no pin, and when to try again, if that may help."""
        found = one.found
        if one.row and not self._lost.wait(one, error, self._steady):
            return None
        self._arrivals.remove(one)
        if one.row:
            return None
        if one.since < math.inf:
            self._waiting.setdefault(found.name, one)
        if one.alone:
            # One that lies in MODEL_DIR too is looked at as any other.
            if not self.source.still_there(found.name):
                self._end(one, "missed", f"what a crash left of it is damaged: {error}")
            return None
        if isinstance(error, FileNotFoundError):
            if self._is_gone(found):
                return self._give_up(one)
            if self.source.still_there(found.name):
                return self._wait(one, damage="a shard is missing")
            return None
        if isinstance(error, CorruptCheckpoint):
            return self._wait(one, damage=error.message)
        problem = f"cannot read {found.name}: {getattr(error, 'strerror', None) or error}"
        if isinstance(error, PinError):
            # Nothing is wrong with the checkpoint: it stays in line until a pin succeeds.
            problem = error.message
        return self._wait(one, problem=problem)

    # -- what becomes of one that has no pin

    def _wait(self, one: Arrival, *, damage: str | None = None, problem: str | None = None) -> None:
        """Look again later, each time after twice as long; lasting damage makes it corrupt.

        One that may not be read has an outcome after as long. It goes on being looked at, by a
        scan: a change of its mode is no change of its signature.
        """
        found = one.found
        barred = self.source.unreadable(found) if problem else None
        if barred and not self._waiting.holds(found) and self._passed_over(found):
            self._waiting.pop(found.name, None)
            return
        entry = self._waiting.hold(one, self._steady)
        entry.problem = barred or problem
        lasted = self._waiting.has_lasted(entry, self._steady)
        if lasted and damage is not None:
            self._settle(found)
            self._end(entry, "corrupt", damage)
        elif lasted and barred:
            self.hints.tell(f"{found.name} is not evaluated: {barred}")
            self._end(entry, "missed", barred)
        else:
            self._waiting.postpone(entry, self._steady)

    def _give_up(self, one: Arrival) -> None:
        """Note a checkpoint as missed."""
        reason = "rotated away before it could be pinned"
        self._end(one, "missed", f"{reason}: {one.problem}" if one.problem else reason)

    def _end(self, one: Arrival, state: str, reason: str) -> None:
        one.state, one.reason, one.at = state, reason, self._now
        self._waiting.pop(one.found.name, None)
        self._arrivals.add(one)

    def _count_gap(self, checkpoint: FoundCheckpoint, sha256: str, present: set[int]) -> None:
        """Note the saves between the one seen last and this one, which nobody saw."""
        if self._passed_over(checkpoint):
            return  # seen and counted before
        for numbers in self._gaps.before(checkpoint, present):
            count = f"{len(numbers)} checkpoints: " if len(numbers) > 1 else ""
            reason = f"{count}saved and rotated away while nobody looked"
            missed = FoundCheckpoint(self.source.format.names(numbers), numbers[-1], Path(), ())
            self._arrivals.add(
                Arrival(missed, self._now, "missed", reason, before=sha256, saves=len(numbers))
            )

    def _is_gone(self, found: FoundCheckpoint) -> bool:
        """True when a checkpoint was rotated away, and is not one that was taken before."""
        return not self.source.still_there(found.name) and not self._known.was_settled(found)

    def _passed_over(self, checkpoint: FoundCheckpoint) -> bool:
        """True when these files have the outcome already that they cannot be read."""
        if any(one.state == "missed" and one.found == checkpoint for one in self._arrivals):
            return True
        return self._known.is_unreadable(checkpoint)

    def _settle(self, checkpoint: FoundCheckpoint) -> None:
        self._known.settle(checkpoint)
        self._waiting.pop(checkpoint.name, None)
