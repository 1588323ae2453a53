"""Lookout: one look at model_dir, and how far its file system events can be trusted.

Wires watch and intake. A rescan that finds what no event announced says that events are lost, and
from then on model_dir is polled.
"""

from __future__ import annotations

import math

import structlog

from watcher.errors import ModelDirError
from watcher.ingest.intake import Intake
from watcher.sources import passed_over
from watcher.sources.watch import Watch

_log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
# How often to look for checkpoints that are passed over, of which each kind is told once.
_PASSED_OVER_SECONDS = 60.0


class Lookout:
    """The watch and the intake of one model_dir.

    Attributes:
        problem: What keeps checkpoints from being found or pinned, None when nothing does.
    """

    def __init__(self, watch: Watch, intake: Intake) -> None:
        self.watch = watch
        self.intake = intake
        self.problem: str | None = None
        self._looked = self._next_poll = self._next_inventory = -math.inf
        self._told: set[str] = set()
        self._news: list[str] = []

    def due(self) -> float:
        """Return the steady time of the next look, if no rescan or event comes before it."""
        retry = self.intake.next_retry()
        if retry is not None and retry <= self._looked:
            # The last look could not get at it, and an immediate one would not either.
            retry = self._next_poll
        return min(
            self._next_poll if self.watch.degraded else math.inf,
            math.inf if retry is None else retry,
        )

    def look(self, now: float, steady: float, *, announced: bool) -> None:
        """Look at model_dir once, and pin; `announced` tells that an event asked for it.

        Raises:
            StoreLost: the database is damaged.
        """
        self._looked, self._next_poll = steady, steady + POLL_SECONDS
        # The watch first, then the scan: what appears in between raises an event.
        in_force = self.watch.ensure()
        try:
            self.intake.look(now, steady)
        except ModelDirError as error:
            self.problem = error.message
            return
        self.problem = self.intake.problem
        if steady >= self._next_inventory:
            self._next_inventory = steady + _PASSED_OVER_SECONDS
            self._tell_passed_over()
        if self.intake.late and in_force and not announced:
            self.watch.doubt(f"no event announced {self.intake.late[-1]}")

    def _tell_passed_over(self) -> None:
        for passed in passed_over.look(self.watch.folder):
            if passed.kind not in self._told:
                self._told.add(passed.kind)
                self._news.append(f"{passed}; {passed.remedy}")

    def write_down(self, now: float) -> bool:
        """Record what the looks found; True when that was something.

        Raises:
            StoreError: the database cannot be written; it is kept for the next call.
        """
        recorded = self.intake.write_down(now)
        if recorded:
            _log.info("found", checkpoints=", ".join(recorded))
        return bool(recorded)

    def take_news(self) -> list[str]:
        """Return what happened to the folder, its events and its pins since the last call."""
        news, self._news = self._news, []
        return news + self.watch.take_news() + self.intake.take_news()

    def status(self) -> dict[str, str]:
        """Return what `status` shows of it: where checkpoints are noticed from, and how pinned."""
        return {
            "watch": self.watch.degraded or "events",
            "pins": self.intake.copying or "links",
        }
