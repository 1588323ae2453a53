"""Events: what a supervisor tells the loop of its worker. Data only."""

from __future__ import annotations

import msgspec

from watcher.decision.metric import LATENCY
from watcher.evaluation import messages
from watcher.types import Evaluation, Lease, Replicates


class Starting(msgspec.Struct, frozen=True):
    """The worker has begun a phase of its start, `building the model` say."""

    phase: str


class Ready(msgspec.Struct, frozen=True):
    """The worker has built its model and can evaluate: what it said of that, and its libraries."""

    said: messages.Ready
    versions: dict[str, str]

    @property
    def random_metrics(self) -> list[str]:
        """Those that are drawn at random in part."""
        # A latency is another one each time, and says itself by how much.
        drawn = (one.name for one in self.said.metrics if not one.reproducible)
        return sorted(name for name in drawn if name != LATENCY)


class Progressed(msgspec.Struct, frozen=True):
    """The running evaluation has done so many images of so many."""

    lease: Lease
    done: int
    total: int


class Evaluated(msgspec.Struct, frozen=True):
    """The leased checkpoint was measured, completely."""

    lease: Lease
    evaluation: Evaluation
    seconds: float


class PartDone(msgspec.Struct, frozen=True):
    """The part of an evaluation that was asked for lies in the file that was named."""

    lease: Lease
    warnings: list[str]


class AverageWritten(msgspec.Struct, frozen=True):
    """The average that was asked for lies at the prefix of its lease, unverified."""

    lease: Lease
    batch_norm: messages.BatchNorm | None = None


class Resampled(msgspec.Struct, frozen=True):
    """The replicates of a checkpoint that was measured, under the fingerprint of that."""

    lease: Lease
    fingerprint: str
    replicates: Replicates


class Rejected(msgspec.Struct, frozen=True):
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


class Unusable(msgspec.Struct, frozen=True):
    """The leased checkpoint was measured, and the answer cannot be recorded."""

    lease: Lease
    reason: str


class WorkerLost(msgspec.Struct, frozen=True):
    """The worker died, hung, spoke nonsense or was ended; `leases` are what it was evaluating.

    Attributes:
        counts: False when the device is at fault, so that it is no attempt of theirs.
    """

    leases: tuple[Lease, ...]
    reason: str
    restart_at: float
    counts: bool = True


class HeldBack(msgspec.Struct, frozen=True):
    """A device gets nothing any more but what probes it.

    Attributes:
        counted: Checkpoint id to the attempts that were counted before it was known.
    """

    device: str
    reason: str
    counted: dict[int, int]


class WorksAgain(msgspec.Struct, frozen=True):
    """A device that was held back has answered, and gets whatever there is."""

    device: str


class WorkerRecycled(msgspec.Struct, frozen=True):
    """The worker was ended in peace, because it held more memory than it may."""

    resident_bytes: int


class GaveWay(msgspec.Struct, frozen=True):
    """The worker was ended in peace, because another watcher waited for its device."""

    device: str


WorkerEvent = (
    Starting
    | Ready
    | Progressed
    | Evaluated
    | PartDone
    | AverageWritten
    | Resampled
    | Rejected
    | Unusable
    | WorkerLost
    | HeldBack
    | WorksAgain
    | WorkerRecycled
    | GaveWay
)
