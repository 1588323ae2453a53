"""Placing: the files of one leader after another come into a board's folder, a slice at a time.

What lies there unchanged costs one look at the folder. What is new is taken from its pin, verified
and made durable beside the folder's other files, and only then gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from watcher.checkpoints import bundle
from watcher.checkpoints.pin import (
    Verified,
    file_signature,
    signature,
    taking_checkpoint,
)
from watcher.errors import CorruptCheckpoint, LeaderLost, PinError
from watcher.files.atomic_io import flushing
from watcher.files.slices import Job, Progress, Unfinished, Work
from watcher.protocols import CheckpointFormat
from watcher.types import Files, Leader

WORKING = ".new"


class Contents(msgspec.Struct, frozen=True):
    """What lies in a board's folder.

    Attributes:
        files: Name to signature of each file; a folder has one too.
        checkpoints: Name to the signatures of its files: of the index, empty if there is none,
            and of each shard.
    """

    files: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    checkpoints: dict[str, Files] = msgspec.field(default_factory=dict)


def look_into(folder: Path, format: CheckpointFormat) -> Contents:
    """List a folder once; empty where there is none.

    Raises:
        OSError: it cannot be listed.
    """
    files: dict[str, tuple[int, ...]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    files[entry.name] = file_signature(entry.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return Contents()
    shards: dict[str, list[tuple[int, ...]]] = {}
    for file in sorted(files):
        if name := format.placed_file(file):
            ours = shards.setdefault(name, [])
            if not file.endswith(".index"):
                ours.append(files[file])
    return Contents(
        files, {name: (files.get(f"{name}.index", ()), *ours) for name, ours in shards.items()}
    )


class Placing:
    """Puts the leaders of one board into its folder.

    Attributes:
        verified: What need not be verified again; added to.
        taken: Names whose files were put there, and not found there.
    """

    def __init__(self, format: CheckpointFormat, verified: Verified) -> None:
        self._format = format
        self.verified = verified
        self.taken: set[str] = set()
        self._job: Job[bool] | None = None
        self._of: tuple[str, str] | None = None

    @property
    def progress(self) -> str | None:
        """What is being put in place and how far that is, None when nothing takes long."""
        return self._job.progress.text if self._job else None

    def put(
        self, best_dir: Path, leaders: Sequence[Leader], contents: Contents, until: float
    ) -> None:
        """Make each leader lie in `best_dir`, whole, under its name.

        Args:
            best_dir: The folder.
            leaders: The board.
            contents: What lies in the folder now.
            until: Steady time at which to break off. What is unfinished is gone on with by the
                next call, unless its leader is not on the board any more.

        Raises:
            Unfinished: it broke off.
            LeaderLost: a leader is damaged here and in the pins.
            PinError: a leader could not be put in place.
        """
        missing = {
            (leader.name, leader.row.sha256): leader
            for leader in leaders
            if (leader.row.sha256, contents.checkpoints.get(leader.name, ())) not in self.verified
        }
        if self._of not in missing:
            self.drop()
        for key in sorted(missing, key=lambda key: key != self._of):
            if self._job is None:
                work = partial(self._placing, best_dir, missing[key])
                self._job, self._of = Job(work), key
            try:
                if self._job.run(until):
                    self.taken.add(key[0])
            except Unfinished:
                raise
            except Exception:
                self._job = self._of = None
                raise
            self._job = self._of = None

    def drop(self) -> None:
        """Leave nothing of what is unfinished."""
        if self._job:
            self._job.drop()
        self._job = self._of = None

    def _placing(self, best_dir: Path, leader: Leader, progress: Progress) -> Work[bool]:
        """Put a leader into the folder; False when it lay there, whole."""
        target, sha256 = best_dir / leader.name, leader.row.sha256
        if (yield from self._looking_whole(target, sha256, progress)):
            return False
        source = leader.row.pin
        if source is None:
            raise _gone(best_dir, leader)
        working = best_dir / WORKING
        shutil.rmtree(working, ignore_errors=True)
        try:
            working.mkdir(mode=0o700)
            inside = working / leader.name
            taken = yield from self._taking_verified(source, inside, sha256, progress)
            # The index comes last: without it nobody takes the shards for a checkpoint.
            files = sorted(working.iterdir(), key=lambda file: file.suffix == ".index")
            for file in files:
                yield from flushing(file)
            for file in files:
                file.rename(best_dir / file.name)
            self.verified |= taken
            return True
        except (OSError, CorruptCheckpoint) as error:
            if (yield from self._looking_lost(source, sha256, progress)):
                raise _gone(best_dir, leader) from error
            raise PinError(
                f"cannot promote {leader.name} into {best_dir}: {error}",
                hint=f"check free space and permissions of {best_dir}",
            ) from error
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def _looking_whole(self, prefix: Path, sha256: str, progress: Progress) -> Work[bool]:
        """Tell whether a checkpoint lies there, verifying what is not known to be whole."""
        try:
            seen = _signatures(prefix, sha256)
            known = bool(seen & self.verified)
            yield from self._verifying(prefix, sha256, progress, known=known)
            # It is remembered across a loss of power, so it has to last as long.
            for file in () if known else prefix.parent.glob(f"{prefix.name}.*"):
                yield from flushing(file)
        except (OSError, CorruptCheckpoint):
            return False
        self.verified |= seen
        return True

    def _taking_verified(
        self, source: Path, target: Path, sha256: str, progress: Progress
    ) -> Work[Verified]:
        """Take a checkpoint from its pin; links to shards that were verified there are, too."""
        yield from taking_checkpoint(source, target, progress, index_mode=0o644)
        seen = _signatures(target, sha256)
        yield from self._verifying(target, sha256, progress, known=bool(seen & self.verified))
        return seen

    def _looking_lost(self, pin: Path, sha256: str, progress: Progress) -> Work[bool]:
        """Tell whether a pin is gone or not what it was; an error that may pass is neither."""
        try:
            yield from self._verifying(pin, sha256, progress)
        except (FileNotFoundError, CorruptCheckpoint):
            return True
        except OSError:
            pass
        return False

    def _verifying(
        self, prefix: Path, sha256: str, progress: Progress, *, known: bool = False
    ) -> Work[None]:
        """Read a checkpoint; of one whose shards are known to be whole the index alone.

        Raises:
            CorruptCheckpoint: it is not whole, or not that of this digest.
            OSError: it cannot be read.
        """
        index = bundle.read_index(prefix)
        if hashlib.sha256(index).hexdigest() != sha256:
            raise CorruptCheckpoint(f"{prefix.name} is not the checkpoint that was scored")
        if not known:
            yield from self._format.verifying(prefix, index, progress)


def _signatures(prefix: Path, sha256: str) -> Verified:
    """Return what tells a checkpoint there from any other: by its shards, and by all its files.

    It is taken before they are read: what is written meanwhile is read again the next time.
    """
    index = file_signature(bundle.index_path(prefix).lstat())
    _, shards = signature(prefix, sha256)
    return {(sha256, shards), (sha256, (index, *shards))}


def _gone(best_dir: Path, leader: Leader) -> LeaderLost:
    return LeaderLost(
        leader.row.checkpoint_id,
        f"{leader.name} is damaged or gone in {best_dir}, and in the pins too",
    )
