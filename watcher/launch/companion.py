"""The watcher that `train --watch` runs beside the trainer.

It is started again when it ends, for as long as the trainer runs, and given up only where it can
never work, or does not last after the training; the trainer is not concerned.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from watcher.decision.retry import delay
from watcher.errors import WatcherError
from watcher.launch.decide import MOST_SECONDS, describe
from watcher.launch.group import Group, wait_for

# Longer than its worker may take to start, so that one that is refused each time does not count.
_LASTING_SECONDS = 900.0
_FIRST_SECONDS = 1.0
# Failures in a row that are more than bad luck.
_MANY = 4
_STOP_SECONDS = 15.0
_WRONG_USAGE = 2
_ANOTHER_RUNS = 3
_UNFINISHED = 4
# By what a terminal stops what is in its background.
_TERMINAL_STOPS = (signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP)
REFUSED = "the watcher cannot work with these settings"


class Companion:
    """One watcher at a time; `tend` is called at every turn of the launcher's loop."""

    def __init__(
        self,
        command: Sequence[str],
        say: Callable[[str], None],
        refusal: Callable[[int], str | None] = lambda pid: None,
    ) -> None:
        """Start nothing yet.

        Args:
            command: The watcher's command line.
            say: Tells the user.
            refusal: Given the id of a watcher that ended, returns why it would so each time.
        """
        self._command = command
        self._say = say
        self._refusal = refusal
        self._group: Group | None = None
        self._failures = 0  # in a row
        self._begun = self._due = self._pause = 0.0
        self._untold = ""
        self._finishing = False
        self._told_to_finish: int | None = None
        self.done = False
        self.given_up = False
        self.another_runs = False
        self.failure: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._group.pid if self._group and self._group.poll() is None else None

    @property
    def in_trouble(self) -> bool:
        """True while it does not last, though it may do so later."""
        return self._failures >= _MANY

    def tend(self, now: float) -> None:
        """Notice that it ended, start it when that is due, pass on that it is to finish.

        Args:
            now: A steady time.
        """
        if self.done or self.given_up:
            return
        if self._group is None and now >= self._due:
            if self._untold:
                self._say(f"{self._untold}; it is started again, after {self._pause:g} s")
                self._untold = ""
            self._start(now)
        if self._group is None:
            return
        # Whoever stopped it by SIGSTOP wants that; a terminal has no business with it.
        if self._group.stopped_by() in _TERMINAL_STOPS:
            self._group.send(signal.SIGCONT)
        if self._group.poll() is not None:
            self._note_end(now)
        elif self._finishing and self._told_to_finish != self._group.pid:
            self._tell_to_finish(self._group.pid)

    def finish(self) -> None:
        """Let it end once all there is has its outcome; `done` or `given_up` tell of that.

        Where it is waiting for its next start that comes now, and not many more do.
        """
        self._finishing = True
        self._failures, self._due = 0, -math.inf

    def stop(self) -> None:
        """End it now: it gives its evaluation back to the queue. Waits for it."""
        if self._untold:
            self._say(self._untold)
            self._untold = ""
        if self._group is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._group.poll() is None:
                self._group.send(number)
                self._group.send(signal.SIGCONT)  # a stopped one would not notice
                wait_for(self._group.is_empty, _STOP_SECONDS)
        self._group.reap()
        self._group = None

    def _start(self, now: float) -> None:
        self._begun = now
        try:
            # Unlike the trainer it keeps our mask, SIGTTOU blocked: on a terminal set to `tostop`
            # its first line would stop it. What it starts is in sessions without that terminal.
            self._group = Group(self._command, stdin=subprocess.DEVNULL)
        except WatcherError as error:  # no memory for another process, say
            self._again(now, error.message)

    def _tell_to_finish(self, pid: int) -> None:
        # A process that has no handler for the signal yet would be ended by it.
        if _catches(pid, signal.SIGUSR1):
            self._told_to_finish = pid
            os.kill(pid, signal.SIGUSR1)

    def _note_end(self, now: float) -> None:
        assert self._group is not None and self._group.returncode is not None
        code, pid = self._group.returncode, self._group.pid
        # Its worker dies with it, in a session of its own.
        self._group.reap()
        self._group = None
        if self._finishing and code == 0 and self._told_to_finish is not None:
            self.done = True
        elif code in (_WRONG_USAGE, _ANOTHER_RUNS):
            self.given_up, self.another_runs = True, code == _ANOTHER_RUNS
            self.failure = f"the watcher {describe(code)}"
            self._say(f"the watcher {describe(code)}; the training goes on without one of its own")
        elif self._told_to_finish is not None and code == _UNFINISHED:
            self.given_up = True
            self._say("the watcher ended with work left that it could not do; its log says why")
        elif why := self._refusal(pid):
            self.given_up, self.failure = True, REFUSED
            self._say(f"{REFUSED}: {why}; the training goes on without it")
        else:
            self._again(now, f"the watcher {describe(code)}")

    def _again(self, now: float, what: str) -> None:
        lasted = now - self._begun >= _LASTING_SECONDS
        self._failures = 1 if lasted else self._failures + 1
        if self._finishing and self.in_trouble:
            self.given_up, self.failure = True, what
            self._say(f"{what}, and does not last: it is left alone. To start it by hand:")
            self._say(" ".join(self._command))
            return
        self._pause = delay(self._failures, _FIRST_SECONDS, MOST_SECONDS)
        self._due = now + self._pause
        if self._finishing or self._failures == 1:
            # What comes of it is told when it comes: until then the trainer may end, too.
            self._untold = what
        elif self._failures == _MANY:
            self._say(
                f"{what}, and does not last: it is started again as long as the trainer runs,"
                f" at most {MOST_SECONDS:g} s later each time"
            )


def _catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass
    return False
