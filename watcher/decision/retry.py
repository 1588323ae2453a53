"""Retry: when to try again what failed, each time twice as late, up to a limit. Pure.

tenacity and stamina call and sleep by themselves; these loops ask for a time and do other work.
"""

from __future__ import annotations

import math

# A float cannot hold the delay after a thousand failures.
_MOST_DOUBLINGS = 30


def delay(failures: int, first_seconds: float, limit_seconds: float = math.inf) -> float:
    """Return the seconds to wait after so many failures in a row, counted from 1."""
    doublings = min(max(failures - 1, 0), _MOST_DOUBLINGS)
    return min(first_seconds * 2.0**doublings, limit_seconds)


class Retry:
    """Failures in a row of one thing. Times are steady seconds.

    Attributes:
        at: When to try again; in the past while it works.
    """

    def __init__(self, first_seconds: float, limit_seconds: float) -> None:
        self.at = -math.inf
        self._first_seconds = first_seconds
        self._limit_seconds = limit_seconds
        self._failures = 0

    def failed(self, steady: float) -> None:
        """Take note of another failure."""
        self._failures += 1
        self.at = steady + delay(self._failures, self._first_seconds, self._limit_seconds)

    def worked(self) -> None:
        """Take note that it works."""
        self._failures, self.at = 0, -math.inf
