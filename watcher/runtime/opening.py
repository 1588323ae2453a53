"""Opening: the database at the start of a run, waited for while another program holds its lock.

The trainer does not wait, so checkpoints are pinned meanwhile. Their pins have no rows; the intake
adopts them when it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from watcher.config.run import RunSettings
from watcher.errors import StoreBusy, WorkLeft
from watcher.ingest.intake import Intake
from watcher.runtime.backoff import Backoff
from watcher.runtime.wakeup import WakeUp
from watcher.store import DATABASE_NAME, Store

_log = structlog.get_logger(__name__)

_BUSY_SECONDS = 0.05
_AGAIN_SECONDS = 0.2


def open_store(
    run: RunSettings,
    intake: Intake,
    wakeup: WakeUp,
    *,
    grace_seconds: float,
    waiting: Callable[[str], None],
) -> Store | None:
    """Open or create the run's database; waits as long as another program has locked it.

    Args:
        run: The run's settings.
        intake: Pins checkpoints meanwhile; without a database.
        wakeup: Tells that a signal asked to end.
        grace_seconds: Where it was to end once all is done, the database is not waited for longer.
        waiting: Called again and again while it waits, with the reason.

    Returns:
        The store, None when it was stopped before it could be opened.

    Raises:
        StoreError: it cannot be opened for another reason.
        WorkLeft: it was to end, and the lock lasts.
    """
    path = run.state_path / DATABASE_NAME
    backoff = Backoff()
    while not wakeup.stop_asked:
        try:
            return Store(
                path,
                run=run.name,
                model_dir=run.model_path,
                now=time.time(),
                busy_seconds=_BUSY_SECONDS,
            )
        except StoreBusy as error:
            waiting(f"waiting: {error.message}")
            if reason := backoff.failed(error, time.monotonic()):
                _log.warning("waiting for the database, checkpoints are pinned", reason=reason)
            lasted = time.monotonic() - backoff.since >= grace_seconds
            if wakeup.finish_asked and lasted:
                text = f"the run never began: {error.message}"
                raise WorkLeft(text, hint=error.hint) from error
        # Pins beside an empty database would be taken for those of one that is lost.
        if path.stat().st_size:
            intake.look(time.time(), time.monotonic())
        if not intake.more:
            time.sleep(_AGAIN_SECONDS)
    return None
