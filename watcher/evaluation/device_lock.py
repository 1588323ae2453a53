"""The lock of a GPU, by which the watchers of several runs evaluate on it in turn.

A worker's GPU memory is its own until it ends, and two workers may not fit. So the lock belongs to
the worker, which inherits it: the kernel lets go of it when that process is gone, whatever became
of the watcher. Who comes next holds a second lock meanwhile, which tells the first watcher that
somebody waits, and the others that they are not next.

The locks are files that every user of the machine may lock. Which folders there are and may be
written differs from user to user, from service to service and from moment to moment. So a device is
locked in each of them that can be had, and whoever cannot use one of them meets the others in the
next. They have the sticky bit, where the kernel may refuse to open another user's file with O_CREAT
(`fs.protected_regular`), and anybody could have put a link there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from watcher.errors import DeviceTaken, WorkerError
from watcher.evaluation.gpus import Listing

_FOLDER_NAME = "checkpoint-watcher"
# The same for every user and service of a machine: neither TMPDIR nor XDG_RUNTIME_DIR is. The first
# is there by systemd-tmpfiles, or open to all on Debian; newer systems keep it to root. In the
# second a user's files may go at logout, and the third may be a service's own.
_BASES = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))
_READ_BYTES = 1000
_CREATING_SECONDS = 0.02
_TEXT_CHARACTERS = 100


class Holder(msgspec.Struct, frozen=True):
    """Who has a device, as it wrote itself: another user may have written anything."""

    watcher: int
    worker: int
    run: str

    def __str__(self) -> str:
        return f"the watcher of {self.run or 'a run'} (process {self.watcher})"


class DeviceLock:
    """One watcher's way to one GPU: take it, wait for it, see who waits.

    Attributes:
        device: UUID.
        name: Of its files, without suffix.
    """

    def __init__(self, folders: LockFolders, device: str, *, label: str, run: str) -> None:
        """Touch nothing yet.

        Args:
            folders: Where it is locked.
            device: Its UUID; it names the files.
            label: What to call the device in front of people.
            run: What others are told of us.
        """
        self.device = device
        self.name = re.sub(r"[^0-9A-Za-z-]", "_", device)
        self._folders = folders
        self._label = label
        self._run = run
        self._next: list[int] | None = None

    @contextlib.contextmanager
    def take(self) -> Iterator[Taken]:
        """Take the device for a worker that is started inside; without one it is free afterwards.

        Raises:
            DeviceTaken: another has it, or comes before us. From the first call on we are waiting,
                until it is taken or `withdraw` is called.
            WorkerError: the files cannot be made or opened.
        """
        if self._next is None:
            waiting = _all_locked(self._paths("next"))
            if isinstance(waiting, Path):
                raise self._refusal(waiting.with_suffix(".lock"), ", and another one is next")
            self._next = waiting
        descriptors = _all_locked(self._paths("lock"))
        if isinstance(descriptors, Path):
            raise self._refusal(descriptors)
        try:
            self.withdraw()
            taken = Taken(descriptors, self._run)
            taken.note(0)
            yield taken
        finally:
            _close(descriptors)

    def withdraw(self) -> None:
        """Wait no longer."""
        _close(self._next or [])
        self._next = None

    def is_wanted(self) -> bool:
        """Return whether another watcher waits for the device."""
        return any(_is_locked(path) for path in self._paths("next"))

    def holder(self) -> Holder | None:
        """Return who has the device now, None when nobody has or it does not say."""
        there = (path for path in self._paths("lock") if path.exists())
        return next((_read_holder(path) for path in there if _is_locked(path)), None)

    def _paths(self, suffix: str) -> list[Path]:
        return [folder / f"{self.name}.{suffix}" for folder in self._folders.usable()]

    def _refusal(self, path: Path, more: str = "") -> DeviceTaken:
        who = _read_holder(path) or "another process"
        return DeviceTaken(
            f"waiting for {self._label}: {who} evaluates on it{more}",
            hint=f"it is what holds {path}; it is the other's turn until that lets go",
        )


class Taken:
    """A device that is ours; `descriptors` are what the worker has to inherit."""

    def __init__(self, descriptors: Sequence[int], run: str) -> None:
        self.descriptors = descriptors
        self._run = run

    def note(self, worker: int) -> None:
        """Write down for others who has the device; `worker` is its process id, 0 before."""
        text = json.dumps({"watcher": os.getpid(), "worker": worker, "run": self._run})
        # It is of use to people alone: a full disk must not keep us from evaluating.
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, text.encode() + b"\n", 0)


class LockFolders(msgspec.Struct, frozen=True):
    """Where the watchers of a machine lock its devices: the folder of the setting, or several.

    Attributes:
        wanted: The setting, taken as it is.
        bases: Where they are else, the same for each watcher.
    """

    wanted: str | None
    bases: Sequence[Path] = _BASES

    def usable(self) -> list[Path]:
        """Return those that we may write, made if need be; the same order for everybody.

        Asked each time anew: another watcher may have made one since, and `/tmp` is tidied up.
        """
        if self.wanted:
            return [Path(self.wanted).absolute()]
        folders = [base / _FOLDER_NAME for base in self.bases]
        return [folder for folder in folders if _made(folder)]


def _made(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir()
        folder.chmod(0o1777)
    # Not a link: whoever made that would choose the folder.
    with contextlib.suppress(OSError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return False
        if not os.access(folder, os.W_OK | os.X_OK) and time.time() - found.st_ctime < 1:
            time.sleep(_CREATING_SECONDS)  # another user makes it this moment
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def _all_locked(paths: Sequence[Path]) -> list[int] | Path:
    """Return descriptors that hold all these locks, or the first that another one holds.

    Raises:
        WorkerError: one cannot be made or opened, or there is none.
    """
    if not paths:
        raise WorkerError(
            "cannot lock the device: there is no folder for it any more",
            hint="--device-lock-dir names one that all watchers of the machine may write",
        )
    held: list[int] = []
    try:
        for path in paths:
            descriptor = _locked(path)
            if descriptor is None:
                _close(held)
                return path
            held.append(descriptor)
    except BaseException:
        _close(held)
        raise
    return held


def _is_locked(path: Path) -> bool:
    """True when another one holds a lock; it is let go of at once where it can be had."""
    try:
        descriptor = _locked(path)
    except WorkerError:
        return False
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a file, None when another one holds it."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have tidied up between the two: then it is not the file that others lock.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise WorkerError(
                f"cannot lock the device by {path}: {error.strerror}",
                hint=f"{path.parent} is on a file system without locks; --device-lock-dir names"
                " another folder, the same for all watchers of the machine",
            ) from error
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = _create(path, flags)
        except PermissionError:  # another user's, perhaps made this moment: see `_create`
            time.sleep(_CREATING_SECONDS)
            descriptor = os.open(path, flags)
        found = os.fstat(descriptor)
        # Not a second name of a file that is somebody's own.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise OSError(0, "it is not a plain file of its own")
    except OSError as error:
        raise WorkerError(
            f"cannot lock the device by {path}: {error.strerror}",
            hint="all watchers of the machine must be able to write there;"
            " --device-lock-dir names another folder",
        ) from error
    return descriptor


def _create(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)  # whatever our umask: other users lock it too
    return descriptor


def _read_holder(path: Path) -> Holder | None:
    try:
        descriptor = _open(path)
    except WorkerError:
        return None
    try:
        said = json.loads(os.pread(descriptor, _READ_BYTES, 0))
        run = "".join(filter(str.isprintable, str(said["run"])))[:_TEXT_CHARACTERS]
        return Holder(int(said["watcher"]), int(said["worker"]), run)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(descriptor)


def other_evaluators(lock_dir: str | None, listing: Listing) -> dict[str, int]:
    """Return the GPUs that watchers evaluate on, with the worker's id: those are taken in turn."""
    found: dict[str, int] = {}
    folders = LockFolders(lock_dir)
    for gpu in listing.gpus:
        holder = DeviceLock(folders, gpu.uuid, label="", run="").holder()
        if holder:
            found[gpu.uuid] = holder.worker
    return found
