"""The daemon: one loop that wires the stages together.

Signal handlers and file system events only wake the loop. A step looks at model_dir, takes what
the workers have to say, records it, gives them the next checkpoints and brings `best/` and the
sentinel up to date. Everything it needs to know after a restart is in the database.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from watcher.config import Settings, differences, doubts
from watcher.config.policies import DECIDING, boards
from watcher.control.channel import ControlChannel, Request
from watcher.control.commands import Commands
from watcher.errors import ModelDirError, StoreError, StoreLost, WorkerRefused, WorkLeft
from watcher.evaluation.dispatcher import Dispatcher
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import Supervisor
from watcher.files.slices import Unfinished, slice_end
from watcher.heartbeat import Heartbeat
from watcher.ingest.intake import Intake
from watcher.ingest.keeper import Keeper
from watcher.ingest.lookout import Lookout
from watcher.promotion.projection import Projector
from watcher.runtime.backoff import Backoff, Hindrance
from watcher.sources.watch import Watch
from watcher.store import PINS_NAME, Store, iso
from watcher.tensorboard.keeper import EventFiles

_log = structlog.get_logger(__name__)

# What waits inside SQLite neither pins nor hears a signal: the loop itself tries again.
_BUSY_SECONDS = 0.1
_BUSY_AGAIN_SECONDS = 0.02
_BUSY_AT_END_SECONDS = 2.0
# A signal handler that could not write its wake-up is noticed after so long.
_WAIT_SECONDS = 2.0
_PROJECT_RETRY_SECONDS = 0.5
_CLOCK_JUMP_SECONDS = 2.0
_DIFFER = "settings differ from the last start"
_PROGRESS_SECONDS = 1.0
# How often the live view is drawn while a worker starts, which shows its seconds.
_STARTING_SECONDS = 1.0


class Daemon:
    """The loop of one run. `run` returns when it is asked to stop or when it is idle."""

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
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._intake = intake
        self._projector = projector
        self._channel = channel
        self._given = given or {}
        self._commands = Commands(
            store, settings.run.model_path, settings.run.state_path / PINS_NAME
        )
        self._snapshot = snapshot or Snapshot()
        self._dispatcher = Dispatcher(settings, store, supervisors, self._snapshot)
        self._pool = self._dispatcher.pool
        self._event_files = EventFiles(
            settings.run.state_path,
            settings.run.eval_path,
            enabled=settings.exports.tensorboard,
            categories=settings.exports.tensorboard_categories,
        )
        self._on_step = on_step
        self._clock, self._steady = clock, steady
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lookout = Lookout(Watch(settings.run.model_path, self.wake), intake)
        self._keeper = Keeper(settings.run.model_path, settings.run.state_path / PINS_NAME)
        self._stopping = False
        self._begun = self._decided = self._recorded = self._idle = False
        self._finishing = self._looked_to_finish = False
        self._woken = True
        self._dirty = True
        self._next_scan = -math.inf
        self._last_activity = steady()
        self._notice: str | None = None
        self._changed_files: dict[str, str] = {}
        self._news: deque[tuple[str, str, float]] = deque()
        self._backoff, self._hindrance = Backoff(), Hindrance()
        self._project_after = -math.inf
        self._project_delay = _PROJECT_RETRY_SECONDS
        self._clock_lead = clock() - steady()
        self._published: dict[str, Any] = {}
        self._progress: str | None = None
        self._progress_due = -math.inf

    def wake(self) -> None:
        """Make the loop look now. Safe in any thread and in a signal handler."""
        self._woken = True
        # Nothing may be raised here: it would come out of whatever a signal interrupted.
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b".")

    def _take_wake(self) -> bool:
        """Return whether the loop was woken since the last time; what asked for a look gets it.

        A wake-up may come between any two instructions. One that is not seen here stays for the
        next turn, and one that is cleared unseen came before the look that this call asks for.
        """
        if not self._woken:
            return False
        self._woken = False
        return True

    def stop(self) -> None:
        """Make `run` return soon. Safe in any thread and in a signal handler."""
        self._stopping = True
        self.wake()

    def finish(self) -> None:
        """Make `run` return once nothing is left to do: the trainer has ended.

        Safe in any thread and in a signal handler.
        """
        self._finishing = True
        self.wake()

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
            while not self._stopping:
                seconds = self._guarded_step()
                with contextlib.suppress(StoreError):  # drawing reads the database too
                    self._on_step(self._heartbeat(seconds))
                if self._idle or self._gives_up():
                    self._require_finished()
                    _log.info("idle, nothing left to do")
                    break
                self._wait(seconds)
        finally:
            self._close()

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
            self._next_scan, self._dirty = -math.inf, True
            self._event_files.want()
        self._pin_meanwhile()
        return max(0.0, backoff.retry_at - self._steady())

    def _pin_meanwhile(self) -> None:
        """Pin what there is while nothing can be recorded: the trainer does not wait for us."""
        self._store.require_present()
        self._take_wake()
        if not self._begun:
            self._keeper.keep()
            self._woken = self._keeper.more
            return
        with contextlib.suppress(OSError):
            self._lookout.look(self._clock(), self._steady(), announced=True)

    def step(self) -> float:
        """Do all there is to do now; returns the seconds until there is more, if nothing wakes.

        Raises:
            StoreError: the database cannot be written now; nothing is lost by calling again.
        """
        now, steady = self._clock(), self._steady()
        if not self._begun:
            self._begin(now)
        self._follow_clock(now, steady)
        # What the worker says is taken first, at the time it was said: a lease that runs out
        # while the database is locked was still held when the answer came.
        if self._dispatcher.record(now, steady):
            self._last_activity, self._dirty = steady, True
            self._event_files.want()
        self._accept_settings(now)
        self._look(now, steady)
        self._take_requests(now)
        self._dispatcher.take_back_expired(now)
        if not self._intake.recovering:
            self._dispatcher.give_out(now, steady)
            self._project(now, steady)
            self._bring_back(now)
            self._require_fit()
        self._event_files.tick(steady)
        self._tell_hindrance(steady)
        self._publish()
        self._idle = self._idle_at() <= steady
        return max(0.0, self._next_due(now, steady) - steady)

    # -- the stages

    def _begin(self, now: float) -> None:
        self._store.queue.return_all(now)
        for doubt in doubts(self._settings):
            _log.warning(doubt.message, hint=doubt.hint)
        if changed := self._changes():
            _log.warning(_DIFFER, settings=changed)
        self._intake.recover(now)
        self._keeper.close()
        self._event_files.want()
        self._begun = True

    def _tell_hindrance(self, steady: float) -> None:
        news = self._hindrance.follow(self._problem, steady)
        if news == "lasts":
            _log.warning("cannot be done now, trying again", reason=self._problem)
        elif news == "over":
            _log.info("found, pinned and promoted again")

    def _accept_settings(self, now: float) -> None:
        """Rank and stop by these settings, once it is seen that they can be evaluated by.

        A start that is refused leaves everything as it was decided before. Settings that decide
        the same wait for nothing, nor does anything wait for a device that another watcher has.
        """
        if self._recorded:
            return
        ledger, pool, name = self._store.ledger, self._pool, self._settings.run.name
        shown, able = self._settings.to_show(), pool.was_ready or pool.waiting
        if able and (changed := self._changes()):
            ledger.add_event(now, "settings", f"{_DIFFER}: {changed}")
        if not self._decided and (able or ledger.decided_by(shown, DECIDING | {"run_name"})):
            main, *_ = boards(self._settings)
            ledger.set_policy(main.metric, main.policy.mode, now, board=main.name)
            self._decided = True
            if not ledger.settings():  # whoever asks meanwhile needs some; a next start does not
                ledger.set_settings(shown, {}, name)
        if able:
            ledger.set_settings(shown, self._given, name)
            self._recorded = True

    def _changes(self) -> str:
        """Return what is set otherwise than when it was decided last, for people."""
        return ", ".join(differences(self._store.ledger.settings(), self._settings.to_show()))

    @property
    def _ranked_by(self) -> str:
        main, *_ = boards(self._settings)
        return f"{main.metric.text} ({main.policy.mode})"

    def _follow_clock(self, now: float, steady: float) -> None:
        """Keep leases and delays as long as they were when the wall clock was set."""
        jump = now - steady - self._clock_lead
        if abs(jump) < _CLOCK_JUMP_SECONDS:
            return
        self._store.queue.shift_times(jump)
        self._dispatcher.shift_times(jump)
        self._clock_lead += jump
        _log.warning("the clock was set", seconds=round(jump, 1))

    def _project(self, now: float, steady: float) -> None:
        if not self._decided:
            return
        if steady >= self._projector.evict_at:
            self._dirty = True
        if not self._dirty or steady < self._project_after:
            return
        self._projector.update(now)
        self._dirty = self._projector.problem is not None or self._projector.unfinished
        if self._projector.problem:
            self._project_after = steady + self._project_delay
            self._project_delay = min(2 * self._project_delay, self._settings.source.rescan_seconds)
        else:
            self._project_delay = _PROJECT_RETRY_SECONDS

    def _look(self, now: float, steady: float) -> None:
        to_finish = self._finishing and not self._looked_to_finish
        rescan = to_finish or steady >= self._next_scan
        announced = self._take_wake() or self._intake.more
        if announced or rescan or steady >= self._lookout.due():
            # Before anything is taken from the folder: it may be another one, without our
            # database.
            self._store.require_present()
            if rescan:
                self._next_scan = steady + self._settings.source.rescan_seconds
                self._dirty = True  # files in best/ may have been touched by others
                self._snapshot.look()
            self._lookout.look(now, steady, announced=announced)
            self._looked_to_finish = self._looked_to_finish or to_finish
        if self._lookout.write_down(now):
            # It may be one to keep whatever its score, or the first of a trainer that started over.
            self._last_activity, self._dirty = steady, True
        self._tell_news(now)

    def _tell_news(self, now: float) -> None:
        for text in self._lookout.take_news():
            self._notice = f"{text} ({iso(now)})"
            _log.warning(text)
            self._news.append(("watch", text, now))
        before, present = self._changed_files, self._snapshot.differences()
        self._changed_files = {text: before.get(text, iso(now)) for text in present}
        for text in self._changed_files.keys() - before:
            _log.warning(text)
            self._news.append(("files", text, now))
        while self._news:
            kind, text, at = self._news[0]
            self._store.ledger.add_event(at, kind, text)
            self._news.popleft()

    def _take_requests(self, now: float) -> None:
        if self._channel is None or self._dispatcher.to_bring_back:
            return
        for key, request in self._channel.take():
            try:
                answer = self._commands.carry_out(request, now, slice_end())
            except Unfinished:
                self._woken = True  # it lies there still, and is gone on with at the next turn
                return
            # What was asked for is to be seen when it is answered.
            if self._decided and not self._intake.recovering:
                self._projector.update(now)
            self._channel.answer(key, answer)
            self._dirty = True

    def _bring_back(self, now: float) -> None:
        """Put back what failed by an earlier set-up and lost its pin, while MODEL_DIR has it."""
        if not self._dispatcher.to_bring_back:
            return
        request = Request(verb="requeue", checkpoints=self._dispatcher.to_bring_back)
        try:
            self._commands.carry_out(request, now, slice_end())
        except Unfinished:
            self._woken = True
            return
        self._dispatcher.to_bring_back = ()

    def _require_fit(self) -> None:
        """End when the set-up is at fault: nothing was scored, and nothing is left to try.

        Raises:
            WorkerRefused: no checkpoint fits pipeline.config.
        """
        misfit, intake = self._dispatcher.misfit, self._intake
        if misfit is None or intake.waiting or intake.more or self._dispatcher.to_bring_back:
            return
        if self._store.queue.open_count():
            return
        self._dispatcher.misfit = None
        if not self._store.ledger.measured_lately()[1]:
            raise WorkerRefused(
                misfit.code,
                f"no checkpoint could be scored: {misfit.lease.name} failed, {misfit.message}",
                hint="start again with the pipeline.config that the trainer runs with: what failed"
                " is evaluated then",
            )

    # -- waiting and ending

    def _next_due(self, now: float, steady: float) -> float:
        due = [self._next_scan, self._lookout.due(), self._pool.next_deadline()]
        due.append(self._event_files.due())
        if self._pool.starting:
            due.append(steady + _STARTING_SECONDS)
        if self._decided:
            due.append(self._project_after if self._dirty else self._projector.evict_at)
        due.append(steady + self._dispatcher.next_due() - now)
        due += [self._idle_at(), self._hindrance.due()]
        return min(due)

    def _wait(self, seconds: float) -> None:
        readers = [self._wake_reader]
        if self._channel and not self._backoff.present:
            readers += self._channel.filenos()
        if not self._backoff.present:
            readers += [*self._pool.filenos(), *self._event_files.filenos()]
        until = self._steady() + seconds
        while not (self._woken or self._intake.more) and (left := until - self._steady()) > 0:
            if select.select(readers, [], [], min(left, _WAIT_SECONDS))[0]:
                break
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    @property
    def _idle_limit(self) -> float | None:
        return 0.0 if self._looked_to_finish else self._settings.service.exit_when_idle

    @property
    def _problem(self) -> str | None:
        """What cannot be done now, though it is to be done: find, pin or promote a checkpoint."""
        return self._lookout.problem or self._projector.problem

    def _idle_at(self) -> float:
        """Return the steady time at which the run ends, infinite while there is something to do.

        What it is waited for wakes the loop, or is due at a time of its own. A problem is waited
        for as long as for an unfinished checkpoint.
        """
        limit, problem = self._idle_limit, self._problem
        if limit is None:
            return math.inf
        if waiting := self._store.queue.open_count():
            if self._steady() - self._last_activity >= limit:
                self._end_if_hopeless(waiting)
            return math.inf
        if self._event_files.busy or self._projector.unfinished:
            return math.inf
        if not self._looked_to_finish and not self._pool.was_ready:
            return math.inf  # a set-up that cannot evaluate must be told, not slept through
        if problem:
            given_up_at = self._hindrance.since + self._settings.source.grace_seconds
            return max(self._last_activity + limit, given_up_at, self._intake.given_up_at())
        if self._intake.waiting or (self._looked_to_finish and (self._intake.more or self._dirty)):
            return math.inf
        if self._projector.evict_at < math.inf:
            return math.inf
        return self._last_activity + limit

    def _gives_up(self) -> bool:
        """True when the database or the disk fail for so long that the end is not put off more."""
        limit, steady = (0.0 if self._finishing else self._idle_limit), self._steady()
        if limit is None or not self._backoff.present or self._pool.leases:
            return False
        lasted = steady - self._backoff.since >= self._settings.source.grace_seconds
        return lasted and steady - self._last_activity >= limit

    def _require_finished(self) -> None:
        reason = self._backoff.reason if self._backoff.present else self._problem
        if reason:
            waiting = self._intake.held_up
            names = f" ({', '.join(waiting[:3])}{' ...' if len(waiting) > 3 else ''})"
            raise WorkLeft(
                f"the run ends with work left{names if waiting else ''}: {reason}",
                hint="mend that and start the watcher again: it goes on with what is there then",
            )

    def _end_if_hopeless(self, waiting: int) -> None:
        """End a run that is to end by itself, when what waits will not be evaluated soon."""
        if reason := self._pool.hopeless:
            raise WorkLeft(
                f"{waiting} checkpoints cannot be evaluated: {reason}",
                hint="nothing is lost: mend that and start again, and it goes on with what waits",
            )

    def _publish(self) -> None:
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "decided": self._decided,
            "pending_metric": None if self._decided else self._ranked_by,
            **self._pool.status(),
            **self._lookout.status(),
            "files": self._show_progress(),
            "notice": self._notice,
            "changed_files": [f"{text} ({at})" for text, at in self._changed_files.items()],
            "problem": self._problem or self._pool.problem,
            "doubts": self._dispatcher.doubts,
            "tensorboard": self._event_files.problem,
            "stop": self._projector.decision.message if self._projector.decision else None,
            "patience_left": self._projector.patience_left,
        }
        if status != self._published:
            self._store.ledger.set_status(status)
            self._published = status

    def _show_progress(self) -> str | None:
        """What is read or copied and how far that is; brought up to date once a second."""
        text = self._intake.progress or self._projector.progress or self._commands.progress
        steady = self._steady()
        if text is None or steady >= self._progress_due:
            self._progress, self._progress_due = text, steady + _PROGRESS_SECONDS
        return self._progress

    def _heartbeat(self, seconds: float) -> Heartbeat:
        steady = self._steady()
        return Heartbeat(
            turned=steady,
            due=steady + seconds,
            worker_due=self._pool.worker_due(),
            status=self._published,
            failure=self._backoff.told,
            **self._pool.counts(),
        )

    def _close(self) -> None:
        leases = self._pool.stop(timeout_seconds=2)
        self._event_files.close(_BUSY_AT_END_SECONDS)
        self._lookout.watch.close()
        self._commands.close()
        self._projector.close()
        if self._channel:
            self._channel.close()
        os.close(self._wake_reader)
        try:
            self._store.set_patience(_BUSY_AT_END_SECONDS)
            self._lookout.write_down(self._clock())
            self._dispatcher.close(leases, self._clock())
            self._store.ledger.set_status({})
        except StoreError as error:
            # The next start takes back what is leased, and evaluates it again.
            _log.error("could not record the end", reason=error.message)
        self._intake.close()
        # The writer stays open: a late signal may still write to it.
