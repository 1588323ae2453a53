"""Phase: where a worker is in its life, and which way that can go on. Pure."""

from __future__ import annotations

from enum import Enum, auto


class WorkerPhase(Enum):
    """What there is of a worker, and whether it takes checkpoints."""

    ABSENT = auto()  # it is started when that is due and a checkpoint needs it
    STARTING = auto()
    READY = auto()  # the only one in which it gets checkpoints
    GIVING_WAY = auto()  # another watcher waits for the device: it ends what it has
    OUTGROWN = auto()  # it holds more memory than it may: likewise
    SPENT = auto()  # the device is at fault: it is ended at once


class Admission(Enum):
    """What a ready worker may be given, by the machine that it runs on."""

    ADMITTED = auto()  # whatever there is
    PROVES = auto()  # a scored checkpoint, to be measured again
    WAITS = auto()  # nothing, until another one has scored something


class WorkerStep(Enum):
    """What happened to it."""

    SPAWNED = auto()
    GOT_READY = auto()
    DEVICE_WANTED = auto()  # by another watcher
    DEVICE_KEPT = auto()  # nobody else wants it any more
    GREW = auto()
    DEVICE_BROKE = auto()
    ENDED = auto()


_ALIVE = [phase for phase in WorkerPhase if phase is not WorkerPhase.ABSENT]
_USABLE = (WorkerPhase.READY, WorkerPhase.GIVING_WAY, WorkerPhase.OUTGROWN)

# What is not here leaves the phase as it is.
_NEXT: dict[tuple[WorkerPhase, WorkerStep], WorkerPhase] = {
    (WorkerPhase.ABSENT, WorkerStep.SPAWNED): WorkerPhase.STARTING,
    (WorkerPhase.STARTING, WorkerStep.GOT_READY): WorkerPhase.READY,
    (WorkerPhase.READY, WorkerStep.DEVICE_WANTED): WorkerPhase.GIVING_WAY,
    (WorkerPhase.GIVING_WAY, WorkerStep.DEVICE_KEPT): WorkerPhase.READY,
    # One that has outgrown its memory is not used again because nobody waits any more.
    (WorkerPhase.READY, WorkerStep.GREW): WorkerPhase.OUTGROWN,
    (WorkerPhase.GIVING_WAY, WorkerStep.GREW): WorkerPhase.OUTGROWN,
    **{(phase, WorkerStep.DEVICE_BROKE): WorkerPhase.SPENT for phase in _USABLE},
    **{(phase, WorkerStep.ENDED): WorkerPhase.ABSENT for phase in _ALIVE},
}


def after(phase: WorkerPhase, step: WorkerStep) -> WorkerPhase:
    """Return the phase that follows."""
    return _NEXT.get((phase, step), phase)
