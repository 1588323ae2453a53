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
from watcher.decision.board import Board
from watcher.errors import ConfigError, WorkerError, WorkerRefused
from watcher.evaluation.averages import AverageWriting
from watcher.evaluation.events import WorkerEvent
from watcher.evaluation.given_out import GivenOut
from watcher.evaluation.machines import Machines
from watcher.evaluation.outcomes import Outcomes
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.shards import Shards
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import Supervisor
from watcher.protocols import CheckpointSource
from watcher.store import Store
from watcher.types import Lease

_UNPINNED = "its pin was deleted, and MODEL_DIR has no more of it"

_log = structlog.get_logger(__name__)


class Dispatcher:
    """The middle stages of one run: queue to workers to ledger.

    Attributes:
        pool: The workers' supervisors.
        outcomes: What the workers said, as it was recorded.
        machines: Which workers may evaluate, by the machine that they run on.
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
        self._store, self._source = store, source
        attempts = carrier.max_attempts
        self.pool = WorkerPool(supervisors)
        for supervisor in supervisors:
            supervisor.to_check = self._newest
        self._averages = AverageWriting(store, source, pins_dir, attempts)
        self.machines = Machines(store, self.pool, carrier.accept_host_differences, attempts)
        self._shards = Shards(carrier.shard)
        self._given = GivenOut(store, carrier, self._averages, self.machines, self._shards)
        self.outcomes = Outcomes(boards, attempts, store, source, self.pool, self._given, snapshot)
        # What each worker said and when, until the database has it.
        self._unrecorded: deque[tuple[Supervisor, WorkerEvent, float, float]] = deque()

    def record(self, now: float, steady: float) -> bool:
        """Take what the workers have to say and record all of it.

        Returns:
            True when the ledger or a checkpoint's outcome changed.

        Raises:
            ConfigError: the worker reports that the metric does not exist.
            StoreError: the database cannot be written; what was said is kept for the next call.
            WorkerRefused, WorkerError: as `WorkerPool.tick`.
        """
        self.outcomes.changed = False
        for who, said in self.pool.tick(steady):
            if event := self._shards.take(said, steady):
                self._unrecorded.append((who, event, now, steady))
        self._unrecorded += ((*one, now, steady) for one in self.outcomes.released())
        while self._unrecorded:
            try:
                self.outcomes.take(*self._unrecorded[0])
            except (ConfigError, WorkerRefused, WorkerError):
                self._unrecorded.popleft()  # it is told once, and not again at the end
                raise
            self._unrecorded.popleft()
        if self.pool.owed != self._store.replicates.awaited:
            self._store.replicates.awaited, self.outcomes.changed = self.pool.owed, True
        self._given.give_back((), now)
        self.outcomes.changed = self._averages.go_on(now) or self.outcomes.changed
        return self.outcomes.changed

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
                self.outcomes.take(*self._unrecorded.popleft())
        self._given.give_back(leases, now)
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
        self._given.give_back(leases, now)

    def give_out(self, now: float, steady: float) -> None:
        """Give each worker that can take one a pending checkpoint; those without any come first.

        Raises:
            WorkerRefused, WorkerError: no machine is left whose numbers are those of the scores.
        """
        self.machines.admit(self._something_waits(now), now, steady)
        self._given.give_back(self.machines.take_returned(), now)
        self._given.keep(self.pool.leases)
        for row in self._store.queue.waiting_unpinned(now):
            self._store.queue.fail_unpinned(row["id"], row["name"], _UNPINNED, now)
        idle = [one for one in self.pool if one.takes]
        given = []
        for supervisor in sorted(idle, key=lambda one: len(one.leases)):
            if lease := self._choose(supervisor, now):
                self._given.began(lease, steady)
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
        queue, seconds = self._store.queue, self._given.seconds
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
            self._given.trials.add(lease.token)
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
