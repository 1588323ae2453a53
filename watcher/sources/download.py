"""Downloads: objects fetched into files by a few threads, beside the loop, in ranges.

A range that breaks off is gone on with where it ended. Each asks for the very object that was
listed: where that was replaced or deleted the download fails, and what it has is of no use.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from watcher.errors import IncompleteCheckpoint, PinError
from watcher.sources.object_store import (
    ObjectChanged,
    ObjectError,
    ObjectFolder,
    ObjectGone,
    StoredObject,
)

THREADS = 4
_RANGE_BYTES = 16 << 20
# Tries in a row that bring nothing, after which it is told; it is gone on with all the same.
_TRIES = 4
_FIRST_RETRY_SECONDS = 0.25


class Fetchers:
    """The threads of one source. They begin with the first task, and never hold up the process."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, task: Callable[[], None]) -> None:
        """Have a thread do this, after what was submitted before; it raises nothing."""
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._work, name="fetch", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            self._tasks.get()()


class Download:
    """Some objects on their way into files of a folder.

    Attributes:
        failed: It did in a way that `begin` does not mend; threads may be at it yet.
        done_bytes: So many are there.
        total_bytes: Of so many.
    """

    def __init__(
        self,
        source: ObjectFolder,
        fetchers: Fetchers,
        objects: Sequence[tuple[StoredObject, str]],
        into: Path,
    ) -> None:
        """Make the files, at their full size, and fetch nothing yet.

        Args:
            source: Where the objects are.
            fetchers: What fetches.
            objects: What to fetch, and under which name.
            into: The folder of the files.

        Raises:
            OSError: they cannot be made.
        """
        self._source = source
        self._fetchers = fetchers
        self._changed = threading.Condition()
        self._running = 0
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._trouble: ObjectError | None = None
        self.done_bytes = 0
        self.total_bytes = sum(one.size_bytes for one, _ in objects)
        self.folder = into
        self._parts: list[_Part] = []
        for one, name in objects:
            _make_file(into / name, one.size_bytes)
            self._parts += [
                _Part(one, into / name, start, min(start + _RANGE_BYTES, one.size_bytes))
                for start in range(0, one.size_bytes, _RANGE_BYTES)
            ]

    @property
    def failed(self) -> bool:  # noqa: D102 - with the attributes
        return self._failure is not None

    def begin(self) -> None:
        """Fetch what is not there yet; called again after a trouble, to go on."""
        with self._changed:
            left = [part for part in self._parts if part.start < part.end]
            self._trouble, self._failure, self._running = None, None, len(left)
        for part in left:
            self._fetchers.submit(lambda part=part: self._fetch(part))  # type: ignore[misc]

    def wait(self, seconds: float) -> bool:
        """Wait until all is there, or for so long; True when it is.

        Raises:
            FileNotFoundError: an object was deleted.
            IncompleteCheckpoint: one was replaced.
            PinError: nothing comes any more, now; `begin` goes on.
            OSError: a file cannot be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._failure, seconds)
            if self._failure:
                raise self._failure
            if self._running:
                return False
            if self._trouble:
                raise PinError(str(self._trouble))
            return True

    def close(self) -> None:
        """End it: nothing is written any more when this returns."""
        self._ended.set()
        with self._changed:  # in which threads write
            self._changed.notify_all()

    # -- in the threads

    def _fetch(self, part: _Part) -> None:
        try:
            # Open no longer than a thread is at it: hundreds of downloads may wait for a server.
            with contextlib.closing(_Writer(part.path)) as writer:
                self._fetch_range(part, writer)
        except ObjectGone as error:
            self._fail(FileNotFoundError(str(error)))
        except ObjectChanged as error:
            self._fail(IncompleteCheckpoint(f"{error} while it was downloaded"))
        except (OSError, PinError) as error:
            self._fail(error)
        except Exception as error:  # a bug or obstore's: told, and no thread dies of it
            self._fail(PinError(f"{part.object.name} cannot be downloaded: {error!r}"))
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _fetch_range(self, part: _Part, writer: _Writer) -> None:
        fruitless = 0
        while part.start < part.end and not self._ended.is_set():
            before, problem = part.start, None
            try:
                for chunk in self._source.stream(part.object, part.start, part.end):
                    if not self._write(part, chunk, writer):
                        return
                if part.start < part.end:
                    problem = ObjectError(f"{self._source.place}: the connection broke off")
            except (ObjectGone, ObjectChanged):
                raise
            except ObjectError as error:
                problem = error
            if problem is None:
                continue
            fruitless = 0 if part.start > before else fruitless + 1
            if fruitless >= _TRIES or problem.lasting or self._trouble:
                with self._changed:
                    self._trouble = problem
                return
            self._ended.wait(_FIRST_RETRY_SECONDS * 2**fruitless)

    def _write(self, part: _Part, chunk: memoryview, writer: _Writer) -> bool:
        with self._changed:
            if self._ended.is_set() or self._failure:
                return False
            size = len(chunk)
            if part.start + size > part.end:
                raise ObjectError(f"{self._source.place}: more was sent than asked for")
            while chunk:
                written = os.pwrite(writer.file, chunk, part.start)
                part.start += written
                chunk = chunk[written:]
            self.done_bytes += size
        return True

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()


class _Part:
    """A range of an object, and how far it came: `start` moves towards `end`."""

    __slots__ = ("end", "object", "path", "start")

    def __init__(self, object: StoredObject, path: Path, start: int, end: int) -> None:
        self.object, self.path, self.start, self.end = object, path, start, end


class _Writer:
    """One of the files, open. One that is gone is no object that was deleted."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise PinError(f"{path}, which is downloaded, was deleted") from error

    def close(self) -> None:
        os.close(self.file)


def _make_file(path: Path, size_bytes: int) -> None:
    # Read by others as the trainer's own would be: by what the umask lets.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
