"""The daemon: one loop that wires the stages together.

Signal handlers and file system events only wake the loop. A step looks at model_dir, takes what
the workers have to say, records it, gives them the next checkpoints and brings `best/` and the
sentinel up to date. Everything it needs to know after a restart is in the database.

How far the run has come is a `RunPhase`; what is put off to a later turn is a `Task`.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from watcher.config import Settings
from watcher.config.policies import boards
from watcher.control.channel import Answer, ControlChannel, Request
from watcher.control.commands import Commands
from watcher.decision.retry import Retry
from watcher.errors import ModelDirError, StoreError, StoreLost
from watcher.evaluation.dispatcher import Dispatcher
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import Supervisor
from watcher.files.slices import Unfinished, slice_end
from watcher.heartbeat import Heartbeat
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.acceptance import Acceptance
from watcher.runtime.backoff import Backoff
from watcher.runtime.ending import Ending
from watcher.runtime.news import News
from watcher.runtime.phases import Event, RunPhase, after
from watcher.runtime.task import Task
from watcher.runtime.wakeup import WakeUp
from watcher.store import PINS_NAME, Store
from watcher.tensorboard.keeper import EventFiles

_log = structlog.get_logger(__name__)

# What waits inside SQLite neither pins nor hears a signal: the loop itself tries again.
_BUSY_SECONDS = 0.1
_BUSY_AGAIN_SECONDS = 0.02
_BUSY_AT_END_SECONDS = 2.0
_PROJECT_RETRY_SECONDS = 0.5
_CLOCK_JUMP_SECONDS = 2.0
# How often the live view is drawn while a worker starts, which shows its seconds.
_STARTING_SECONDS = 1.0


class Daemon:
    """The loop of one run. `run` returns when it is asked to stop or when it is idle.

    Attributes:
        wakeup: What others wake it and ask it to end by.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        intake: Intake,
        projector: Projector,
        supervisors: Sequence[Supervisor],
        *,
        snapshot: Snapshot | None = None,
        channel: ControlChannel | None = None,
        given: Mapping[str, str] | None = None,
        on_step: Callable[[Heartbeat], None] = lambda _: None,
        wakeup: WakeUp | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rescan_seconds = settings.source.rescan_seconds
        self._store = store
        self._intake = intake
        self._projector = projector
        self._channel = channel
        self._commands = Commands(store, intake.source, settings.run.state_path / PINS_NAME)
        self._snapshot = snapshot or Snapshot()
        self._dispatcher = Dispatcher(
            boards(settings.run, settings.ranking),
            settings.carrier,
            store,
            intake.source,
            supervisors,
            self._snapshot,
            settings.run.state_path / PINS_NAME,
        )
        self._pool = self._dispatcher.pool
        self._event_files = EventFiles(
            settings.run.state_path,
            settings.run.eval_path,
            enabled=settings.exports.tensorboard,
            categories=settings.exports.tensorboard_categories,
        )
        self._on_step = on_step
        self._clock, self._steady = clock, steady
        self.wakeup = wakeup or WakeUp()
        intake.hints.watch(self.wakeup.wake)
        self._acceptance = Acceptance(settings, given or {}, store.ledger)
        self._news = News(store.ledger)
        self._phase = RunPhase.STARTING
        self._look_due, self._rescan_due, self._project_due = Task(), Task(), Task()
        self._serve_due = Task()
        self._project_retry = Retry(_PROJECT_RETRY_SECONDS, self._rescan_seconds)
        self._backoff = Backoff()
        self._ending = Ending(
            settings.service,
            store,
            intake,
            self._dispatcher,
            projector,
            self._event_files,
            grace_seconds=settings.source.patience(remote=bool(settings.run.place)),
            backoff=self._backoff,
            steady=steady(),
        )
        self._clock_lead = clock() - steady()

    def run(self) -> None:
        """Run until stopped or idle; the workers are gone and their leases returned afterwards.

        Raises:
            ConfigError: the worker reports that the metric does not exist.
            WorkerRefused: the worker reports that this set-up can never be evaluated.
            WorkerError: no worker could be started.
            StoreLost: the database was deleted, replaced or is damaged.
            WorkLeft: it was to end when all is done, and something lasts that cannot be done.
        """
        self._store.set_patience(_BUSY_SECONDS)
        try:
            self._heed()
            while not self._phase.is_over:
                seconds = self._guarded_step()
                with contextlib.suppress(StoreError):  # drawing reads the database too
                    self._on_step(self._heartbeat(seconds))
                if self._ending.gives_up(self._steady(), to_finish=self.wakeup.finish_asked):
                    self._on(Event.NOTHING_LEFT)
                if not self._phase.is_over:
                    self._wait(seconds)
                    self._heed()
            if self._phase is RunPhase.DONE:
                self._ending.require_finished()
                _log.info("idle, nothing left to do")
        finally:
            self._close()

    def _on(self, event: Event) -> None:
        self._phase = after(self._phase, event)

    def _heed(self) -> None:
        """Take note of what was asked for from outside."""
        if self.wakeup.finish_asked:
            self._on(Event.FINISH_ASKED)
        if self.wakeup.stop_asked:
            self._on(Event.STOP_ASKED)

    def _guarded_step(self) -> float:
        """Step; while the disk or the database fail, hold what there is and try again soon."""
        backoff = self._backoff
        try:
            if self._steady() >= backoff.retry_at:
                seconds = self.step()
                if backoff.present:
                    self._store.set_patience(_BUSY_SECONDS)
                if backoff.worked():
                    _log.info("going on again")
                return seconds
        except (StoreError, ModelDirError, OSError) as error:
            if isinstance(error, StoreLost):
                raise
            if reason := backoff.failed(error, self._steady()):
                _log.error("cannot go on, trying again", reason=reason)
            self._store.set_patience(_BUSY_AGAIN_SECONDS)
            # What was looked at may not have been recorded: look again at all of it.
            self._rescan_due.now()
            self._project_due.now()
            self._event_files.want()
        self._pin_meanwhile()
        return max(0.0, min(backoff.retry_at, self._look_due.due) - self._steady())

    def _pin_meanwhile(self) -> None:
        """Pin what there is while nothing can be recorded: the trainer does not wait for us."""
        self._store.require_present()
        self.wakeup.take()
        self._look_due.take(self._steady())
        with contextlib.suppress(OSError):
            self._intake.look(self._clock(), self._steady())
        if self._intake.more:
            self._look_due.now()

    def step(self) -> float:
        """Do all there is to do now; returns the seconds until there is more, if nothing wakes.

        Raises:
            StoreError: the database cannot be written now; nothing is lost by calling again.
        """
        now, steady = self._clock(), self._steady()
        if self._phase is RunPhase.STARTING:
            self._begin(now)
        self._follow_clock(now, steady)
        # What the worker says is taken first, at the time it was said: a lease that runs out
        # while the database is locked was still held when the answer came.
        if self._dispatcher.record(now, steady):
            self._ending.last_activity = steady
            self._project_due.now()
            self._event_files.want()
        self._acceptance.follow(now, able=self._pool.was_ready or self._pool.waiting)
        self._look(now, steady)
        self._serve(now, steady)
        self._dispatcher.take_back_expired(now)
        if not self._intake.recovering:
            self._dispatcher.give_out(now, steady)
            self._project(now, steady)
            self._bring_back(now)
            self._ending.require_fit()
        self._event_files.tick(steady)
        self._ending.follow(steady)
        self._publish(steady)
        wanted = self._look_due.is_wanted or self._project_due.is_wanted
        idle_at = self._ending.idle_at(steady, self._phase, wanted=wanted)
        due = min(self._next_due(now, steady), idle_at)
        if idle_at <= steady:
            self._on(Event.NOTHING_LEFT)
        return max(0.0, due - steady)

    # -- the stages

    def _begin(self, now: float) -> None:
        self._store.queue.return_all(now)
        self._acceptance.warn()
        self._intake.recover(now)
        self._event_files.want()
        self._on(Event.BEGUN)

    def _follow_clock(self, now: float, steady: float) -> None:
        """Keep leases and delays as long as they were when the wall clock was set."""
        jump = now - steady - self._clock_lead
        if abs(jump) < _CLOCK_JUMP_SECONDS:
            return
        self._store.queue.shift_times(jump)
        self._dispatcher.shift_times(jump)
        self._clock_lead += jump
        _log.warning("the clock was set", seconds=round(jump, 1))

    def _look(self, now: float, steady: float) -> None:
        if self.wakeup.take():
            self._look_due.now()
        self._heed()  # what was asked for since comes with a wake-up of its own
        to_finish = self._phase is RunPhase.FINISHING and self._intake.source.refresh()
        rescan = self._rescan_due.take(steady) or to_finish
        announced = self._look_due.take(steady)
        if announced or rescan or steady >= self._intake.due():
            # Before anything is taken from the folder: it may be another one, without our
            # database.
            self._store.require_present()
            if rescan:
                self._rescan_due.at(steady + self._rescan_seconds)
                self._project_due.now()  # files in best/ may have been touched by others
                self._snapshot.look()
            self._intake.look(now, steady, announced=announced)
            if self._intake.more:
                self._look_due.now()
            if to_finish:
                self._on(Event.LOOKED)
        if self._intake.write_down(now):
            # It may be one to keep whatever its score, or the first of a trainer that started over.
            self._ending.last_activity = steady
            self._project_due.now()
        self._news.tell(self._intake.hints.take_news(), self._snapshot.differences(), now)

    def _project(self, now: float, steady: float) -> None:
        if not self._acceptance.decides or not self._project_due.take(steady):
            return
        self._projector.update(now)
        if self._projector.problem:
            self._project_retry.failed(steady)
            self._project_due.hold_until(self._project_retry.at)
            self._project_due.now()
            return
        self._project_retry.worked()
        if self._projector.unfinished:
            self._project_due.now()
        else:
            self._project_due.at(self._projector.evict_at)

    def _serve(self, now: float, steady: float) -> None:
        """Carry out what a person asks for through the channel."""
        self._serve_due.take(steady)
        if self._channel is None or self._dispatcher.outcomes.to_bring_back:
            return
        for key, request in self._channel.take():
            answer = self._carry_out(request, now)
            if answer is None:
                return  # it lies there still, and is gone on with at the next turn
            # What was asked for is to be seen when it is answered.
            if self._acceptance.decides and not self._intake.recovering:
                self._projector.update(now)
            self._channel.answer(key, answer)
            self._project_due.now()

    def _bring_back(self, now: float) -> None:
        """Put back what failed by an earlier set-up and lost its pin, while MODEL_DIR has it."""
        if not self._dispatcher.outcomes.to_bring_back:
            return
        request = Request(verb="requeue", checkpoints=self._dispatcher.outcomes.to_bring_back)
        if self._carry_out(request, now) is not None:
            self._dispatcher.outcomes.to_bring_back = ()

    def _carry_out(self, request: Request, now: float) -> Answer | None:
        """Return what came of a request, None where the next turn has to go on with it."""
        try:
            return self._commands.carry_out(request, now, slice_end())
        except Unfinished:
            self._serve_due.now()
            return None

    # -- waiting and ending

    def _next_due(self, now: float, steady: float) -> float:
        return min(
            self._look_due.due,
            self._intake.due(),
            self._rescan_due.due,
            self._serve_due.due,
            self._project_due.due if self._acceptance.decides else math.inf,
            steady + self._dispatcher.next_due() - now,
            self._pool.next_deadline(),
            steady + _STARTING_SECONDS if self._pool.starting else math.inf,
            self._event_files.due(),
            self._ending.due(),
        )

    def _wait(self, seconds: float) -> None:
        filenos: list[int] = []
        if not self._backoff.present:
            filenos += self._channel.filenos() if self._channel else []
            filenos += [*self._pool.filenos(), *self._event_files.filenos()]
        self.wakeup.wait(seconds, filenos)

    # -- telling

    def _publish(self, steady: float) -> None:
        projector, pool = self._projector, self._pool
        status = {
            "pid": os.getpid(),
            "decided": self._acceptance.decides,
            "pending_metric": self._acceptance.pending_metric,
            **pool.status(),
            **self._intake.hints.status(),
            "problem": self._ending.problem or pool.problem,
            "doubts": [
                *self._dispatcher.outcomes.doubts.sentences,
                *self._dispatcher.machines.sentences,
            ],
            "answers_refused": self._dispatcher.outcomes.refused,
            "tensorboard": self._event_files.problem,
            "stop": projector.decision.message if projector.decision else None,
            "patience_left": projector.patience_left,
        }
        progress = self._intake.progress or projector.progress or self._commands.progress
        self._news.publish(status, progress, steady)

    def _heartbeat(self, seconds: float) -> Heartbeat:
        steady = self._steady()
        return Heartbeat(
            turned=steady,
            due=steady + seconds,
            worker_due=self._pool.worker_due(),
            status=self._news.status,
            failure=self._backoff.told,
            **self._pool.counts(),
        )

    def _close(self) -> None:
        leases = self._pool.stop(timeout_seconds=2)
        self._event_files.close(_BUSY_AT_END_SECONDS)
        self._intake.hints.close()
        self._commands.close()
        self._projector.close()
        if self._channel:
            self._channel.close()
        self.wakeup.close()
        try:
            self._store.set_patience(_BUSY_AT_END_SECONDS)
            self._intake.write_down(self._clock())
            self._dispatcher.close(leases, self._clock())
            self._store.ledger.set_status({})
        except StoreError as error:
            # The next start takes back what is leased, and evaluates it again.
            _log.error("could not record the end", reason=error.message)
        self._intake.close()
