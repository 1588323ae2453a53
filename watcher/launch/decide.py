"""The launcher's decisions, pure: was it a crash, and when is the next start."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import msgspec

from watcher.decision.retry import delay

MOST_SECONDS = 300.0

# Somebody asked it to end in this way; what else ends a process by a signal is a crash.
_POLITE = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}


def exit_code(returncode: int) -> int:
    """Return what a shell would: 128+N for a process that signal N ended (`returncode` -N)."""
    return returncode if returncode >= 0 else 128 - returncode


def is_crash(returncode: int) -> bool:
    """Return whether a process that ended like this should be started again."""
    return returncode != 0 and -returncode not in _POLITE


def describe(returncode: int) -> str:
    """Say how a process ended."""
    if returncode >= 0:
        return f"ended with code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


class Attempts(msgspec.Struct, frozen=True):
    """Starts in a row that came to nothing."""

    limit: int
    first_seconds: float
    made: int = 0

    def after(self, *, progressed: bool) -> tuple[Attempts, float | None]:
        """Count another failure.

        Args:
            progressed: What ended had come further before, so the count starts anew.

        Returns:
            The new count, and the seconds to wait before the next start, None for no more.
        """
        made = 1 if progressed else self.made + 1
        counted = Attempts(self.limit, self.first_seconds, made)
        return counted, None if made > self.limit else delay(made, self.first_seconds, MOST_SECONDS)


class Progress:
    """How far the lives of a trainer have come, by the global steps of what they saved."""

    def __init__(self) -> None:
        self._furthest = 0
        self.made = False  # by any life

    def after(self, steps: Sequence[int | None]) -> bool:
        """Return whether a life came further than all before it.

        A trainer that dies in its first step may save at each start what it began with, so that
        alone does not count. A checkpoint without a step counts: nobody can tell.

        Args:
            steps: Of the trained checkpoints that it saved.
        """
        known = [step for step in steps if step is not None]
        further = len(known) < len(steps) or max(known, default=0) > self._furthest
        self._furthest = max(self._furthest, *known, 0)
        self.made |= further
        return further
