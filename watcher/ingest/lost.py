"""Lost pins: rows that wait to be evaluated and whose pin is gone, until it is made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, PinError
from watcher.ingest.arrivals import Arrival
from watcher.ingest.waiting import Waiting
from watcher.protocols import CheckpointSource
from watcher.store import Queue
from watcher.types import FoundCheckpoint, Verified

# A row is put off for so long, and again well before that is over.
_PUT_OFF_SECONDS, _RENEW_SECONDS = 60.0, 20.0


class LostPins(Waiting):
    """Those that the source cannot give now, though it may have them; by digest.

    They are put off in the queue meanwhile: no worker is given what is not there.
    """

    def __init__(
        self,
        source: CheckpointSource,
        pins_dir: Path,
        verified: Verified | None,
        grace_seconds: float,
    ) -> None:
        super().__init__(grace_seconds)
        self._source, self._pins_dir, self._verified = source, pins_dir, verified
        self._renewed: dict[str, float] = {}

    def wait(
        self, one: Arrival, error: OSError | CorruptCheckpoint | PinError, steady: float
    ) -> bool:
        """Have a row wait for another try; False where no other would go better."""
        assert one.row is not None
        if one.row["state"] not in ("pending", "leased"):
            return False  # it has its score; what is worth a place is fetched by who promotes
        passes = not isinstance(error, CorruptCheckpoint | FileNotFoundError)
        one.problem = error.message if isinstance(error, CorruptCheckpoint) else None
        if not (passes or isinstance(error, IncompleteCheckpoint)):
            return False
        self.hold(one, steady, one.sha256)
        barred = self._source.unreadable(one.found) if passes else None
        one.problem = barred or one.problem
        if self.has_lasted(one, steady) and (barred or not passes):
            del self[one.sha256]
            return False
        reason = getattr(error, "strerror", None) or error
        one.problem = one.problem or f"cannot pin {one.found.name} again: {reason}"
        self.postpone(one, steady)
        return True

    def try_again(
        self, found: Mapping[str, FoundCheckpoint], complete: bool, steady: float
    ) -> list[Arrival]:
        """Begin anew with those that are due; returns those that go on, or that are lost for good.

        Args:
            found: What the source has, by name.
            complete: Nothing else is there.
            steady: Now.
        """
        left = []
        for one in [one for one in self.values() if one.retry_at <= steady]:
            there = found.get(one.found.name)
            if there is None and not complete:
                self.postpone(one, steady)
                continue
            try:
                if there:
                    one.found = there
                    one.job = self._source.take_again(
                        there, one.sha256, self._pins_dir, self._verified
                    )
            except (OSError, PinError) as error:
                if self.wait(one, error, steady):
                    continue
            else:
                if one.job is None:
                    one.problem = None  # it is gone
            self.pop(one.sha256, None)
            left.append(one)
        return left

    def put_off(self, queue: Queue, going_on: Iterable[Arrival], now: float, steady: float) -> None:
        """Keep the rows from being given out: those here, and those that go on again.

        Raises:
            StoreError: the database cannot be written.
        """
        rows = {one.sha256: one.row for one in (*self.values(), *going_on) if one.row}
        due = [sha for sha in rows if steady >= self._renewed.get(sha, steady) + _RENEW_SECONDS]
        due += rows.keys() - self._renewed.keys()
        self._renewed = {sha: at for sha, at in self._renewed.items() if sha in rows}
        waiting = queue.waiting_ids() if due else set()
        for sha256 in due:
            if rows[sha256]["id"] in waiting:
                queue.put_off(rows[sha256]["id"], now + _PUT_OFF_SECONDS)
                self._renewed[sha256] = steady
            else:
                self.pop(sha256, None)  # it was decided otherwise: there is too much that waits
