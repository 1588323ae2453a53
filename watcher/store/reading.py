"""Reading a run's database from any process, while it is being written. Never writes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from watcher.checkpoints.naming import missing
from watcher.config.last_start import LastStart
from watcher.errors import StoreBusy, StoreError
from watcher.store.database_file import DATABASE_NAME, PINS_NAME, explained
from watcher.store.moved import Moved, find_move, recorded_settings, recorded_state, same_folder
from watcher.store.rows import QUEUE_ORDER, Rows


class Reader:
    """The reading side of a run's database."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        """Open read-only; raises StoreError when there is no database or it cannot be read."""
        try:
            there = path.is_file()
        except OSError as error:
            raise StoreError(
                f"cannot read {path}: {error.strerror}",
                hint="it is its owner's alone, unless `run` was given a --group to share it with",
            ) from error
        if not there:
            raise StoreError(
                f"no database at {path}{_nearest_trouble(path.parent)}",
                hint="give the model_dir that `checkpoint-watcher run` was started on,"
                " or its database with --state-dir",
            )
        self.path = path
        self.frozen = False  # nobody writes it, and it is read as a file that never changes
        try:
            self._open("mode=ro", timeout_seconds)
        except StoreBusy:
            raise
        except StoreError:
            # One that nobody has open, in a folder where we may not write: SQLite wants to create
            # a WAL there to read it. There is none, so all there is lies in the one file.
            if path.with_name(path.name + "-wal").exists() or os.access(path.parent, os.W_OK):
                raise
            self._open("mode=ro&immutable=1", timeout_seconds)
            self.frozen = True

    def _open(self, how: str, timeout_seconds: float) -> None:
        with explained(self.path):
            # Plain sqlite3: the commands that read answer sooner without a library to import.
            uri = f"{self.path.absolute().as_uri()}?{how}"
            self._db = sqlite3.connect(uri, uri=True, timeout=timeout_seconds)
            try:
                self._rows("SELECT uuid FROM runs")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def run(self) -> dict[str, Any]:
        """Return the run's row; `status` is decoded: what the daemon last said of itself.

        `model_dir` and the paths in `settings` are those of today, if the run was moved.
        """
        run = self.recorded()
        moved = find_move(self._state_dir, run)
        if moved.new != moved.old:
            run["model_dir"] = str(moved.new)
            # Into a name that JSON cannot hold `run` does not go; its settings stay as they were.
            with contextlib.suppress(UnicodeEncodeError):
                now = moved.settings(recorded_settings(run))
                run["settings"] = msgspec.json.encode(now).decode()
        return {**run, "status": msgspec.json.decode(run["status"])}

    def recorded(self) -> dict[str, Any]:
        """Return the run's row as it is."""
        rows = self._rows("SELECT * FROM runs ORDER BY id LIMIT 1")
        if not rows:
            raise StoreError(f"{self.path} holds no run", hint="start `checkpoint-watcher run`")
        return rows[0]

    def status(self) -> dict[str, Any]:
        """Return what the daemon last said of itself, empty before its first start."""
        rows = self._rows("SELECT status FROM runs ORDER BY id LIMIT 1")
        status: dict[str, Any] = msgspec.json.decode(rows[0]["status"]) if rows else {}
        return status

    def last_start(self) -> LastStart:
        """Return what the last start went by, and what it was given, with the paths of today."""
        run = self.run()
        given = run.get("given")
        return LastStart(recorded_settings(run), given and msgspec.json.decode(given))

    def original(self) -> Path | None:
        """Return the state folder that this one is a copy of, None when it is none.

        A run that was moved has left nothing where it was; one that was copied is still there.
        What is there and cannot be read is taken for the original.
        """
        run = self.recorded()
        before = recorded_state(run)
        if before == self._state_dir or same_folder(before, self._state_dir):
            return None
        try:
            if not (before / DATABASE_NAME).is_file():
                return None
            with open_reader(before, timeout_seconds=0.1) as other:
                return before if other.recorded()["uuid"] == run["uuid"] else None
        except (OSError, StoreError):
            return before

    def best(self) -> dict[str, Any] | None:
        """Return the row of the view `best`, None while nothing is promoted.

        `path` is that of today; `files` is False when what it names is not there.
        """
        rows = self._found("SELECT * FROM best")
        return rows[0] if rows else None

    def leaderboard(self) -> list[dict[str, Any]]:
        """Return the view `leaderboard`, with each `path` of today and `files` as in `best`."""
        return self._found("SELECT * FROM leaderboard")

    def other_boards(self) -> list[dict[str, Any]]:
        """Return the view `boards` without the board that `leaderboard` shows, likewise."""
        return self._found(
            "SELECT * FROM boards WHERE board !="
            " (SELECT board FROM runs WHERE id = (SELECT min(id) FROM runs))"
        )

    def history(self, last: int | None = None) -> list[dict[str, Any]]:
        """Return the view `history`, or only its last rows."""
        if last is None:
            return self._rows("SELECT * FROM history")
        # Not from the view: it would be read from the start, all of a long run.
        return self._rows(
            "SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason,"
            " e.score, c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note,"
            " c.generation"
            " FROM (SELECT * FROM checkpoints ORDER BY id DESC LIMIT ?) c"
            " JOIN runs r ON r.id = c.run_id LEFT JOIN evaluations e"
            " ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint ORDER BY c.id",
            last,
        )

    def rows(self) -> Rows:
        """Return the evaluations as rank and stop see them."""
        pins = self.path.parent / PINS_NAME
        return Rows(self, self.run()["id"], lambda pin_path: pins / pin_path)

    def incumbent(self, board: str) -> int | None:
        """Return the checkpoint id of a board's first place, None when it is empty."""
        row = self.one(
            "SELECT checkpoint_id FROM promotions WHERE board = ? AND evicted_at IS NULL"
            " ORDER BY rank LIMIT 1",
            [board],
        )
        return row["checkpoint_id"] if row else None

    def measured(self) -> tuple[set[str], set[str]]:
        """Return which metrics and which categories the last evaluation recorded."""
        rows = self._rows(
            "SELECT name, category FROM metrics"
            " WHERE evaluation_id = (SELECT max(id) FROM evaluations)"
        )
        overall = {row["name"] for row in rows if not row["category"]}
        return overall, {row["category"] for row in rows if row["category"]}

    def require_views(self) -> None:
        """Raise StoreError for a database of an earlier version, which lacks views of today."""
        self._rows("SELECT state FROM run_state")

    def all(self, sql: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return self._rows(sql, *arguments)

    def one(self, sql: str, arguments: Sequence[Any] = ()) -> dict[str, Any] | None:
        """Return the first row of a query, None when it has none."""
        rows = self._rows(sql, *arguments)
        return rows[0] if rows else None

    def states(self) -> dict[str, int]:
        """Return how many checkpoints are in each state that occurs."""
        rows = self._rows("SELECT state, count(*) AS n FROM checkpoints GROUP BY state")
        return {row["state"]: row["n"] for row in rows}

    def waiting(self) -> int:
        """Return how many checkpoints wait to be evaluated, that in the worker not counted."""
        return int(
            self._rows(
                "SELECT count(*) AS n FROM checkpoints"
                " WHERE run_id = (SELECT min(id) FROM runs) AND state = 'pending'"
            )[0]["n"]
        )

    def queue(self, first: int | None = None) -> list[dict[str, Any]]:
        """Return `checkpoint, global_step` of what waits, in the order it will be evaluated."""
        return self._rows(
            "SELECT name AS checkpoint, global_step FROM checkpoints"
            " WHERE run_id = (SELECT min(id) FROM runs) AND state = 'pending'"
            f" ORDER BY {QUEUE_ORDER} LIMIT ?",
            -1 if first is None else first,
        )

    def curve(self) -> list[tuple[int, float]]:
        """Return global step and score of what can rank of the newest generation, in step order.

        NULL stands for a score that is not finite, -1 for COCO's nothing measured: neither ranks.
        """
        rows = self._rows(
            "SELECT coalesce(c.global_step, 0) AS global_step, e.score FROM evaluations e"
            " JOIN checkpoints c ON c.id = e.checkpoint_id"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " WHERE e.score IS NOT NULL AND e.score != -1"
            " AND r.id = (SELECT min(id) FROM runs) AND c.generation ="
            " (SELECT max(generation) FROM checkpoints WHERE run_id = r.id AND sha256 IS NOT NULL)"
            " ORDER BY c.global_step, c.id"
        )
        return [(row["global_step"], row["score"]) for row in rows]

    def failed(self, last: int) -> list[dict[str, Any]]:
        """Return `checkpoint, state, reason` of what failed or is corrupt, the latest first."""
        return self._rows(
            "SELECT name AS checkpoint, state, reason FROM checkpoints"
            " WHERE run_id = (SELECT min(id) FROM runs) AND state IN ('failed', 'corrupt')"
            " ORDER BY id DESC LIMIT ?",
            last,
        )

    def unranked(self) -> tuple[int, dict[str, Any] | None]:
        """Return how many scores cannot rank, and `checkpoint, reason` of the latest of them."""
        rows = self._rows(
            "SELECT c.name AS checkpoint, c.reason, count(*) OVER () AS n FROM evaluations e"
            " JOIN checkpoints c ON c.id = e.checkpoint_id AND c.state = 'scored'"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " WHERE (e.score IS NULL OR e.score = -1) AND r.id = (SELECT min(id) FROM runs)"
            " ORDER BY e.id DESC LIMIT 1"
        )
        return (rows[0].pop("n"), rows[0]) if rows else (0, None)

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
        rows = self._rows(
            "SELECT eval_seconds FROM evaluations WHERE eval_seconds > 0 ORDER BY id DESC LIMIT ?",
            last,
        )
        return [row["eval_seconds"] for row in rows]

    def step_of(self, name: str) -> int | None:
        """Return the global step of the latest checkpoint of a name."""
        row = self.one(
            "SELECT global_step FROM checkpoints WHERE run_id = (SELECT min(id) FROM runs)"
            " AND name = ? ORDER BY id DESC LIMIT 1",
            [name],
        )
        return row["global_step"] if row else None

    def outdated(self) -> int:
        """Return how many are promoted by a score of another evaluation than the present one."""
        row = self.one(
            "SELECT count(*) AS n FROM promotions p JOIN evaluations e ON e.id = p.evaluation_id"
            " JOIN runs r ON r.id = p.run_id AND r.board = p.board"
            " WHERE p.evicted_at IS NULL AND e.fingerprint != r.fingerprint"
        )
        return int(row["n"]) if row else 0

    def last_event(self) -> int:
        """Return the id of the last row of `events`, 0 for none."""
        return int(self._rows("SELECT coalesce(max(id), 0) AS id FROM events")[0]["id"])

    def evaluated(self) -> list[dict[str, Any]]:
        """Return every evaluation that counts, by generation and step.

        The columns: `run, checkpoint, global_step, sha256, score, evaluated_at, generation,
        evaluation_id`.
        """
        return self._rows(
            "SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.sha256, e.score,"
            " e.evaluated_at, c.generation, e.id AS evaluation_id FROM evaluations e"
            " JOIN checkpoints c ON c.id = e.checkpoint_id"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " ORDER BY c.generation, c.global_step, c.id"
        )

    def values_of(self, evaluation_id: int) -> dict[tuple[str, str], float | None]:
        """Return what an evaluation recorded: (metric, category) to value, '' for overall ones."""
        rows = self._rows(
            "SELECT name, category, value FROM metrics WHERE evaluation_id = ?"
            " ORDER BY name, category",
            evaluation_id,
        )
        return {(row["name"], row["category"]): row["value"] for row in rows}

    def details_of(self, evaluation_id: int) -> dict[str, Any]:
        """Return what else the worker told of an evaluation."""
        row = self.one("SELECT details FROM evaluations WHERE id = ?", [evaluation_id])
        details: dict[str, Any] = msgspec.json.decode(row["details"]) if row else {}
        return details

    @property
    def _state_dir(self) -> Path:
        return self.path.absolute().parent

    def _found(self, sql: str) -> list[dict[str, Any]]:
        """Return rows with a `path`, each where it is today, and with whether its files are there.

        `files` is False when the index or a shard at `path` is missing.
        """
        rows = self._rows(sql)
        if rows:
            moved: Moved = find_move(self._state_dir, self.recorded())
            for row in rows:
                row["path"] = moved.path(row["path"])
            gone = missing(Path(row["path"]) for row in rows)
            for row in rows:
                row["files"] = Path(row["path"]) not in gone
        return rows

    def _rows(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        with explained(self.path):
            cursor = self._db.execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]


@contextmanager
def open_reader(state_dir: Path, *, timeout_seconds: float = 5.0) -> Iterator[Reader]:
    """Open the database in a run's state folder for reading."""
    reader = Reader(state_dir / DATABASE_NAME, timeout_seconds=timeout_seconds)
    try:
        yield reader
    finally:
        reader.close()


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


def _nearest_trouble(folder: Path) -> str:
    """Say which part of a path is not there or no folder; nothing for what `run` makes itself."""
    if folder.parent.is_dir() and not folder.exists():
        return ""
    for there in (folder, *folder.parents):
        if there.exists():
            return "" if there.is_dir() else f": {there} is not a folder"
        if there.parent.is_dir():
            return f": {there} does not exist"
    return ""
