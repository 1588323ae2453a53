"""Waiting: checkpoints that could not be pinned yet, and when each is worth another look."""

from __future__ import annotations

import math
from collections.abc import Container

from watcher.ingest.arrivals import FIRST_RETRY_SECONDS, Arrival
from watcher.types import FoundCheckpoint


class Waiting(dict[str, Arrival]):
    """Those that wait, by name. Each is looked at after twice as long as the time before."""

    def __init__(self, grace_seconds: float) -> None:
        super().__init__()
        self._grace_seconds = grace_seconds

    def holds(self, found: FoundCheckpoint) -> bool:
        """Tell whether these files wait, and not others of the name."""
        held = self.get(found.name)
        return held is not None and held.found.signature == found.signature

    def hold(self, arrival: Arrival, steady: float, key: str = "") -> Arrival:
        """Let a checkpoint wait; returns how it does, as before where its files waited already.

        One that has a key waits under that, and goes on waiting as it did.
        """
        if key:
            if arrival.since == math.inf:
                arrival.since = steady
            self[key] = arrival
            return arrival
        if not self.holds(arrival.found):
            arrival.since = arrival.retry_at = steady
            arrival.delay = FIRST_RETRY_SECONDS
            self[arrival.found.name] = arrival
        return self[arrival.found.name]

    def has_lasted(self, arrival: Arrival, steady: float) -> bool:
        """Tell whether one has waited for long enough."""
        return steady - arrival.since >= self._grace_seconds

    def postpone(self, arrival: Arrival, steady: float) -> None:
        """Set when it is looked at next: not before its grace ends if that comes first."""
        remaining = max(arrival.since + self._grace_seconds - steady, FIRST_RETRY_SECONDS)
        arrival.retry_at = steady + min(arrival.delay, remaining)
        arrival.delay = min(arrival.delay * 2, self._grace_seconds)

    @property
    def problem(self) -> str | None:
        """Why a checkpoint that may be whole cannot be pinned, None when none is held up."""
        return next((one.problem for one in self.values() if one.problem), None)

    def given_up_at(self, held_up: Container[str]) -> float:
        """Return the steady time from which all have waited for long enough, and in vain.

        Infinite while some wait for their own outcome, minus infinity when none waits.
        """
        more = self._grace_seconds + 2 * FIRST_RETRY_SECONDS  # and one try after it
        waited = (one.since + more if name in held_up else math.inf for name, one in self.items())
        return max(waited, default=-math.inf)

    def next_retry(self, others: Waiting) -> float | None:
        """Return the steady time at which one is worth another look, None when none waits."""
        return min((one.retry_at for one in (*self.values(), *others.values())), default=None)
