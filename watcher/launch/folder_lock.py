"""The lock of model_dir, which the trainer inherits, and who of the trainer's still has it.

It ends with the last process that holds it. So it outlives a killed launcher as long as the trainer
lives, and it tells of a trainer that left its process group.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from watcher.errors import AlreadyRunning, ModelDirError
from watcher.launch.group import Processes


class FolderLock:
    """An exclusive lock of a folder."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Make the folder if need be and lock it; where that has no locks, say so.

        Raises:
            AlreadyRunning: somebody holds it.
            ModelDirError: the folder cannot be made or opened.
        """
        self._folder = folder
        self._descriptor: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = self._take()
        except OSError as error:
            raise ModelDirError(
                f"cannot make or open model_dir {folder}: {error.strerror}",
                hint="it is the folder given to the trainer as --model_dir",
            ) from error
        self._works = taken is None
        if isinstance(taken, BlockingIOError):
            raise AlreadyRunning(
                f"a trainer that `checkpoint-watcher train` started is at work in {folder}",
                hint=f"two would overwrite each other's checkpoints; `fuser -v {folder}` names it",
            ) from taken
        if taken:
            say(f"cannot lock {folder} ({taken.strerror}): a second trainer would not be noticed")

    def keep_open(self) -> list[int]:
        """Return the descriptors that a trainer is to inherit."""
        return [] if self._descriptor is None else [self._descriptor]

    def heirs(self) -> Heirs:
        """Return those who inherit it from now on; call it before the trainer is started."""
        return Heirs(self._descriptor)

    def is_held_elsewhere(self) -> bool:
        """Return whether somebody else has it too; it is let go of for that, and taken again.

        While somebody does it stays theirs alone.
        """
        self.close()
        with suppress(OSError):
            return self._works and isinstance(self._take(), BlockingIOError)
        return False  # the folder is gone, or is no folder

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self) -> OSError | None:
        """Lock the folder; returns why that was refused, raises why it cannot be opened."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return error
        self._descriptor = descriptor
        return None


class Heirs(Processes):
    """The processes that inherited a lock, in whatever group or session they are by now.

    Only those are found that keep it under the number that it had, as whoever does not know of it
    does, and that we may look into.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = None if descriptor is None else _lock_of(os.getpid(), descriptor)

    def members(self) -> Iterator[int]:
        """Yield them, this process left out."""
        if self._lock is None or self._descriptor is None:
            return
        for folder in Path("/proc").iterdir():
            pid = int(folder.name) if folder.name.isdigit() else os.getpid()
            if pid != os.getpid() and _lock_of(pid, self._descriptor) == self._lock:
                yield pid


def _lock_of(pid: int, descriptor: int) -> str | None:
    """Return the lock that a process has through a descriptor, as proc_pid_fdinfo(5) shows it.

    It names who took it and on which inode; a process that opened the folder by itself has none.
    """
    try:
        for line in Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("lock:"):
                return line.partition("FLOCK")[2] or None
    except OSError:
        pass
    return None
