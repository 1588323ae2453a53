"""Queries: what pictures, event files, the report, doctor and the shell ask of a run. Reads only.

Each takes a reader and returns rows as they are recorded; what they mean is for
those who ask. `reading` has what commands and views ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from watcher.decision.metric import Key
from watcher.store.page_queries import CAUTION
from watcher.store.rows import COUNTING, Rows

Found = list[dict[str, Any]]
Ends = tuple[float, float]

_LAST = "evaluation_id = (SELECT max(id) FROM evaluations)"

# What the shell may offer: each has the columns that its kind of word needs, and one parameter,
# how many at most.
OFFERED = {
    "checkpoints": (
        "SELECT name, state, global_step, score FROM (SELECT c.id, c.name, c.state, c.global_step,"
        " e.score FROM checkpoints c LEFT JOIN evaluations e ON e.checkpoint_id = c.id"
        " WHERE c.state NOT IN ('untrained', 'corrupt', 'missed')) ORDER BY id DESC LIMIT ?"
    ),
    "evaluated": (
        f"SELECT c.name, c.state, c.global_step, e.score FROM {COUNTING} ORDER BY c.id DESC LIMIT ?"
    ),
    "metrics": f"SELECT name FROM metrics WHERE category = '' AND {_LAST} ORDER BY name LIMIT ?",
    "categories": (
        f"SELECT DISTINCT category FROM metrics WHERE category != '' AND {_LAST}"
        " ORDER BY category LIMIT ?"
    ),
    "boards": "SELECT DISTINCT board FROM promotions ORDER BY board LIMIT ?",
}


# -- pictures


def values_named(
    db: Rows, names: Sequence[str], beginnings: Sequence[str]
) -> dict[int, dict[Key, float | None]]:
    """Return evaluation id to (metric, category) to value, of metrics by name and beginning."""
    wanted = [f"name IN ({', '.join('?' * len(names))})", *["name GLOB ?"] * len(beginnings)]
    rows = db.all(
        "SELECT evaluation_id, name, category, value FROM metrics"
        f" WHERE {' OR '.join(wanted)} ORDER BY evaluation_id, name, category",
        [*names, *(f"{beginning}*" for beginning in beginnings)],
    )
    values: dict[int, dict[Key, float | None]] = {}
    for row in rows:
        values.setdefault(row["evaluation_id"], {})[row["name"], row["category"]] = row["value"]
    return values


def intervals_named(
    db: Rows, names: Sequence[str]
) -> tuple[dict[int, Ends], dict[int, dict[str, Ends]]]:
    """Return the intervals of the evaluations that have some.

    Returns:
        Evaluation id to the two ends of its score's, and to those of overall metrics by name.
    """
    if not has_intervals(db):
        return {}, {}
    rows = db.all("SELECT id, low, high FROM evaluations WHERE low NOT NULL")
    own = {row["id"]: (row["low"], row["high"]) for row in rows}
    rows = db.all(
        "SELECT evaluation_id, name, low, high FROM replicates WHERE category = ''"
        f" AND name IN ({', '.join('?' * len(names))})",
        names,
    )
    found: dict[int, dict[str, Ends]] = {}
    for row in rows:
        found.setdefault(row["evaluation_id"], {})[row["name"]] = row["low"], row["high"]
    return own, found


def has_intervals(db: Rows) -> bool:
    """Tell whether there can be any: not in a database that nothing of today has written yet."""
    return bool(db.value("SELECT 1 FROM sqlite_master WHERE name = 'replicates'"))


def placed(db: Rows, run_id: int) -> Found:
    """Return `checkpoint_id, rank` of what ever came into `best/`; NULL has left."""
    # A checkpoint whose row was replaced, its metric another say, has several: one that was not
    # evicted says where it is.
    return db.all(
        "SELECT p.checkpoint_id, max(CASE WHEN p.evicted_at IS NULL THEN p.rank END) AS rank"
        " FROM promotions p JOIN runs r ON r.id = p.run_id AND r.board = p.board"
        " WHERE r.id = ? GROUP BY p.checkpoint_id ORDER BY p.checkpoint_id",
        [run_id],
    )


def placed_evaluations(db: Rows) -> dict[int, str]:
    """Return the evaluations that have a place on the main board: id to the checkpoint's name."""
    rows = db.all(
        "SELECT p.evaluation_id AS id, c.name FROM promotions p JOIN runs r ON r.id = p.run_id"
        " AND r.board = p.board JOIN all_checkpoints c ON c.id = p.checkpoint_id"
        " WHERE p.evicted_at IS NULL AND p.evaluation_id NOT NULL ORDER BY p.rank"
    )
    return {row["id"]: row["name"] for row in rows}


