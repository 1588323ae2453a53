"""Supervise: keep one worker alive, give it checkpoints, and report what came of them.

The worker runs the images of one checkpoint at a time; while it computes the metrics of that one it
may have the next. It is replaced when it dies, hangs, speaks nonsense or has grown too large, and
ended when another watcher's turn on the GPU has come, or when the device seems to be at fault
(`breaker.py`). This module never touches the database: it returns what happened, and the loop
records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from watcher.decision.retry import delay
from watcher.errors import DeviceTaken, HostTrouble, WorkerError, WorkerRefused, WorkerStillThere
from watcher.evaluation.breaker import HOPELESS_PROBES, Breaker
from watcher.evaluation.events import (
    AverageWritten,
    Evaluated,
    GaveWay,
    HeldBack,
    PartDone,
    Ready,
    Rejected,
    Unusable,
    WorkerEvent,
    WorkerLost,
    WorkerRecycled,
    WorksAgain,
)
from watcher.evaluation.messages import Part, PartFound, Start
from watcher.evaluation.peace import Peace
from watcher.evaluation.phase import Admission, WorkerPhase, WorkerStep
from watcher.evaluation.session import Limits, Session
from watcher.protocols import Carrier, Turn
from watcher.types import Lease

# Only a new worker reads the new data; the checkpoint is not to blame.
DATASET_CHANGED = "dataset_changed"
# As it was asked to: neither the device nor the checkpoint is to blame.
CANCELLED = "cancelled"

RESTART_LIMIT_SECONDS = 300.0
_STILL_THERE_SECONDS = 0.25
# How often to ask for a device that another watcher has, and whether others wait for ours.
_TAKEN_SECONDS = 1.0
_WANTED_SECONDS = 2.0
# So long those who wait for a device may take to notice that it is free.
_GIVE_WAY_SECONDS = 3.0


@dataclass(slots=True)
class Supervisor:
    """One worker after another, on one device.

    Attributes:
        session: The one that there is now, None for none.
        device: What to call the device in front of people.
        lock: The device's, None where nobody shares it.
        wanted: There is something to evaluate. Without that, a device that is shared is neither
            asked for nor kept from others.
        waiting_for: Who has the device when that keeps us from starting a worker.
        starts: Workers started so far.
        losses: Those that died, hung or spoke nonsense.
        failures: Losses in a row, since one was ready or gave a result.
        last_loss: Why the last of them was lost.
        breaker: What broke off in a row on the device.
        to_check: Returns the prefix of a checkpoint that the set-up has to fit, None for none; it
            is asked for until a worker has been ready.
        peace: Whether the worker is to leave the CPU to a trainer.
        far: The device is another machine's; one of this machine comes first.
        host: Returns what `status` shows of the other machine; None for this one.
        log: Where what its workers print is written, to be named to people.
        held: Its worker is ready, and waits for one of this machine.
        admission: What the worker may be given; set by whoever compares machines.
        phase_at: When the last part of a start began, in ISO 8601; set by whoever is told.
    """

    spawn: Callable[[], Carrier]
    start_request: Start
    limits: Limits
    device: str = "cpu"
    lock: Turn | None = None
    to_check: Callable[[], str | None] = lambda: None
    peace: Peace = field(default_factory=Peace)
    far: bool = False
    host: Callable[[], dict[str, Any]] | None = None
    log: Path = Path("worker.log")
    held: bool = False
    admission: Admission = Admission.ADMITTED
    phase_at: str | None = None
    wanted: bool = True
    waiting_for: str | None = None
    session: Session | None = None
    breaker: Breaker = field(default_factory=Breaker)
    was_ready: bool = False
    problem: str | None = None
    starts: int = 0
    losses: int = 0
    failures: int = 0
    last_loss: str = ""
    _restart_at: float = 0.0
    _turn_ends: float = math.inf
    _look_at: float = -math.inf
    _blocked_at: float = math.inf
    _blocked_long: bool = False
    _said_held_back: bool = False

    @property
    def phase(self) -> WorkerPhase:
        """Where the worker is in its life."""
        return self.session.phase if self.session else WorkerPhase.ABSENT

    @property
    def ready(self) -> Ready | None:
        """What the worker said of itself, None before it is ready."""
        return self.session.ready if self.session else None

    @property
    def phases(self) -> list[tuple[str, float]]:
        """What the worker has begun to do before it is ready, and when."""
        return self.session.phases if self.session else []

    def seconds_each(self, until: float) -> str:
        """Say how long each phase of the start took: `importing TensorFlow 12 s, ...`."""
        ends = [*(began for _, began in self.phases[1:]), until]
        told = zip(self.phases, ends, strict=True) if self.phases else ()
        return ", ".join(f"{name} {end - at:.0f} s" for (name, at), end in told)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What the worker evaluates now, in the order it was asked."""
        return tuple(one.lease for one in self.session.running) if self.session else ()

    @property
    def busy(self) -> bool:
        """True while anything is awaited of the worker, be it the replicates alone."""
        return bool(self.session and (self.session.running or self.session.owed))

    @property
    def lease(self) -> Lease | None:
        """The checkpoint whose images run now, or whose metrics are awaited."""
        return self.leases[-1] if self.leases else None

    @property
    def progress(self) -> dict[str, float]:
        """How far that checkpoint has come, empty before the first images are told."""
        return self.session.running[-1].progress if self.session and self.leases else {}

    @property
    def resting(self) -> bool:
        """True when there is no worker because none is needed."""
        return self.session is None and not self._needed

    @property
    def worker_due(self) -> float:
        """When something of the worker is overdue, infinite while nothing is awaited of it."""
        return self.session.due if self.session else math.inf

    @property
    def idle(self) -> bool:
        """True when the worker can be asked for an evaluation now."""
        session = self.session
        if self.held:
            return False
        return session is not None and session.has_room(beside_others=self.breaker.closed)

    @property
    def takes(self) -> bool:
        """True when a checkpoint of the queue can be given to the worker now."""
        return self.idle and self.admission is Admission.ADMITTED

    @property
    def hopeless(self) -> bool:
        """True when so much failed in a row that waiting for the device is no use."""
        failed = self.session is None and self.failures > HOPELESS_PROBES
        return failed or self._blocked_long or self.breaker.hopeless

    def next_deadline(self) -> float:
        """Return when `tick` has something to do even if no message arrives."""
        if self._said_held_back == self.breaker.closed:
            return -math.inf
        if self.session:
            return min(self.session.due, self._look_at if self._shares else math.inf)
        return self._restart_at if self._needed else math.inf

    @property
    def _needed(self) -> bool:
        # One that nobody shares is started beforehand; each once, to find out whether it works.
        return self.wanted or self.lock is None or not self.was_ready

    @property
    def _shares(self) -> bool:
        # Else it is ended soon, whoever waits for the device.
        return self.lock is not None and self.phase in (WorkerPhase.READY, WorkerPhase.GIVING_WAY)

    def evaluate(self, lease: Lease, now: float, parts: int = 1) -> None:
        """Give the idle worker a checkpoint; what comes of it is told by `tick`.

        Args:
            parts: Into how many the eval set is divided, the first of which is this worker's.
        """
        session = self._idle_session()
        session.evaluate(lease, now, self._rest(session, now), parts)

    def run_part(self, lease: Lease, index: int, of: int, path: Path, now: float) -> None:
        """Give the idle worker a part of an evaluation, which it writes into a file."""
        session = self._idle_session()
        rest = self._rest(session, now)
        part = Part(lease.token, str(lease.prefix), index, of, str(path), rest)
        session.run_part(lease, part, now)

    def tell_part(self, lease: Lease, index: int, path: Path | None, now: float) -> None:
        """Say where a part of what the worker evaluates is; None where none will come."""
        if self.session:
            found = PartFound(lease.token, index, None if path is None else str(path))
            self.session.tell_part(found, now)

    def cancel(self, lease: Lease) -> None:
        """Have the worker give something up, if it can."""
        if self.session:
            self.session.cancel(lease)

    def average(
        self, lease: Lease, prefixes: Sequence[Path], now: float, batch_norm: int | None = None
    ) -> None:
        """Have the idle worker write an average, as `Session.average`; `tick` tells of it."""
        self._idle_session().average(lease, prefixes, now, batch_norm)

    def _idle_session(self) -> Session:
        assert self.session is not None and self.idle
        self.breaker.given()
        return self.session

    def _rest(self, session: Session, now: float) -> float:
        if not session.stepped_back and self.peace.asks(now):
            session.step_back()
        return self.peace.rest if session.stepped_back else 0.0

    def tick(self, now: float) -> list[WorkerEvent]:
        """Start a worker if there is none, and take what the present one has to say.

        Raises:
            WorkerRefused: the worker says that this set-up can never be evaluated.
            WorkerError: no worker ever became ready, in as many attempts as allowed.
        """
        events = self._turn(now)
        if self._said_held_back == self.breaker.closed:
            self._said_held_back = not self._said_held_back
            events.append(self._news())
        return events

    def _news(self) -> HeldBack | WorksAgain:
        if self.breaker.closed:
            return WorksAgain(self.device)
        return HeldBack(self.device, self.breaker.explanation, self.breaker.take_counted())

    def _turn(self, now: float) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        try:
            if self.session is None:
                if not self._needed:
                    self._stand_back()
                if now < self._restart_at or not self._needed:
                    return []
                self.session = self._start(now)
            for event in self.session.take(now):
                events.append(self._weigh(event, self.session, now))
            self.waiting_for = self.session.waiting_for
            if self.waiting_for and not self._needed:
                self.abandon()
                return events
            if self.phase is WorkerPhase.SPENT:
                events.append(self._end(self.breaker.reason, now))
            elif self.phase is WorkerPhase.OUTGROWN and not self.busy:
                events.append(self._recycle(self.session, now))
            elif late := self.session.late_replicates(now):
                events.append(self._end(late, now))
            elif now >= self.session.due:
                raise WorkerError(self.session.overdue())
            elif self._gives_way(self.session, now):
                events.append(self._give_way(now))
        except DeviceTaken as error:
            self.waiting_for, self._restart_at = error.message, now + _TAKEN_SECONDS
        except WorkerStillThere as error:
            self.problem, self._restart_at = error.message, now + _STILL_THERE_SECONDS
            self._blocked_at = min(self._blocked_at, now)
            self._blocked_long = now - self._blocked_at >= self.limits.start_seconds
        except HostTrouble as error:
            events.append(self._lose_host(error.message, now))
        except WorkerError as error:
            events.append(self._lose(error.message, now, error.hint))
        except WorkerRefused as error:
            # What worked once fails for a passing reason, and is tried again like a crash.
            if not self.was_ready:
                raise
            events.append(self._lose(f"the worker refused to start: {error.message}", now))
        return events

    def _weigh(self, event: WorkerEvent, session: Session, now: float) -> WorkerEvent:
        """Take note of what an event tells of the device and of the worker."""
        match event:
            case Ready():
                self.was_ready, self.failures = True, 0
                self._look_at, self._turn_ends = now, now + self.limits.turn_seconds
            case Evaluated() | Unusable():
                self.failures = 0
                self.breaker.answered()
                limit = self.limits.memory_bytes
                if limit is not None and session.worker.resident_bytes() > limit:
                    session.go(WorkerStep.GREW)
            case Rejected(permanent=True) | AverageWritten() | PartDone():
                self.breaker.answered()
            case Rejected(lease, code, message) if code not in (DATASET_CHANGED, CANCELLED):
                counts = self.breaker.broke([lease.checkpoint_id], f"{code}: {message}")
                if not counts:
                    session.go(WorkerStep.DEVICE_BROKE)
                return replace(event, counts=counts)
        return event

    def abandon(self) -> None:
        """End the worker in the middle of whatever it does, because its lease is lost."""
        if self.session:
            self.session.end()
        self._forget()

    def ask_to_end(self) -> None:
        """Ask the worker to end if it is idle, and wait for nothing: `stop` does."""
        if self.session:
            self.session.ask_to_end()

    def stop(self, timeout_seconds: float) -> None:
        """End the worker, in peace if it is idle."""
        if self.session:
            self.session.end(timeout_seconds)
        self._stand_back()
        self._forget()

    def _forget(self) -> None:
        self.session = None
        self.held = False
        self.breaker.returned()

    def _stand_back(self) -> None:
        """Wait for the device no longer."""
        self.waiting_for = None
        if self.lock:
            self.lock.withdraw()

    def _gives_way(self, session: Session, now: float) -> bool:
        """True when the device is another watcher's now; before that nothing more is begun."""
        if self.lock is None or not self._shares:
            return False
        if now >= self._look_at:
            self._look_at = now + _WANTED_SECONDS
            done = not self.wanted or now >= self._turn_ends
            others_wait = done and self.lock.is_wanted()
            session.go(WorkerStep.DEVICE_WANTED if others_wait else WorkerStep.DEVICE_KEPT)
        return session.phase is WorkerPhase.GIVING_WAY and not self.busy

    def _give_way(self, now: float) -> GaveWay:
        self.abandon()
        self._restart_at = now + _GIVE_WAY_SECONDS
        return GaveWay(self.device)

    def refuse(self, reason: str, now: float) -> None:
        """End the ready worker because of what it said, and try again as after a crash."""
        self._lose(reason, now)
        self.problem = reason

    def start_over(self, reason: str, now: float) -> None:
        """End the worker, since only a new one measures what is there now; each time later."""
        if self.session:
            self.breaker.broke((), reason)
            self._end(reason, now)
            self.problem = reason

    def _start(self, now: float) -> Session:
        # What was ready once fits some checkpoints: then each has its own answer.
        check = None if self.was_ready else self.to_check()
        session = Session(self.spawn(), self.limits)
        self.starts += 1
        self.phase_at = self.problem = self.waiting_for = None
        self._blocked_at, self._blocked_long = math.inf, False
        session.start(msgspec.structs.replace(self.start_request, check=check), now)
        return session

    def _recycle(self, session: Session, now: float) -> WorkerRecycled:
        recycled = WorkerRecycled(session.worker.resident_bytes())
        self.abandon()
        self._restart_at = now
        return recycled

    def _lose(self, reason: str, now: float, hint: str | None = None) -> WorkerLost:
        leases = self.leases
        self.abandon()
        self.failures += 1
        self.losses += 1
        self.last_loss = reason
        if not self.was_ready and self.failures >= self.limits.start_attempts:
            raise WorkerError(
                f"the worker could not be started in {self.failures} attempts: {reason}",
                hint=hint or f"what it printed is in {self.log}",
            )
        counts = True
        if leases or not self.breaker.closed:
            counts = self.breaker.broke([lease.checkpoint_id for lease in leases], reason)
        return WorkerLost(leases, reason, self._restart_later(now), counts)

    def _lose_host(self, reason: str, now: float) -> WorkerLost:
        """Give up a worker whose host is at fault; what it evaluates goes elsewhere, uncounted."""
        if self.leases:
            # The host may lack just these: then another one shows that it works.
            ids = [lease.checkpoint_id for lease in self.leases]
            self.breaker.broke(ids, reason, blames=False)
        self.failures += 1
        self.losses += 1
        self.last_loss = reason
        lost = self._end(reason, now)
        self.problem = reason
        return lost

    def _end(self, reason: str, now: float) -> WorkerLost:
        """End a worker that speaks; what it still evaluates is no attempt."""
        leases = self.leases
        self.abandon()
        return WorkerLost(leases, reason, self._restart_later(now), counts=False)

    def _restart_later(self, now: float) -> float:
        failures = max(self.failures, self.breaker.doublings + 1)
        self._restart_at = now + delay(failures, self.limits.retry_seconds, RESTART_LIMIT_SECONDS)
        return self._restart_at
