"""Sharing: let the members of a group read a run; without one its state is the owner's alone.

Measured with SQLite 3.40: to read the database, its `-wal` and its `-shm` is enough while somebody
writes, and after they were killed. After a clean end the last two are gone, and a reader would have
to create them. So a connection that can only read is closed last here: it cannot remove them.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from pathlib import Path
from typing import Self

from watcher.errors import ConfigError, StoreError
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader

_FOLDER_MODE = stat.S_ISGID | 0o750  # what is made in it belongs to the group
_FILE_MODE = 0o640


class Sharing:
    """The group that may read a run's state folder, its database and `best/`."""

    def __init__(self, group: str | None, state_dir: Path, best_dir: Path) -> None:
        """Find the group, by name or number; raises ConfigError when there is none.

        Without a group the other methods do nothing.
        """
        self._group = group
        self._gid = None if group is None else _find(group)
        self._database = database = state_dir / DATABASE_NAME
        self._last: Reader | None = None
        files = (database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm"))
        self._modes = {
            state_dir: _FOLDER_MODE,
            **dict.fromkeys(files, _FILE_MODE),
            # Others may read it as well; its files say so themselves.
            best_dir: stat.S_ISGID | 0o755,
        }

    def begin(self) -> None:
        """Share what is there.

        Raises:
            ConfigError: this user may not give files to the group.
        """
        try:
            self._share()
        except OSError as error:
            raise ConfigError(
                f"group ({self._group}) cannot be given {error.filename}: {error.strerror}",
                hint="the user that runs the watcher must own it, and be a member of the group",
            ) from error

    def keep(self) -> None:
        """Share what has come since; what cannot be shared now is tried again at the next call."""
        with contextlib.suppress(OSError):
            self._share()
        if self._gid is not None and self._last is None:
            with contextlib.suppress(StoreError):
                self._last = Reader(self._database, timeout_seconds=0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Call it after the database is closed by its writer."""
        if self._last:
            self._last.close()

    def _share(self) -> None:
        if self._gid is None:
            return
        for path, mode in self._modes.items():
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(status.st_mode):
                continue
            if status.st_gid != self._gid:
                os.chown(path, -1, self._gid, follow_symlinks=False)
            # After the group: a change of that takes the setgid bit away.
            if stat.S_IMODE(status.st_mode) != mode or status.st_gid != self._gid:
                path.chmod(mode)


def _find(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"group ({group}) does not exist",
            hint="`getent group` lists those there are; a number is taken as it is",
        ) from None
