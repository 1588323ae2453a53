"""Opening: the database at the start of a run, waited for while another program holds its lock.

The trainer does not wait, so checkpoints are pinned meanwhile. Their pins have no rows; the intake
adopts them when it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from watcher.config import Settings
from watcher.discover import scan
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError, StoreBusy
from watcher.pin import identify, pin
from watcher.store import DATABASE_NAME, PINS_NAME, Store
from watcher.trouble import Trouble

_log = structlog.get_logger(__name__)

_BUSY_SECONDS = 0.05
_AGAIN_SECONDS = 0.2


def open_store(
    settings: Settings, *, stopped: Callable[[], bool], waiting: Callable[[str], None]
) -> Store | None:
    """Open or create the run's database; waits as long as another program has locked it.

    Args:
        settings: The run's.
        stopped: Tells that a signal asked to end.
        waiting: Called again and again while it waits, with the reason.

    Returns:
        The store, None when it was stopped before it could be opened.

    Raises:
        StoreError: it cannot be opened for another reason.
    """
    path = settings.state_path / DATABASE_NAME
    keeper = _Keeper(settings.model_path, settings.state_path / PINS_NAME)
    trouble = Trouble()
    while not stopped():
        try:
            return Store(
                path,
                run=settings.run_name or settings.model_path.name,
                model_dir=settings.model_path,
                now=time.time(),
                busy_seconds=_BUSY_SECONDS,
            )
        except StoreBusy as error:
            waiting(f"waiting: {error.message}")
            if reason := trouble.failed(error, time.monotonic()):
                _log.warning("waiting for the database, checkpoints are pinned", reason=reason)
        # Pins beside an empty database would be taken for those of one that is lost.
        if path.stat().st_size:
            keeper.keep()
        time.sleep(_AGAIN_SECONDS)
    return None


class _Keeper:
    """Pins what lies in model_dir, without knowing what of it has a row."""

    def __init__(self, model_dir: Path, pins_dir: Path) -> None:
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._tried: dict[str, tuple[tuple[int, ...], ...]] = {}

    def keep(self) -> None:
        """Pin what is new since the last call. What is unfinished or damaged is left to later."""
        try:
            found = scan(self._model_dir)
        except ModelDirError:
            return
        for checkpoint in found:
            if self._tried.get(checkpoint.name) == checkpoint.signature:
                continue
            try:
                if not (self._pins_dir / identify(checkpoint)).exists():
                    pin(checkpoint, self._pins_dir)
            except PinError:
                continue
            except (OSError, CorruptCheckpoint):
                pass
            self._tried[checkpoint.name] = checkpoint.signature
