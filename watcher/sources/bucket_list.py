"""What a folder of a bucket holds: listed again and again by a thread, and what it found published.

One list, delimited, costs the same however many event files lie in folders below. The index of a
checkpoint that is new, by its ETag, is read once; only then it is published.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle_index import parse_index
from watcher.errors import CorruptCheckpoint
from watcher.protocols import CheckpointFormat
from watcher.sources.download import Fetchers
from watcher.sources.object_store import (
    ObjectChanged,
    ObjectError,
    ObjectFolder,
    ObjectGone,
    StoredObject,
)
from watcher.types import FoundCheckpoint

_FIRST_RETRY_SECONDS, _MOST_SECONDS = 2.0, 60.0
_SOONEST_SECONDS = 1.0
_AT_ONCE = 64


class Listed(msgspec.Struct, frozen=True):
    """A checkpoint in the list: its index and its shards, by name."""

    found: FoundCheckpoint
    index: StoredObject
    shards: Mapping[str, StoredObject]

    @property
    def key(self) -> tuple[str, str]:
        """What tells this index from every other one."""
        return self.index.name, self.index.tag

    @property
    def is_behind(self) -> bool:
        """True when data were put there after the index, which TensorFlow puts last."""
        newest = max((one.modified_ns for one in self.shards.values()), default=0)
        return newest > self.index.modified_ns


class Index(msgspec.Struct, frozen=True):
    """What an index says: its digest and the size of each shard, or why it says nothing."""

    sha256: str
    sizes: Mapping[str, int]
    damage: str | None = None


class BucketList:
    """What was found at the last poll. A poll replaces all of it at once; any thread may look.

    Attributes:
        listed: The checkpoints whose index was read, by name, lowest number first.
        problem: Why the last poll failed, None when it did not.
        polls: How often something was published.
        begun: How many polls have begun, and `ended` how many have ended, in whatever way.
        complete: Nothing is there but what is listed.
        took_seconds: How long the last one took.
    """

    def __init__(self, folder: ObjectFolder, format: CheckpointFormat) -> None:
        self._folder, self._format = folder, format
        self._readers = Fetchers()
        self._indexes: dict[tuple[str, str], Index | ObjectError] = {}
        self.listed: Mapping[str, Listed] = {}
        self.problem: ObjectError | None = None
        self.polls = self.begun = self.ended = 0
        self.complete = False
        self.took_seconds = 0.0
        self._began_at = math.inf

    @property
    def running_seconds(self) -> float:
        """For how long the poll that runs does, 0 while none runs."""
        return max(time.monotonic() - self._began_at, 0.0)

    def said(self, listed: Listed) -> Index | ObjectError:
        """Return what the index of a checkpoint says; reads it where no poll did."""
        key = listed.key
        if key not in self._indexes:
            self._indexes[key] = self._read(listed)
        return self._indexes[key]

    def poll(self, *, read: bool = True) -> bool:
        """List the folder once, read the indexes of what is new, and publish what was found.

        Args:
            read: Read them now, in threads; else when they are asked for.

        Returns:
            Whether something is another than it was.
        """
        self._began_at = began = time.monotonic()
        self.begun += 1
        before = self.problem
        try:
            return self._poll(read=read)
        except ObjectError as error:
            self.problem = error
        except Exception as error:  # which must not end the thread that polls
            self.problem = ObjectError(f"{self._folder.place} cannot be listed: {error!r}")
        finally:
            self.took_seconds, self._began_at = time.monotonic() - began, math.inf
            self.ended = self.begun
        return str(self.problem) != str(before)

    def _poll(self, *, read: bool) -> bool:
        objects, _ = self._folder.list()
        listed = {one.found.name: one for one in self._grouped(objects)}
        # What is shown stays known, whatever has taken its place there.
        keys = {one.key for one in (*listed.values(), *self.listed.values())}
        self._indexes = {
            key: said
            for key, said in self._indexes.items()
            if key in keys and (read or not isinstance(said, ObjectError))
        }
        if not read:
            return self._publish(listed, {})
        new = [one for one in listed.values() if one.key not in self._indexes]
        again = [one for one in listed.values() if self._has_failed(one)]
        changed = False
        # What could not be read is shown as such, also while that is tried again.
        for batch in (*_batches(new), *_batches(again)):
            changed |= self._publish(listed, self._unread(listed))
            self._read_all(batch)
        return self._publish(listed, self._unread(listed)) or changed

    def _publish(self, listed: Mapping[str, Listed], waiting: Mapping[str, Listed]) -> bool:
        """Publish a list as far as it is read: new ones after one that is not wait for that.

        One of which the index is replaced is shown as it was until the new one is read: what waits
        under its name is not gone.
        """
        end = min((one.found.save_counter for one in waiting.values()), default=math.inf)
        shown: dict[str, Listed] = {}
        for name, one in listed.items():
            if name in waiting:
                if before := self.listed.get(name):
                    shown[name] = before
            elif (one.found.save_counter < end or name in self.listed) and not isinstance(
                self._indexes.get(one.key), ObjectGone
            ):
                shown[name] = one
        changed = shown != self.listed or self.problem is not None or not self.polls
        self.listed, self.problem, self.complete = shown, None, not waiting
        self.polls += 1
        return changed

    def _grouped(self, objects: Iterable[StoredObject]) -> list[Listed]:
        indexes: dict[str, StoredObject] = {}
        shards: dict[str, dict[str, StoredObject]] = {}
        for one in objects:
            if file := self._format.file(one.name):
                name, is_index = file
                if is_index:
                    indexes[name] = one
                else:
                    shards.setdefault(name, {})[one.name] = one
        made = []
        for name, index in indexes.items():
            data = dict(sorted(shards.get(name, {}).items()))
            files = (_signature(index), *sorted(map(_signature, data.values())))
            found = FoundCheckpoint(
                name, self._format.number(name) or 0, Path(str(self._folder.place), name), files
            )
            made.append(Listed(found, index, data))
        return sorted(made, key=lambda one: one.found.save_counter)

    def _has_failed(self, one: Listed) -> bool:
        return isinstance(self._indexes.get(one.key), ObjectError)

    def _unread(self, listed: Mapping[str, Listed]) -> dict[str, Listed]:
        """Return those of which there is no answer, or that were replaced since the list."""
        said = {name: self._indexes.get(one.key) for name, one in listed.items()}
        return {
            name: listed[name]
            for name, answer in said.items()
            if answer is None or isinstance(answer, ObjectChanged)
        }

    def _read_all(self, batch: list[Listed]) -> None:
        """Read some indexes at once, and wait for all of them."""
        left = threading.Semaphore(0)

        def read(one: Listed) -> None:
            try:
                failed, said = self._has_failed(one), self._read(one)
                if failed and isinstance(said, ObjectGone | ObjectChanged):
                    # It was listed again meanwhile: only the next list can say that it is not.
                    said = ObjectError(f"{said}, though it is listed")
                self._indexes[one.key] = said
            finally:
                left.release()

        for one in batch:
            self._readers.submit(partial(read, one))
        for _ in batch:
            left.acquire()

    def _read(self, listed: Listed) -> Index | ObjectError:
        if listed.index.size_bytes > bundle.MAX_INDEX_BYTES:
            limit = bundle.MAX_INDEX_BYTES
            return Index("", {}, f"{listed.index.name} is larger than {limit} bytes")
        try:
            content = self._folder.read(listed.index)
        except ObjectError as error:
            return error
        except Exception as error:  # which must not end a thread that others wait for
            return ObjectError(f"{listed.index.name} cannot be read: {error!r}")
        sha256, name = hashlib.sha256(content).hexdigest(), listed.found.name
        try:
            sizes = bundle.shard_sizes(parse_index(content))
        except CorruptCheckpoint as error:
            return Index(sha256, {}, error.message)
        count = len(sizes)
        return Index(sha256, {bundle.shard_name(name, n, count): s for n, s in enumerate(sizes)})


class Polling:
    """The thread that polls one bucket; see `watcher.protocols.Watching`.

    Attributes:
        degraded: None: it polls, and that is all there is.
    """

    def __init__(self, found: BucketList, wake: Callable[[], None], seconds: float) -> None:
        self.degraded: str | None = None
        self._found, self._wake, self._seconds = found, wake, seconds
        self._asked = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def ensure(self) -> bool:
        """Start the thread where it does not run; what is found unannounced was found by it."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="poll", daemon=True)
            self._thread.start()
        return False

    def doubt(self, reason: str) -> None:
        """Do nothing: no event was promised."""

    def take_news(self) -> list[str]:
        """Return nothing: what fails is a problem, and is told as one."""
        return []

    def take_announced(self) -> list[str]:
        """Return nothing: a poll is no announcement."""
        return []

    def hurry(self) -> None:
        """Poll soon: something there is not as it was listed."""
        self._asked.set()

    def close(self) -> None:
        """End; a request that is under way is not waited for."""
        self._ended = True
        self._asked.set()

    def _run(self) -> None:
        delays = self._delays()
        while not self._ended:
            began = time.monotonic()
            self._found.poll()
            self._wake()
            due = began + next(delays)
            self._asked.wait(max(due - time.monotonic(), 0.0))
            if self._asked.is_set() and not self._ended:
                time.sleep(_SOONEST_SECONDS)
                self._asked.clear()

    def _delays(self) -> Iterator[float]:
        """Yield how long to wait from one poll to the next: after failures longer each time."""
        failures = 0
        while True:
            failures = failures + 1 if self._found.problem else 0
            retry = _FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10)
            yield min(retry, max(self._seconds, _MOST_SECONDS)) if failures else self._seconds


def _batches(those: list[Listed]) -> list[list[Listed]]:
    return [those[begin : begin + _AT_ONCE] for begin in range(0, len(those), _AT_ONCE)]


def _signature(one: StoredObject) -> tuple[int, int, int]:
    tag = hashlib.blake2b(one.tag.encode(), digest_size=7).digest()
    return int.from_bytes(tag), one.size_bytes, one.modified_ns
