"""Writing files so that a crash leaves the old one or the new one, never a part.

Not every file system can make a file durable or has modes and times of its own (vfat, CIFS, FUSE).
That one refuses those is no failure: the bytes are written all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from watcher.files.slices import Work, finish

FLUSH_BYTES = 64 * 1024 * 1024
_WRITE_AND_WAIT = 7  # sync_file_range(2): all three of its flags
# fsync(2), chmod(2), utimensat(2): not for this kind of file, not on this file system.
_NOT_HERE = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
# Besides: vfat and CIFS have one owner and one mode for all.
_NOT_OURS = frozenset({errno.EPERM, errno.EACCES})

# How a folder is called in which something is made that has its final name only when it is whole.
NEW = ".new-"


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. File systems that cannot are left as they are."""
    with _synced(folder, os.O_DIRECTORY):
        pass


def flushing(path: Path) -> Work[None]:
    """Make the bytes of a regular file durable, yielding after each FLUSH_BYTES of a large one.

    File systems that cannot are left as they are. Of a file that was just copied, or saved by the
    trainer, many GB may not be on the disk yet.
    """
    with _synced(path, os.O_NOFOLLOW) as descriptor:
        size = os.fstat(descriptor).st_size
        for offset in range(0, size if size > FLUSH_BYTES else 0, FLUSH_BYTES):
            _write_out(descriptor, offset)
            yield


@contextlib.contextmanager
def _synced(path: Path, flags: int) -> Iterator[int]:
    """Open it, and have it on the disk at the end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        yield descriptor
        with _unless_refused(_NOT_HERE):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_out(descriptor: int, offset: int) -> None:
    """Write a part of a file to the disk now, where the system can do that; fsync does the rest."""
    import ctypes  # commands that write nothing so large start without it

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        sync_file_range = libc.sync_file_range
    except AttributeError:
        return
    sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    with _unless_refused(_NOT_HERE | {errno.ESPIPE}):
        # What failed to be written is told once only: fsync would call it done.
        if sync_file_range(descriptor, offset, FLUSH_BYTES, _WRITE_AND_WAIT):
            raise OSError(ctypes.get_errno(), "cannot write to the disk")


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file of ours its mode, where the file system has any."""
    with _unless_refused(_NOT_HERE | _NOT_OURS):
        os.fchmod(descriptor, mode)


def set_times(descriptor: int, status: os.stat_result) -> None:
    """Give an open file of ours the times of another one, where the file system lets us."""
    with _unless_refused(_NOT_HERE | _NOT_OURS):
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def _unless_refused(codes: frozenset[int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def read_regular(path: Path, *, limit_bytes: int = 64 << 20) -> bytes:
    """Read a small file that others may have put there: no pipe is waited for, nothing is endless.

    Raises:
        OSError: there is none, it cannot be read, is no regular file, or is larger than the limit.
    """
    # A pipe without a writer would block at the opening; this way it is opened, and refused.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            raise OSError(errno.EINVAL, "not a regular file of reasonable size", str(path))
        return file.read(limit_bytes)


def write_new_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not exist yet; the caller syncs it when it has to last."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
    )
    with os.fdopen(descriptor, "wb") as file:
        # The umask of a service may be strict; what others are meant to read stays readable.
        set_mode(file.fileno(), mode)
        file.write(content)


def is_half_written(name: str, final: str) -> bool:
    """True for the name of a file that `replace_file` had not yet renamed to `final`."""
    return re.fullmatch(rf"\.{re.escape(final)}\.[0-9a-f]{{8}}\.tmp", name) is not None


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write, sync and rename over `path`. Readers see the old content or the new one.

    Raises:
        OSError: nothing was replaced; the half-written file is removed.
    """
    for file in path.parent.iterdir():
        # A crash left it. There is one writer, so nobody writes it now.
        if is_half_written(file.name, path.name):
            file.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_new_file(temporary, content, mode=mode)
        finish(flushing(temporary))
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
