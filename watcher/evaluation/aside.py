"""Ids of what a worker is given beside the queue."""

from __future__ import annotations

from enum import Enum


class Aside(Enum):
    """What a worker is given that is no checkpoint's turn in the queue.

    Its lease has an id that no checkpoint has, and that of no other kind: whatever is told of it to
    the queue is told of nothing.
    """

    AVERAGE = 0
    PROOF = -(1 << 40)
    PART = -(1 << 50)

    def id(self, number: int) -> int:
        """Return the id that stands for a row of this number, which counts from 1."""
        return int(self.value) - number
