"""Waiting: checkpoints that could not be pinned yet, and when each is worth another look."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator

from watcher.ingest.arrivals import FIRST_RETRY_SECONDS, Arrival
from watcher.types import FoundCheckpoint


class Waiting:
    """Those that wait, by name. Each is looked at after twice as long as the time before."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._by_name: dict[str, Arrival] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Arrival | None:
        """Return the one of this name, None where none waits."""
        return self._by_name.get(name)

    def drop(self, name: str) -> None:
        """Let the one of this name wait no longer; nothing happens where there is none."""
        self._by_name.pop(name, None)

    def clear(self) -> None:
        """Let none wait."""
        self._by_name.clear()

    def without(self, names: Container[str]) -> list[Arrival]:
        """Return those of other names."""
        return [one for name, one in self._by_name.items() if name not in names]

    def holds(self, found: FoundCheckpoint) -> bool:
        """Tell whether these files wait, and not others of the name."""
        held = self.get(found.name)
        return held is not None and held.found.signature == found.signature

    def hold(self, arrival: Arrival, steady: float) -> Arrival:
        """Let a checkpoint wait; returns how it does, as before where its files waited already."""
        held = self.get(arrival.found.name)
        if held is not None and self.holds(arrival.found):
            return held
        arrival.since = arrival.retry_at = steady
        arrival.delay = FIRST_RETRY_SECONDS
        return self.put_back(arrival)

    def put_back(self, arrival: Arrival) -> Arrival:
        """Let one that waited before go on waiting."""
        self._by_name[arrival.found.name] = arrival
        return arrival

    def has_lasted(self, arrival: Arrival, steady: float) -> bool:
        """Tell whether it has waited for long enough."""
        return arrival.since is not None and steady - arrival.since >= self._grace_seconds

    def postpone(self, arrival: Arrival, steady: float) -> None:
        """Set when it is looked at next: not before its grace ends if that comes first."""
        since = steady if arrival.since is None else arrival.since
        remaining = max(since + self._grace_seconds - steady, FIRST_RETRY_SECONDS)
        arrival.retry_at = steady + min(arrival.delay, remaining)
        arrival.delay = min(arrival.delay * 2, self._grace_seconds)

    @property
    def problem(self) -> str | None:
        """Why a checkpoint that may be whole cannot be pinned, None when none is held up."""
        return next((one.problem for one in self if one.problem), None)

    def given_up_at(self, held_up: Container[str]) -> float:
        """Return the steady time from which all have waited for long enough, and in vain.

        Infinite while some wait for their own outcome, minus infinity when none waits.
        """
        more = self._grace_seconds + 2 * FIRST_RETRY_SECONDS  # and one try after it
        return max(
            (
                one.since + more if name in held_up and one.since is not None else math.inf
                for name, one in self._by_name.items()
            ),
            default=-math.inf,
        )

    def next_retry(self) -> float | None:
        """Return the steady time at which one is worth another look, None when none waits."""
        return min((one.retry_at for one in self), default=None)
