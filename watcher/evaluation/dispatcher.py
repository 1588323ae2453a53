"""Dispatcher: from the queue to the workers, and from the workers into the ledger.

Wires queue, supervisors and ledger: gives each worker what is pending, renews and takes back
leases, and records what came of each evaluation, whatever came of it.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import structlog

from watcher.config.carrier import LocalSettings
from watcher.config.policies import require_metrics
from watcher.decision.board import Board
from watcher.decision.retry import delay
from watcher.decision.unmeasured import CANNOT_RANK, why_unranked
from watcher.errors import ConfigError, StoreError, StoreRefused, WorkerError, WorkerRefused
from watcher.evaluation.averages import AverageWriting
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
from watcher.evaluation.home_first import HomeFirst
from watcher.evaluation.machines import Machines
from watcher.evaluation.peace import SLOWER
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.shards import Shards
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import DATASET_CHANGED, Supervisor
from watcher.protocols import CheckpointSource
from watcher.store import LeaseLost, Store, iso
from watcher.types import Lease

_log = structlog.get_logger(__name__)

# Another pipeline.config may fit the checkpoint: it is the set-up that fails, and may be mended.
SET_UP = frozenset({"unmatched_variables"})

_RENEW_SECONDS = 20.0
_LEASE_MARGIN_SECONDS = 60.0


class Dispatcher:
    """The middle stages of one run: queue to workers to ledger.

    Attributes:
        pool: The workers' supervisors.
        snapshot: What each worker is set up from.
        doubts: What the settings decide by though it is noise.
        machines: Which workers may evaluate, by the machine that they run on.
        refused: How many answers came when their lease was lost.
        misfit: The last that failed by the set-up, None where something was scored since.
        to_bring_back: sha256 of what failed by an earlier set-up and has no pin any more, while
            MODEL_DIR still has it. Whoever puts those back into the queue empties it.
    """

    def __init__(
        self,
        boards: Sequence[Board],
        carrier: LocalSettings,
        store: Store,
        source: CheckpointSource,
        supervisors: Sequence[Supervisor],
        snapshot: Snapshot,
        pins_dir: Path,
    ) -> None:
        self._boards, self._carrier = boards, carrier
        self._store = store
        self._source = source
        self.pool = WorkerPool(supervisors)
        for supervisor in supervisors:
            supervisor.to_check = self._newest
        self._home_first = HomeFirst(self.pool)
        self.refused = 0
        self.misfit: Rejected | None = None
        self.to_bring_back: tuple[str, ...] = ()
        self.snapshot = snapshot
        # What each worker said and when, until the database has it.
        self._unrecorded: deque[tuple[Supervisor, WorkerEvent, float, float]] = deque()
        self._returning: deque[Lease] = deque()
        self._renewed: dict[str, float] = {}
        self._changed = False
        self._told: set[str] = set()
        # Tokens of what was evaluated only to see whether a device works.
        self._trials: set[str] = set()
        # Whose attempts were given back once: what fails again after the device worked counts.
        self._forgiven: set[int] = set()
        self.doubts = Doubts(self._boards, store.ledger)
        self._averages = AverageWriting(store, source, pins_dir, carrier.max_attempts)
        tolerance, attempts = carrier.accept_host_differences, carrier.max_attempts
        self.machines = Machines(store, self.pool, tolerance, attempts)
        self._shards = Shards(carrier.shard)

    def record(self, now: float, steady: float) -> bool:
        """Take what the workers have to say and record all of it.

        Returns:
            True when the ledger or a checkpoint's outcome changed.

        Raises:
            ConfigError: the worker reports that the metric does not exist.
            StoreError: the database cannot be written; what was said is kept for the next call.
            WorkerRefused, WorkerError: as `WorkerPool.tick`.
        """
        self._changed = False
        for who, said in self.pool.tick(steady):
            if event := self._shards.take(said, steady):
                self._unrecorded.append((who, event, now, steady))
        self._unrecorded += ((*one, now, steady) for one in self._home_first.released())
        while self._unrecorded:
            try:
                self._record_one(*self._unrecorded[0])
            except (ConfigError, WorkerRefused, WorkerError):
                self._unrecorded.popleft()  # it is told once, and not again at the end
                raise
            self._unrecorded.popleft()
        if self.pool.owed != self._store.replicates.awaited:
            self._store.replicates.awaited, self._changed = self.pool.owed, True
        self._give_back((), now)
        self._changed = self._averages.go_on(now) or self._changed
        return self._changed

    def shift_times(self, seconds: float) -> None:
        """Follow a wall clock that was set: what was said before it keeps its distance."""
        self._unrecorded = deque(
            (who, said, at + seconds, then) for who, said, at, then in self._unrecorded
        )

    def close(self, leases: tuple[Lease, ...], now: float) -> None:
        """Record what is left, and return the leases of workers that were ended.

        Raises:
            StoreError: the database cannot be written.
        """
        while self._unrecorded:
            # Nothing is begun any more.
            with contextlib.suppress(ConfigError, WorkerRefused, WorkerError):
                self._record_one(*self._unrecorded.popleft())
        self._give_back(leases, now)
        self._averages.close()

    def _newest(self) -> str | None:
        """Return the prefix of the newest checkpoint that waits, or that the trainer still has."""
        for row in reversed(self._store.queue.pinned()):
            if row["state"] in ("pending", "failed") or self._source.still_there(row["name"]):
                return str(row["prefix"])
        return None

    def take_back_expired(self, now: float) -> None:
        """Return leases that ran out to the queue, and end the workers that held them."""
        expired = self._store.queue.return_expired(now)
        for name in expired.values():
            _log.warning("lease expired", checkpoint=name)
        for supervisor in self.pool:
            if any(lease.checkpoint_id in expired for lease in supervisor.leases):
                self._abandon(supervisor, now)

    def _abandon(self, supervisor: Supervisor, now: float) -> None:
        """End a worker; what it evaluates goes back into the queue, to no fault of its own."""
        leases = supervisor.leases
        supervisor.abandon()
        self._give_back(leases, now)

    def _give_back(self, leases: tuple[Lease, ...], now: float) -> None:
        self._returning += (one for one in leases if not self._shards.drop(one))
        while self._returning:
            lease = self._returning[0]
            if not (self._averages.give_back(lease) or self.machines.give_back(lease)):
                with contextlib.suppress(LeaseLost):  # it expired, and is back already
                    self._store.queue.give_back(lease, now)
            self._returning.popleft()

    def give_out(self, now: float, steady: float) -> None:
        """Give each worker that can take one a pending checkpoint; those without any come first.

        Raises:
            WorkerRefused, WorkerError: no machine is left whose numbers are those of the scores.
        """
        self.machines.admit(self._something_waits(now), now, steady)
        self._give_back(self.machines.take_returned(), now)
        held = {lease.token for lease in self.pool.leases}
        self._renewed = {token: at for token, at in self._renewed.items() if token in held}
        idle = [one for one in self.pool if one.takes]
        given = []
        for supervisor in sorted(idle, key=lambda one: len(one.leases)):
            if lease := self._choose(supervisor, now):
                self._renewed[lease.token] = steady
                given.append((supervisor, lease))
                idle.remove(supervisor)
        self._shards.begin(given, idle, steady)
        self._averages.require_near(self.pool, now)
        for supervisor in idle:
            self._averages.offer(supervisor, now, steady)
        self.pool.want(self._something_waits(now))

    def _something_waits(self, now: float) -> bool:
        due = self._store.queue.next_due()
        return (due is not None and due <= now) or self._averages.waits()

    def _choose(self, supervisor: Supervisor, now: float) -> Lease | None:
        queue, seconds = self._store.queue, self._lease_seconds()
        if supervisor.breaker.closed:
            # Beside another evaluation, only one that broke no worker before. What another host
            # may lack comes last there, since it is no attempt and would come first again.
            lost = tuple(supervisor.breaker.lost) if supervisor.far else ()
            untried = bool(supervisor.leases)
            return queue.lease_next(now, seconds, untried=untried, after=lost)
        # To probe: one that did not break off here, else one that is known to be good. Where there
        # is neither, that which was tried the longest ago.
        tried = tuple(supervisor.breaker.lost)
        lease = queue.lease_next(now, seconds, without=tried)
        due = queue.next_due()
        trial = lease is None and not supervisor.breaker.by_ended
        if trial and due is not None and due <= now and (lease := queue.known_good()):
            self._trials.add(lease.token)
        return lease or queue.lease_next(now, seconds, after=tried)

    def next_due(self) -> float:
        """Return when there is something to give out, infinite when a worker has to be free first.

        In seconds since the epoch. What may not be given out beside a running evaluation is not
        waited for by the clock: the worker's next message wakes the loop.
        """
        pool = self.pool
        if self._averages.is_due(pool):
            return -math.inf
        if not (pool.free or pool.resting or pool.has_room):
            return math.inf
        due = self._store.queue.next_due(untried=not (pool.free or pool.resting))
        return math.inf if due is None else due

    def _lease_seconds(self) -> float:
        # The supervisor gives a silent worker up before its lease runs out.
        carrier = self._carrier
        slower = 1 if carrier.peace == "off" else SLOWER
        return slower * carrier.stall_timeout + _LEASE_MARGIN_SECONDS

    def _record_one(
        self, supervisor: Supervisor, event: WorkerEvent, now: float, steady: float
    ) -> None:
        try:
            match event:
                case Progressed(lease) | Evaluated(lease) | Resampled(lease) | Unusable(lease) if (
                    lease.token in self._trials
                ):
                    pass
                case _ if self._averages.take(event, now) or self.machines.take(event, now):
                    pass
                case Resampled(lease, fingerprint, replicates):
                    keys = {key for board in self._boards for key in board.metric.keys if key[1]}
                    self._store.replicates.record(
                        lease.checkpoint_id, fingerprint, replicates, keys
                    )
                    self._changed = True
                    if not replicates.scheme:
                        _log.warning(
                            "its score has no interval, the worker gave no usable replicates",
                            checkpoint=lease.name,
                        )
                case Starting(phase):
                    supervisor.phase_at = iso(now)
                    _log.info(f"starting: {phase}", **self._on(supervisor))
                case Ready():
                    self._take_ready(supervisor, event, now, steady)
                case Progressed(lease):
                    if steady - self._renewed.get(lease.token, -math.inf) > _RENEW_SECONDS:
                        self._renewed[lease.token] = steady
                        self._store.queue.renew(lease, now, self._lease_seconds())
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
        except LeaseLost as error:
            self.refused += not isinstance(event, Progressed)
            _log.warning("answer refused", reason=error.message)
        except (StoreRefused, TypeError, ValueError, OverflowError) as error:
            if isinstance(event, Evaluated):
                self._refuse_answer(event.lease, str(error), now)
            else:
                _log.error("answer refused", reason=f"it cannot be recorded: {error}")

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
            if self.machines.broke(held, lost.reason, counts=lost.counts):
                continue
            if self._averages.holds(held):
                if lost.counts:
                    self._averages.broke(held, lost.reason, now)
                else:
                    self._averages.give_back(held)
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
        self._changed = self._changed or bool(back)
        _log.error("device held back", device=held.device, reason=held.reason, no_attempts_of=back)

    def _take_ready(self, supervisor: Supervisor, ready: Ready, now: float, steady: float) -> None:
        if reason := self.pool.disagreement(supervisor, ready):
            _log.error("worker refused", device=supervisor.device, reason=reason)
            supervisor.refuse(reason, steady)
            return
        said = ready.said
        if self._home_first.holds(supervisor, ready, self._store.ledger.fingerprint()):
            _log.info("ready, and waits until a device of this machine is", **self._on(supervisor))
            return
        categories = None if said.categories is None else {one.name for one in said.categories}
        require_metrics(self._boards, [metric.name for metric in said.metrics], categories)
        self.snapshot.add(said.taken)
        self.snapshot.accept()
        self.snapshot.look()
        again = self._store.ledger.set_fingerprint(said.fingerprint, now)
        if again.changed:
            self._start_over_elsewhere(supervisor, said.fingerprint, now, steady)
            lost = self._store.queue.failed_unpinned(SET_UP)
            self.to_bring_back = tuple(sha for name, sha in lost if self._source.still_there(name))
        self._changed = True
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
        for other in self.pool:
            if other is supervisor or other.ready is None or other.held:
                continue
            if other.ready.said.fingerprint != fingerprint:
                leases = other.leases
                said = f"{other.device} measures otherwise than {supervisor.device} by now"
                other.start_over(said, steady)
                self._give_back(leases, now)

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
        self._changed = True
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
        return {"device": supervisor.device} if len(list(self.pool)) > 1 else {}

    def _take_rejection(self, rejected: Rejected, now: float, steady: float) -> None:
        lease, reason = rejected.lease, f"{rejected.code}: {rejected.message}"
        if rejected.code == DATASET_CHANGED:
            self._give_back((lease,), now)
            said = f"the eval data changed, starting a new worker: {rejected.message}"
            for supervisor in self.pool:
                leases = supervisor.leases
                supervisor.start_over(said, steady)
                self._give_back(leases, now)
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
        if alone and lease.attempt >= self._carrier.max_attempts:
            said = f"{reason} (attempt {lease.attempt}, the last)"
            self._fail(lease, said, now, may_pass=True)
            return
        again_in = delay(lease.attempt, self.pool.retry_seconds)
        self._store.queue.retry_later(lease, reason, now, again_in)
        _log.warning(
            "evaluation broke off", checkpoint=lease.name, reason=reason, again_in=again_in
        )

    def _fail(self, lease: Lease, reason: str, now: float, *, may_pass: bool = False) -> None:
        self._store.queue.record_failure(lease, reason, now, may_pass=may_pass)
        self._changed = True
        _log.error("checkpoint failed", checkpoint=lease.name, reason=reason)
