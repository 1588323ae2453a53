"""Replicates: what scores are on eval sets drawn anew, and which of them are as good as the best.

They are kept as long as they may be of use, for 4 bytes each add up. Intervals stay for good.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from watcher.decision import ties
from watcher.decision.metric import Key, Metric
from watcher.decision.ties import Difference, Draws, Standing
from watcher.store.database import RunDatabase
from watcher.store.rows import Rows
from watcher.types import Replicates as Drawn
from watcher.types import ScoredCheckpoint

# So many of the last evaluations have the replicates of their overall metrics; earlier ones have
# them as long as they are on a board.
KEPT = 1000
# So few have also those of their categories, of which there may be hundreds, and of their images.
KEPT_WHOLE = 20
_PLACED = "SELECT evaluation_id FROM promotions WHERE evicted_at IS NULL AND evaluation_id NOT NULL"


class Replicates:
    """Verbs on replicates and standings. Each is one transaction.

    Attributes:
        recorded: Counts those of how many evaluations were recorded.
        awaited: Checkpoint ids of what has a score whose replicates are still being computed.
    """

    def __init__(self, database: RunDatabase) -> None:
        self._db = database
        self.recorded = 0
        self.awaited: frozenset[int] = frozenset()

    def record(
        self, checkpoint_id: int, fingerprint: str, drawn: Drawn, needed: Collection[Key] = ()
    ) -> int | None:
        """Record the replicates of an evaluation, and drop those that are of no more use.

        Args:
            checkpoint_id: What was evaluated.
            fingerprint: In which evaluation.
            drawn: What the worker gave.
            needed: Figures of categories whose replicates are kept as overall ones are.

        Returns:
            The evaluation's id, None where it was not recorded.
        """
        id_: int | None = self._db.value(
            "SELECT id FROM evaluations WHERE checkpoint_id = ? AND fingerprint = ?",
            [checkpoint_id, fingerprint],
        )
        if id_ is None or not drawn.metrics:
            return id_
        with self._db.write():
            for table in ("replicates", "influences"):
                self._db.run(f"DELETE FROM {table} WHERE evaluation_id = ?", [id_])
            common = [id_, drawn.scheme, drawn.images, drawn.count, drawn.level]
            for one in drawn.metrics:
                row = [*common, one.name, one.category, one.objects, one.low, one.high, one.values]
                self._db.run("INSERT INTO replicates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            if drawn.influences:
                self._db.run("INSERT INTO influences VALUES (?, ?)", [id_, drawn.influences])
            if drawn.image_names:
                names = msgspec.json.encode(drawn.image_names).decode()
                named = {"fingerprint": fingerprint, "names": names}
                self._db.insert("image_names", named, ignore=True)
            self._drop(needed)
        self.recorded += 1
        return id_

    def _drop(self, needed: Collection[Key]) -> None:
        last = "(SELECT id FROM evaluations ORDER BY id DESC LIMIT ?)"
        unused = f"evaluation_id NOT IN {last} AND evaluation_id NOT IN ({_PLACED})"
        self._db.run(f"DELETE FROM influences WHERE {unused}", [KEPT_WHOLE])
        kept = " AND NOT (name = ? AND category = ?)" * len(needed)
        self._db.run(
            "UPDATE replicates INDEXED BY replicates_of_categories SET drawn = NULL"
            f" WHERE category != '' AND drawn NOT NULL AND {unused}{kept}",
            [KEPT_WHOLE, *(part for key in needed for part in key)],
        )
        self._db.run(
            "UPDATE replicates SET drawn = NULL WHERE drawn NOT NULL AND evaluation_id ="
            " (SELECT id FROM evaluations ORDER BY id DESC LIMIT 1 OFFSET ?)"
            f" AND evaluation_id NOT IN ({_PLACED})",
            [KEPT],
        )

    def without_interval(
        self, keys: Iterable[Key], most: int, but: Collection[int] = ()
    ) -> list[int]:
        """Return which of the last evaluations have no interval of their score and may have one.

        Args:
            keys: What the score is computed from.
            most: So many at most.
            but: Evaluation ids to leave out.
        """
        names = [name for name, _ in keys]
        rows = self._db.all(
            "SELECT id FROM (SELECT id, low FROM evaluations ORDER BY id DESC LIMIT ?) e"
            " WHERE low IS NULL AND EXISTS (SELECT 1 FROM replicates r WHERE r.evaluation_id = e.id"
            f" AND r.name IN ({', '.join('?' * len(names))}) AND drawn NOT NULL)"
            " AND id NOT IN (SELECT value FROM json_each(?)) LIMIT ?",
            [KEPT, *names, json.dumps(list(but)), most],
        )
        return [row["id"] for row in rows]

    def set_interval(self, evaluation_id: int, ends: tuple[float, float]) -> None:
        """Record the interval of an evaluation's score."""
        low, high = ends
        with self._db.write():
            self._db.update("evaluations", evaluation_id, low=low, high=high)

    def set_standings(self, standings: Mapping[int, Standing]) -> None:
        """Record how the best evaluations stand to each other, in place of what was before."""
        rows = {id_: {"evaluation_id": id_, **asdict(one)} for id_, one in standings.items()}
        before = self._db.all("SELECT * FROM standings")
        if before == sorted(rows.values(), key=lambda row: row["evaluation_id"]):
            return
        with self._db.write():
            self._db.run("DELETE FROM standings")
            for row in rows.values():
                self._db.insert("standings", row)


