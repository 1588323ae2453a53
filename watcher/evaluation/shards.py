"""Shards: one evaluation on several devices, where some have nothing else to do.

One worker has the lease and answers for the checkpoint, as ever. The others run a contiguous part
of the eval set each, and write what the model found into a file, which the first reads in place of
its own passes; metrics are computed once, by that one. A part that breaks off is run by the first
as well: nothing that happens to a part decides what comes of the evaluation, or counts as an
attempt of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
from msgspec.structs import replace

from watcher.evaluation.aside import Aside
from watcher.evaluation.events import (
    Evaluated,
    PartDone,
    Progressed,
    Rejected,
    Unusable,
    WorkerEvent,
    WorkerLost,
)
from watcher.evaluation.supervise import DATASET_CHANGED, Supervisor
from watcher.types import Lease

_log = structlog.get_logger(__name__)

JOB = "part"
# An evaluation that one device does in less is not worth another's time, says `auto`.
WORTH_SECONDS = 120.0
# What a worker appends to the name of a file that it has not written to its end.
UNFINISHED = ".new"
_ANY = 1 << 10


@dataclass(slots=True)
class _Whole:
    """An evaluation that is divided: who answers for it, and the files of its parts."""

    by: Supervisor
    lease: Lease
    of: int
    paths: list[Path]


@dataclass(slots=True)
class _Part:
    """A part that a worker runs.

    Attributes:
        lease: What it is asked for under. No checkpoint has its id, so that whatever is told of it
            to the queue is told of nothing.
        whole: Token of the evaluation.
    """

    lease: Lease
    index: int
    path: Path
    on: Supervisor
    whole: str


class Shards:
    """The evaluations that more than one device works on."""

    def __init__(self, wanted: int | Literal["auto", "off"]) -> None:
        """Divide an evaluation among so many devices at most; `auto` where it takes long."""
        self._wanted = wanted
        self._parts: dict[str, _Part] = {}
        self._whole: dict[str, _Whole] = {}
        # What the last evaluation would have taken on one device.
        self._seconds = 0.0
        self._now = 0.0

    def begin(
        self, given: Sequence[tuple[Supervisor, Lease]], idle: Sequence[Supervisor], steady: float
    ) -> None:
        """Have workers evaluate what they are given, with the help of those that get nothing.

        Args:
            steady: Steady seconds now.
        """
        self._now = steady
        for number, (supervisor, lease) in enumerate(given):
            others = [one for one in idle[number :: len(given)] if _can_help(one, supervisor)]
            others = others[: self._most(supervisor, lease) - 1]
            supervisor.evaluate(lease, steady, parts=1 + len(others))
            if others:
                self._divide(supervisor, lease, others, steady)

    def _most(self, supervisor: Supervisor, lease: Lease) -> int:
        """Return how many devices may work on it; what may break a worker has one alone."""
        if self._wanted == "off" or lease.attempt > 1 or not supervisor.breaker.closed:
            return 1
        if self._wanted == "auto":
            return 1 if self._seconds < WORTH_SECONDS else _ANY
        return self._wanted

    def _divide(
        self, supervisor: Supervisor, lease: Lease, others: Sequence[Supervisor], steady: float
    ) -> None:
        whole = _Whole(supervisor, lease, 1 + len(others), [])
        self._whole[lease.token] = whole
        for index, other in enumerate(others, 1):
            token = f"{lease.token}.{index}"
            path = Path(str(other.start_request.artefacts_dir), f"part-{token}.npz")
            own = replace(lease, checkpoint_id=Aside.PART.id(lease.checkpoint_id), token=token)
            whole.paths.append(path)
            self._parts[token] = _Part(own, index, path, other, lease.token)
            other.run_part(own, index, whole.of, path, steady)
        on = [supervisor.device, *(other.device for other in others)]
        _log.info("evaluating on several devices", checkpoint=lease.name, devices=", ".join(on))

    def take(self, event: WorkerEvent, steady: float) -> WorkerEvent | None:
        """Return what is left of an event when that of parts is taken, None for nothing."""
        self._now = steady
        match event:
            case Progressed(lease) if part := self._parts.get(lease.token):
                return self._progress_of(part, event)
            case PartDone(lease) if part := self._parts.get(lease.token):
                self._over(part, part.path)
                for warning in event.warnings:
                    _log.warning(warning, checkpoint=lease.name, device=part.on.device)
                return None
            case Rejected(lease) | Unusable(lease) if part := self._parts.get(lease.token):
                self._over(part, None)
                return self._broke(part, event)
            case WorkerLost(leases):
                left = tuple(one for one in leases if not self.drop(one))
                return replace(event, leases=left)
            case Evaluated(lease):
                return self._evaluated(event, lease)
            case Rejected(lease) | Unusable(lease):
                self.drop(lease)
        return event

    def _progress_of(self, part: _Part, event: Progressed) -> Progressed | None:
        """Return a part's progress as that of the whole, whose lease it keeps alive."""
        whole = self._whole.get(part.whole)
        return replace(event, lease=whole.lease) if whole else None

    def _broke(self, part: _Part, event: Rejected | Unusable) -> Rejected | None:
        if isinstance(event, Rejected) and event.code == DATASET_CHANGED:
            return event  # which is news for all workers
        reason = event.message if isinstance(event, Rejected) else event.reason
        if part.whole in self._whole:
            device = part.on.device
            _log.warning("a part broke off", checkpoint=part.lease.name, device=device, why=reason)
        return None

    def _evaluated(self, event: Evaluated, lease: Lease) -> Evaluated:
        whole = self._whole.get(lease.token)
        self._seconds = event.seconds * (whole.of if whole else 1)
        self.drop(lease)
        if whole is None:
            return event
        details = {**event.evaluation.details, "parts": whole.of}
        return replace(event, evaluation=replace(event.evaluation, details=details))

    def drop(self, lease: Lease) -> bool:
        """Forget what was answered, or whose worker ended.

        Returns:
            True where it was a part, which is no lease of the queue's.
        """
        if part := self._parts.get(lease.token):
            self._over(part, None)
            return True
        if whole := self._whole.pop(lease.token, None):
            for part in self._parts.values():
                if part.whole == lease.token:
                    part.on.cancel(part.lease)
            _remove(whole.paths)
        return False

    def _over(self, part: _Part, path: Path | None) -> None:
        """Tell who waits for a part where it is, or that none will come."""
        del self._parts[part.lease.token]
        whole = self._whole.get(part.whole)
        if whole is None or path is None:
            _remove([part.path])
        if whole:
            whole.by.tell_part(whole.lease, part.index, path, self._now)


def _can_help(other: Supervisor, supervisor: Supervisor) -> bool:
    """True when two workers measure the same, and both can share an evaluation."""
    if other.leases or not other.breaker.closed or not other.start_request.artefacts_dir:
        return False
    if other.far or supervisor.far:  # the files of parts lie on this machine
        return False
    said = [one.ready.said for one in (other, supervisor) if one.ready]
    able = [one for one in said if JOB in one.capabilities.jobs]
    # Machines that differ may give one image different bits, be it tolerated or not.
    same = {(one.fingerprint, repr(one.machine)) for one in able}
    return len(able) == 2 and len(same) == 1


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        for one in (path, path.with_name(path.name + UNFINISHED)):
            with contextlib.suppress(OSError):  # the folder is removed at the end anyway
                one.unlink(missing_ok=True)
