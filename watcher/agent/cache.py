"""Cache: files that came over the line, by the sha256 of their content, in a folder with a bound.

Several agents of a host share it. A file is whole and verified before it has its name; who uses it
holds a shared lock on it, who writes it an exclusive one, and the kernel lets go of both when the
process ends. So whoever needs room may remove what can be locked: what a crash left unfinished, and
the files that were used the longest ago. Unfinished ones have their full size from the start, and
count as much.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from watcher.errors import WatcherError
from watcher.files.slices import Work

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}\.[0-9a-f]+\.part")
_READ_BYTES = 4 << 20
# It is held for moments, unless who holds it is stopped.
_LOCK_SECONDS = 5.0


class CacheError(WatcherError):
    """Raised when a file cannot be kept: no room, or it is not what it was said to be."""


class Part:
    """A file on its way into the cache."""

    def __init__(self, cache: Cache, sha256: str, size: int, descriptor: int, path: Path) -> None:
        self._cache, self.sha256, self._size = cache, sha256, size
        self._descriptor, self._path = descriptor, path
        self._digest, self._written = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Add bytes; raises CacheError where they are too many, or cannot be written."""
        if self._written + len(data) > self._size:
            raise CacheError(f"a file is longer than the {self._size} bytes that were told")
        self._digest.update(data)
        try:
            while data:
                count = os.pwrite(self._descriptor, data, self._written)
                self._written += count
                data = data[count:]
        except OSError as error:
            raise CacheError(f"cannot write into {self._path.parent}: {error.strerror}") from error

    def finish(self) -> int:
        """Give it its name; returns a descriptor that holds it in the cache.

        Raises:
            CacheError: it is not what it was said to be.
        """
        if self._written != self._size or self._digest.hexdigest() != self.sha256:
            raise CacheError("a file changed while it was sent, or broke on its way")
        return self._cache.settle(self._path, self._descriptor, self.sha256)

    def drop(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


class Cache:
    """The folder, and how much may lie in it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Make the folder.

        Raises:
            CacheError: it cannot be made, or is another user's.
        """
        self.folder, self._limit = folder, limit_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.geteuid():
                raise CacheError(f"the cache {folder} is another user's")
        except OSError as error:
            raise CacheError(f"cannot make the cache {folder}: {error.strerror}") from error

    def holding(self, sha256: str, size: int) -> Work[int | None]:
        """Look for a file and verify it; returns a descriptor that holds it, None for none.

        Yields after each few MB. One that is not what its name says is removed.
        """
        path = self.folder / sha256
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            digest, offset = hashlib.sha256(), 0
            while data := os.pread(descriptor, _READ_BYTES, offset):
                digest.update(data)
                offset += len(data)
                yield
            # It may have been removed before it was locked.
            there = os.path.samestat(os.fstat(descriptor), path.lstat())
            held = there and offset == size and digest.hexdigest() == sha256
            if held:
                os.utime(descriptor)
            elif there:
                path.unlink()
        except OSError:
            held = False
        finally:
            if not held:
                os.close(descriptor)
        return descriptor if held else None

    def begin(self, sizes: Mapping[str, int]) -> dict[str, Part]:
        """Make room for files, and begin them: all or none.

        Args:
            sizes: sha256 to size in bytes.

        Raises:
            CacheError: there is no room, or nothing can be written.
        """
        parts: dict[str, Part] = {}
        try:
            with self._locked():
                self._make_room(sum(sizes.values()))
                for sha256, size in sizes.items():
                    path = self.folder / f"{sha256}.{secrets.token_hex(8)}.part"
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    descriptor = os.open(path, flags, 0o600)
                    parts[sha256] = Part(self, sha256, size, descriptor, path)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    os.ftruncate(descriptor, size)
        except OSError as error:
            for part in parts.values():
                part.drop()
            raise CacheError(f"cannot write into {self.folder}: {error.strerror}") from error
        return parts

    def settle(self, part: Path, descriptor: int, sha256: str) -> int:
        """Give a whole file its name, unless it came by another agent meanwhile.

        Returns:
            A descriptor that holds what has that name now.
        """
        path = self.folder / sha256
        try:
            with self._locked():
                try:
                    other = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    os.fchmod(descriptor, 0o400)
                    part.rename(path)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    return descriptor
                # Whoever uses that one has its lock on it, so it stays.
                fcntl.flock(other, fcntl.LOCK_SH)
                part.unlink()
                os.close(descriptor)
                return other
        except OSError as error:
            raise CacheError(f"cannot write into {self.folder}: {error.strerror}") from error

    def tidy(self) -> None:
        """Remove what a crash left unfinished."""
        with contextlib.suppress(OSError, CacheError), self._locked():
            for path in self.folder.glob("*.part"):
                if _PART.fullmatch(path.name):
                    _removed(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.folder / "lock", flags, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise CacheError(f"{self.folder}/lock is held by a process") from error
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        there: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    continue
                if _SHA256.fullmatch(path.name):
                    there.append((found.st_mtime, found.st_size, path))
                elif _PART.fullmatch(path.name) and not _removed(path):
                    there.append((time.time(), found.st_size, path))
        total = sum(one for _, one, _ in there)
        free = os.statvfs(self.folder)
        for _, one, path in sorted(there):
            if total + size <= self._limit:
                break
            if _SHA256.fullmatch(path.name) and _removed(path):
                total -= one
        if total + size > self._limit:
            raise CacheError(
                f"the cache {self.folder} is full: {_size(size)} more do not go into"
                f" {_size(self._limit)} beside {_size(total)} that are in use (cache_limit)"
            )
        if size > free.f_bavail * free.f_frsize:
            raise CacheError(f"the disk of the cache {self.folder} is full")


def _removed(path: Path) -> bool:
    """Remove a file that nobody uses or writes; False where somebody does."""
    # On NFS, where a home often lies, only what is open for writing is locked for oneself alone.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(path, flags)
        except PermissionError:
            path.chmod(0o600)
            descriptor = os.open(path, flags)
    except FileNotFoundError:
        return True  # by another agent, which found it damaged
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _size(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.3g} MiB"
