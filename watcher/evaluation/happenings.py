"""Happenings: what a supervisor tells the loop of its worker. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from watcher.data import Evaluation, Lease


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has built its model and can evaluate.

    Attributes:
        fingerprint: Identity of the evaluation; scores under another one do not compare.
        images: Size of the eval set.
        metric_names: Every overall metric that a result will have.
        taken: Files that it added to the run's snapshot, the user's path to its copy.
    """

    fingerprint: str
    images: int
    metric_names: tuple[str, ...]
    device: str
    versions: dict[str, str]
    details: dict[str, Any]
    taken: dict[str, str] = field(default_factory=dict)


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
    """

    lease: Lease
    code: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died, hung or spoke nonsense; `leases` are what it was evaluating."""

    leases: tuple[Lease, ...]
    reason: str
    restart_at: float


@dataclass(frozen=True, slots=True)
class WorkerRecycled:
    """The worker was ended in peace, because it held more memory than it may."""

    resident_bytes: int


@dataclass(frozen=True, slots=True)
class GaveWay:
    """The worker was ended in peace, because another watcher waited for its device."""

    device: str


Happening = Ready | Progressed | Evaluated | Rejected | WorkerLost | WorkerRecycled | GaveWay
