"""Breaker: whether a device, or the set-up, is at fault rather than the checkpoints. Pure.

One checkpoint that breaks off again and again is to blame itself. Different ones that break off in
a row, with nothing in between that was answered, are not: then nothing is given out, and after a
delay one checkpoint probes whether the device works again. None of that counts against them, unless
they break off again after it did.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

# So many different checkpoints in a row: of two, both may be bad.
DIFFERENT = 3
# So many probes in a row that fail are enough for a run that is to end by itself.
HOPELESS_PROBES = 6


class Phase(Enum):
    """What may be given out: anything; nothing; nothing beside the one that probes."""

    CLOSED = auto()
    OPEN = auto()
    PROBING = auto()


class _Event(Enum):
    TRIPPED = auto()
    GIVEN = auto()
    BROKE = auto()
    RETURNED = auto()
    ANSWERED = auto()


# What is not here leaves the phase as it is.
_NEXT = {
    (Phase.CLOSED, _Event.TRIPPED): Phase.OPEN,
    (Phase.OPEN, _Event.GIVEN): Phase.PROBING,
    (Phase.PROBING, _Event.BROKE): Phase.OPEN,
    (Phase.PROBING, _Event.RETURNED): Phase.OPEN,
    (Phase.PROBING, _Event.ANSWERED): Phase.CLOSED,
    (Phase.OPEN, _Event.ANSWERED): Phase.CLOSED,
}


@dataclass(slots=True)
class Breaker:
    """What broke off on one device since it answered last.

    Attributes:
        phase: What may be given out now.
        lost: Checkpoint id to how many of its attempts were counted, the one tried last at the
            end.
        restarts: Workers that had to be ended in a row, to the fault of no checkpoint.
        probes: How many failed since nothing is given out any more.
        reason: Why the last one broke off.
    """

    phase: Phase = Phase.CLOSED
    lost: dict[int, int] = field(default_factory=dict)
    restarts: int = 0
    probes: int = 0
    reason: str = ""

    @property
    def closed(self) -> bool:
        """True while nothing speaks against the device."""
        return self.phase is Phase.CLOSED

    @property
    def doublings(self) -> int:
        """How many times to double the delay before the next worker."""
        return max(self.restarts - 1, self.probes, 0)

    @property
    def hopeless(self) -> bool:
        """True when so many probes failed that waiting for more is no use."""
        return self.phase is Phase.OPEN and self.probes >= HOPELESS_PROBES

    @property
    def by_ended(self) -> bool:
        """True when workers had to be ended: that another checkpoint works mends nothing then."""
        return self.restarts >= DIFFERENT

    @property
    def explanation(self) -> str:
        """Say why nothing is given out."""
        if len(self.lost) >= DIFFERENT:
            return f"{len(self.lost)} different checkpoints in a row broke off: {self.reason}"
        return f"{self.restarts} workers in a row had to be ended: {self.reason}"

    def given(self) -> None:
        """Take note that a checkpoint is evaluated now."""
        self._on(_Event.GIVEN)

    def returned(self) -> None:
        """Take note that nothing is evaluated any more, without an outcome."""
        self._on(_Event.RETURNED)

    def answered(self) -> None:
        """Take note of a sign of life: a result, or a refusal that is the checkpoint's own."""
        self._on(_Event.ANSWERED)
        self.lost, self.restarts, self.probes = {}, 0, 0

    def broke(self, checkpoints: Collection[int], reason: str, *, blames: bool = True) -> bool:
        """Take note that the evaluation of these broke off, or of none.

        Args:
            checkpoints: Ids.
            reason: Why.
            blames: False where none of them is at fault, whatever follows.

        Returns:
            True when that counts as an attempt of theirs.
        """
        self.reason = reason
        self.restarts += not checkpoints or not blames
        tripped = len({*self.lost, *checkpoints}) >= DIFFERENT or self.restarts >= DIFFERENT
        counts = blames and self.closed and not tripped
        if not self.closed:
            self.probes += 1
        elif tripped:
            self._on(_Event.TRIPPED)
        self._on(_Event.BROKE)
        for checkpoint in checkpoints:
            self.lost[checkpoint] = self.lost.pop(checkpoint, 0) + counts
        return counts

    def take_counted(self) -> dict[int, int]:
        """Return which attempts were counted before this one, and count them no longer."""
        counted = {checkpoint: times for checkpoint, times in self.lost.items() if times}
        self.lost = dict.fromkeys(self.lost, 0)
        return counted

    def _on(self, event: _Event) -> None:
        self.phase = _NEXT.get((self.phase, event), self.phase)
