"""The lock that makes one daemon the only writer of a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import AlreadyRunning, StoreError


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the process ends.

    Raises:
        AlreadyRunning: another process holds it; its process id is named.
        StoreError: where it lies there are no locks.
        OSError: the file cannot be created.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunning(
                f"another watcher (process {holder}) already watches this model_dir",
                hint="`checkpoint-watcher status MODEL_DIR` shows what it does",
            ) from error
        except OSError as error:
            raise StoreError(
                f"cannot lock {path}: {error.strerror}",
                hint=f"{path.parent} is on a file system without locks, as Lustre and NFS may be"
                " mounted; --state-dir names a folder on a local disk",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
