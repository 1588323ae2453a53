"""Worker pool: the workers of a run, one a device, as one.

They take from the same queue, so all must measure the same: one whose evaluation has another
fingerprint is refused. One that cannot be started is left out as long as others may work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from watcher.errors import WatcherError, WorkerError, WorkerRefused
from watcher.evaluation.breaker import Phase
from watcher.evaluation.events import Ready, WorkerEvent
from watcher.evaluation.phase import Admission, WorkerPhase
from watcher.evaluation.supervise import RESTART_LIMIT_SECONDS, Supervisor
from watcher.types import Lease

_log = structlog.get_logger(__name__)

PROVING = "proving"
UNPROVEN = "waiting to be compared"
# What a worker does, the most telling first: `status` shows that of the first that does it.
_DOING = (
    *("evaluating", "ready", "probing", PROVING, "starting", UNPROVEN),
    *("waiting for the device", "held back", "waiting to restart"),
)
AT_REST = "at rest"


class WorkerPool:
    """The supervisors of a run, of which at least one is always there."""

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        assert supervisors
        self._all = list(supervisors)
        self._present = list(supervisors)
        self._left_out: list[str] = []

    def __iter__(self) -> Iterator[Supervisor]:
        return iter(self._present)

    @property
    def retry_seconds(self) -> float:
        """First delay before another attempt."""
        return self._present[0].limits.retry_seconds

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What the workers evaluate now."""
        return tuple(lease for supervisor in self for lease in supervisor.leases)

    @property
    def owed(self) -> frozenset[int]:
        """Checkpoint ids of what was measured and has no replicates yet."""
        sessions = [supervisor.session for supervisor in self if supervisor.session]
        owed = (lease for session in sessions for lease, _ in session.owed.values())
        return frozenset(lease.checkpoint_id for lease in owed)

    @property
    def busy(self) -> bool:
        """True while anything is awaited of a worker that is ready."""
        return any(supervisor.busy for supervisor in self)

    @property
    def free(self) -> bool:
        """True when any checkpoint can be given to a worker now, be it to compare machines."""
        idle = (supervisor for supervisor in self if supervisor.idle and not supervisor.leases)
        return any(one.admission is not Admission.WAITS for one in idle)

    @property
    def has_room(self) -> bool:
        """True when one that broke no worker before can be given to a worker now."""
        return any(supervisor.takes for supervisor in self)

    @property
    def resting(self) -> bool:
        """True when a worker is to be started once there is something to evaluate."""
        return any(supervisor.resting for supervisor in self)

    @property
    def was_ready(self) -> bool:
        """True once a worker has been ready."""
        return any(supervisor.was_ready for supervisor in self)

    @property
    def waiting(self) -> bool:
        """True while other watchers have every device, so that nothing is known of a worker yet."""
        return all(supervisor.waiting_for for supervisor in self)

    @property
    def problem(self) -> str | None:
        """Why a device is not evaluated on, None when each is."""
        found = [trouble for supervisor in self if (trouble := _trouble(supervisor))]
        return "; ".join([*found, *self._left_out]) or None

    @property
    def held_back(self) -> str | None:
        """Which devices get nothing but what probes them, why, and what to do; None for none."""
        return "; ".join(text for supervisor in self if (text := _held_back(supervisor))) or None

    def why_hopeless(self, *, near: bool = False) -> str | None:
        """Say why no device will evaluate anything soon, None while one may.

        Args:
            near: Of the devices of this machine alone, where averages are written.
        """
        asked = [one for one in self if not (near and one.far)]
        if not all(supervisor.hopeless for supervisor in asked):
            return None
        return self.held_back or self.problem

    def tick(self, steady: float) -> list[tuple[Supervisor, WorkerEvent]]:
        """Let each supervisor do its part, and return what happened.

        Raises:
            WorkerRefused, WorkerError: as `Supervisor.tick`, when there is no other worker that
                may work.
        """
        happened: list[tuple[Supervisor, WorkerEvent]] = []
        for supervisor in list(self._present):
            try:
                happened += ((supervisor, event) for event in supervisor.tick(steady))
            except (WorkerRefused, WorkerError) as error:
                self.leave_out(supervisor, error, error.message)
        return happened

    def leave_out(self, supervisor: Supervisor, error: WatcherError, reason: str) -> None:
        """Go on without a device until the next start.

        Args:
            supervisor: Its. Whatever it evaluates is to be given back.
            error: What it means where there is no other.
            reason: What is told where there is.

        Raises:
            WatcherError: that one, when it is the last device.
        """
        if len(self._present) == 1:
            raise error
        supervisor.stop(timeout_seconds=0)
        self._present.remove(supervisor)
        self._left_out.append(f"{supervisor.device} is left out until the next start: {reason}")
        _log.error("device left out", device=supervisor.device, reason=reason)

    def want(self, wanted: bool) -> None:
        """Say whether there is something to evaluate now."""
        for supervisor in self:
            supervisor.wanted = wanted

    def disagreement(self, supervisor: Supervisor, ready: Ready) -> str | None:
        """Say why a worker that got ready cannot work beside the others, None when it can.

        One of another machine keeps none of this machine out, and one that waits keeps none out.
        """
        for other in self:
            if other is supervisor or other.ready is None or other.held:
                continue
            if other.far and not supervisor.far:
                continue
            ours, theirs = ready.said.fingerprint, other.ready.said.fingerprint
            if theirs != ours:
                return (
                    f"{supervisor.device} is not used: its evaluation ({ours[:8]}) is"
                    f" not that of {other.device} ({theirs[:8]}), so the"
                    " eval data or a library was changed in between; start the watcher again"
                )
        return None

    @property
    def starting(self) -> bool:
        """True while a worker says what it does before it is ready."""
        return any(one.phase is WorkerPhase.STARTING and one.phases for one in self)

    def next_deadline(self) -> float:
        """Return the steady time at which `tick` has something to do without any message."""
        return min(supervisor.next_deadline() for supervisor in self)

    def worker_due(self) -> float:
        """Return the steady time by which something is awaited of a worker, infinite for never."""
        return min(supervisor.worker_due for supervisor in self)

    def filenos(self) -> list[int]:
        """File descriptors of which one becomes readable when a worker has something to say."""
        return [fd for one in self if one.session for fd in one.session.worker.filenos()]

    def stop(self, timeout_seconds: float) -> tuple[Lease, ...]:
        """End all workers, in peace if they are idle; returns the leases they held."""
        leases = self.leases
        for supervisor in self:
            supervisor.ask_to_end()
        until = time.monotonic() + timeout_seconds  # for all together
        for supervisor in self:
            supervisor.stop(max(0.0, until - time.monotonic()))
        return leases

    def status(self) -> dict[str, Any]:
        """Return what `status` shows of the first worker, of each if there are several."""
        workers = [_describe(supervisor) for supervisor in self]
        first = min(workers, key=lambda one: _rank(one["worker"]))
        waiting = [supervisor.waiting_for for supervisor in self if supervisor.waiting_for]
        return {
            **first,
            "workers": workers if len(self._all) > 1 else [],
            "waiting_for": "; ".join(waiting) or None,
            "held_back": self.held_back,
            "hosts": [one.host() for one in self._all if one.host],
        }

    def counts(self) -> dict[str, int]:
        """Return how many workers were started and lost, and lost in a row, for `Heartbeat`."""
        return {
            "worker_starts": sum(supervisor.starts for supervisor in self._all),
            "worker_losses": sum(supervisor.losses for supervisor in self._all),
            "worker_failing": max(supervisor.failures for supervisor in self._all),
        }


