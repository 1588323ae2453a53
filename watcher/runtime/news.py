"""News: what is told of a run besides its checkpoints: in the log, as an event, by `status`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import structlog

from watcher.store import Ledger, iso

_log = structlog.get_logger(__name__)

_PROGRESS_SECONDS = 1.0


class News:
    """Tells each thing once, and shows what lasts for as long as it does.

    Attributes:
        status: What the database holds as the run's status.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._notice: str | None = None
        self._changed_files: dict[str, str] = {}
        self._unrecorded: deque[tuple[str, str, float]] = deque()
        self._progress: str | None = None
        self._progress_due = -math.inf
        self.status: dict[str, Any] = {}

    def tell(self, happened: Iterable[str], changed_files: Iterable[str], now: float) -> None:
        """Tell what happened to the folder, its events and its pins, and to the set-up's files.

        Args:
            happened: Since the last call.
            changed_files: Which are not as they were at the start, a sentence each; all of them.
            now: Seconds since the epoch.

        Raises:
            StoreError: the database cannot be written; what it lacks is kept for the next call.
        """
        for text in happened:
            self._notice = f"{text} ({iso(now)})"
            self._tell("watch", text, now)
        before = self._changed_files
        self._changed_files = {text: before.get(text, iso(now)) for text in changed_files}
        for text in self._changed_files.keys() - before:
            self._tell("files", text, now)
        while self._unrecorded:
            kind, text, at = self._unrecorded[0]
            self._ledger.add_event(at, kind, text)
            self._unrecorded.popleft()

    def _tell(self, kind: str, text: str, now: float) -> None:
        _log.warning(text)
        self._unrecorded.append((kind, text, now))

    def publish(self, status: dict[str, Any], progress: str | None, steady: float) -> None:
        """Let `status` show this, and what is kept here.

        Args:
            status: What the loop knows.
            progress: What is read or copied and how far that is; shown anew once a second.
            steady: Now.

        Raises:
            StoreError: the database cannot be written; call again.
        """
        if progress is None or steady >= self._progress_due:
            self._progress, self._progress_due = progress, steady + _PROGRESS_SECONDS
        status |= {
            "files": self._progress,
            "notice": self._notice,
            "changed_files": [f"{text} ({at})" for text, at in self._changed_files.items()],
        }
        if status != self.status:
            self._ledger.set_status(status)
            self.status = status
