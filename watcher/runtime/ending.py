"""Ending: when a run that is to end by itself is over, and what it must not end without saying."""

from __future__ import annotations

import math

import structlog

from watcher.config.service import ServiceSettings
from watcher.errors import WorkerRefused, WorkLeft
from watcher.evaluation.dispatcher import Dispatcher
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.backoff import Backoff, Hindrance
from watcher.runtime.phases import RunPhase
from watcher.store import Store
from watcher.tensorboard.keeper import EventFiles

_log = structlog.get_logger(__name__)


class Ending:
    """Looks at all stages of one run. Times are steady seconds.

    Attributes:
        last_activity: When something was found or evaluated last, or the run began.
    """

    def __init__(
        self,
        service: ServiceSettings,
        store: Store,
        intake: Intake,
        dispatcher: Dispatcher,
        projector: Projector,
        event_files: EventFiles,
        *,
        grace_seconds: float,
        backoff: Backoff,
        steady: float,
    ) -> None:
        self.last_activity = steady
        self._hindrance = Hindrance()
        self._limit = service.exit_when_idle
        self._grace_seconds = grace_seconds
        self._store = store
        self._intake = intake
        self._dispatcher = dispatcher
        self._pool = dispatcher.pool
        self._projector = projector
        self._event_files = event_files
        self._backoff = backoff

    @property
    def problem(self) -> str | None:
        """What cannot be done now, though it is to be done: find, pin or promote a checkpoint."""
        return self._intake.problem or self._projector.problem

    def follow(self, steady: float) -> None:
        """Take note of how long `problem` lasts; tell of it when it does, and when it is over."""
        problem = self.problem
        told = self._hindrance.follow(problem, steady)
        if told == "lasts":
            _log.warning("cannot be done now, trying again", reason=problem)
        elif told == "over":
            _log.info("found, pinned and promoted again")

    def due(self) -> float:
        """Return when to call `follow` again, if nothing happens before."""
        return self._hindrance.due()

    def idle_at(self, steady: float, phase: RunPhase, *, wanted: bool) -> float:
        """Return when the run ends if nothing happens, infinite while there is something to do.

        What it is waited for wakes the loop, or is due at a time of its own. A problem is waited
        for as long as for an unfinished checkpoint.

        Args:
            steady: Now.
            phase: The run's.
            wanted: The loop has to look or promote again.

        Raises:
            WorkLeft: what waits will not be evaluated soon, or nothing that came would be.
        """
        draining = phase is RunPhase.DRAINING
        limit = 0.0 if draining else self._limit
        if limit is None:
            return math.inf
        if not draining:
            limit = max(limit, self._intake.source.delay_seconds)
        if waiting := self._store.queue.open_count() - self._intake.unpinned:
            if steady - self.last_activity >= limit:
                self._end_if_hopeless(waiting)
            return math.inf
        if self._pool.busy or self._event_files.busy or self._projector.unfinished:
            return math.inf
        if not draining and not self._pool.was_ready:
            # A set-up that cannot evaluate must be told, not slept through.
            if steady - self.last_activity >= limit:
                self._end_if_hopeless(0)
            return math.inf
        if self.problem:
            given_up_at = self._hindrance.since + self._grace_seconds
            return max(self.last_activity + limit, given_up_at, self._intake.given_up_at())
        if self._intake.waiting or (draining and wanted) or self._projector.evict_at < math.inf:
            return math.inf
        return self.last_activity + limit

    def gives_up(self, steady: float, *, to_finish: bool) -> bool:
        """True when the database or the disk fail for so long that the end is not put off more.

        Args:
            steady: Now.
            to_finish: It is to end once nothing is left to do, whatever the settings say.
        """
        limit = 0.0 if to_finish else self._limit
        if limit is None or not self._backoff.present or self._pool.leases:
            return False
        lasted = steady - self._backoff.since >= self._grace_seconds
        return lasted and steady - self.last_activity >= limit

    def require_finished(self) -> None:
        """Raise WorkLeft when the run ends with something that it could not do."""
        reason = self._backoff.reason if self._backoff.present else self.problem
        if reason:
            waiting = self._intake.held_up
            names = f" ({', '.join(waiting[:3])}{' ...' if len(waiting) > 3 else ''})"
            raise WorkLeft(
                f"the run ends with work left{names if waiting else ''}: {reason}",
                hint="mend that and start the watcher again: it goes on with what is there then",
            )

    def require_fit(self) -> None:
        """End when the set-up is at fault: nothing was scored, and nothing is left to try.

        Raises:
            WorkerRefused: no checkpoint fits pipeline.config.
        """
        outcomes, intake = self._dispatcher.outcomes, self._intake
        misfit = outcomes.misfit
        if misfit is None or intake.waiting or intake.more or outcomes.to_bring_back:
            return
        if self._store.queue.open_count():
            return
        outcomes.misfit = None
        if not self._store.ledger.measured_lately()[1]:
            raise WorkerRefused(
                misfit.code,
                f"no checkpoint could be scored: {misfit.lease.name} failed, {misfit.message}",
                hint="start again with the pipeline.config that the trainer runs with: what failed"
                " is evaluated then",
            )

    def _end_if_hopeless(self, waiting: int) -> None:
        reason = self._pool.why_hopeless()
        if reason is None and waiting and (here := self._pool.why_hopeless(near=True)):
            # Only averages wait, which no other machine writes.
            reason = None if self._store.queue.waiting_ids() else here
        if reason:
            what = f"{waiting} checkpoints" if waiting else "checkpoints"
            raise WorkLeft(
                f"{what} cannot be evaluated: {reason}",
                hint="nothing is lost: mend that and start again, and it goes on with what waits",
            )