def _rank(doing: str) -> int:
    return _DOING.index(doing) if doing in _DOING else len(_DOING)


def _trouble(supervisor: Supervisor) -> str | None:
    """Say why there is no worker when there should be one, None where that is not known."""
    if supervisor.problem or supervisor.failures < 2:
        return supervisor.problem
    return (
        f"{supervisor.failures} workers in a row could not be started on {supervisor.device},"
        f" trying again: {supervisor.last_loss}"
    )


def _held_back(supervisor: Supervisor) -> str | None:
    if supervisor.breaker.closed:
        return None
    return (
        f"evaluation on {supervisor.device} is held back, for {supervisor.breaker.explanation}."
        " The device or the set-up is at fault, so no attempt counts: see worker.log in the state"
        f" folder. Every {RESTART_LIMIT_SECONDS:g} s or sooner one checkpoint is tried, and once"
        " that works all goes on"
    )


def _describe(supervisor: Supervisor) -> dict[str, Any]:
    """Return one worker as `status` shows it."""
    if supervisor.breaker.phase is Phase.PROBING:
        doing = "probing"
    elif supervisor.lease:
        doing = PROVING if supervisor.admission is Admission.PROVES else "evaluating"
    elif not supervisor.breaker.closed and not supervisor.waiting_for:
        doing = "held back"
    elif supervisor.ready:
        doing = "ready" if supervisor.admission is Admission.ADMITTED else UNPROVEN
    elif supervisor.waiting_for:
        doing = "waiting for the device"
    elif supervisor.phase is WorkerPhase.STARTING:
        doing = "starting"
    elif supervisor.resting:
        doing = AT_REST
    else:
        doing = "waiting to restart"
    phase = {}
    if doing == "starting" and supervisor.phases:
        phase = {"phase": supervisor.phases[-1][0], "phase_at": supervisor.phase_at}
    return {
        "worker": doing,
        **phase,
        "on": supervisor.device,
        "checkpoint": supervisor.lease.name if supervisor.lease else None,
        **supervisor.progress,
        "device": supervisor.ready.said.device if supervisor.ready else None,
        "images": supervisor.ready.said.images if supervisor.ready else None,
        "machine": supervisor.ready.said.machine if supervisor.ready else None,
    }
