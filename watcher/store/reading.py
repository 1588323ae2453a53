"""Reading a run's database from any process, while it is being written. Never writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from watcher.checkpoints.naming import missing
from watcher.config.last_start import LastStart
from watcher.decision.rank import rankable
from watcher.errors import StoreError
from watcher.store.connection import ReadOnly
from watcher.store.database_file import DATABASE_NAME
from watcher.store.relocation import find_model_dir, inside, recorded_settings
from watcher.store.rows import COUNTING, COUNTING_ALL, QUEUE_ORDER, Rows
from watcher.store.views import history_of


class Reader(ReadOnly, Rows):
    """The reading side of a run's database: what a command asks, beside `Rows`."""

    # -- the run

    def run(self) -> dict[str, Any]:
        """Return the run's row; `status` is decoded: what the daemon last said of itself.

        So are `settings`, those of the last start, and `stopping`, where stopping stood last.
        `model_dir` and the paths in them are those of today, if the run was moved.
        """
        run = self.recorded()
        model_dir = find_model_dir(self._state_dir, run)
        if "settings" in run:
            run["settings"] = recorded_settings(run, model_dir)
        run["stopping"] = msgspec.json.decode(run.get("stopping") or "{}")
        return {**run, "model_dir": str(model_dir), "status": msgspec.json.decode(run["status"])}

    def recorded(self) -> dict[str, Any]:
        """Return the run's row as it is."""
        if run := self.one("SELECT * FROM runs ORDER BY id LIMIT 1"):
            return run
        raise StoreError(f"{self.path} holds no run", hint="start `checkpoint-watcher run`")

    def status(self) -> dict[str, Any]:
        """Return what the daemon last said of itself, empty before its first start."""
        encoded = self.value("SELECT status FROM runs ORDER BY id LIMIT 1")
        status: dict[str, Any] = msgspec.json.decode(encoded or "{}")
        return status

    def last_start(self) -> LastStart:
        """Return what the last start went by, and what it was given, with the paths of today."""
        run = self.run()
        given = run.get("given")
        return LastStart(run.get("settings") or {}, given and msgspec.json.decode(given))

    def require_views(self) -> None:
        """Raise StoreError for a database of an earlier version, which lacks views of today."""
        self.value("SELECT state, (SELECT p_best FROM best LIMIT 1) FROM run_state")

    def last_event(self) -> int:
        """Return the id of the last row of `events`, 0 for none."""
        return self.value("SELECT max(id) FROM events") or 0

    # -- the boards

    def best(self) -> dict[str, Any] | None:
        """Return the row of the view `best`, None while nothing is promoted.

        `path` is that of today; `files` is False when what it names is not there.
        """
        rows = self._found("SELECT * FROM best")
        return rows[0] if rows else None

    def leaderboard(self) -> list[dict[str, Any]]:
        """Return the view `leaderboard`, with each `path` of today and `files` as in `best`."""
        return self._found("SELECT * FROM leaderboard")

    def ties(self) -> list[dict[str, Any]]:
        """Return the view `ties`: how the best evaluations stand to each other."""
        return [_told(row) for row in self.all("SELECT * FROM ties")]

    def averages(self) -> list[dict[str, Any]]:
        """Return the view `averages`: what is averaged, and what came of it."""
        return self.all("SELECT * FROM averages")

    def averages_waiting(self) -> int:
        """Return how many averages are yet to be written or evaluated."""
        if not self.value("SELECT 1 FROM sqlite_master WHERE name = 'averages'"):
            return 0  # a database that nothing of today has written yet
        count: int = self.value(
            "SELECT count(*) FROM averages WHERE state IN ('waiting', 'pending')"
        )
        return count

    def other_boards(self) -> list[dict[str, Any]]:
        """Return the view `boards` without the board that `leaderboard` shows, likewise."""
        return self._found(
            "SELECT * FROM boards WHERE board !="
            " (SELECT board FROM runs WHERE id = (SELECT min(id) FROM runs))"
        )

    def _found(self, sql: str) -> list[dict[str, Any]]:
        """Return rows with a `path`, each where it is today, and with whether its files are there.

        `files` is False when the index or a shard at `path` is missing.
        """
        rows = self.all(sql)
        if rows:
            run = self.recorded()
            now, before = find_model_dir(self._state_dir, run), Path(run["model_dir"])
            paths = [now / inside(row["path"], before) for row in rows]
            gone = missing(paths)
            for row, path in zip(rows, paths, strict=True):
                row |= {"path": str(path), "files": path not in gone}
        return [_told(row) for row in rows]

    def outdated(self) -> int:
        """Return how many are promoted by a score of another evaluation than the present one."""
        count: int = self.value(
            "SELECT count(*) FROM promotions p JOIN evaluations e ON e.id = p.evaluation_id"
            " JOIN runs r ON r.id = p.run_id AND r.board = p.board"
            " WHERE p.evicted_at IS NULL AND e.fingerprint != r.fingerprint"
        )
        return count

    # -- the checkpoints

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """Return the view `history`, or only its last rows."""
        if last is None:
            return self.all("SELECT * FROM history")
        # Not from the view: it would be read from the start, all of a long run.
        newest = "(SELECT * FROM checkpoints ORDER BY id DESC LIMIT ?)"
        return self.all(history_of(newest), [last])

    def states(self) -> dict[str, int]:
        """Return how many checkpoints are in each state that occurs."""
        # Not `sum`: what a folder's names make of it may be more than an integer holds.
        rows = self.all(
            "SELECT state, CAST(total(saves) AS INTEGER) AS n FROM checkpoints GROUP BY state"
        )
        return {row["state"]: row["n"] for row in rows}

    def waiting(self) -> int:
        """Return how many checkpoints wait to be evaluated, that in the worker not counted."""
        return self.states().get("pending", 0)

    def queue(self, first: int | None = None) -> list[dict[str, Any]]:
        """Return `checkpoint, global_step` of what waits, in the order it will be evaluated."""
        return self.all(
            "SELECT name AS checkpoint, global_step FROM checkpoints"
            f" WHERE run_id = ? AND state = 'pending' ORDER BY {QUEUE_ORDER} LIMIT ?",
            [self.run_id, -1 if first is None else first],
        )

    def failed(
        self, last: int, states: Sequence[str] = ("failed", "corrupt")
    ) -> list[dict[str, Any]]:
        """Return `checkpoint, global_step, state, reason` of those in `states`, latest first."""
        return self.all(
            "SELECT name AS checkpoint, global_step, state, reason FROM checkpoints"
            f" WHERE state IN ({', '.join('?' * len(states))}) ORDER BY id DESC LIMIT ?",
            [*states, last],
        )

    # -- the evaluations

    def evaluated(self, *, averages: bool = False) -> list[dict[str, Any]]:
        """Return every evaluation that counts, by generation and step, also of averages if asked.

        The columns: `run, checkpoint, global_step, sha256, score, evaluated_at, generation,
        evaluation_id, checkpoint_id`.
        """
        return self.all(
            "SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.sha256, e.score,"
            " e.evaluated_at, c.generation, e.id AS evaluation_id, c.id AS checkpoint_id"
            f" FROM {COUNTING_ALL if averages else COUNTING}"
            " ORDER BY c.generation, c.global_step, c.id"
        )

    def curve(self) -> list[tuple[int, float]]:
        """Return global step and score of what can rank of the newest generation, in step order."""
        newest = self.generation()
        return [
            (row["global_step"] or 0, row["score"])
            for row in self.evaluated()
            if row["generation"] == newest and rankable(row["score"])
        ]

    def unranked(self) -> tuple[int, dict[str, Any] | None]:
        """Return how many scores cannot rank, and `checkpoint, reason` of the latest of them."""
        row = self.one(
            "SELECT c.name AS checkpoint, c.reason, count(*) OVER () AS n"
            f" FROM {COUNTING} WHERE (e.score IS NULL OR e.score = -1) AND c.state = 'scored'"
            " ORDER BY e.id DESC LIMIT 1"
        )
        return (row.pop("n"), row) if row else (0, None)

    def unmeasured(self) -> str | None:
        """Return a sentence about classes that the present evaluation never sees detected."""
        row = self.one(
            "SELECT json_extract(e.details, '$.unmeasured') AS said FROM evaluations e"
            " JOIN checkpoints c ON c.id = e.checkpoint_id"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " WHERE r.id = (SELECT min(id) FROM runs) ORDER BY e.id DESC LIMIT 1"
        )
        return row["said"] if row else None

    def last_seconds(self, last: int) -> list[float]:
        """Return how long the last evaluations took."""
        rows = self.all(
            "SELECT eval_seconds FROM evaluations WHERE eval_seconds > 0 ORDER BY id DESC LIMIT ?",
            [last],
        )
        return [row["eval_seconds"] for row in rows]

    def measured(self) -> tuple[set[str], set[str]]:
        """Return which metrics and which categories the last evaluation that counts recorded."""
        keys = self.values_of(self.value(f"SELECT max(e.id) FROM {COUNTING_ALL}"))
        return {name for name, of in keys if not of}, {of for _, of in keys if of}

    def details_of(self, evaluation_id: int | None = None) -> dict[str, Any]:
        """Return what else the worker told of an evaluation; by default of the last that counts."""
        encoded = self.value(
            "SELECT details FROM evaluations"
            f" WHERE id = coalesce(?, (SELECT max(e.id) FROM {COUNTING_ALL}))",
            [evaluation_id],
        )
        details: dict[str, Any] = msgspec.json.decode(encoded or "{}")
        return details

    @property
    def _state_dir(self) -> Path:
        return self.path.absolute().parent


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """Make a truth value of `tied`, where it is known."""
    tied = row.get("tied")
    return row if tied is None else {**row, "tied": bool(tied)}


def open_reader(state_dir: Path, *, timeout_seconds: float = 5.0) -> Reader:
    """Open the database in a run's state folder for reading."""
    return Reader(state_dir / DATABASE_NAME, timeout_seconds=timeout_seconds)


def read_last_start(state_dir: Path, *, timeout_seconds: float = 5.0) -> LastStart:
    """Return what the last start on a database was given; nothing where there is no database.

    Raises:
        StoreError: there is one, and it cannot be read.
    """
    try:
        if not (state_dir / DATABASE_NAME).exists():
            return LastStart()
    except OSError:
        pass  # which opening it explains
    with open_reader(state_dir, timeout_seconds=timeout_seconds) as reader:
        return reader.last_start()
