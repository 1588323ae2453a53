"""Watch: turn file system events in model_dir into a wake-up of the loop.

Events are hints, the scan is the truth: a lost, late or invented event costs at most one rescan
interval. So nothing here carries data, and nothing here is allowed to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # An index is safe to look at once it is closed after writing. Nothing else is waited
        # for, so thousands of other files in model_dir cost no scan.
        if str(event.src_path).endswith(".index") or str(event.dest_path).endswith(".index"):
            self._wake()


class Watch:
    """The registered watch on one folder, armed again whenever the folder became another one."""

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        self.folder = folder
        self.degraded: str | None = None
        self._wake = wake
        self._observer: BaseObserver | None = None
        self._identity: tuple[int, int] | None = None

    def ensure(self) -> None:
        """Register the watch if it is not registered on the folder as it is now.

        Sets `degraded` to the reason when events cannot be had; the caller's rescans go on.
        """
        try:
            status = self.folder.stat()
        except OSError as error:
            self._disarm(f"{self.folder}: {error.strerror}")
            return
        identity = (status.st_dev, status.st_ino)
        alive = self._observer is not None and all(
            thread.is_alive() for thread in (self._observer, *self._observer.emitters)
        )
        if alive and identity == self._identity:
            return
        self._disarm(None)
        observer = Observer()
        try:
            observer.schedule(
                _Waker(self._wake),
                str(self.folder),
                recursive=False,
                event_filter=[FileClosedEvent, FileMovedEvent],
            )
            observer.start()
        except (OSError, RuntimeError) as error:
            # inotify limits surface as OSError; they are the machine's, so polling is the answer.
            self._disarm(f"no file system events: {error}")
            return
        self._observer, self._identity = observer, identity

    def close(self) -> None:
        """Stop watching and wait for the observer's threads."""
        self._disarm(None)

    def _disarm(self, reason: str | None) -> None:
        self.degraded = reason
        if self._observer is not None:
            self._observer.stop()
            if self._observer.is_alive():
                self._observer.join(timeout=5)
        self._observer, self._identity = None, None
