"""Supervise: keep one worker alive, give it one checkpoint at a time, and report what came of it.

The worker is replaced when it dies, hangs or speaks nonsense. This module never touches the
database: it returns what happened, and the loop records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from watcher.data import Evaluation, Lease
from watcher.errors import WorkerError, WorkerRefused, WorkerStillThere
from watcher.worker import PROTOCOL, Worker

_RESTART_LIMIT_SECONDS = 300.0
_STILL_THERE_SECONDS = 0.25
_KEPT_OF_READY = (
    *("eval_input", "metrics_sets", "build_seconds", "categories"),
    *("coco_backend", "eval_set_kept", "warnings"),
)


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has built its model and can evaluate.

    Attributes:
        fingerprint: Identity of the evaluation; scores under another one do not compare.
        images: Size of the eval set.
        metric_names: Every overall metric that a result will have.
    """

    fingerprint: str
    images: int
    metric_names: tuple[str, ...]
    device: str
    versions: dict[str, str]
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progressed:
    """The running evaluation has done so many images of so many."""

    lease: Lease
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The leased checkpoint was measured, completely."""

    lease: Lease
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """The worker could not evaluate the leased checkpoint, and says why.

    Attributes:
        permanent: True when another attempt would end the same way.
    """

    lease: Lease
    code: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died, hung or spoke nonsense; `lease` is what it was evaluating, if anything."""

    lease: Lease | None
    reason: str
    restart_at: float


