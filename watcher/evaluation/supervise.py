"""Supervise: keep one worker alive, give it checkpoints, and report what came of them.

The worker runs the images of one checkpoint at a time; while it computes the metrics of that one it
may have the next. It is replaced when it dies, hangs, speaks nonsense or has grown too large, and
ended when another watcher's turn on the GPU has come, or when the device seems to be at fault
(`breaker.py`). This module never touches the database: it returns what happened, and the loop
records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from watcher.decision.retry import delay
from watcher.errors import DeviceTaken, WorkerError, WorkerRefused, WorkerStillThere
from watcher.evaluation.answers import UnusableAnswer, one_line, read_evaluation, read_ready
from watcher.evaluation.breaker import HOPELESS_PROBES, Breaker
from watcher.evaluation.device_lock import DeviceLock
from watcher.evaluation.events import (
    Evaluated,
    GaveWay,
    HeldBack,
    Progressed,
    Ready,
    Rejected,
    Starting,
    Unusable,
    WorkerEvent,
    WorkerLost,
    WorkerRecycled,
    WorksAgain,
)
from watcher.evaluation.running import Running
from watcher.evaluation.worker import PROTOCOL, Worker
from watcher.types import Lease

# Only a new worker reads the new data; the checkpoint is not to blame.
DATASET_CHANGED = "dataset_changed"

RESTART_LIMIT_SECONDS = 300.0
_STILL_THERE_SECONDS = 0.25
# How often to ask for a device that another watcher has, and whether others wait for ours.
_TAKEN_SECONDS = 1.0
_WANTED_SECONDS = 2.0
# So long those who wait for a device may take to notice that it is free.
_GIVE_WAY_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for a worker before it counts as hung, and how often to try.

    Attributes:
        start_seconds: From start to ready.
        stall_seconds: Without any progress in an evaluation.
        retry_seconds: First delay before a new worker; it doubles up to five minutes.
        start_attempts: Failures before ready, of a worker that never was, until giving up.
        memory_bytes: Resident memory above which a worker is replaced after its evaluation.
        turn_seconds: How long to keep a device that another watcher waits for.
    """

    start_seconds: float = 600.0
    stall_seconds: float = 600.0
    retry_seconds: float = 5.0
    start_attempts: int = 3
    memory_bytes: int | None = None
    turn_seconds: float = 600.0


