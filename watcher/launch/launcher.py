"""The launcher's loop: runs the trainer, obeys the sentinel, tends the watcher.

It sleeps until a signal comes or half a second is over. Errors of what it looks at are told once
and do not end it: the trainer goes on, and the next look may succeed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

from watcher.config import LaunchSettings
from watcher.errors import StoreError
from watcher.files.mounts import is_remote
from watcher.launch.companion import Companion
from watcher.launch.decide import Attempts, Progress, describe, exit_code, is_crash
from watcher.launch.early_stop import CLOSE_LOOK_SECONDS, LOOK_SECONDS, EarlyStop
from watcher.launch.ending import Ending, Summary, Unsaved, last_lines, with_reason
from watcher.launch.files import open_log
from watcher.launch.folder_lock import FolderLock, Heirs
from watcher.launch.forwarding import Forwarding
from watcher.launch.group import Group
from watcher.launch.kinds import trainer_of
from watcher.launch.leftovers import Leftovers
from watcher.launch.saves import Checkpoints, Mark, SaveWatch, anew
from watcher.launch.say import Teller
from watcher.launch.sentinel import Sentinel
from watcher.launch.signals import ENDING, FORWARDED, Signals
from watcher.launch.stopping import Stopping
from watcher.launch.terminal import Terminal
from watcher.protocols import CheckpointSource
from watcher.store.reading import open_reader

_FIRST_WORD_SECONDS = 600.0
EXIT_NOT_FINISHED = 1
_NOTHING_FORESEEN = Unsaved()


class Launcher:
    """One run of `checkpoint-watcher train`."""

    def __init__(
        self,
        settings: LaunchSettings,
        command: Sequence[str],
        source: CheckpointSource,
        *,
        watcher_command: Sequence[str] | None,
        say: Callable[[str], None],
        unsaved: Unsaved = _NOTHING_FORESEEN,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            settings: All of them.
            command: The trainer's command line.
            source: Where its checkpoints come from.
            watcher_command: The watcher's, None for no watcher.
            say: Tells the user, whatever happens to the stream it writes to.
            unsaved: What is foreseen of what the trainer will not save.
            steady: A clock that nobody sets.
        """
        self._settings = settings
        self._command = command
        self._say = Teller(say)
        self._unsaved = unsaved
        self._steady = steady
        self._signals = Signals()
        self._forwarding = Forwarding(self._signals.as_found)
        self._sentinel = Sentinel(
            settings.run.sentinel_path, settings.run.state_path, settings.run.best_path
        )
        self._watcher = watcher_command
        self._companion: Companion | None = None
        self._trainer: Group | None = None
        self._asked: signal.Signals | None = None
        kind, _ = trainer_of(command)
        beside = kind.side_folders if kind else ()
        self._checkpoints = Checkpoints(source, settings.run.model_path, beside)
        self._saved_anew: set[str] = set()
        self._gave_up: str | None = None
        self._unseen = False  # model_dir could not be listed
        self._ending: Ending | None = None
        self._progress = Progress()
        self._fruitless = self._survived = False
        grace = settings.trainer.stop_grace_seconds
        self._stopping = Stopping(
            grace, self._turn, self._say, lambda: self._asked is not None, steady
        )
        self._output: IO[bytes] | None = None

    def run(self) -> int:
        """Run the trainer to its end and return the exit code for the launcher.

        Raises:
            AlreadyRunning: a trainer that another launcher started is at work on model_dir.
            ModelDirError: model_dir is not there and cannot be made.
            ConfigError: the trainer's command cannot be executed.
        """
        with ExitStack() as stack:
            leftovers = Leftovers(self._settings.run.model_path, self._settings.run.state_path)
            stack.callback(self._tidy_up, leftovers)
            self._lock = FolderLock(self._settings.run.model_path, self._say)
            stack.callback(self._lock.close)
            if self._settings.trainer.trainer_log:
                self._output = stack.enter_context(open_log(self._settings.trainer.trainer_log))
            self._terminal = Terminal()
            stack.callback(self._terminal.close)
            stack.enter_context(self._signals)
            stack.enter_context(self._forwarding)
            if self._watcher:
                self._companion = Companion(self._watcher, self._say, self._refusal_of)
                stack.callback(self._companion.stop)
            code = self._run()
            self._tell_the_end(code)
            return code

    def _run(self) -> int:
        if self._over_already():
            return self._drain(0)
        attempts = Attempts(self._settings.trainer.restarts, self._settings.trainer.restart_seconds)
        while self._asked is None:
            ending = self._train_once()
            if self._survived:
                return self._outlast()
            if ending.early:
                return self._drain(0)
            code, may_again = exit_code(ending.returncode), self._settings.trainer.restarts
            if self._asked or not may_again or not is_crash(ending.returncode):
                return self._drain(code)
            attempts, pause = attempts.after(progressed=ending.progressed)
            if pause is None:
                self._say(f"the trainer {describe(ending.returncode)}; no restarts are left")
                return self._drain(code)
            self._say(
                f"the trainer {describe(ending.returncode)}; it is started again in {pause:g} s"
                f" ({attempts.made} of {attempts.limit})"
            )
            self._pause(pause)
            verdict = self._sentinel.look()
            if self._asked is None and verdict.kind == "valid":
                self._say(f"early stop, there is no restart: {verdict.message}")
                return self._drain(0)
        return self._drain(128 + self._asked)

    # -- before the trainer

    def _over_already(self) -> bool:
        """Return whether this run was stopped before; a watcher with other settings is asked."""
        verdict = self._sentinel.look()
        if verdict.kind == "stale":
            self._say.once(f"{self._sentinel.path} is ignored: {verdict.message}")
        if verdict.kind != "valid":
            return False
        if self._companion:
            self._say("this run was stopped early; the watcher looks at it with these settings")
            self._wait_for_first_word(self._companion)
            verdict = self._sentinel.look()
            if self._asked or verdict.kind != "valid":
                return False
        self._say(f"training is over, nothing is started: {verdict.message}")
        again = "give other settings, such as a larger --patience"
        if not self._companion:
            again = "run the watcher with other settings, such as a larger --patience"
        resume = f"`checkpoint-watcher resume {self._settings.run.model_path}`"
        self._say(f"to train on, {again}, or {resume}; {self._sentinel.path} goes away then")
        return True

    def _wait_for_first_word(self, companion: Companion) -> None:
        """Wait until the watcher has decided anew: by other settings once its worker is ready."""
        deadline = self._steady() + _FIRST_WORD_SECONDS
        while self._asked is None and self._steady() < deadline:
            if companion.given_up or companion.in_trouble:
                return
            self._turn(CLOSE_LOOK_SECONDS)
            status = self._status()
            if companion.pid == status.get("pid", -1) and status.get("decided"):
                return

    def _status(self) -> dict[str, Any]:
        """Return what the watcher last said of itself; nothing while that cannot be read."""
        with suppress(StoreError), open_reader(self._settings.run.state_path) as reader:
            return reader.status()
        return {}

    # -- while it trains

    def _train_once(self) -> Ending:
        saves = SaveWatch(self._checkpoints, self._settings.source.grace_seconds)
        before, began = self._complete(), self._steady()
        self._fruitless = False
        stop = EarlyStop(
            *(self._sentinel, self._checkpoints, saves, self._say),
            at_checkpoint=self._settings.trainer.stop_at_checkpoint,
            is_far=is_remote(self._settings.run.model_path),
            steady=self._steady,
        )
        heirs = self._lock.heirs()
        self._forwarding.forget()
        with self._signals.as_found():
            trainer = self._trainer = Group(
                self._command, keep_open=self._lock.keep_open(), output=self._output
            )
        early = self._watch_over(trainer, heirs, stop)
        seconds = self._steady() - began
        assert trainer.returncode is not None
        if early or (self._settings.trainer.restarts and is_crash(trainer.returncode)):
            # What it left must not train on, or not beside the next one.
            self._stopping.end(trainer)
            self._survived = not self._stopping.end_heirs(heirs, self._lock, saves)
        self._saved_anew |= (new := anew(self._complete(), before))
        further = self._progress.after(self._checkpoints.steps(new))
        self._ending = Ending(trainer.returncode, early, further, seconds)
        self._fruitless = self._ending.failed_at_once and not self._progress.made
        self._trainer = None
        self._terminal.take_back()
        trainer.reap()
        return self._ending

    def _watch_over(self, trainer: Group, heirs: Heirs, stop: EarlyStop) -> bool:
        """Return when the trainer ended; True when that was an early stop."""
        while trainer.poll() is None:
            try:
                self._turn(stop.look_seconds)
                if stop.is_sent(trainer, heirs):
                    self._stopping.end(trainer)
                    return self._asked is None
            except Exception as error:  # whatever it was, the trainer goes on
                self._say.once(f"cannot look for an early stop: {error!r}")
                time.sleep(LOOK_SECONDS)
        return False

    def _complete(self) -> dict[str, Mark]:
        try:
            return self._checkpoints.complete()
        except OSError as error:
            self._unseen = True
            self._say.once(f"cannot look for checkpoints: {error}")
            return {}

    # -- one turn

    def _turn(self, seconds: float) -> None:
        """Wait so long at most; pass signals on, and tend the watcher and the terminal."""
        for number in self._signals.wait(
            min(seconds, self._forwarding.seconds_left(self._steady()))
        ):
            self._handle(number)
        for number in self._forwarding.due(self._steady()):
            if self._trainer:
                self._trainer.send(number)
        if self._trainer:
            self._follow_stop(self._trainer)
        # Beside a trainer that failed at once there is nothing for a watcher to do.
        if self._companion and not self._fruitless and not _has_ended(self._trainer):
            try:
                self._companion.tend(self._steady())
            except Exception as error:  # the trainer is not concerned
                self._say.once(f"cannot tend the watcher: {error}")

    def _handle(self, number: signal.Signals) -> None:
        if number in ENDING:
            if number == signal.SIGINT and self._asked is None and self._trainer:
                # Who pressed Ctrl-C looks on, and a trainer may take half a minute.
                self._say("Ctrl-C is handed on to the trainer, this ends when it has ended")
            self._asked = number
        if number == signal.SIGTSTP:
            self._stop_with(self._trainer)
        elif number in FORWARDED and self._trainer:
            self._forwarding.take(number, self._steady())

    def _follow_stop(self, trainer: Group) -> None:
        """Lend the terminal to a trainer that was stopped for asking; stop with it on Ctrl-Z."""
        by = trainer.stopped_by()
        if by in (signal.SIGTTIN, signal.SIGTTOU):
            if self._terminal.lend(trainer.pid):
                trainer.send(signal.SIGCONT)
            else:
                self._stop_with(trainer)
        elif by == signal.SIGTSTP and self._terminal.lent_to:
            self._stop_with(trainer)

    def _stop_with(self, trainer: Group | None) -> None:
        """Stop, trainer and launcher, until the shell lets them go on."""
        lent = self._terminal.lent_to is not None
        self._terminal.take_back()
        if trainer:
            trainer.send(signal.SIGTSTP)
        self._signals.stop_self()
        if trainer:
            trainer.stopped_by()
            if lent:
                self._terminal.lend(trainer.pid)
            trainer.send(signal.SIGCONT)

    def _pause(self, seconds: float) -> None:
        due = self._steady() + seconds
        while self._asked is None and self._steady() < due:
            self._turn(min(LOOK_SECONDS, due - self._steady()))

    def _refusal_of(self, pid: int) -> str | None:
        """Return why the watcher that had this process id ends so whenever it is started."""
        status = self._status()
        return status.get("ended") if status.get("refused") == pid else None

    # -- after the trainer

    def _outlast(self) -> int:
        """Keep the watcher beside a trainer that cannot be ended; returns the exit code."""
        folder, companion = self._settings.run.model_path, self._companion
        self._fruitless = False
        self._say(f"! the trainer cannot be ended: it goes on in {folder}, see `fuser -v {folder}`")
        if companion:
            self._say("the watcher stays beside it until it has ended")
        while companion and not (self._asked or companion.given_up):
            if not self._lock.is_held_elsewhere():
                break
            self._turn(LOOK_SECONDS)
        return self._drain(EXIT_NOT_FINISHED)

    def _drain(self, code: int) -> int:
        """Let the watcher finish, unless somebody wants an end now; returns the exit code."""
        companion = self._companion
        if companion is None:
            return code
        if self._fruitless and code and not self._asked:
            companion.stop()
            return code
        if companion.failure:  # long ago, and what went on since has hidden it
            self._gave_up = with_reason(companion.failure, self._settings.run.state_path)
        if self._asked:
            return code
        self._fruitless = False
        limit = self._settings.trainer.drain_timeout
        deadline = None if limit is None else self._steady() + limit
        stopped_early = self._sentinel.look().kind == "valid"
        if not companion.given_up:
            self._say("the watcher finishes what is left to evaluate")
        companion.finish()
        while not (companion.done or companion.given_up):
            self._turn(LOOK_SECONDS)
            if self._asked:
                return 128 + self._asked
            if deadline is not None and self._steady() >= deadline:
                self._say(f"the watcher is not through after {limit:g} s and is stopped")
                break
        if companion.done and stopped_early and self._sentinel.look().kind == "none":
            self._say("what was evaluated since takes the early stop back: start again to train on")
        failed = not (companion.done or companion.another_runs)
        return EXIT_NOT_FINISHED if code == 0 and failed else code

    def _tell_the_end(self, code: int) -> None:
        """Say last how the trainer ended, which is the best, and what to do next."""
        verdict, companion = self._sentinel.look(), self._companion
        summary = Summary(
            ending=self._ending,
            asked=self._asked,
            fruitless=self._fruitless,
            watched=bool(self._watcher),
            watcher_lasts=companion is not None and not companion.given_up,
            gave_up=self._gave_up,
            unsaved=None if self._unseen else self._unsaved,
            saved=bool(self._saved_anew),
            trained=any(map(self._checkpoints.is_trained, sorted(self._saved_anew))),
            code=code,
            stopped_by=verdict.message if verdict.kind == "valid" else None,
        )
        for line in last_lines(summary, self._settings, self._command):
            self._say(line)

    def _tidy_up(self, leftovers: Leftovers) -> None:
        """Leave nothing behind of a start that came to nothing."""
        if self._ending is None or (self._fruitless and not self._asked):
            leftovers.remove()


def _has_ended(trainer: Group | None) -> bool:
    return trainer is not None and trainer.poll() is not None
