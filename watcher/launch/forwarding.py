"""Forwarding: what the launcher is signalled goes on to the trainer, unless that has it already.

Ctrl-C, `docker stop` and a plain `kill` reach the launcher alone. Slurm (`scancel`, the time
limit), systemd and `pkill --session` signal each process by itself. A trainer that begins its last
save at the first signal may die of a second one in the middle of it.

Nothing in /proc tells what a process has been signalled. So the launcher keeps a lookout: a process
of no other use that is placed as the trainer is, in a process group of its own. What everybody gets
ends it, and then the trainer has got it too.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Self

from watcher.launch.signals import ENDING

# It ends with the launcher, whose end of the pipe is closed then, and dumps no core.
_LOOKOUT = ("/bin/sh", "-c", "ulimit -c 0; exec cat")
# Without these it lives on, so they cannot tell.
_HARMLESS = frozenset({signal.SIGWINCH})
# Between the first and the last process that somebody signals, on a busy machine.
_SECONDS = 0.5
# Slurm's daemon goes through all processes of a step.
_SLURM_SECONDS = 2.0


class Forwarding:
    """Signals on their way to the trainer. Times are steady; enter it before the first one."""

    def __init__(self, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """Start nothing yet.

        Args:
            guard: Entered around the start of a process, see `Signals.as_found`.
        """
        self._guard = guard
        self._lookout: subprocess.Popen[bytes] | None = None
        self._held_back: list[tuple[signal.Signals, float]] = []
        self._fell: dict[int, float] = {}
        self.seconds = _SLURM_SECONDS if "SLURM_JOB_ID" in os.environ else _SECONDS

    def __enter__(self) -> Self:
        self._post()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lookout:
            self._lookout.kill()
            self._relieve(self._lookout)

    @property
    def lookout(self) -> int | None:
        """Process id of the lookout."""
        return self._lookout.pid if self._lookout else None

    def take(self, number: signal.Signals, now: float) -> None:
        """Take a signal that the launcher got."""
        self._held_back.append((number, now))

    def forget(self) -> None:
        """Keep what a trainer has not got from the next one."""
        self._held_back.clear()

    def due(self, now: float) -> list[signal.Signals]:
        """Return what the trainer is to be sent now, in order."""
        fell_now = self._look(now)
        sent: list[signal.Signals] = []
        waiting = []
        for number, came in self._held_back:
            # What is found now may have come at any time since the last look, however late this is.
            everybody = fell_now == number
            everybody |= abs(self._fell.get(number, -math.inf) - came) <= self.seconds
            at_once = number in _HARMLESS or self._lookout is None
            if not (everybody or at_once or now - came >= self.seconds):
                waiting.append((number, came))
                continue
            if not everybody:
                sent.append(number)
            if number in ENDING:
                sent.append(signal.SIGCONT)  # a stopped one would not notice
        self._held_back = waiting
        return sent

    def seconds_left(self, now: float) -> float:
        """Return in how many seconds the next one is due, infinity while there is none."""
        return min((came + self.seconds - now for _, came in self._held_back), default=math.inf)

    def _look(self, now: float) -> int | None:
        """Return the signal by which the lookout is found to have fallen, None for none."""
        if self._lookout and (code := self._lookout.poll()) is not None:
            self._relieve(self._lookout)
            self._lookout = None
            if code < 0:
                self._fell[-code] = now
                self._post()
                return -code
        return None

    def _post(self) -> None:
        """Start a lookout; where that cannot be, signals go on at once."""
        with suppress(OSError), self._guard():
            self._lookout = subprocess.Popen(
                _LOOKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )

    @staticmethod
    def _relieve(lookout: subprocess.Popen[bytes]) -> None:
        if lookout.stdin:
            lookout.stdin.close()
        lookout.wait()
