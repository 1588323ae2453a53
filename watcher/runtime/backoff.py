"""Backoff: when to try again what disk or database refused, and when to tell of it. Pure.

Backoff stops the whole loop; a hindrance is beside it, as a checkpoint that cannot be pinned.
"""

from __future__ import annotations

import math
from typing import Literal

from watcher.errors import StoreBusy

_RETRY_SECONDS = 1.0
# A lock is soon gone as a rule. Only one that lasts is worth a line in the log.
_BUSY_RETRY_SECONDS = 0.25
_BUSY_TOLD_SECONDS = 2.0
_HINDRANCE_TOLD_SECONDS = 5.0


class Backoff:
    """The fault that the loop is in, if it is in one. Times are steady seconds.

    Attributes:
        retry_at: When to try again; in the past while all is well.
        since: When it began; infinite while all is well.
        reason: The last failure's, empty while there was none.
        told: What was told of it, None when nothing was.
    """

    def __init__(self) -> None:
        self.retry_at = -math.inf
        self.told: str | None = None
        self.since = math.inf
        self.reason = ""

    @property
    def present(self) -> bool:
        """True from the first failure until something works again."""
        return self.since < math.inf

    def failed(self, error: Exception, steady: float) -> str | None:
        """Take note of a failure; returns what to tell of it, None when that was told before."""
        busy = isinstance(error, StoreBusy)
        self.since, self.reason = min(self.since, steady), str(error)
        self.retry_at = steady + (_BUSY_RETRY_SECONDS if busy else _RETRY_SECONDS)
        if str(error) == self.told or (busy and steady - self.since < _BUSY_TOLD_SECONDS):
            return None
        self.told = str(error)
        return self.told

    def worked(self) -> bool:
        """Take note that all works; True when that is to be told."""
        told, self.told, self.since = self.told, None, math.inf
        self.retry_at = -math.inf
        return told is not None


class Hindrance:
    """What cannot be done while all else goes on. Times are steady seconds.

    Attributes:
        since: When it began; infinite while there is none.
    """

    def __init__(self) -> None:
        self.since = math.inf
        self._told = False

    def follow(self, problem: str | None, steady: float) -> Literal["lasts", "over"] | None:
        """Take note of how it stands; returns what is to be told of it, once each."""
        if problem is None:
            told, self._told, self.since = self._told, False, math.inf
            return "over" if told else None
        self.since = min(self.since, steady)
        if self._told or steady < self.due():
            return None
        self._told = True
        return "lasts"

    def due(self) -> float:
        """Return when it is to be told, if it lasts until then."""
        return math.inf if self._told else self.since + _HINDRANCE_TOLD_SECONDS