def draws_of(
    db: Rows, evaluation_ids: Iterable[int], keys: Iterable[Key] | None = None
) -> dict[int, Draws]:
    """Return the replicates that there are: evaluation id to its draws.

    Args:
        db: The database.
        evaluation_ids: Of which evaluations; one that has none of what is wanted is left out.
        keys: Which metrics, as (name, category); None for all.
    """
    wanted = None if keys is None else set(keys)
    found = {}
    for id_ in evaluation_ids:
        names = "" if wanted is None else f" AND name IN ({', '.join('?' * len(wanted))})"
        rows = db.all(
            "SELECT name, category, scheme, images, drawn FROM replicates"
            f" WHERE evaluation_id = ? AND drawn NOT NULL{names}",
            [id_, *(name for name, _ in wanted or ())],
        )
        values = {(row["name"], row["category"]): _numbers(row["drawn"]) for row in rows}
        if wanted is not None:
            values = {key: one for key, one in values.items() if key in wanted}
        if values:
            found[id_] = Draws((rows[0]["scheme"], rows[0]["images"]), values)
    return found


def paired(
    db: Rows, metric: Metric, one: ScoredCheckpoint, other: ScoredCheckpoint
) -> Difference | None:
    """Return how much more one has than the other, None where their replicates do not tell."""
    draws = draws_of(db, (one.evaluation_id, other.evaluation_id), metric.keys)
    return ties.paired(one, other, draws, metric)


def intervals_of(db: Rows, evaluation_id: int) -> dict[Key, dict[str, Any]]:
    """Return `objects, low, high, level, images, count` of each metric that has an interval."""
    rows = db.all(
        "SELECT name, category, objects, low, high, level, images, count FROM replicates"
        " WHERE evaluation_id = ?",
        [evaluation_id],
    )
    return {(row.pop("name"), row.pop("category")): row for row in rows}


def influences_of(db: Rows, evaluation_id: int) -> array[float] | None:
    """Return how much the main metric rises with each image's weight; None where not kept."""
    data = db.value("SELECT influence FROM influences WHERE evaluation_id = ?", [evaluation_id])
    return None if data is None else _numbers(data)


def image_names(db: Rows, fingerprint: str) -> list[str] | None:
    """Return what the images of an evaluation are called, as `influences_of` has them."""
    names = db.value("SELECT names FROM image_names WHERE fingerprint = ?", [fingerprint])
    return None if names is None else msgspec.json.decode(names, type=list[str])


def _numbers(data: bytes) -> array[float]:
    numbers = array("f")
    numbers.frombytes(data)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\0\1"
