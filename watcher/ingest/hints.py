"""Hints: what tells of new checkpoints, how far that can be trusted, and what to tell of it.

A rescan that finds what no event announced says that events are lost, and from then on the source
is polled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from watcher.protocols import CheckpointSource, Watching

_POLL_SECONDS = 1.0
# Of waits rather than of time: a process that was held up in between has them yet.
_EVENT_WAITS, _EVENT_WAIT_SECONDS = 50, 0.01
# How often to look for checkpoints that are passed over, of which each kind is told once.
_PASSED_OVER_SECONDS = 60.0


class Hints:
    """The watch on one source, and the news of it.

    Attributes:
        copying: Why pins are copies that take space of their own, None while they are links.
    """

    def __init__(self, source: CheckpointSource) -> None:
        self._source = source
        self._watching: Watching | None = None
        self._in_force = False
        self._looked = self._next_poll = self._next_inventory = -math.inf
        self._told: set[str] = set()
        self._news: list[str] = []
        self.copying: str | None = None

    def watch(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from the next look on, when something new may be there."""
        self._watching = self._source.watch(wake)

    def close(self) -> None:
        """End watching."""
        if self._watching:
            self._watching.close()

    def begin(self, steady: float) -> None:
        """Begin a look. The watch first, then the scan: what appears in between raises an event."""
        self._looked, self._next_poll = steady, steady + _POLL_SECONDS
        self._in_force = self._watching is not None and self._watching.ensure()

    def end(self, steady: float, unannounced: str | None) -> None:
        """End a look, which found one that had been there for a while and was not announced."""
        if steady >= self._next_inventory:
            self._next_inventory = steady + _PASSED_OVER_SECONDS
            for kind, text in self._source.passed_over():
                if kind not in self._told:
                    self._told.add(kind)
                    self.tell(text)
        if self._watching and unannounced and self._in_force:
            self._watching.doubt(f"no event announced {unannounced}")

    def due(self, retry: float | None) -> float:
        """Return the steady time of the next look, if no rescan or event comes before it.

        Args:
            retry: When a checkpoint is worth another one.
        """
        if retry is not None and retry <= self._looked:
            # The last look could not get at it, and an immediate one would not either.
            retry = self._next_poll
        polls = self._watching is not None and self._watching.degraded is not None
        return min(
            self._next_poll if polls else math.inf,
            math.inf if retry is None else retry,
        )

    def tell(self, text: str) -> None:
        """Add to the news."""
        self._news.append(text)

    def tell_copying(self, reason: str | None) -> None:
        """Say that pins are copies, once, where there is a reason for that."""
        if reason and not self.copying:
            self.copying = reason
            self.tell(f"pins are copies, which take space of their own: {reason}")

    def take_news(self) -> list[str]:
        """Return what happened to the source, its events and the pins since the last call."""
        news, self._news = self._news, []
        return news + (self._watching.take_news() if self._watching else [])

    def announced_until(self, name: str) -> list[str]:
        """Return the names of checkpoints that events told of, in order, until one of `name`.

        That one may lie there before its event was read, of which this waits for a moment.
        """
        watching = self._watching if self._in_force else None
        names = watching.take_announced() if watching else []
        for _ in range(_EVENT_WAITS):
            if watching is None or name in names:
                break
            time.sleep(_EVENT_WAIT_SECONDS)
            names += watching.take_announced()
        return names[: names.index(name)] if name in names else names

    def status(self) -> dict[str, str]:
        """Return what `status` shows: where checkpoints are noticed from, and how pinned."""
        degraded = self._watching.degraded if self._watching else None
        return {"watch": degraded or "events", "pins": self.copying or "links"}
