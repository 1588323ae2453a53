"""Events: what a supervisor tells the loop of its worker. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from watcher.types import Evaluation, Lease


@dataclass(frozen=True, slots=True)
class Starting:
    """The worker has begun a phase of its start, `building the model` say."""

    phase: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has built its model and can evaluate.

    Attributes:
        fingerprint: Identity of the evaluation; scores under another one do not compare.
        images: Size of the eval set.
        metric_names: Every overall metric that a result will have.
        taken: Files that it added to the run's snapshot, the user's path to its copy.
        categories: Names by the ids that results call them by.
        overlaps: It may have the next checkpoint while it computes the metrics of one.
    """

    fingerprint: str
    images: int
    metric_names: tuple[str, ...]
    device: str
    versions: dict[str, str]
    details: dict[str, Any]
    taken: dict[str, str] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """The running evaluation has done so many images of so many."""

    lease: Lease
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The leased checkpoint was measured, completely."""

    lease: Lease
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """The worker could not evaluate the leased checkpoint, and says why.

    Attributes:
        permanent: True when another attempt would end the same way.
        counts: False when the device is at fault, so that it is no attempt.
    """

    lease: Lease
    code: str
    message: str
    permanent: bool
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Unusable:
    """The leased checkpoint was measured, and the answer cannot be recorded."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died, hung, spoke nonsense or was ended; `leases` are what it was evaluating.

    Attributes:
        counts: False when the device is at fault, so that it is no attempt of theirs.
    """

    leases: tuple[Lease, ...]
    reason: str
    restart_at: float
    counts: bool = True


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A device gets nothing any more but what probes it.

    Attributes:
        counted: Checkpoint id to the attempts that were counted before it was known.
    """

    device: str
    reason: str
    counted: dict[int, int]


@dataclass(frozen=True, slots=True)
class WorksAgain:
    """A device that was held back has answered, and gets whatever there is."""

    device: str


@dataclass(frozen=True, slots=True)
class WorkerRecycled:
    """The worker was ended in peace, because it held more memory than it may."""

    resident_bytes: int


@dataclass(frozen=True, slots=True)
class GaveWay:
    """The worker was ended in peace, because another watcher waited for its device."""

    device: str


WorkerEvent = (
    Starting
    | Ready
    | Progressed
    | Evaluated
    | Rejected
    | Unusable
    | WorkerLost
    | HeldBack
    | WorksAgain
    | WorkerRecycled
    | GaveWay
)
