"""Task: one kind of the loop's work, and when it is due next. The only way to put work off."""

from __future__ import annotations

import math


class Task:
    """Due at once when it is new. Times are steady seconds."""

    def __init__(self) -> None:
        self._at = self._not_before = -math.inf

    @property
    def due(self) -> float:
        """When it is to be done, infinite while nobody asks for it."""
        return max(self._at, self._not_before)

    @property
    def is_wanted(self) -> bool:
        """True when it is to be done as soon as it may be."""
        return self._at == -math.inf

    def now(self) -> None:
        """Have it done at the next turn."""
        self._at = -math.inf

    def at(self, steady: float) -> None:
        """Have it done then, and not before unless somebody asks for it."""
        self._at = steady

    def hold_until(self, steady: float) -> None:
        """Let nobody have it done before then."""
        self._not_before = steady

    def take(self, steady: float) -> bool:
        """True when it is due; then it is taken for done, and what asks from now on asks anew."""
        if steady < self.due:
            return False
        self._at = math.inf
        return True
