"""Known: which checkpoints need nothing more, by the database and by what was seen before."""

from __future__ import annotations

from collections.abc import Callable, Container

from watcher.errors import StoreError, StoreLost
from watcher.store import Queue
from watcher.types import Files, FoundCheckpoint


class Known:
    """What is asked of the database about a checkpoint, as long as it can be read.

    Attributes:
        readable: It can be, since the look began.
    """

    def __init__(self, queue: Queue | None) -> None:
        self._queue = queue
        self._settled: dict[str, Files] = {}
        self.readable = False

    def begin(self) -> None:
        """Begin a look, in which the database is asked until that fails."""
        self.readable = self._queue is not None

    def is_damaged(self, found: FoundCheckpoint) -> bool:
        """True when exactly these files are recorded as corrupt."""
        return self._ask(lambda queue: queue.known_damage(found))

    def is_recorded(self, sha256: str) -> bool:
        """True when the content has a row."""
        return self._ask(lambda queue: queue.known(sha256))

    def is_unreadable(self, found: FoundCheckpoint) -> bool:
        """True when it is recorded of exactly these files that they could not be read."""
        return self._ask(lambda queue: queue.known_unreadable(found))

    def _ask(self, question: Callable[[Queue], bool]) -> bool:
        """Ask the database; while it cannot be read the answer is no: a pin too many is released
        when its row is met, one too few is lost.

        Raises:
            StoreLost: the database is damaged.
        """
        if self.readable and self._queue:
            try:
                return question(self._queue)
            except StoreLost:
                raise
            except StoreError:
                self.readable = False
        return False

    # -- what was seen before

    def settle(self, found: FoundCheckpoint) -> None:
        """Remember that these files need no look any more."""
        self._settled[found.name] = found.signature

    def is_settled(self, found: FoundCheckpoint) -> bool:
        """True when exactly these files need none."""
        return self._settled.get(found.name) == found.signature

    def was_settled(self, found: FoundCheckpoint) -> bool:
        """True when it is the one of this name that was settled, seen again as it goes.

        A new generation under the same name has another data file, or another index file.
        """
        before = self._settled.get(found.name)
        if before is None:
            return False
        index, *shards = found.signature
        return index == before[0] or (index[0] == before[0][0] and set(shards) <= set(before[1:]))

    def forget(self, but: Container[str] = ()) -> None:
        """Forget what was settled, but for these names."""
        self._settled = {name: files for name, files in self._settled.items() if name in but}
