"""Home first: a worker on another host never decides what the run's evaluation is.

Eval data or a library there may be stale. So long as a device of this machine may come, one of
another host gets checkpoints only under the evaluation that counts already.
"""

from __future__ import annotations

from watcher.evaluation.events import Ready
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.supervise import Supervisor

# A device of this machine that failed so often and was never ready is not waited for.
_FAILING = 2


class HomeFirst:
    """Which ready workers on other hosts wait for one of this machine."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._waiting: list[tuple[Supervisor, Ready]] = []

    def holds(self, supervisor: Supervisor, ready: Ready, present: str | None) -> bool:
        """Tell whether a worker that got ready has to wait, and have it wait.

        Args:
            supervisor: Its.
            ready: What it said.
            present: The fingerprint that counts, None before the first evaluation.
        """
        supervisor.held = (
            supervisor.far and ready.said.fingerprint != present and self._home_may_come()
        )
        if supervisor.held:
            self._waiting.append((supervisor, ready))
        return supervisor.held

    def released(self) -> list[tuple[Supervisor, Ready]]:
        """Return those that wait no longer, to be judged as if they were ready now; each once."""
        if not self._waiting or self._home_may_come():
            return []
        waiting, self._waiting = self._waiting, []
        return [(supervisor, ready) for supervisor, ready in waiting if supervisor.ready is ready]

    def _home_may_come(self) -> bool:
        near = [one for one in self._pool if not one.far]
        if any(one.ready for one in near):
            return False
        # One that was ready is lost now and then, and comes back.
        may = [one for one in near if one.was_ready or one.failures < _FAILING]
        return any(not one.hopeless for one in may)
