"""Averages: have a worker write them, and take what it wrote as a pin that waits to be evaluated.

What the worker writes lies among the half-made pins until it is verified, as a checkpoint that is
being pinned does; what a crash leaves there is swept away at the next start, and asked for again,
since the database says what is to be averaged.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from watcher.errors import CorruptCheckpoint
from watcher.evaluation.aside import Aside
from watcher.evaluation.events import AverageWritten, Progressed, Rejected, WorkerEvent
from watcher.evaluation.supervise import Supervisor
from watcher.files.atomic_io import NEW
from watcher.files.slices import Job, Progress, Unfinished, Work, slice_end
from watcher.protocols import CheckpointSource
from watcher.store import Store
from watcher.store.averages import AverageJob
from watcher.types import Lease, Pin

_log = structlog.get_logger(__name__)

JOB = "average"


class AverageWriting:
    """The averages of one run that are to be written: one at a time, when nothing else waits."""

    def __init__(
        self, store: Store, source: CheckpointSource, pins_dir: Path, max_attempts: int
    ) -> None:
        self._store, self._source, self._pins_dir = store, source, pins_dir
        self._max_attempts = max_attempts
        self._asked: tuple[Lease, AverageJob] | None = None
        self._settling: tuple[AverageJob, Job[Pin]] | None = None
        self._settled: tuple[AverageJob, Pin] | None = None

    def waits(self) -> bool:
        """True when an average can be given to a worker."""
        if self._asked or self._settling or self._settled:
            return False
        return self._store.averages.waiting() is not None

    def is_due(self, supervisors: Iterable[Supervisor]) -> bool:
        """True when there is something to do now: to verify, or to give to one of these."""
        if self._settling or self._settled:
            return True
        return any(_can_take(supervisor) for supervisor in supervisors) and self.waits()

    def offer(self, supervisor: Supervisor, now: float, steady: float) -> None:
        """Have a worker write the next average, if there is one and nothing else is with it."""
        if not _can_take(supervisor):
            return
        assert supervisor.ready
        while self.waits() and (job := self._store.averages.waiting()):
            parents = self._store.averages.parents(job)
            gone = [name for name, prefix in parents if prefix is None]
            if JOB not in supervisor.ready.said.capabilities.jobs:
                kind = supervisor.start_request.kind
                self._fail(job, f"a worker of the kind {kind} cannot average", now)
            elif gone:
                self._fail(job, f"the files of {', '.join(gone)} are gone", now)
            else:
                lease = self._lease(job)
                prefixes = [prefix for _, prefix in parents if prefix]
                supervisor.average(lease, prefixes, steady, job.recompute_batch_norm)

    def require_near(self, supervisors: Iterable[Supervisor], now: float) -> None:
        """Fail what waits where each device is another machine's: nobody will ever write it."""
        if all(supervisor.far for supervisor in supervisors):
            while self.waits() and (job := self._store.averages.waiting()):
                self._fail(job, "no device of this machine is left to write it", now)

    def _lease(self, job: AverageJob) -> Lease:
        token = secrets.token_hex(8)
        working = self._pins_dir / f"{NEW}{token}"
        working.mkdir(mode=0o700, parents=True)
        id_, prefix = Aside.AVERAGE.id(job.id), working / job.name
        lease = Lease(id_, token, job.name, 0, prefix, job.attempts + 1)
        self._asked = (lease, job)
        return lease

    def holds(self, lease: Lease) -> bool:
        """True when a lease is that of an average."""
        return self._asked is not None and self._asked[0].token == lease.token

    def give_back(self, lease: Lease) -> bool:
        """Ask for an average again whose worker ended to no fault of it.

        Returns:
            False where the lease is not that of an average.
        """
        if not self.holds(lease):
            return False
        shutil.rmtree(lease.prefix.parent, ignore_errors=True)
        self._asked = None
        return True

    def broke(self, lease: Lease, reason: str, now: float) -> None:
        """Note that writing it broke a worker, or could not be done for a reason that may pass."""
        assert self._asked is not None
        job = self._asked[1]
        self.give_back(lease)
        self._store.averages.count_attempt(job)
        if job.attempts + 1 >= self._max_attempts:
            self._fail(job, f"{reason} (attempt {job.attempts + 1}, the last)", now)
        else:
            _log.warning("averaging broke off", average=job.name, reason=reason)

    def take(self, event: WorkerEvent, now: float) -> bool:
        """Take an answer about an average; False for any other event."""
        match event:
            case Progressed(lease) if self.holds(lease):
                pass
            case AverageWritten(lease) if self.holds(lease):
                self._written(event, now)
            case Rejected(lease) if self.holds(lease):
                self._rejected(event, now)
            case _:
                return False
        return True

    def _rejected(self, said: Rejected, now: float) -> None:
        """Note why a worker did not write it."""
        assert self._asked is not None
        job, reason = self._asked[1], f"{said.code}: {said.message}"
        if said.permanent:
            self.give_back(said.lease)
            self._fail(job, reason, now)
        else:
            self.broke(said.lease, reason, now)

    def _written(self, said: AverageWritten, now: float) -> None:
        """Begin to verify what the worker wrote, where that is what was asked for."""
        assert self._asked is not None
        job, lease = self._asked[1], said.lease
        if job.recompute_batch_norm and said.batch_norm is None:
            self.give_back(lease)
            self._fail(job, "the worker cannot recompute batch normalisation", now)
            return
        self._asked = None
        if said.batch_norm:
            job = replace(job, batch_norm=msgspec.structs.asdict(said.batch_norm))

        def settling(progress: Progress) -> Work[Pin]:
            try:
                return (
                    yield from self._source.settle(lease.prefix, self._pins_dir, None, progress)
                )
            finally:
                shutil.rmtree(lease.prefix.parent, ignore_errors=True)

        self._settling = (job, Job(settling))

    def go_on(self, now: float) -> bool:
        """Go on verifying, for a slice of time; True when an average waits to be evaluated now."""
        if self._settling:
            job, work = self._settling
            try:
                self._settled = (job, work.run(slice_end()))
            except Unfinished:
                return False
            except (OSError, CorruptCheckpoint) as error:
                self._settling = None
                self._fail(job, f"what the worker wrote is not whole: {error}", now)
                return True
            self._settling = None
        if self._settled is None:
            return False
        job, pin = self._settled
        self._store.averages.record(job, replace(pin, method="average"), now)
        self._settled = None
        _log.info("averaged", average=job.name, of=len(job.parents), asked=job.asked)
        return True

    def close(self) -> None:
        """End what is unfinished, and leave nothing of it."""
        if self._settling:
            self._settling[1].drop()
        self._settling = None

    def _fail(self, job: AverageJob, reason: str, now: float) -> None:
        self._store.averages.fail(job, reason, now)
        _log.error("cannot average", average=job.name, reason=reason)


def _can_take(supervisor: Supervisor) -> bool:
    """True when a worker is idle, on a device that works."""
    if supervisor.far:  # what it writes lies on another disk
        return False
    idle = supervisor.ready is not None and supervisor.takes and not supervisor.leases
    return idle and supervisor.breaker.closed