def stopped(db: Rows, run_id: int) -> dict[str, Any] | None:
    """Return `message, generation, step` of the stop that stands; None for none.

    The first since it was last withdrawn, with the last step evaluated by then: by that it was
    decided.
    """
    said = db.one(
        "SELECT at, message FROM events WHERE run_id = ? AND kind = 'stop' AND id >"
        " (SELECT coalesce(max(id), 0) FROM events WHERE run_id = ? AND kind = 'stop_withdrawn')"
        " ORDER BY id LIMIT 1",
        [run_id, run_id],
    )
    reached = said and db.one(
        "SELECT c.generation, c.global_step AS step FROM evaluations e"
        " JOIN checkpoints c ON c.id = e.checkpoint_id WHERE c.run_id = ? AND e.evaluated_at <= ?"
        " AND c.global_step NOT NULL ORDER BY c.generation DESC, c.global_step DESC LIMIT 1",
        [run_id, said["at"]],
    )
    return {**reached, "message": said["message"]} if said and reached else None


# -- event files


def with_steps(db: Rows) -> Found:
    """Return every evaluation at a step, of whatever fingerprint, in the order of evaluation.

    The columns: `checkpoint_id, generation, global_step, sha256, id, fingerprint, evaluated_at`,
    and of the details `eval_name, eval_input`, NULL where the worker did not tell.
    """
    return db.all(
        "SELECT c.id AS checkpoint_id, c.generation, c.global_step, c.sha256, e.id, e.fingerprint,"
        " e.evaluated_at, json_extract(e.details, '$.eval_name') AS eval_name,"
        " json_extract(e.details, '$.eval_input') AS eval_input"
        " FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id"
        " WHERE c.global_step IS NOT NULL ORDER BY e.evaluated_at, e.id"
    )


# -- the report


def events(db: Rows, most: int) -> tuple[Found, int]:
    """Return `at, kind, checkpoint, message` of the last events, and how many there are."""
    last = db.all(
        "SELECT at, kind, checkpoint, message FROM events ORDER BY id DESC LIMIT ?", [most]
    )
    return last, db.value("SELECT count(*) FROM events")


def caution(db: Rows) -> str | None:
    """Return a sentence about categories that have few objects, None where all have enough."""
    said: str | None = db.value(CAUTION) if has_intervals(db) else None
    return said


def evaluation(db: Rows, evaluation_id: int) -> dict[str, Any] | None:
    """Return how one was made: `device, images, eval_seconds, evaluated_at, versions, details`."""
    return db.one(
        "SELECT device, images, eval_seconds, evaluated_at, versions, details FROM evaluations"
        " WHERE id = ?",
        [evaluation_id],
    )


# -- doctor


def last_steps(db: Rows, most: int) -> list[int]:
    """Return the last global steps of the newest generation, in rising order."""
    rows = db.all(
        "SELECT DISTINCT global_step FROM checkpoints WHERE global_step > 0 AND generation ="
        " (SELECT max(generation) FROM checkpoints WHERE sha256 IS NOT NULL)"
        " ORDER BY global_step DESC LIMIT ?",
        [most],
    )
    return sorted(row["global_step"] for row in rows)


def last_discoveries(db: Rows, most: int) -> list[str]:
    """Return when the last checkpoints were discovered, ISO 8601, in the order of discovery."""
    rows = db.all(
        "SELECT discovered_at FROM checkpoints WHERE global_step > 0 ORDER BY id DESC LIMIT ?",
        [most],
    )
    return [row["discovered_at"] for row in reversed(rows)]


def places_taken(db: Rows) -> int:
    """Return how many places are taken on all boards."""
    count: int = db.value("SELECT count(*) FROM promotions WHERE evicted_at IS NULL")
    return count


def journal_mode(db: Rows) -> str:
    """Return SQLite's journal mode."""
    return str(db.value("PRAGMA journal_mode"))