Happening = Ready | Progressed | Evaluated | Rejected | WorkerLost


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for a worker before it counts as hung, and how often to try.

    Attributes:
        start_seconds: From start to ready.
        stall_seconds: Without any progress in an evaluation.
        retry_seconds: First delay before a new worker; it doubles up to five minutes.
        start_attempts: Failures before ready, of a worker that never was, until giving up.
    """

    start_seconds: float = 600.0
    stall_seconds: float = 600.0
    retry_seconds: float = 5.0
    start_attempts: int = 3


@dataclass(slots=True)
class Supervisor:
    """One worker after another, on one device."""

    spawn: Callable[[], Worker]
    start_request: dict[str, Any]
    limits: Limits
    worker: Worker | None = None
    ready: Ready | None = None
    lease: Lease | None = None
    _deadline: float = math.inf
    _restart_at: float = 0.0
    _failures: int = 0
    _started: float = 0.0
    _versions: dict[str, str] = field(default_factory=dict)
    _done: int = -1
    _broken: str | None = None
    was_ready: bool = False
    problem: str | None = None

    @property
    def idle(self) -> bool:
        """True when a checkpoint can be given to the worker now."""
        return self.ready is not None and self.lease is None

    def next_deadline(self) -> float:
        """Return when `tick` has something to do even if no message arrives."""
        return self._deadline if self.worker else self._restart_at

    def evaluate(self, lease: Lease, now: float) -> None:
        """Give the idle worker a checkpoint; what comes of it is told by `tick`."""
        assert self.worker is not None and self.idle
        self.lease, self._started = lease, now
        self._deadline, self._done = now + self.limits.stall_seconds, -1
        self._send({"type": "evaluate", "id": lease.token, "prefix": str(lease.prefix)}, now)

    def tick(self, now: float) -> list[Happening]:
        """Start a worker if there is none, and take what the present one has to say.

        Raises:
            WorkerRefused: the worker says that this set-up can never be evaluated.
            WorkerError: no worker ever became ready, in as many attempts as allowed.
        """
        happenings: list[Happening] = []
        try:
            if self.worker is None:
                if now < self._restart_at:
                    return []
                self._start(now)
            assert self.worker is not None
            for message in self.worker.receive():
                happening = self._take(message, now)
                if happening:
                    happenings.append(happening)
            if now >= self._deadline:
                raise WorkerError(self._broken or self._overdue())
        except WorkerStillThere as error:
            self.problem, self._restart_at = error.message, now + _STILL_THERE_SECONDS
        except WorkerError as error:
            happenings.append(self._lose(error.message, now))
        return happenings

    def abandon(self) -> None:
        """End the worker in the middle of whatever it does, because its lease is lost."""
        if self.worker:
            self.worker.kill()
        self._forget()

    def stop(self, timeout_seconds: float) -> None:
        """End the worker, in peace if it is idle."""
        if self.worker:
            if self.lease is None:
                self.worker.stop(timeout_seconds)
            else:
                self.worker.kill()
        self._forget()

    def _start(self, now: float) -> None:
        self.worker = self.spawn()
        self.problem = None
        self._deadline = now + self.limits.start_seconds
        self._send({"type": "start", "protocol": PROTOCOL, **self.start_request}, now)

    def _send(self, message: dict[str, Any], now: float) -> None:
        assert self.worker is not None
        try:
            self.worker.send(message)
        except WorkerError as error:
            # The next tick ends it and gives back what it holds.
            self._broken, self._deadline = error.message, now

    def _take(self, message: dict[str, Any], now: float) -> Happening | None:
        kind = message["type"]
        try:
            if kind == "hello":
                self._versions = dict(message["versions"])
                return None
            if kind == "ready":
                return self._take_ready(message)
            if kind == "error":
                raise WorkerRefused(message["code"], message["message"], hint=message.get("hint"))
            # An answer to a question not asked now is no answer.
            if self.lease is None or message.get("id") != self.lease.token:
                raise WorkerError(f"the worker answered {kind} to nothing that was asked")
            return self._take_answer(kind, message, self.lease, now)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WorkerError(f"the worker sent a {kind} that lacks or mixes up {error}") from error
        except WorkerRefused:
            # What worked once fails for a passing reason, and is tried again like a crash.
            if not self.was_ready:
                raise
            raise WorkerError(f"the worker refused to start: {message['message']}") from None

    def _take_ready(self, message: dict[str, Any]) -> Ready:
        images = int(message["images"])
        if self.ready is not None or not 0 <= images < 1 << 53:
            raise WorkerError(f"the worker said ready twice, or with {images} images")
        self.ready = Ready(
            fingerprint=str(message["fingerprint"]),
            images=images,
            metric_names=tuple(message["metric_names"]),
            device=str(message["device"]),
            versions=self._versions,
            details={key: message.get(key) for key in _KEPT_OF_READY},
        )
        self.was_ready, self._failures, self._deadline = True, 0, math.inf
        return self.ready

    def _take_answer(
        self, kind: str, message: dict[str, Any], lease: Lease, now: float
    ) -> Happening:
        assert self.ready is not None
        if kind == "progress":
            done = int(message["done"])
            if done > self._done:  # saying the same again is no progress
                self._done, self._deadline = done, now + self.limits.stall_seconds
            return Progressed(lease, done, int(message["total"]))
        if kind == "result":
            evaluation = _evaluation(message, self.ready)
            self.lease, self._deadline, self._failures = None, math.inf, 0
            return Evaluated(lease, evaluation, now - self._started)
        if kind == "failed":
            self.lease, self._deadline = None, math.inf
            code, text = str(message["code"]), str(message["message"])
            return Rejected(lease, code, text, bool(message["permanent"]))
        raise WorkerError(f"the worker sent an unknown message: {kind}")

    def _lose(self, reason: str, now: float) -> WorkerLost:
        lease = self.lease
        self.abandon()
        self._failures += 1
        if not self.was_ready and self._failures >= self.limits.start_attempts:
            raise WorkerError(
                f"the worker could not be started in {self._failures} attempts: {reason}",
                hint="what it printed is in worker.log, in the state folder",
            )
        # The exponent is bounded: a float cannot hold the delay after a thousand failures.
        delay = self.limits.retry_seconds * 2.0 ** min(self._failures - 1, 30)
        self._restart_at = now + min(delay, _RESTART_LIMIT_SECONDS)
        return WorkerLost(lease, reason, self._restart_at)

    def _overdue(self) -> str:
        if self.ready is None:
            return f"the worker was not ready within {self.limits.start_seconds:g} s"
        return f"the evaluation made no progress for {self.limits.stall_seconds:g} s"

    def _forget(self) -> None:
        self.worker = self.ready = self.lease = self._broken = None
        self._deadline = math.inf


def _evaluation(message: dict[str, Any], ready: Ready) -> Evaluation:
    images = int(message["images"])
    if images != ready.images:
        raise WorkerError(f"the worker evaluated {images} images of {ready.images}")
    return Evaluation(
        fingerprint=ready.fingerprint,
        images=images,
        metrics={str(name): _number(value) for name, value in message["metrics"].items()},
        category_metrics=tuple(
            (str(row["name"]), str(row["category"]), _number(row["value"]))
            for row in message.get("category_metrics", ())
        ),
        timings={str(name): float(value) for name, value in message["timings"].items()},
        device=ready.device,
        versions=ready.versions,
        details={
            **ready.details,
            "cost": message.get("cost"),
            "peak_memory_bytes": message.get("peak_memory_bytes"),
            "model_variables": message.get("model_variables"),
        },
    )


def _number(value: Any) -> float | None:
    if value is None or not math.isfinite(number := float(value)):
        return None
    return number
