"""What came of each evaluation: into the ledger, whatever came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import structlog

from watcher.config.policies import require_metrics
from watcher.decision.board import Board
from watcher.decision.retry import delay
from watcher.decision.unmeasured import CANNOT_RANK, why_unranked
from watcher.errors import StoreError, StoreRefused
from watcher.evaluation.doubts import Doubts
from watcher.evaluation.events import (
    Evaluated,
    GaveWay,
    HeldBack,
    Progressed,
    Ready,
    Rejected,
    Resampled,
    Starting,
    Unusable,
    WorkerEvent,
    WorkerLost,
    WorkerRecycled,
    WorksAgain,
)
from watcher.evaluation.given_out import GivenOut
from watcher.evaluation.home_first import HomeFirst
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import DATASET_CHANGED, Supervisor
from watcher.protocols import CheckpointSource
from watcher.store import LeaseLost, Store, iso
from watcher.types import Lease

_log = structlog.get_logger(__name__)

# Another pipeline.config may fit the checkpoint: it is the set-up that fails, and may be mended.
SET_UP = frozenset({"unmatched_variables"})


class Outcomes:
    """Records what the workers of one run say.

    Attributes:
        changed: True when the ledger or a checkpoint's outcome changed; whoever reads it clears it.
        doubts: What the settings decide by though it is noise.
        refused: How many answers came when their lease was lost.
        misfit: The last that failed by the set-up, None where something was scored since.
        to_bring_back: sha256 of what failed by an earlier set-up and has no pin any more, while
            MODEL_DIR still has it. Whoever puts those back into the queue empties it.
    """

    def __init__(
        self,
        boards: Sequence[Board],
        max_attempts: int,
        store: Store,
        source: CheckpointSource,
        pool: WorkerPool,
        given: GivenOut,
        snapshot: Snapshot,
    ) -> None:
        self._boards, self._max_attempts = boards, max_attempts
        self._store, self._source = store, source
        self._pool, self._given, self._snapshot = pool, given, snapshot
        self._home_first = HomeFirst(pool)
        self.changed = False
        self.doubts = Doubts(boards, store.ledger)
        self.refused = 0
        self.misfit: Rejected | None = None
        self.to_bring_back: tuple[str, ...] = ()
        self._told: set[str] = set()
        # Whose attempts were given back once: what fails again after the device worked counts.
        self._forgiven: set[int] = set()

    def released(self) -> list[tuple[Supervisor, Ready]]:
        """Workers that waited for one of this machine and wait no longer, to be taken now."""
        return self._home_first.released()

    def take(self, supervisor: Supervisor, event: WorkerEvent, now: float, steady: float) -> None:
        """Record what a worker said.

        Raises:
            ConfigError: the worker reports that the metric does not exist.
            StoreError: the database cannot be written; the event can be taken again.
            WorkerRefused, WorkerError: no machine is left whose numbers are those of the scores.
        """
        try:
            if not self._given.take_aside(event, now):
                self._record(supervisor, event, now, steady)
        except LeaseLost as error:
            self.refused += not isinstance(event, Progressed)
            _log.warning("answer refused", reason=error.message)
        except (StoreRefused, TypeError, ValueError, OverflowError) as error:
            if isinstance(event, Evaluated):
                self._refuse_answer(event.lease, str(error), now)
            else:
                _log.error("answer refused", reason=f"it cannot be recorded: {error}")

    def _record(
        self, supervisor: Supervisor, event: WorkerEvent, now: float, steady: float
    ) -> None:
        match event:
            case Resampled():
                self._take_replicates(event)
            case Starting(phase):
                supervisor.phase_at = iso(now)
                _log.info(f"starting: {phase}", **self._on(supervisor))
            case Ready():
                self._take_ready(supervisor, event, now, steady)
            case Progressed(lease):
                self._given.renew(lease, now, steady)
            case Evaluated():
                self._take_score(event, now)
            case Unusable(lease, reason):
                self._refuse_answer(lease, reason, now)
            case Rejected():
                self._take_rejection(event, now, steady)
            case WorkerLost():
                self._take_loss(event, now, steady)
            case HeldBack():
                self._hold_back(event, now)
            case WorksAgain(device):
                _log.info("the device works again", device=device)
                self._store.ledger.add_event(now, "recovered", f"{device} evaluates again")
            case WorkerRecycled(resident_bytes):
                mib = round(resident_bytes / 2**20)
                _log.info("worker replaced, it had grown too large", mib=mib)
            case GaveWay(device):
                _log.info("worker ended, another watcher's turn has come", device=device)

    def _take_replicates(self, resampled: Resampled) -> None:
        lease, replicates = resampled.lease, resampled.replicates
        keys = {key for board in self._boards for key in board.metric.keys if key[1]}
        fingerprint = resampled.fingerprint
        self._store.replicates.record(lease.checkpoint_id, fingerprint, replicates, keys)
        self.changed = True
        if not replicates.scheme:
            said = "its score has no interval, the worker gave no usable replicates"
            _log.warning(said, checkpoint=lease.name)

    def _refuse_answer(self, lease: Lease, reason: str, now: float) -> None:
        """Fail a checkpoint whose answer is at fault: another attempt would end the same way.

        Its pin stays, since another evaluator may give a better one.
        """
        with contextlib.suppress(LeaseLost):
            self._fail(lease, f"its answer cannot be recorded: {reason}", now, may_pass=True)

    def _take_loss(self, lost: WorkerLost, now: float, steady: float) -> None:
        restart_in = round(lost.restart_at - steady, 1)
        _log.warning("worker lost", reason=lost.reason, restart_in=restart_in)
        for held in lost.leases:
            if self._given.machines.broke(held, lost.reason, counts=lost.counts):
                continue
            if self._given.averages.holds(held):
                if lost.counts:
                    self._given.averages.broke(held, lost.reason, now)
                else:
                    self._given.averages.give_back(held)
                continue
            with contextlib.suppress(LeaseLost):
                alone = len(lost.leases) == 1
                self._retry_or_fail(held, lost.reason, now, alone=alone, counts=lost.counts)

    def _hold_back(self, held: HeldBack, now: float) -> None:
        """Say that a device is at fault, and let its failures be no attempts."""
        counted = {id_: n for id_, n in held.counted.items() if id_ not in self._forgiven}
        said = f"{held.device} is held back: {held.reason}"
        back = self._store.queue.forgive(counted, said, now)
        self._forgiven |= counted.keys()
        self.changed = self.changed or bool(back)
        _log.error("device held back", device=held.device, reason=held.reason, no_attempts_of=back)

    def _take_ready(self, supervisor: Supervisor, ready: Ready, now: float, steady: float) -> None:
        if reason := self._pool.disagreement(supervisor, ready):
            _log.error("worker refused", device=supervisor.device, reason=reason)
            supervisor.refuse(reason, steady)
            return
        said = ready.said
        if self._home_first.holds(supervisor, ready, self._store.ledger.fingerprint()):
            _log.info("ready, and waits until a device of this machine is", **self._on(supervisor))
            return
        categories = None if said.categories is None else {one.name for one in said.categories}
        require_metrics(self._boards, [metric.name for metric in said.metrics], categories)
        self._snapshot.add(said.taken)
        self._snapshot.accept()
        self._snapshot.look()
        again = self._store.ledger.set_fingerprint(said.fingerprint, now)
        if again.changed:
            self._start_over_elsewhere(supervisor, said.fingerprint, now, steady)
            lost = self._store.queue.failed_unpinned(SET_UP)
            self.to_bring_back = tuple(sha for name, sha in lost if self._source.still_there(name))
        self.changed = True
        took = {"took": text} if (text := supervisor.seconds_each(steady)) else {}
        _log.info("worker ready", device=said.device, images=said.images, **took, **ready.versions)
        for warning in said.warnings:
            _log.warning(warning)
        self.doubts.take_drawn(ready.random_metrics)
        for note in said.notes:
            if note not in self._told:  # each worker that is started anew says it
                self._told.add(note)
                _log.info(note)
        if again.waiting:
            names = ", ".join(again.waiting)
            _log.warning("the evaluation changed, evaluating anew", checkpoints=names)
        if again.standing:
            names = ", ".join(again.standing)
            _log.info("measured in this evaluation before, their scores stand", checkpoints=names)

    def _start_over_elsewhere(
        self, supervisor: Supervisor, fingerprint: str, now: float, steady: float
    ) -> None:
        """End workers on other hosts that measure by another evaluation than the one of home."""
        for other in self._pool:
            if other is supervisor or other.ready is None or other.held:
                continue
            if other.ready.said.fingerprint != fingerprint:
                leases = other.leases
                said = f"{other.device} measures otherwise than {supervisor.device} by now"
                other.start_over(said, steady)
                self._given.give_back(leases, now)

    def _take_score(self, evaluated: Evaluated, now: float) -> None:
        metric, evaluation = self._boards[0].metric, evaluated.evaluation
        score = metric.value(evaluation.values)
        why = why_unranked(metric, evaluation.values, evaluation.details)
        self._store.ledger.record_score(
            evaluated.lease,
            evaluated.evaluation,
            score,
            started=now - evaluated.seconds,
            now=now,
            reason=why,
        )
        self.changed = True
        self.misfit = None
        lease = evaluated.lease
        said = {
            "checkpoint": lease.name,
            "global_step": lease.global_step,
            "score": score,
            "seconds": round(evaluated.seconds, 2),
        }
        if why is None:
            _log.info("scored", **said)
        else:
            reason = why.removeprefix(CANNOT_RANK)
            _log.warning("scored, but the score cannot rank", **said, reason=reason)
        for warning in evaluated.evaluation.details.get("metric_warnings") or ():
            _log.warning(warning, checkpoint=lease.name)
        with contextlib.suppress(StoreError):  # the score is recorded, and looked at next time
            self.doubts.judge_latency()

    def _on(self, supervisor: Supervisor) -> dict[str, str]:
        """Return which device is meant, where there are several."""
        return {"device": supervisor.device} if len(list(self._pool)) > 1 else {}

    def _take_rejection(self, rejected: Rejected, now: float, steady: float) -> None:
        lease, reason = rejected.lease, f"{rejected.code}: {rejected.message}"
        if rejected.code == DATASET_CHANGED:
            self._given.give_back((lease,), now)
            said = f"the eval data changed, starting a new worker: {rejected.message}"
            for supervisor in self._pool:
                leases = supervisor.leases
                supervisor.start_over(said, steady)
                self._given.give_back(leases, now)
            _log.warning("the eval data changed, starting a new worker", reason=rejected.message)
        elif rejected.permanent:
            by_set_up = rejected.code in SET_UP
            self._fail(lease, reason, now, may_pass=by_set_up)
            self.misfit = rejected if by_set_up else self.misfit
        else:
            self._retry_or_fail(lease, reason, now, counts=rejected.counts)

    def _retry_or_fail(
        self, lease: Lease, reason: str, now: float, *, alone: bool = True, counts: bool = True
    ) -> None:
        if not counts:
            self._store.queue.retry_later(lease, reason, now, 0.0, counted=False)
            _log.warning("evaluation broke off", checkpoint=lease.name, reason=reason, counts=False)
            return
        # Of two that shared a broken worker one is innocent: each is tried again, alone.
        if alone and lease.attempt >= self._max_attempts:
            said = f"{reason} (attempt {lease.attempt}, the last)"
            self._fail(lease, said, now, may_pass=True)
            return
        again_in = delay(lease.attempt, self._pool.retry_seconds)
        self._store.queue.retry_later(lease, reason, now, again_in)
        _log.warning(
            "evaluation broke off", checkpoint=lease.name, reason=reason, again_in=again_in
        )

    def _fail(self, lease: Lease, reason: str, now: float, *, may_pass: bool = False) -> None:
        self._store.queue.record_failure(lease, reason, now, may_pass=may_pass)
        self.changed = True
        _log.error("checkpoint failed", checkpoint=lease.name, reason=reason)