@dataclass(slots=True)
class Supervisor:
    """One worker after another, on one device.

    Attributes:
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
        phases: What a worker that starts has begun to do, and when; empty where it does not say.
        phase_at: When the last of them began, in ISO 8601; set by whoever is told.
    """

    spawn: Callable[[], Worker]
    start_request: dict[str, Any]
    limits: Limits
    device: str = "cpu"
    lock: DeviceLock | None = None
    to_check: Callable[[], str | None] = lambda: None
    phases: list[tuple[str, float]] = field(default_factory=list)
    phase_at: str | None = None
    wanted: bool = True
    waiting_for: str | None = None
    worker: Worker | None = None
    ready: Ready | None = None
    _running: list[Running] = field(default_factory=list)
    _deadline: float = math.inf
    _restart_at: float = 0.0
    _versions: dict[str, str] = field(default_factory=dict)
    _too_large: int | None = None
    _broken: str | None = None
    _turn_ends: float = math.inf
    _look_at: float = -math.inf
    _others_wait: bool = False
    _spent: bool = False
    _blocked_at: float = math.inf
    _blocked_long: bool = False
    _said_held_back: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    was_ready: bool = False
    problem: str | None = None
    starts: int = 0
    losses: int = 0
    failures: int = 0
    last_loss: str = ""

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What the worker evaluates now, in the order it was asked."""
        return tuple(running.lease for running in self._running)

    @property
    def lease(self) -> Lease | None:
        """The checkpoint whose images run now, or whose metrics are awaited."""
        return self._running[-1].lease if self._running else None

    @property
    def progress(self) -> dict[str, float]:
        """Images `done` of `total` of that checkpoint, empty before the first is told.

        And `images_per_second`, as soon as that can be told.
        """
        running = self._running[-1] if self._running else None
        if running is None or not running.total:
            return {}
        progress: dict[str, float] = {"done": running.done, "total": running.total}
        if running.images_per_second is not None:
            progress["images_per_second"] = running.images_per_second
        return progress

    @property
    def resting(self) -> bool:
        """True when there is no worker because none is needed."""
        return self.worker is None and not self._needed

    @property
    def worker_due(self) -> float:
        """When something of the worker is overdue, infinite while nothing is awaited of it."""
        return self._next_deadline() if self.worker else math.inf

    @property
    def idle(self) -> bool:
        """True when a checkpoint can be given to the worker now."""
        if self.ready is None or self._too_large is not None or self._others_wait:
            return False
        if not self._running:
            return True
        if not self.breaker.closed:
            return False
        # One that broke a worker before stays alone: another must not suffer for it again.
        only = self._running[0]
        return len(self._running) == 1 and only.forwarded and only.lease.attempt == 1

    @property
    def hopeless(self) -> bool:
        """True when so much failed in a row that waiting for the device is no use."""
        failed = self.worker is None and self.failures > HOPELESS_PROBES
        return failed or self._blocked_long or self.breaker.hopeless

    def next_deadline(self) -> float:
        """Return when `tick` has something to do even if no message arrives."""
        if self._said_held_back == self.breaker.closed:
            return -math.inf
        if self.worker:
            look_at = self._look_at if self.lock and self.ready else math.inf
            return min(self._next_deadline(), look_at)
        return self._restart_at if self._needed else math.inf

    @property
    def _needed(self) -> bool:
        # One that nobody shares is started beforehand; each once, to find out whether it works.
        return self.wanted or self.lock is None or not self.was_ready

    def _next_deadline(self) -> float:
        return min([self._deadline, *(running.deadline for running in self._running)])

    def evaluate(self, lease: Lease, now: float) -> None:
        """Give the idle worker a checkpoint; what comes of it is told by `tick`."""
        assert self.worker is not None and self.idle
        self.breaker.given()
        self._running.append(Running(lease, now, now + self.limits.stall_seconds))
        self._send({"type": "evaluate", "id": lease.token, "prefix": str(lease.prefix)}, now)

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
            if self.worker is None:
                if not self._needed:
                    self._stand_back()
                if now < self._restart_at or not self._needed:
                    return []
                self._start(now)
            assert self.worker is not None
            for message in self.worker.receive():
                happening = self._take(message, now)
                if happening:
                    events.append(happening)
            if self._spent:
                events.append(self._end(self.breaker.reason, now))
            elif self._too_large is not None and not self._running:
                events.append(self._recycle(now))
            elif now >= self._next_deadline():
                raise WorkerError(self._broken or self._overdue())
            elif self._gives_way(now):
                events.append(self._give_way(now))
        except DeviceTaken as error:
            self.waiting_for, self._restart_at = error.message, now + _TAKEN_SECONDS
        except WorkerStillThere as error:
            self.problem, self._restart_at = error.message, now + _STILL_THERE_SECONDS
            self._blocked_at = min(self._blocked_at, now)
            self._blocked_long = now - self._blocked_at >= self.limits.start_seconds
        except WorkerError as error:
            events.append(self._lose(error.message, now, error.hint))
        return events

    def abandon(self) -> None:
        """End the worker in the middle of whatever it does, because its lease is lost."""
        if self.worker:
            self.worker.kill()
        self._forget()

    def stop(self, timeout_seconds: float) -> None:
        """End the worker, in peace if it is idle."""
        if self.worker:
            if not self._running:
                self.worker.stop(timeout_seconds)
            else:
                self.worker.kill()
        self._stand_back()
        self._forget()

    def _stand_back(self) -> None:
        """Wait for the device no longer."""
        self.waiting_for = None
        if self.lock:
            self.lock.withdraw()

    def _gives_way(self, now: float) -> bool:
        """True when the device is another watcher's now; before that nothing more is begun."""
        if self.lock is None or self.ready is None:
            return False
        if now >= self._look_at:
            self._look_at = now + _WANTED_SECONDS
            done = not self.wanted or now >= self._turn_ends
            self._others_wait = done and self.lock.is_wanted()
        return self._others_wait and not self._running

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
        if self.worker:
            self.breaker.broke((), reason)
            self._end(reason, now)
            self.problem = reason

    def _start(self, now: float) -> None:
        request = {"protocol": PROTOCOL, **self.start_request, "phases": True}
        # What was ready once fits some checkpoints: then each has its own answer.
        request["check"] = None if self.was_ready else self.to_check()
        self.worker = self.spawn()
        self.starts += 1
        self.phases, self.phase_at = [], None
        self.problem = self.waiting_for = None
        self._blocked_at, self._blocked_long = math.inf, False
        self._deadline = now + self.limits.start_seconds
        self._send({"type": "start", **request}, now)

    def _send(self, message: dict[str, Any], now: float) -> None:
        assert self.worker is not None
        try:
            self.worker.send(message)
        except WorkerError as error:
            # The next tick ends it and gives back what it holds.
            self._broken, self._deadline = error.message, now

    def _take(self, message: dict[str, Any], now: float) -> WorkerEvent | None:
        kind = message["type"]
        try:
            if kind == "hello":
                self._versions = dict(message["versions"])
                return None
            if kind == "phase" and self.ready is None:
                phase = one_line(str(message["name"]))
                self.phases.append((phase, now))
                return Starting(phase)
            if kind == "ready":
                return self._take_ready(message, now)
            if kind == "error":
                said = one_line(str(message["message"]), math.inf)
                raise WorkerRefused(message["code"], said, hint=message.get("hint"))
            # An answer to a question not asked now is no answer.
            for running in self._running:
                if message.get("id") == running.lease.token:
                    return self._take_answer(kind, message, running, now)
            raise WorkerError(f"the worker answered {kind} to nothing that was asked")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WorkerError(f"the worker sent a {kind} that lacks or mixes up {error}") from error
        except WorkerRefused:
            # What worked once fails for a passing reason, and is tried again like a crash.
            if not self.was_ready:
                raise
            raise WorkerError(f"the worker refused to start: {message['message']}") from None

    def _take_ready(self, message: dict[str, Any], now: float) -> Ready:
        if self.ready is not None:
            raise WorkerError("the worker said ready twice")
        self.ready = read_ready(message, self._versions)
        self.was_ready, self.failures, self._deadline = True, 0, math.inf
        self._look_at, self._turn_ends = now, now + self.limits.turn_seconds
        return self.ready

    def _take_answer(
        self, kind: str, message: dict[str, Any], running: Running, now: float
    ) -> WorkerEvent:
        assert self.ready is not None and self.worker is not None
        if kind == "progress":
            done, total = int(message["done"]), int(message["total"])
            if done > running.done:  # saying the same again is no progress
                running.came(done, now)
                running.deadline = now + self.limits.stall_seconds
            running.total = total
            running.forwarded = done >= total
            return Progressed(running.lease, done, total)
        if kind == "result":
            return self._take_result(message, running, now)
        if kind == "failed":
            return self._take_failure(message, running)
        raise WorkerError(f"the worker sent an unknown message: {kind}")

    def _take_result(
        self, message: dict[str, Any], running: Running, now: float
    ) -> Evaluated | Unusable:
        assert self.ready is not None
        happening: Evaluated | Unusable
        try:
            evaluation = read_evaluation(message, self.ready)
            happening = Evaluated(running.lease, evaluation, now - running.started)
        except UnusableAnswer as error:
            happening = Unusable(running.lease, str(error))
        self._running.remove(running)
        self.failures = 0
        self.breaker.answered()
        self._weigh()
        return happening

    def _take_failure(self, message: dict[str, Any], running: Running) -> Rejected:
        code, text = str(message["code"]), one_line(str(message["message"]))
        permanent = message["permanent"]
        self._running.remove(running)
        counts = True
        if permanent:
            self.breaker.answered()
        elif code != DATASET_CHANGED:
            counts = self.breaker.broke([running.lease.checkpoint_id], f"{code}: {text}")
            self._spent = not counts
        return Rejected(running.lease, code, text, bool(permanent), counts)

    def _weigh(self) -> None:
        assert self.worker is not None
        limit, resident = self.limits.memory_bytes, self.worker.resident_bytes()
        if limit is not None and resident > limit:
            self._too_large = resident

    def _recycle(self, now: float) -> WorkerRecycled:
        recycled = WorkerRecycled(self._too_large or 0)
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
                hint=hint or "what it printed is in worker.log, in the state folder",
            )
        counts = True
        if leases or not self.breaker.closed:
            counts = self.breaker.broke([lease.checkpoint_id for lease in leases], reason)
        return WorkerLost(leases, reason, self._restart_later(now), counts)

    def _end(self, reason: str, now: float) -> WorkerLost:
        """End a worker that speaks; what it still evaluates is no attempt."""
        leases = self.leases
        self.abandon()
        return WorkerLost(leases, reason, self._restart_later(now), counts=False)

    def _restart_later(self, now: float) -> float:
        failures = max(self.failures, self.breaker.doublings + 1)
        self._restart_at = now + delay(failures, self.limits.retry_seconds, RESTART_LIMIT_SECONDS)
        return self._restart_at

    def _overdue(self) -> str:
        if self.ready is None:
            return f"the worker was not ready within {self.limits.start_seconds:g} s"
        return f"the evaluation made no progress for {self.limits.stall_seconds:g} s"

    def _forget(self) -> None:
        self.worker = self.ready = self._broken = self._too_large = None
        self._running = []
        self._others_wait = self._spent = False
        self.breaker.returned()
        self._deadline = math.inf
