"""Slices: long work on files, done a slice a turn of the loop, beside everything else.

There is one thread, so what reads or copies whole shards is a generator that yields after a few
MB at most. A job takes it as far as a turn's time allows; small work ends in the first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")
Work = Generator[None, None, T]

# How long the loop stays at one kind of work in a turn; signals wait for that long.
SLICE_SECONDS = 0.2
_SHORT_SECONDS = 1.0
_GB = 1e9


class Unfinished(Exception):
    """Raised when a slice is over before the work is. No error: call again to go on."""


class Dropped(Exception):
    """Thrown into work that nobody wants any more, so that it clears away what it made."""


def slice_end() -> float:
    """Return the steady time at which a slice that begins now is over."""
    return time.monotonic() + SLICE_SECONDS


class Progress:
    """How far a piece of work is, for those who look on.

    Attributes:
        what: What is done with which checkpoint: `verifying ckpt-12`.
        done_bytes: So much of it is done.
        total_bytes: What there is to do.
        holds_open: So many files are open that are still to be copied, or are being downloaded.
    """

    def __init__(self) -> None:
        self.what = ""
        self.holds_open = 0
        self.done_bytes = self.total_bytes = 0
        self._began = time.monotonic()

    def begin(self, what: str, total_bytes: int) -> None:
        """Count from zero, for another part of the work."""
        self.what, self.done_bytes, self.total_bytes = what, 0, total_bytes

    def add(self, size_bytes: int) -> None:
        """Count what was just done."""
        self.done_bytes += size_bytes

    def __str__(self) -> str:
        if self.total_bytes < _GB:
            return f"{self.what}: {self.done_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB"
        return f"{self.what}: {self.done_bytes / _GB:.1f} of {self.total_bytes / _GB:.1f} GB"

    @property
    def text(self) -> str | None:
        """What to show of it, None while it is too short to be worth a word."""
        lasts = time.monotonic() - self._began >= _SHORT_SECONDS
        return str(self) if lasts and self.what else None


class Job(Generic[T]):
    """Work that goes on where it was each time it is run.

    Attributes:
        progress: How far it is.
    """

    def __init__(self, begin: Callable[[Progress], Work[T]]) -> None:
        self.progress = Progress()
        self._work = begin(self.progress)

    def run(self, until: float = -math.inf) -> T:
        """Go on until the work is done, or the steady time `until` has come; a step at least.

        Raises:
            Unfinished: the time came first.
            Exception: whatever the work raises, which ends it.
        """
        while True:
            try:
                next(self._work)
            except StopIteration as end:
                value: T = end.value
                return value
            if time.monotonic() >= until:
                raise Unfinished

    def begin(self) -> None:
        """Do the first step, which is short, of work that has more than one."""
        next(self._work)

    def close(self) -> None:
        """End it as the end of the process would: what can be gone on with later stays."""
        self._work.close()

    def drop(self) -> None:
        """End it, and leave nothing of it behind."""
        try:
            self._work.throw(Dropped())
        except (Dropped, StopIteration):
            pass
        else:
            self._work.close()


def finish(work: Work[T]) -> T:
    """Do all of the work now; returns its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: T = end.value
            return value
