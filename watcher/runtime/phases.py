"""Phases: how far a run has come, from its start to its end. Pure.

Whether its settings decide yet is another matter (`acceptance.py`): a trainer may end before a
worker ever was ready.
"""

from __future__ import annotations

from enum import Enum, auto


class RunPhase(Enum):
    """What the loop is about."""

    STARTING = auto()  # what the last run left is not put right yet: pin, and record nothing
    RUNNING = auto()  # the trainer may save more
    FINISHING = auto()  # it has ended: whatever it left is to be looked at once more
    DRAINING = auto()  # all there will be is known: end when each has its outcome
    DONE = auto()  # nothing is left that can be done
    STOPPED = auto()  # somebody wants an end now, whatever is left

    @property
    def is_over(self) -> bool:
        """True when the loop turns no more."""
        return self in (RunPhase.DONE, RunPhase.STOPPED)


class Event(Enum):
    """What leads from one phase to another."""

    BEGUN = auto()
    FINISH_ASKED = auto()
    LOOKED = auto()
    NOTHING_LEFT = auto()
    STOP_ASKED = auto()


_AT_WORK = (RunPhase.STARTING, RunPhase.RUNNING, RunPhase.FINISHING, RunPhase.DRAINING)
_NEXT = {
    (RunPhase.STARTING, Event.BEGUN): RunPhase.RUNNING,
    (RunPhase.RUNNING, Event.FINISH_ASKED): RunPhase.FINISHING,
    (RunPhase.FINISHING, Event.LOOKED): RunPhase.DRAINING,
    **{(phase, Event.NOTHING_LEFT): RunPhase.DONE for phase in _AT_WORK},
    **{(phase, Event.STOP_ASKED): RunPhase.STOPPED for phase in _AT_WORK},
}


def after(phase: RunPhase, event: Event) -> RunPhase:
    """Return the next phase; what is not in the table leaves it as it is."""
    return _NEXT.get((phase, event), phase)
