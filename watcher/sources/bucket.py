"""A folder in a bucket that a trainer saves into; see `watcher.protocols.CheckpointSource`.

A thread of its own lists it, reads the index of what is new, and publishes what it found; the loop
asks for what is published, and never waits for a server. A pin is a download, verified like any
other private copy; each range of it asks for the very objects of the list (If-Match).

TensorFlow puts `ckpt-N.index` last and whole, so one that is listed is finished, with an exception:
where a name is used again its data are replaced first. Old index and new data fit by their sizes,
and fail the checksums; that is waited out.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle_format import BundleFormat
from watcher.checkpoints.pin import make_folder, refusal, settling
from watcher.config.bucket import Place
from watcher.config.source import SourceSettings
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, ModelDirError, PinError
from watcher.files.atomic_io import write_new_file
from watcher.files.slices import Job, Progress, Work
from watcher.sources.bucket_list import BucketList, Index, Listed, Polling
from watcher.sources.download import Download, Fetchers
from watcher.sources.object_store import ObjectChanged, ObjectError, ObjectFolder, ObjectGone
from watcher.types import Files, FoundCheckpoint, Pin, Verified

# The loop's other work waits for a download for so long at a time.
_WAIT_SECONDS = 0.1
# As a rule a poll takes less.
_POLL_TAKES_SECONDS = 1.0
# A content that fails its checksums is downloaded so often: the second time it was not the way.
_DOWNLOADS = 2
_INDEX_NAME = "index.part"

_Key = tuple[str, Files]


class Bucket:
    """The source of checkpoints that lie in a folder of a bucket.

    A signature is a hash of the ETag, the size and the time (ns) of the index, then of each shard.

    Attributes:
        place: The trainer's model_dir.
        format: What the trainer writes.
    """

    def __init__(self, place: Place, format: BundleFormat, settings: SourceSettings) -> None:
        """Connect to nothing yet; raises ConfigError where obstore is not installed."""
        self.place, self.format = place, format
        self._poll_seconds = settings.poll_seconds
        self._folder = ObjectFolder(place, settings)
        self._list = BucketList(self._folder, format)
        self._fetchers = Fetchers()
        self._polling: Polling | None = None
        self._wanted: int | None = None
        # Only the loop's thread: downloads that a trouble held up, and contents that are damaged.
        self._halves: dict[_Key, Download] = {}
        self._damaged: dict[_Key, tuple[int, str]] = {}

    def __str__(self) -> str:
        return str(self.place)

    def require(self, *, may_be_empty: bool) -> None:
        """Raise ModelDirError for a wrong URL, credentials that are not accepted and the like.

        What may pass by itself, a server that is busy say, is a problem of the run.
        """
        try:
            _, anything = self._folder.list()
        except ObjectError as error:
            if error.lasting:
                raise ModelDirError(error.what, hint=error.remedy) from error
            return
        if not anything and not may_be_empty:
            raise ModelDirError(
                f"there is nothing in model_dir {self.place}",
                hint="is the URL right? Start the trainer first, or wait for it with"
                " --wait-for-model-dir",
            )

    # -- what is there

    @property
    def delay_seconds(self) -> float:
        """How long a checkpoint may lie there unseen: from one poll to the end of the next.

        Infinite while one takes longer than it should: nobody knows what it will bring.
        """
        if self._polling is None:
            return 0.0
        if self._list.running_seconds > _POLL_TAKES_SECONDS:
            return math.inf
        return max(self._poll_seconds, self._list.took_seconds) + _POLL_TAKES_SECONDS

    @property
    def complete(self) -> bool:
        """False until the index of everything that was listed has been asked for."""
        return self._polling is None or self._list.complete

    def refresh(self) -> bool:
        """Have it polled anew; True once one that began after the first call has ended."""
        if self._polling is None:
            return True
        if self._wanted is None:
            self._wanted = self._list.begun + 1
            self._hurry()
        if self._list.ended < self._wanted:
            return False
        self._wanted = None
        return True

    def scan(self) -> list[FoundCheckpoint]:
        """Return the checkpoints of the last poll, lowest number first; polls where no thread does.

        Raises:
            ModelDirError: the last poll failed, or there was none yet.
        """
        if self._polling is None:
            self._list.poll(read=False)
        problem, listed = self._list.problem, self._list.listed
        if problem:
            raise ModelDirError(str(problem))
        if not self._list.polls:
            raise ModelDirError(f"{self.place}: the server has not answered yet")
        self._forget(listed)
        return [one.found for one in listed.values()]

    def still_there(self, name: str) -> bool:
        """Tell whether the last poll saw an index of this name."""
        if self._polling is None and not self._list.polls:
            self._list.poll(read=False)
        return name in self._list.listed

    def read_index(self, name: str) -> bytes:
        """Read the index of this name as it is now; waits for the server."""
        if not (listed := self._list.listed.get(name)):
            raise FileNotFoundError(f"there is no {name} in {self.place}")
        if listed.index.size_bytes > bundle.MAX_INDEX_BYTES:
            raise CorruptCheckpoint(f"{name}.index is larger than {bundle.MAX_INDEX_BYTES} bytes")
        try:
            return self._folder.read(listed.index)
        except ObjectError as error:
            raise _as_system(error) from error

    def unreadable(self, found: FoundCheckpoint) -> str | None:
        """Return None: rights are those of the credentials, and what they lack is a problem."""
        return None

    def identify(self, found: FoundCheckpoint) -> str:
        """Return the sha256 (hex) of the index, which was read when it was first listed."""
        return self._said(self._as_listed(found)).sha256

    def why_copies(self, into: Path) -> str | None:
        """Return None: that a download takes space of its own is no news."""
        return None

    def passed_over(self) -> list[tuple[str, str]]:
        """Return nothing: what else lies there is not looked at."""
        return []

    def watch(self, wake: Callable[[], None]) -> Polling:
        """Return the thread that polls; `ensure` starts it."""
        self._polling = Polling(self._list, wake, self._poll_seconds)
        return self._polling

    # -- taking

    def take(
        self, found: FoundCheckpoint, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Download a checkpoint and verify it, yielding while it comes; see the protocol."""
        listed, key = self._as_listed(found), (found.name, found.signature)
        index = self._said(listed)
        self._require_fitting(listed, index)
        times, reason = self._damaged.get(key, (0, ""))
        if times >= _DOWNLOADS:
            raise self._unfinished(listed, CorruptCheckpoint(reason))
        download = self._halves.pop(key, None)
        complete = leave = False
        try:
            if download is None or not download.folder.is_dir():
                download = self._begin(listed, index, into)
            download.begin()
            progress.begin(f"downloading {found.name}", download.total_bytes)
            progress.holds_open = len(index.sizes)
            yield
            while not download.wait(_WAIT_SECONDS):
                progress.done_bytes = download.done_bytes
                yield
            progress.holds_open = 0
            prefix = self._finish(download, listed, index)
            complete = True
            yield
            return (yield from settling(prefix, into, self.format, "download", verified, progress))
        except GeneratorExit:
            leave = complete
            raise
        except PinError:
            # One that failed in another way than by a trouble begins anew, in a folder of its own.
            if download and not complete and not download.failed:
                self._halves[key], leave = download, True
            raise
        except CorruptCheckpoint as error:
            if complete:
                self._damaged[key] = times + 1, error.message
                raise self._unfinished(listed, error) from error
            self._hurry()
            raise
        except FileNotFoundError:
            self._hurry()
            raise
        except OSError as error:
            raise refusal(found.name, error, into) from error
        finally:
            if download and not leave:
                download.close()
                shutil.rmtree(download.folder, ignore_errors=True)

    def take_again(
        self, found: FoundCheckpoint, sha256: str, into: Path, verified: Verified | None
    ) -> Job[Pin] | None:
        """Begin to download a checkpoint that had a pin before; see the protocol."""
        try:
            if self.identify(found) != sha256:
                return None
            job = Job(partial(self.take, found, into, verified))
            job.begin()
        except (FileNotFoundError, CorruptCheckpoint):
            return None
        return job

    def settle(
        self, prefix: Path, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Verify what an earlier `take` left half-made; see `settling`."""
        return settling(prefix, into, self.format, "download", verified, progress)

    def _begin(self, listed: Listed, index: Index, into: Path) -> Download:
        # Of those that the index speaks of: others may be left from another number of shards.
        shards = [(listed.shards[name], name) for name in index.sizes]
        wanted = [(listed.index, _INDEX_NAME), *shards]
        folder = make_folder(into, listed.found.name)
        try:
            return Download(self._folder, self._fetchers, wanted, folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _finish(self, download: Download, listed: Listed, index: Index) -> Path:
        """Give what was downloaded its names, the index last: then it is half-made, and whole."""
        download.close()
        prefix, part = download.folder / listed.found.name, download.folder / _INDEX_NAME
        content = part.read_bytes()
        if hashlib.sha256(content).hexdigest() != index.sha256:
            raise IncompleteCheckpoint(f"{listed.index.name} is not the one that was listed")
        for name in index.sizes:
            saved_at = listed.shards[name].modified_ns
            os.utime(download.folder / name, ns=(saved_at, saved_at))
        write_new_file(bundle.index_path(prefix), content)
        part.unlink()
        return prefix

    def _require_fitting(self, listed: Listed, index: Index) -> None:
        """Refuse what cannot be whole before GBs of it are downloaded."""
        if index.damage:
            raise CorruptCheckpoint(index.damage)
        for name, size in index.sizes.items():
            if name not in listed.shards:
                raise FileNotFoundError(f"there is no {name} in {self.place}")
            there = listed.shards[name].size_bytes
            if there != size:
                error = CorruptCheckpoint(f"{name} has {there} bytes, {size} needed")
                raise self._unfinished(listed, error)

    def _unfinished(self, listed: Listed, error: CorruptCheckpoint) -> CorruptCheckpoint:
        if not listed.is_behind:
            return error
        return IncompleteCheckpoint(f"its data are newer than its index: {error.message}")

    def _as_listed(self, found: FoundCheckpoint) -> Listed:
        listed = self._list.listed.get(found.name)
        if listed is None:
            raise FileNotFoundError(f"{found.name} is gone")
        if listed.found.signature != found.signature:
            raise IncompleteCheckpoint(f"{found.name} was replaced")
        return listed

    def _said(self, listed: Listed) -> Index:
        said = self._list.said(listed)
        if isinstance(said, ObjectError):
            raise _as_system(said)
        return said

    def _forget(self, listed: Mapping[str, Listed]) -> None:
        """Forget what was begun, and what was found damaged, of what is not there any more."""
        there = {(name, one.found.signature) for name, one in listed.items()}
        for key in self._halves.keys() - there:
            download = self._halves.pop(key)
            download.close()
            shutil.rmtree(download.folder, ignore_errors=True)
        self._damaged = {key: why for key, why in self._damaged.items() if key in there}

    def _hurry(self) -> None:
        if self._polling:
            self._polling.hurry()


def _as_system(error: ObjectError) -> OSError:
    """Return the error as those of a local folder are: it is gone, or cannot be read."""
    if isinstance(error, ObjectGone | ObjectChanged):
        return FileNotFoundError(str(error))
    return OSError(str(error))
