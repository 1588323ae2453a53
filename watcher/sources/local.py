"""A folder on a disk of this machine that a trainer saves into.

Reads names, sizes and permissions; what a checkpoint holds is read when it is taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.checkpoints.bundle import index_path, read_index
from watcher.checkpoints.bundle_format import BundleFormat
from watcher.checkpoints.pin import NEW, NO_COPY_EITHER, READ_ONLY, identify, pinning, settling
from watcher.errors import CorruptCheckpoint, ModelDirError
from watcher.files.atomic_io import write_new_file
from watcher.files.slices import Job, Progress, Work
from watcher.sources import passed_over
from watcher.types import FoundCheckpoint, Pin, Verified

if TYPE_CHECKING:
    from watcher.sources.watch import Watch

# What a disk or a server says of one file, while it lists the folder and gives the others.
_OF_ONE_FILE = (errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG)


class LocalFolder:
    """The source of checkpoints that lie in a folder; see `watcher.protocols.CheckpointSource`.

    A signature is inode, size and modification time (ns) of the index, then of each shard.

    Attributes:
        folder: The trainer's model_dir.
        format: What the trainer writes.
        delay_seconds: None: a scan looks itself.
        complete: A scan tells of all.
    """

    delay_seconds = 0.0
    complete = True

    def __init__(self, folder: Path, format: BundleFormat) -> None:
        self.folder = folder
        self.format = format

    def __str__(self) -> str:
        return str(self.folder)

    def require(self, *, may_be_empty: bool) -> None:
        """Do nothing: a folder is waited for before this."""

    def refresh(self) -> bool:
        """Return True: a scan is always of now."""
        return True

    def scan(self) -> list[FoundCheckpoint]:
        """List the checkpoints in the folder, lowest number first.

        Only regular files with a checkpoint's name count: symlinks, FIFOs, folders such as
        `ckpt-3_temp` and every other file are passed over. The `checkpoint` state file is not read,
        it may name anything.

        Returns:
            A row for each `.index` file, complete or not.

        Raises:
            ModelDirError: the folder is missing or cannot be listed.
        """
        indexes: dict[str, tuple[int, ...]] = {}
        shards: dict[str, list[tuple[int, ...]]] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    file = self.format.file(entry.name)
                    if not file or not (size := _signature(entry)):
                        continue
                    name, is_index = file
                    if is_index:
                        indexes[name] = size
                    else:
                        shards.setdefault(name, []).append(size)
        except OSError as error:
            raise ModelDirError(
                f"cannot list model_dir {self.folder}: {error.strerror}",
                hint="it is the folder given to the trainer as --model_dir",
            ) from error
        found = [
            FoundCheckpoint(
                name=name,
                save_counter=self.format.number(name) or 0,
                prefix=self.folder / name,
                signature=(index, *sorted(shards.get(name, []))),
            )
            for name, index in indexes.items()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.save_counter)

    def read_index(self, name: str) -> bytes:
        """Read the index of this name as it is now, whole or not; see `bundle.read_index`."""
        return read_index(self.folder / name)

    def still_there(self, name: str) -> bool:
        """Tell whether the folder has an index of this name."""
        return index_path(self.folder / name).exists()

    def unreadable(self, found: FoundCheckpoint) -> str | None:
        """Return which file may not be read and why, None when each can be opened."""
        shards = sorted(found.prefix.parent.glob(f"{found.name}.data-*"))
        for file in (index_path(found.prefix), *shards):
            try:
                os.close(os.open(file, READ_ONLY))
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"cannot read {file.name}: {error.strerror}{_whose(file, error)}"
        return None

    def identify(self, found: FoundCheckpoint) -> str:
        """Return the sha256 (hex) of the index as it is now; see `pin.identify`."""
        return identify(found)

    def take(
        self, found: FoundCheckpoint, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Take a verified pin; see `pinning`."""
        return pinning(found, into, self.format, verified, progress)

    def take_again(
        self, found: FoundCheckpoint, sha256: str, into: Path, verified: Verified | None
    ) -> Job[Pin] | None:
        """Begin to take a checkpoint that had a pin before; see the protocol."""
        with contextlib.suppress(FileNotFoundError, CorruptCheckpoint):
            if identify(found) == sha256:
                job = Job(partial(self.take, found, into, verified))
                job.begin()
                return job
        return None

    def settle(
        self, prefix: Path, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Verify what an earlier `take` left half-made; see `settling`."""
        return settling(prefix, into, self.format, "link", verified, progress)

    def why_copies(self, into: Path) -> str | None:
        """Return why pins cannot be hard links, None when nothing speaks against it.

        Writes and removes two files of its own in `into`, nothing in the trainer's folder. Where it
        cannot write there at all, nothing is known.
        """
        trial = into / f"{NEW}{secrets.token_hex(6)}"
        linked = trial.with_name(f"{trial.name}-link")
        try:
            if self.folder.stat().st_dev != into.stat().st_dev:
                return f"{into} is on another file system than {self.folder}"
            write_new_file(trial, b"")
            try:
                os.link(trial, linked)
            except OSError as error:
                if error.errno not in NO_COPY_EITHER:
                    return f"the file system of {into} has no hard links ({error.strerror})"
        except OSError:
            pass
        finally:
            for file in (trial, linked):
                with contextlib.suppress(OSError):
                    file.unlink()
        return None

    def passed_over(self) -> list[tuple[str, str]]:
        """Return the kinds of checkpoints that are passed over now, and what to say of each."""
        seen = passed_over.look(self.folder, self.format)
        return [(one.kind, f"{one}; {one.remedy}") for one in seen]

    def watch(self, wake: Callable[[], None]) -> Watch:
        """Return the watch on the folder; `ensure` registers it."""
        # Commands that only scan answer sooner without its library.
        from watcher.sources.watch import Watch

        return Watch(self.folder, wake)


def _signature(entry: os.DirEntry[str]) -> tuple[int, ...] | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # rotated away between the listing and the look
        return None
    except OSError as error:
        if error.errno not in _OF_ONE_FILE:
            raise
        # It is listed, so that whoever reads it tells why that cannot be done; the others go on.
        return (entry.inode(), -1, -1)
    if not stat.S_ISREG(status.st_mode):
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _whose(file: Path, error: OSError) -> str:
    if not isinstance(error, PermissionError):
        return ""
    with contextlib.suppress(OSError):
        status = file.lstat()
        return f" (owner uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
