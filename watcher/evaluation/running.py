"""Running: an evaluation that a worker was asked for, and how far it has come. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.types import Lease


@dataclass(slots=True)
class Running:
    """An evaluation that the worker was asked for. Times are steady seconds.

    Attributes:
        deadline: When it counts as hung.
        done: Images done, -1 before the first is told.
        forwarded: True when only metrics are left.
    """

    lease: Lease
    started: float
    deadline: float
    done: int = -1
    total: int = 0
    forwarded: bool = False
    first_done: int = 0
    first_told: float = 0.0
    images_per_second: float | None = None

    def came(self, done: int, now: float) -> None:
        """Note that more images are done, and how fast they go since the first progress."""
        if self.done < 0:
            self.first_done, self.first_told = done, now
        elif now > self.first_told:
            rate = (done - self.first_done) / (now - self.first_told)
            self.images_per_second = round(rate, 2)
        self.done = done
