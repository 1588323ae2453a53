"""Facts: what the database says of a run, in a few short queries. Reads only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from watcher.decision.metric import parse_metric
from watcher.store.reading import Reader
from watcher.store.replicates import draws_of, paired

OPEN_STATES = ("pending", "leased")
_BUSY_SECONDS = 0.5


@dataclass(slots=True)
class Totals:
    """Sums over every evaluation there ever was, followed from one look to the next.

    Attributes:
        evaluations: How many.
        seconds: Phase to the seconds spent in it.
        first_scores: How many checkpoints were evaluated for the first time.
        waited_seconds: Seconds from notice to score, summed over those.
        last_id: The last evaluation that is counted here.
    """

    evaluations: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    first_scores: int = 0
    waited_seconds: float = 0.0
    last_id: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Count one evaluation: `id, timings, discovered_at, evaluated_at, first`."""
        self.evaluations += 1
        self.last_id = row["id"]
        parts = msgspec.json.decode(row["timings"], type=dict[str, float])
        # What no phase accounts for is one of its own, so that the phases add up.
        parts["other_seconds"] = parts.pop("total_seconds", 0.0) - sum(parts.values())
        for name, seconds in parts.items():
            self.seconds[name.removesuffix("_seconds")] += max(seconds, 0.0)
        waited = unix(row["evaluated_at"]) - unix(row["discovered_at"])
        if row["first"] and waited >= 0:
            self.first_scores += 1
            self.waited_seconds += waited


class Facts(msgspec.Struct, frozen=True):
    """One look at the database.

    Attributes:
        run: The row of `runs`, without its status.
        states: State to the number of checkpoints in it, only those that occur.
        best: The row of the view `best`, None while nothing is promoted.
        last: The evaluation recorded last: `name, global_step, score, evaluated_at` and
            `discovered_at`; None before the first.
        waiting_step: Global step of the newest checkpoint that has no score yet, None for none.
        waiting_since: When the oldest of those was noticed, in seconds since the epoch.
        pins: Number of checkpoints that are pinned.
        pinned_bytes: Their size together.
        waiting_bytes: The size of those of them that have no score yet.
    """

    run: dict[str, Any]
    states: dict[str, int]
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    waiting_step: int | None
    waiting_since: float | None
    pins: int
    pinned_bytes: int
    waiting_bytes: int

    @property
    def queue_length(self) -> int:
        """How many checkpoints are pending or being evaluated."""
        return sum(self.states.get(state, 0) for state in OPEN_STATES)

    @property
    def lag_steps(self) -> int:
        """Steps from the checkpoint evaluated last to the newest that waits; 0 if none waits."""
        if self.waiting_step is None:
            return 0
        return max(self.waiting_step - (self.last["global_step"] if self.last else 0), 0)

    def lag_seconds(self, now: float) -> float:
        """Return how long the oldest that waits has been waiting; 0 if none does."""
        return 0.0 if self.waiting_since is None else max(now - self.waiting_since, 0.0)


class FactReader(Reader):
    """The reading side of a run's database, for looks that repeat."""

    def __init__(self, path: Path) -> None:
        """Open read-only; raises StoreError when that cannot be done now."""
        super().__init__(path, timeout_seconds=_BUSY_SECONDS)

    def facts(self) -> Facts:
        """Look once; raises StoreError when the database cannot be read now."""
        waiting = self.all(
            "SELECT (SELECT coalesce(global_step, 0) FROM checkpoints WHERE state IN (?1, ?2)"
            " ORDER BY id DESC LIMIT 1) AS step,"
            " (SELECT min(discovered_at) FROM checkpoints WHERE state IN (?1, ?2)) AS since",
            OPEN_STATES,
        )[0]
        pinned = self.all(
            "SELECT count(*) AS pins, coalesce(sum(size_bytes), 0) AS bytes,"
            " coalesce(sum(size_bytes) FILTER (WHERE state IN (?, ?)), 0) AS waiting"
            " FROM checkpoints WHERE pin_path IS NOT NULL",
            OPEN_STATES,
        )[0]
        last = self.one(
            "SELECT c.name, coalesce(c.global_step, 0) AS global_step, e.score, e.evaluated_at,"
            " c.discovered_at FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id"
            " ORDER BY e.id DESC LIMIT 1"
        )
        run = self.run()
        del run["status"]
        return Facts(
            run=run,
            states=self.states(),
            best=self.best(),
            last=last,
            waiting_step=waiting["step"],
            waiting_since=unix(waiting["since"]) if waiting["since"] else None,
            pins=pinned["pins"],
            pinned_bytes=pinned["bytes"],
            waiting_bytes=pinned["waiting"],
        )

    def failures(self, after: int, last: int) -> list[dict[str, Any]]:
        """Return `checkpoint, message` of what failed after one event, up to another."""
        return self.all(
            "SELECT checkpoint, message FROM events WHERE id > ? AND id <= ? AND kind = 'failed'"
            " ORDER BY id",
            [after, last],
        )

    def recovered(self) -> str | None:
        """Return what the diary says of the device that works again, None while one is held back.

        None as well where none ever was.
        """
        return self.stands("recovered", "held_back")

    def surely_better(self, sha256: str, other: str) -> bool:
        """Tell whether the score of one checkpoint is better than another's beyond the noise.

        By the paired difference of their replicates; False where it has none yet, or no score. True
        where nothing is known of the other any more: else it would be compared with for good.
        """
        run = self.run()
        rows, metric = self.scored_as([sha256, other]), parse_metric(run["metric"])
        if other not in rows or not draws_of(self, [rows[other].evaluation_id], metric.keys):
            return True
        if sha256 not in rows:
            return False
        found = paired(self, metric, rows[sha256], rows[other])
        return found is not None and (found.low > 0 if run["mode"] == "max" else found.high < 0)

    def follow(self, totals: Totals) -> None:
        """Add the evaluations recorded since to `totals`."""
        rows = self.all(
            "SELECT e.id, e.timings, e.evaluated_at, c.discovered_at, NOT EXISTS (SELECT 1"
            " FROM evaluations b WHERE b.checkpoint_id = e.checkpoint_id AND b.id < e.id) AS first"
            " FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id"
            " WHERE e.id > ? ORDER BY e.id",
            [totals.last_id],
        )
        for row in rows:
            totals.add(row)


def unix(stamp: str) -> float:
    """Return an ISO 8601 time of the database as seconds since the epoch."""
    return datetime.fromisoformat(stamp).astimezone(UTC).timestamp()
