"""The launcher's loop: runs the trainer, obeys the sentinel, tends the watcher.

It sleeps until a signal comes or half a second is over. Errors of what it looks at are told once
and do not end it: the trainer goes on, and the next look may succeed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

from watcher.config import LaunchSettings
from watcher.errors import StoreError
from watcher.launch.companion import Companion
from watcher.launch.decide import Attempts, describe, exit_code, is_crash
from watcher.launch.ending import Ending, Summary, Unsaved, last_lines, with_reason
from watcher.launch.files import lock_folder, open_log
from watcher.launch.group import Group
from watcher.launch.kinds import trainer_of
from watcher.launch.leftovers import Leftovers
from watcher.launch.saves import Checkpoints, Mark, SaveWatch
from watcher.launch.sentinel import Sentinel
from watcher.launch.signals import ENDING, FORWARDED, Signals
from watcher.launch.terminal import Terminal
from watcher.protocols import CheckpointSource
from watcher.store.reading import open_reader

_LOOK_SECONDS = 0.5
_CLOSE_LOOK_SECONDS = 0.05
_FIRST_WORD_SECONDS = 600.0
# A trainer that hangs in the kernel does not hold still, and is not to train on for that.
_HOLDS = 10
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
        self._say = say
        self._unsaved = unsaved
        self._steady = steady
        self._signals = Signals()
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
        self._told: set[str] = set()
        self._holds = 0
        self._ending: Ending | None = None
        self._progressed = self._fruitless = False
        self._lock: int | None = None
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
            self._lock = lock_folder(self._settings.run.model_path, self._say)
            if self._lock is not None:
                stack.callback(os.close, self._lock)
            if self._settings.trainer.trainer_log:
                self._output = stack.enter_context(open_log(self._settings.trainer.trainer_log))
            self._terminal = Terminal()
            stack.callback(self._terminal.close)
            stack.enter_context(self._signals)
            if self._watcher:
                self._companion = Companion(
                    self._watcher, self._say, self._signals.as_found, self._refusal_of
                )
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
            self._tell_once(f"{self._sentinel.path} is ignored: {verdict.message}")
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
        while self._asked is None and not companion.given_up and self._steady() < deadline:
            self._turn(_CLOSE_LOOK_SECONDS)
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
        with self._signals.as_found():
            trainer = self._trainer = Group(
                self._command,
                keep_open=[] if self._lock is None else [self._lock],
                output=self._output,
            )
        early = self._watch_over(trainer, saves)
        seconds = self._steady() - began
        self._saved_anew |= (new := _new(self._complete(), before))
        assert trainer.returncode is not None
        self._ending = Ending(trainer.returncode, early, bool(new), seconds)
        self._progressed |= bool(new)
        self._fruitless = self._ending.failed_at_once and not self._progressed
        if early or (self._settings.trainer.restarts and is_crash(trainer.returncode)):
            self._end_group(trainer)  # what it left must not train on beside the next one
        self._trainer = None
        self._terminal.take_back()
        trainer.reap()
        return self._ending

    def _watch_over(self, trainer: Group, saves: SaveWatch) -> bool:
        """Return when the trainer ended; True when that was an early stop."""
        asked: dict[str, Mark] | None = None
        while trainer.poll() is None:
            try:
                self._turn(_LOOK_SECONDS if asked is None else _CLOSE_LOOK_SECONDS)
                asked = self._obeyed(asked)
                if asked is not None and self._may_stop(trainer, saves, asked):
                    self._end_group(trainer)
                    return self._asked is None
            except Exception as error:  # whatever it was, the trainer goes on
                self._tell_once(f"cannot look for an early stop: {error!r}")
                time.sleep(_LOOK_SECONDS)
        return False

    def _complete(self) -> dict[str, Mark]:
        try:
            return self._checkpoints.complete()
        except OSError as error:
            self._unseen = True
            self._tell_once(f"cannot look for checkpoints: {error}")
            return {}

    def _obeyed(self, asked: dict[str, Mark] | None) -> dict[str, Mark] | None:
        """Return what was complete when this run's sentinel appeared, None while it is away."""
        verdict = self._sentinel.look()
        if verdict.kind == "stale":
            self._tell_once(f"{self._sentinel.path} is ignored: {verdict.message}")
        if verdict.kind != "valid":
            if asked is not None:
                self._say("the early stop was withdrawn: the training goes on")
            return None
        if asked is None:
            until = "at its next checkpoint" if self._settings.trainer.stop_at_checkpoint else "now"
            self._say(f"early stop, the trainer ends {until}: {verdict.message}")
            return self._checkpoints.complete()
        return asked

    def _may_stop(self, trainer: Group, saves: SaveWatch, asked: dict[str, Mark]) -> bool:
        """Send SIGTERM unless there is something to wait for; returns whether it was sent."""
        again = self._settings.trainer.stop_at_checkpoint
        if again and not _new(self._checkpoints.complete(), asked):
            return False
        if saves.in_progress(self._steady()):
            return False
        # A save may begin between a look and the signal, so the last look is at a trainer that
        # does not move.
        with trainer.held() as stopped:
            self._holds += 1
            if saves.in_progress(self._steady()) or (not stopped and self._holds < _HOLDS):
                return False
            trainer.send(signal.SIGTERM)
            return True

    def _end_group(self, trainer: Group) -> None:
        """Wait for the whole group to end after SIGTERM, as long as it has; then SIGKILL."""
        if trainer.poll() is not None:
            trainer.send(signal.SIGTERM)
        deadline = self._steady() + self._settings.trainer.stop_grace_seconds
        while not trainer.is_empty():
            if self._steady() >= deadline:
                self._tell_once("the trainer did not end in time and is killed")
                trainer.send(signal.SIGKILL)
                deadline = self._steady() + _LOOK_SECONDS
            self._turn(_CLOSE_LOOK_SECONDS)

    # -- one turn

    def _turn(self, seconds: float) -> None:
        """Wait so long at most; pass signals on, and tend the watcher and the terminal."""
        for number in self._signals.wait(seconds):
            self._handle(number)
        if self._trainer:
            self._follow_stop(self._trainer)
        # Beside a trainer that failed at once there is nothing for a watcher to do.
        if self._companion and not self._fruitless and not _has_ended(self._trainer):
            try:
                self._companion.tend(self._steady())
            except Exception as error:  # the trainer is not concerned
                self._tell_once(f"cannot tend the watcher: {error}")

    def _handle(self, number: signal.Signals) -> None:
        if number in ENDING:
            self._asked = number
        if number == signal.SIGTSTP:
            self._stop_with(self._trainer)
        elif number in FORWARDED and self._trainer:
            self._trainer.send(number)
            if number in ENDING:
                self._trainer.send(signal.SIGCONT)  # a stopped one would not notice

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
            self._turn(min(_LOOK_SECONDS, due - self._steady()))

    def _refusal_of(self, pid: int) -> str | None:
        """Return why the watcher that had this process id ends so whenever it is started."""
        status = self._status()
        return status.get("ended") if status.get("refused") == pid else None

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    # -- after the trainer

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
            self._turn(_LOOK_SECONDS)
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


def _new(now: dict[str, Mark], before: dict[str, Mark]) -> set[str]:
    return {name for name, mark in now.items() if before.get(name) != mark}
