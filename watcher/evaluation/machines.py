"""Machines: which workers may evaluate, for their numbers are those that stand in the database.

The reference of an evaluation is the machine with which its scores began. A worker on one that
differs in a part measures a scored checkpoint again before it gets any other, and joins where that
gives the same numbers to the last bit. What it measures so is compared, and is no evaluation: it
comes into no ledger, has no lease of the queue, and counts as no attempt of the checkpoint.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import structlog

from watcher.decision.machines import (
    deviations_text,
    differing,
    largest,
    parts_text,
    sufficient,
)
from watcher.errors import WatcherError, WorkerError, WorkerRefused
from watcher.evaluation.aside import Aside
from watcher.evaluation.events import (
    Evaluated,
    Progressed,
    Rejected,
    Resampled,
    Unusable,
    WorkerEvent,
)
from watcher.evaluation.phase import Admission
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.supervise import DATASET_CHANGED, Supervisor
from watcher.store import Store
from watcher.store.machines import Proof, Reference, Scored
from watcher.types import Evaluation, Lease

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Tries:
    """What a device has tried to prove itself by, and how often that broke off."""

    checkpoints: set[int] = field(default_factory=set)
    broken: int = 0


@dataclass(slots=True)
class _Attempt:
    """A proof that a worker is at."""

    supervisor: Supervisor
    identity: str
    fingerprint: str
    against: Reference
    scored: Scored
    without: frozenset[str]
    tries: _Tries


class Machines:
    """The machines of one run's workers."""

    def __init__(
        self, store: Store, pool: WorkerPool, tolerance: float | None, max_attempts: int
    ) -> None:
        self._store, self._pool = store, pool
        self._tolerance, self._max_attempts = tolerance, max_attempts
        self._running: dict[str, _Attempt] = {}
        # Tokens of all proofs: replicates may come after the answer.
        self._tokens: set[str] = set()
        self._tries: dict[str, _Tries] = {}
        self._joined: set[tuple[str, str]] = set()
        self._said: dict[str, str] = {}
        self._returned: list[Lease] = []

    @property
    def sentences(self) -> list[str]:
        """What is to be known of the machines that evaluate now, a sentence each."""
        present = {supervisor.device for supervisor in self._pool}
        return [said for device, said in self._said.items() if device in present]

    def admit(self, wanted: bool, now: float, steady: float) -> None:
        """Settle who may be given checkpoints, and begin the proofs that are due.

        Args:
            wanted: There is something to give out.
            now: Seconds since the epoch.
            steady: Steady seconds.

        Raises:
            StoreError: the database cannot be read or written now.
            WorkerRefused: no machine is left that may evaluate.
        """
        before: list[Supervisor] = []
        while before != list(self._pool):  # whom one waited for may be left out
            before = list(self._pool)
            for supervisor in before:
                if supervisor.ready is not None:
                    supervisor.admission = self._admission(supervisor, now)
        for supervisor in self._pool:
            due = wanted and supervisor.admission is Admission.PROVES and supervisor.idle
            if due and not supervisor.leases and not self._is_proving_alike(supervisor):
                self._begin(supervisor, steady)

    def take_returned(self) -> tuple[Lease, ...]:
        """Return what those were evaluating that were left out, once."""
        returned, self._returned = tuple(self._returned), []
        return returned

    def _admission(self, supervisor: Supervisor, now: float) -> Admission:
        """Tell what a ready worker may be given."""
        assert supervisor.ready is not None
        said = supervisor.ready.said
        if not said.machine or self._has_joined(supervisor):
            return Admission.ADMITTED
        reference = self._store.machines.reference(said.fingerprint)
        if reference is None:
            # Of several that differ one begins, and the others are compared with what it scores.
            first = _identity(supervisor) == self._candidate()
            return Admission.ADMITTED if first else Admission.WAITS
        proof = self._store.machines.proof(said.fingerprint, said.machine, reference)
        if reference.parts == said.machine or (proof and proof.equal):
            self._join(supervisor)
            return Admission.ADMITTED
        if proof:
            return self._weigh(supervisor, proof, reference, now)
        if self._is_proving_alike(supervisor) and not self._holds_any(supervisor):
            return Admission.WAITS
        tried = self._tries_of(supervisor).checkpoints
        if self._store.machines.to_measure(said.fingerprint, reference, tried):
            return Admission.PROVES
        # It has nothing to prove itself by. Where another may score something, it waits for that.
        if self._holds_any(supervisor) or any(map(self._may_score, self._pool)):
            return Admission.WAITS
        if _identity(supervisor) != self._candidate():
            return Admission.WAITS
        self._tell(
            supervisor,
            f"{supervisor.device} is not proven: its machine differs from that of the scores"
            f" ({parts_text(reference.parts, said.machine)}), and no scored checkpoint is left to"
            " compare the two by; its scores are recorded as unproven",
        )
        return Admission.ADMITTED

    def _candidate(self) -> str | None:
        """Return the machine that goes on, of several that differ and cannot be compared.

        That which evaluates already, else the first that is ready. One that is far waits until one
        of this machine is ready, or is known to be unable.
        """
        able = [
            one
            for one in self._pool
            if one.ready and not one.held and one.ready.said.machine and not self._has_joined(one)
        ]
        at_work = [one for one in able if one.leases and not self._holds_any(one)]
        near = [one for one in able if not one.far]
        if not at_work and not near and any(_may_come(one) for one in self._pool if not one.far):
            return None
        first = sorted(near or able, key=lambda one: not one.breaker.closed)
        return _identity((at_work or first)[0]) if able else None

    def _may_score(self, supervisor: Supervisor) -> bool:
        """Tell whether a device may score something that another one can be compared by."""
        if supervisor.ready is None:
            return _may_come(supervisor)
        return supervisor.breaker.closed and self._has_joined(supervisor)

    def _has_joined(self, supervisor: Supervisor) -> bool:
        assert supervisor.ready is not None
        return (supervisor.ready.said.fingerprint, _identity(supervisor)) in self._joined

    def _join(self, supervisor: Supervisor) -> None:
        assert supervisor.ready is not None
        self._joined.add((supervisor.ready.said.fingerprint, _identity(supervisor)))
        self._said.pop(supervisor.device, None)

    # -- a proof

    def _is_proving_alike(self, supervisor: Supervisor) -> bool:
        """Tell whether a worker of the same machine proves it: one proof is enough of several."""
        one = _identity(supervisor)
        return any(other.identity == one for other in self._running.values())

    def _tries_of(self, supervisor: Supervisor) -> _Tries:
        assert supervisor.ready is not None
        key = f"{supervisor.device} {supervisor.ready.said.fingerprint}"
        return self._tries.setdefault(key, _Tries())

    def _begin(self, supervisor: Supervisor, steady: float) -> None:
        assert supervisor.ready is not None and supervisor.ready.said.machine
        said, tries = supervisor.ready.said, self._tries_of(supervisor)
        against = self._store.machines.reference(said.fingerprint)
        found = against and self._store.machines.to_measure(
            said.fingerprint, against, tries.checkpoints
        )
        if not against or not found:
            return
        lease = Lease(
            checkpoint_id=Aside.PROOF.id(found.checkpoint_id),
            token=secrets.token_hex(8),
            name=found.name,
            global_step=found.global_step,
            prefix=found.prefix,
            attempt=1,
        )
        _log.info(
            "measuring a scored checkpoint again, to compare this machine with that of the scores",
            device=supervisor.device,
            checkpoint=found.name,
            differs=parts_text(against.parts, said.machine or {}),
        )
        without = frozenset(one.name for one in said.metrics if not one.reproducible)
        self._running[lease.token] = _Attempt(
            supervisor, _identity(supervisor), said.fingerprint, against, found, without, tries
        )
        self._tokens.add(lease.token)
        supervisor.evaluate(lease, steady)

    def _holds_any(self, supervisor: Supervisor) -> bool:
        return any(lease.token in self._tokens for lease in supervisor.leases)

    def give_back(self, lease: Lease) -> bool:
        """End a proof that came to nothing, to no fault; False where the lease is not of one."""
        self._running.pop(lease.token, None)
        return lease.token in self._tokens

    def broke(self, lease: Lease, reason: str, *, counts: bool = True) -> bool:
        """Note that a proof broke off, which says nothing of the machine's numbers.

        Another checkpoint is tried where there is one.

        Args:
            lease: The proof's.
            reason: Why.
            counts: False where the device is known to be at fault.

        Returns:
            False where the lease is not of a proof.

        Raises:
            WorkerError: it was the last attempt of the last device.
        """
        attempt = self._running.pop(lease.token, None)
        if attempt is None:
            return lease.token in self._tokens
        supervisor, tries = attempt.supervisor, attempt.tries
        _log.warning(
            "comparing machines broke off",
            device=supervisor.device,
            checkpoint=lease.name,
            reason=reason,
        )
        if not attempt.scored.is_there():
            return True  # it was let go of meanwhile
        tries.broken += counts
        tries.checkpoints.add(attempt.scored.checkpoint_id)
        if not self._store.machines.to_measure(
            attempt.fingerprint, attempt.against, tries.checkpoints
        ):
            tries.checkpoints.clear()
        if tries.broken >= self._max_attempts:
            said = (
                f"{supervisor.device} could not measure a scored checkpoint again in"
                f" {tries.broken} attempts, so it cannot be told whether its numbers are those of"
                f" the other scores: {reason}"
            )
            hint = f"what the worker printed is in {supervisor.log}"
            self._leave_out(supervisor, WorkerError(said, hint=hint), said)
        return True

    def take(self, event: WorkerEvent, now: float) -> bool:
        """Take an answer about a proof; False for any other event.

        Raises:
            StoreError: the database cannot be written; the event is to be given again.
            WorkerRefused, WorkerError: no machine is left that may evaluate.
        """
        match event:
            case Rejected(lease, code, message) if lease.token in self._tokens:
                if code == DATASET_CHANGED:
                    return False  # which concerns all workers
                self.broke(lease, f"{code}: {message}", counts=event.counts)
            case Unusable(lease, reason) if lease.token in self._tokens:
                self.broke(lease, reason)
            case Evaluated(lease) if lease.token in self._tokens:
                self._compare(lease, event.evaluation, now)
            case Progressed(lease) | Resampled(lease) if lease.token in self._tokens:
                pass
            case _:
                return False
        return True

    def _compare(self, lease: Lease, measured: Evaluation, now: float) -> None:
        """Record what came of a proof; what follows from it `admit` settles."""
        attempt = self._running.get(lease.token)
        if attempt is None:
            return
        scored, against, device = attempt.scored, attempt.against, attempt.supervisor.device
        recorded = self._store.machines.recorded(
            measured.fingerprint, against, scored.checkpoint_id
        )
        if recorded is not None:
            without = attempt.without.union(recorded.random_metrics)
            found = differing(recorded.values, measured.values, without)
            compared = len({key for key in recorded.values if key[0] not in without})
            self._store.machines.record_proof(
                measured, against, scored.checkpoint_id, compared, found, device, now
            )
            if not found:
                _log.info(
                    "this machine measures the same to the last bit, and joins",
                    device=device,
                    checkpoint=lease.name,
                    figures=compared,
                )
        self._running.pop(lease.token)

    def _weigh(
        self, supervisor: Supervisor, proof: Proof, reference: Reference, now: float
    ) -> Admission:
        """Let a machine that measures something else in where that is tolerated, or leave it out.

        Raises:
            WorkerRefused: no other is left.
        """
        assert supervisor.ready is not None and supervisor.ready.said.machine
        size, device = largest(proof.deviations), supervisor.device
        differs = (
            f"its machine differs from that of the scores"
            f" ({parts_text(reference.parts, supervisor.ready.said.machine)}), and"
            f" {proof.checkpoint} measured again is not the same: "
            + deviations_text(proof.deviations, proof.compared)
        )
        if supervisor.ready.said.details.get("deterministic") is False:
            differs += "; this device gives two results for one batch, too"
        if self._tolerance is not None and size <= self._tolerance:
            self._store.machines.accept(proof, self._tolerance, device, now)
            self._join(supervisor)
            given = f"--accept-host-differences {self._tolerance:g}"
            self._tell(supervisor, f"{device} is let in by {given}, though {differs}")
            return Admission.ADMITTED
        enough = sufficient(size)
        remedy = "evaluate where the machine is as that of the scores"
        if enough is not None:
            remedy += f", or let it in with --accept-host-differences {enough:g}"
        refusal = WorkerRefused("machine_differs", f"{device}: {differs}", hint=remedy)
        self._leave_out(supervisor, refusal, f"{differs}; {remedy}")
        return Admission.WAITS

    def _leave_out(self, supervisor: Supervisor, error: WatcherError, told: str) -> None:
        leases = supervisor.leases
        self._pool.leave_out(supervisor, error, told)
        self._returned += leases

    def _tell(self, supervisor: Supervisor, said: str) -> None:
        if self._said.get(supervisor.device) != said:
            self._said[supervisor.device] = said
            _log.warning(said)


def _identity(supervisor: Supervisor) -> str:
    """Return what two workers of one machine have in common."""
    assert supervisor.ready is not None
    return repr(sorted((supervisor.ready.said.machine or {}).items()))


def _may_come(supervisor: Supervisor) -> bool:
    """Tell whether a device that has no worker ready may have one soon."""
    return supervisor.ready is None and not supervisor.hopeless and supervisor.breaker.closed
