"""Session: one worker from its start to its end, as the evaluator protocol has it.

It asks, takes the answers, and says what happened. What follows from that for the next worker or
for the device is the supervisor's affair.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from watcher.errors import WorkerError, WorkerRefused
from watcher.evaluation import messages, wire
from watcher.evaluation.answers import UnusableAnswer, one_line, read_evaluation, read_replicates
from watcher.evaluation.events import (
    AverageWritten,
    Evaluated,
    PartDone,
    Progressed,
    Ready,
    Rejected,
    Resampled,
    Starting,
    Unusable,
    WorkerEvent,
)
from watcher.evaluation.frames import Moved, Waits
from watcher.evaluation.peace import SLOWER
from watcher.evaluation.phase import WorkerPhase, WorkerStep, after
from watcher.protocols import Carrier
from watcher.types import Lease


class Limits(msgspec.Struct, frozen=True):
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
class Running:
    """What the worker was asked for: an evaluation mostly. Times are steady seconds.

    Attributes:
        answer: What it is answered with.
        deadline: When it counts as hung.
        done: Images done, -1 before the first is told.
        free: The worker may be asked for the next.
        parts: How many are awaited of others: as long as they go on it is not to blame.
    """

    lease: Lease
    started: float
    deadline: float
    answer: type = messages.Result
    done: int = -1
    total: int = 0
    free: bool = False
    first_done: int = 0
    first_told: float = 0.0
    images_per_second: float | None = None
    parts: int = 0

    def came(self, done: int, now: float) -> None:
        """Note that more images are done, and how fast they go since the first progress."""
        if self.done < 0:
            self.first_done, self.first_told = done, now
        elif now > self.first_told:
            rate = (done - self.first_done) / (now - self.first_told)
            self.images_per_second = round(rate, 2)
        self.done = done

    @property
    def progress(self) -> dict[str, float]:
        """Images `done` of `total`, and `images_per_second` as soon as that can be told."""
        if not self.total:
            return {}
        rate = self.images_per_second
        known = {} if rate is None else {"images_per_second": rate}
        return {"done": self.done, "total": self.total, **known}


@dataclass(slots=True)
class Session:
    """What one worker is doing.

    Attributes:
        ready: What it said of itself, None before it did.
        running: What it evaluates, in the order it was asked.
        owed: What it measured and has not given the replicates of, by token, with when that counts
            as hung.
        phases: What it has begun to do before it is ready, and when.
        stepped_back: It leaves the CPU to others.
        waiting_for: Who has the device on another host, so that the worker cannot start yet.
    """

    worker: Carrier
    limits: Limits
    phase: WorkerPhase = WorkerPhase.ABSENT
    ready: Ready | None = None
    running: list[Running] = field(default_factory=list)
    owed: dict[str, tuple[Lease, float]] = field(default_factory=dict)
    phases: list[tuple[str, float]] = field(default_factory=list)
    stepped_back: bool = False
    waiting_for: str | None = None
    _deadline: float = math.inf
    _versions: dict[str, str] = field(default_factory=dict)
    _broken: str | None = None

    @property
    def stall_seconds(self) -> float:
        """How long an evaluation may make no progress: longer where it gets what others leave."""
        return self.limits.stall_seconds * (SLOWER if self.stepped_back else 1)

    def step_back(self) -> None:
        """Have the worker leave the CPU to others, for good."""
        self.worker.step_back()
        self.stepped_back = True

    def go(self, step: WorkerStep) -> None:
        """Take note of what happened to the worker."""
        self.phase = after(self.phase, step)

    def start(self, request: messages.Start, now: float) -> None:
        """Tell the worker what to get ready for."""
        self.go(WorkerStep.SPAWNED)
        self._deadline = now + self.limits.start_seconds
        self._send(request)

    def ask_to_end(self) -> None:
        """Ask the worker to end where it is idle, and wait for nothing: `end` does."""
        if not self.running:
            with contextlib.suppress(WorkerError):
                self.worker.send(messages.Stop())

    def end(self, peace_seconds: float | None = None) -> None:
        """End the worker: at once, but where it is idle and so much time is given for it."""
        if peace_seconds is None or self.running:
            self.worker.kill()
        else:
            self.worker.stop(peace_seconds)
        self.go(WorkerStep.ENDED)

    def evaluate(self, lease: Lease, now: float, rest: float = 0.0, parts: int = 1) -> None:
        """Ask for an evaluation, with so much rest; its token is the message's id.

        Args:
            parts: Into how many the eval set is divided; `tell_part` says what others found.
        """
        self._ask(messages.Evaluate(lease.token, str(lease.prefix), rest, parts), lease, now)
        self.running[-1].parts = parts - 1

    def run_part(self, lease: Lease, request: messages.Part, now: float) -> None:
        """Ask for a part of an evaluation, under a lease of its own."""
        self._ask(request, lease, now, messages.PartWritten)

    def tell_part(self, found: messages.PartFound, now: float) -> None:
        """Say what became of a part, where the worker still runs the evaluation that it is of."""
        for one in self.running:
            if one.lease.token == found.id:
                one.parts -= 1
                one.deadline = max(one.deadline, now + self.stall_seconds)
                self._send(found)

    def cancel(self, lease: Lease) -> None:
        """Have the worker give up what it runs, if it can; it is answered all the same."""
        if self.ready and self.ready.said.capabilities.cancel:
            self._send(messages.Cancel(lease.token))

    def average(
        self, lease: Lease, prefixes: Sequence[Path], now: float, batch_norm: int | None = None
    ) -> None:
        """Ask for the average of checkpoints, to be written at the lease's prefix.

        Args:
            batch_norm: Of how many training images to compute its statistics anew.
        """
        paths = [str(prefix) for prefix in prefixes]
        request = messages.Average(lease.token, paths, str(lease.prefix), batch_norm)
        self._ask(request, lease, now, messages.Averaged)

    def _ask(
        self,
        request: messages.Request,
        lease: Lease,
        now: float,
        answer: type = messages.Result,
    ) -> None:
        self.running.append(Running(lease, now, now + self.stall_seconds, answer))
        self._send(request)

    def _send(self, request: messages.Request) -> None:
        try:
            self.worker.send(request)
        except WorkerError as error:
            # It is overdue at once: so the next look ends it and gives back what it holds.
            self._broken, self._deadline = error.message, -math.inf

    @property
    def due(self) -> float:
        """When something of the worker is overdue, infinite while nothing is awaited of it."""
        owed = (deadline for _, deadline in self.owed.values())
        own = (running.deadline for running in self.running if not running.parts)
        return min([self._deadline, *own, *owed])

    def overdue(self) -> str:
        """Say what is."""
        if self._broken:
            return self._broken
        if self.ready is None:
            return f"the worker was not ready within {self.limits.start_seconds:g} s"
        return f"the evaluation made no progress for {self.stall_seconds:g} s"

    def late_replicates(self, now: float) -> str | None:
        """Say that replicates are overdue, which is no fault of what waits behind them."""
        late = [lease.name for lease, deadline in self.owed.values() if now >= deadline]
        if not late or self._broken:
            return None
        limit = self.stall_seconds
        return f"the replicates of {late[0]} did not come within {limit:g} s"

    def _wait_on(self, now: float) -> None:
        """Give what waited for the worker's answer about another all its time again."""
        for running in self.running:
            running.deadline = max(running.deadline, now + self.stall_seconds)

    def has_room(self, *, beside_others: bool) -> bool:
        """True when the worker can be asked for an evaluation now.

        Args:
            beside_others: Also while the metrics of another are computed.
        """
        if self.phase is not WorkerPhase.READY:
            return False
        if not self.running:
            return True
        # One that broke a worker before stays alone: another must not suffer for it again.
        only = self.running[0]
        alone = len(self.running) > 1 or only.lease.attempt > 1
        return beside_others and only.free and not alone

    def take(self, now: float) -> Iterator[WorkerEvent]:
        """Yield what the worker says, as what happened; what came before an error first.

        Raises:
            WorkerRefused: it says that this set-up can never be evaluated.
            WorkerError: it ended, or spoke nonsense.
        """
        for message in self.worker.receive():
            match message:
                case messages.Hello(protocol):
                    self._greet(protocol)
                    self._versions = message.versions
                case messages.Heartbeat():
                    pass
                case Waits(reason=reason) if self.ready is None:
                    # Others may keep a device for hours; the line's beats tell that it lives.
                    self.waiting_for = reason
                    self._deadline = math.inf if reason else now + self.limits.start_seconds
                case Moved():
                    yield from self._take_moved(now)
                case messages.Phase(name) if self.ready is None:
                    self.phases.append((one_line(name), now))
                    yield Starting(one_line(name))
                case messages.Ready():
                    yield self._take_ready(message)
                case messages.Error(code, text, hint):
                    raise WorkerRefused(code, one_line(text, math.inf), hint=hint)
                case messages.Replicates() if self.ready:
                    # Of a result that was refused nobody waits for them.
                    lease, _ = self.owed.pop(message.id, (None, 0.0))
                    if lease:
                        self._wait_on(now)
                        drawn = read_replicates(message, self.ready)
                        yield Resampled(lease, self.ready.said.fingerprint, drawn)
                case _:
                    happened = self._take_answer(message, now)
                    if happened:
                        yield happened

    def _take_moved(self, now: float) -> Iterator[Progressed]:
        """Wait longer for what needs files that are on their way, and keep its leases."""
        if self.ready is None:
            self._deadline = now + self.limits.start_seconds
        self._wait_on(now)
        for one in self.running:
            yield Progressed(one.lease, max(one.done, 0), one.total)

    def _greet(self, protocol: int) -> None:
        if protocol != messages.PROTOCOL:
            raise WorkerRefused(
                "protocol",
                f"the worker speaks protocol {protocol}, this watcher {messages.PROTOCOL}",
                hint="watcher and evaluators must come from the same installation",
            )

    def _take_ready(self, message: messages.Ready) -> Ready:
        if self.ready is not None:
            raise WorkerError("the worker said ready twice")
        self.ready = Ready(message, self._versions)
        self._deadline = math.inf
        self.go(WorkerStep.GOT_READY)
        return self.ready

    def _take_answer(self, message: object, now: float) -> WorkerEvent | None:
        token = getattr(message, "id", None)
        # An answer to a question not asked now is no answer.
        running = next((one for one in self.running if one.lease.token == token), None)
        if running is None or self.ready is None:
            raise WorkerError(f"the worker answered {_name(message)} to nothing that was asked")
        lease = running.lease
        match message:
            case messages.Progress(_, done, total):
                if done > running.done:  # saying the same again is no progress
                    running.came(done, now)
                    running.deadline = now + self.stall_seconds
                running.total = total
                return Progressed(lease, done, total)
            case messages.Free():
                running.free = self.ready.said.capabilities.overlap
                return None
            case messages.Failed(_, code, text, permanent):
                self.running.remove(running)
                return Rejected(lease, code, one_line(text), permanent)
            case wire.WrongResult(_, reason):
                self.running.remove(running)
                return Unusable(lease, reason)
            case messages.Averaged() if running.answer is messages.Averaged:
                self.running.remove(running)
                return AverageWritten(lease, message.batch_norm)
            case messages.PartWritten() if running.answer is messages.PartWritten:
                self.running.remove(running)
                return PartDone(lease, message.warnings)
            case messages.Result() if running.answer is messages.Result:
                return self._take_result(message, running, self.ready, now)
        raise WorkerError(f"the worker sent an unknown message: {_name(message)}")

    def _take_result(
        self, message: messages.Result, running: Running, ready: Ready, now: float
    ) -> Evaluated | Unusable:
        happened: Evaluated | Unusable
        try:
            evaluation = read_evaluation(message, ready)
            happened = Evaluated(running.lease, evaluation, now - running.started)
            if message.replicates_follow:
                self.owed[message.id] = running.lease, now + self.stall_seconds
        except UnusableAnswer as error:
            happened = Unusable(running.lease, str(error))
        self.running.remove(running)
        self._wait_on(now)
        return happened


def _name(message: object) -> str:
    return "result" if isinstance(message, wire.WrongResult) else type(message).__name__.lower()
