"""Watch: turn file system events in model_dir into a wake-up of the loop.

Events are hints, the scan is the truth: a lost, late or invented event costs at most one rescan
interval, and the mention of a save that was rotated away before the first scan that found one. So
nothing here is allowed to fail. What is lost is said:
`degraded` is the reason for which the loop polls, and `news` tells what happened meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
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

from watcher.files.mounts import mount_now

_ENDING_SECONDS = 2.0
_NAMES_LIMIT = 1000


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.heard = False
        self.names: deque[str] = deque(maxlen=_NAMES_LIMIT)

    def on_any_event(self, event: FileSystemEvent) -> None:
        # An index is safe to look at once it is closed after writing. Nothing else is waited
        # for, so thousands of other files in model_dir cost no scan.
        named = [path for path in (event.dest_path, event.src_path) if str(path).endswith(".index")]
        if named:
            self.names.append(Path(str(named[0])).stem)
            self._wake()
            self.heard = True


class Watch:
    """The registered watch on one folder, armed again whenever the folder became another one.

    Attributes:
        degraded: Why events cannot be relied on at the moment, None when they can.
    """

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        self.folder = folder
        self.degraded: str | None = None
        self._wake = wake
        self._waker = _Waker(wake)
        self._observer: BaseObserver | None = None
        self._threads: list[threading.Thread] = []
        self._identity: tuple[int, int] | None = None
        self._last_identity: tuple[int, int] | None = None
        self._beyond_repair: str | None = None
        self._announces_little = False
        self._news: list[str] = []

    def take_news(self) -> list[str]:
        """Return what happened to the folder and the watch since the last call, in order."""
        news, self._news = self._news, []
        return news

    def take_announced(self) -> list[str]:
        """Return the names that events told of since the last call, as far as none was lost."""
        names = self._waker.names
        return [names.popleft() for _ in range(len(names))]

    def doubt(self, reason: str) -> None:
        """Take note that events were lost: register anew, and poll until one comes again."""
        if self.degraded is None:
            self._disarm(None)
            self.ensure()
            self._degrade(self.degraded or reason)

    def ensure(self) -> bool:
        """Register the watch if it is not registered on the folder as it is now.

        Sets `degraded` to the reason when events cannot be had; the caller's rescans go on.

        Returns:
            True when it was in force since the last call, so that events are to be expected.
        """
        try:
            status = self.folder.stat()
        except OSError as error:
            self._disarm(f"{self.folder}: {error.strerror}")
            return False
        identity = (status.st_dev, status.st_ino)
        if self._last_identity not in (None, identity):
            self._news.append(f"{self.folder} is another folder than before, it is watched now")
        self._last_identity = identity
        if self._beyond_repair:
            self._degrade(self._beyond_repair)
        elif self._observer is None or identity != self._identity:
            self._arm(identity)
        elif dead := [thread for thread in self._threads if not thread.is_alive()]:
            self._replace(dead, identity)
        else:
            if self.degraded and self._waker.heard and not self._announces_little:
                self.degraded = None
                self._news.append("file system events work again")
            return True
        return False

    def close(self) -> None:
        """Stop watching and wait for the observer's threads."""
        self._disarm(None)

    def _arm(self, identity: tuple[int, int]) -> None:
        self._disarm(None)
        if self._beyond_repair:
            self._degrade(self._beyond_repair)
            return
        self._waker = _Waker(self._wake)
        try:
            observer = Observer()
            observer.schedule(
                self._waker,
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
        mount = mount_now(self.folder)
        self._announces_little = mount is not None and mount.is_remote
        if mount and self._announces_little:
            kind = "FUSE" if mount.kind.startswith("fuse") else mount.kind
            self._degrade(f"{kind} announces no file that another machine or program writes")
        # All of the library's threads, those shared by its observers too: if one of them ends,
        # no event comes any more, and nothing says so.
        self._threads = [
            thread
            for thread in threading.enumerate()
            if type(thread).__module__.partition(".")[0] == "watchdog"
        ]

    def _replace(self, dead: list[threading.Thread], identity: tuple[int, int]) -> None:
        """Arm again after a thread of the library ended."""
        assert self._observer is not None
        own = {self._observer, *self._observer.emitters}
        if not own.issuperset(dead):
            # A thread that all observers share is not started a second time by the library.
            self._beyond_repair = "the thread that reads file system events died"
            self._disarm(self._beyond_repair)
            return
        self._arm(identity)
        self._degrade(self.degraded or "the thread that hands on file system events had ended")

    def _degrade(self, reason: str) -> None:
        if reason != self.degraded:
            self._news.append(f"degraded to polling: {reason}")
        self.degraded = reason

    def _disarm(self, reason: str | None) -> None:
        if reason is None:
            self.degraded = None
        else:
            self._degrade(reason)
        observer, self._observer = self._observer, None
        self._identity, self._threads = None, []
        if observer is not None and not _ended(observer):
            # Each new one would leave threads behind too.
            self._beyond_repair = "the threads that hand on file system events do not end"


def _ended(observer: BaseObserver) -> bool:
    """Stop the library's threads; False when they have not ended after a while.

    It joins them without a limit, and one is told to end through a pipe, in which a failed write
    is not written again: so it is not waited for in the thread that has to hear SIGTERM.
    """

    def stop() -> None:
        with contextlib.suppress(OSError, RuntimeError):
            observer.stop()
            if observer.is_alive():
                observer.join()
            ended.set()

    ended = threading.Event()
    ending = threading.Thread(target=stop, name="watch-ending", daemon=True)
    ending.start()
    ending.join(_ENDING_SECONDS)
    return ended.is_set()
