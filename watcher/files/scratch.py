"""Scratch: the temporary folder of a run's workers, removed after them however they end.

A worker is ended by SIGKILL, which cleans nothing up, and leaves what its libraries put into the
temporary folder: the code that TensorFlow generates, an eval set of gigabytes. So each has one of
its own, in a folder that is the run's. That one is locked as long as the watcher or a worker lives,
and whoever starts next removes those that nobody holds.

It lies where TMPDIR says, and not in the state folder: the trainer saves to that one's disk. Where
nobody said and `/tmp` is kept in memory, it lies in `/var/tmp`: an eval set that is too large for
memory is not to be kept there under another name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

import structlog

from watcher.files.mounts import mount_now

_log = structlog.get_logger(__name__)

PREFIX = "checkpoint-watcher-scratch-"
_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")


class Scratch:
    """The folder of one run; a context manager, which removes it at the end.

    Where none can be made, workers use the system's own as they did without it.

    Attributes:
        descriptor: The locked folder, for workers to inherit; None where there is none.
    """

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._path: Path | None = None

    def __enter__(self) -> Self:
        _remove_abandoned()
        try:
            while self._path is None:
                self._make()
        except OSError as error:
            _log.warning("workers have no temporary folder of their own", reason=str(error))
        return self

    def _make(self) -> None:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base()))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks: nobody removes it either
            # The folder itself: systemd-tmpfiles leaves one alone that is locked.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            self._path, self.descriptor = path, descriptor
        else:  # who started at the same time found it before it was locked
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        if self._path:
            shutil.rmtree(self._path, ignore_errors=True)
        if self.descriptor is not None:
            os.close(self.descriptor)

    @property
    def folder(self) -> str | None:
        """Return the folder of the run, None where there is none."""
        return str(self._path) if self._path else None

    def artefacts(self) -> str | None:
        """Return the folder that workers leave pictures in, which outlives each of them."""
        return self._folder("artefacts")

    def take(self, name: str) -> Path | None:
        """Return an empty temporary folder for a worker; None where there is none.

        Args:
            name: The same for workers that follow each other.
        """
        if self._path:
            shutil.rmtree(self._path / name, ignore_errors=True)
        folder = self._folder(name)
        return Path(folder) if folder else None

    def _folder(self, name: str) -> str | None:
        if self._path is None:
            return None
        try:
            (self._path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("workers have no temporary folder of their own", reason=str(error))
            return None
        return str(self._path / name)


def base(on_disk: Path = Path("/var/tmp")) -> Path:
    """Return where the folders of all runs lie."""
    usual = Path(tempfile.gettempdir())
    if any(os.environ.get(name) for name in _VARIABLES) or not _in_memory(usual):
        return usual
    fits = os.access(on_disk, os.W_OK | os.X_OK) and not _in_memory(on_disk)
    return on_disk if fits else usual


def _in_memory(folder: Path) -> bool:
    mount = mount_now(folder)
    return mount is not None and mount.kind in ("tmpfs", "ramfs")


def environment(folder: Path | None) -> dict[str, str]:
    """Return the variables by which a process takes `folder` for its temporary folder."""
    return dict.fromkeys(_VARIABLES, str(folder)) if folder else {}


def is_within(path: Path) -> bool:
    """True for what lies in a folder of this kind, whoever's it is."""
    with contextlib.suppress(ValueError):
        first, *more = path.relative_to(base()).parts
        return bool(more) and first.startswith(PREFIX)
    return False


def _remove_abandoned() -> None:
    for folder in base().glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # held by a living process, or gone meanwhile
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
