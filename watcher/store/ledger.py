"""The ledger: what was measured, what is promoted, and what the run shows of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from watcher.data import Evaluation, Lease
from watcher.database_file import iso
from watcher.decision.metric import Metric
from watcher.rows import Rows
from watcher.store.database import RunDatabase
from watcher.store.queue import Queue


class Ledger(Rows):
    """Verbs on evaluations, metrics and the run. Each is one transaction.

    Attributes:
        revision: Counts the times that scores which were recorded before have changed.
    """

    def __init__(self, database: RunDatabase, queue: Queue) -> None:
        super().__init__(database, database.run_id, database.pin_prefix)
        self._db = database
        self._queue = queue
        self.revision = 0

    def set_policy(self, metric: Metric, mode: str, now: float, *, board: str = "best") -> None:
        """Make `metric` the score of the run: every evaluation's score is computed from its rows.

        Args:
            metric: The main board's metric.
            mode: Its mode.
            now: Seconds since the epoch.
            board: The main board's name, which the view `leaderboard` shows.
        """
        row = self._db.one("SELECT metric, mode, board FROM runs WHERE id = ?", [self._run_id])
        assert row is not None
        if (row["metric"], row["mode"], row["board"]) == (metric.text, mode, board):
            return
        rescore = row["metric"] != metric.text
        with self._db.write():
            self._db.run(
                "UPDATE runs SET metric = ?, mode = ?, board = ? WHERE id = ?",
                [metric.text, mode, board, self._run_id],
            )
            if rescore:
                self._rescore(metric)
            if row["metric"]:
                self._db.event(now, "policy", f"ranked by {metric.text} ({mode}) from now on")

    def _rescore(self, metric: Metric) -> None:
        self.revision += 1
        ids = [row["id"] for row in self._db.all("SELECT id FROM evaluations")]
        values = self.values(ids, metric.keys)
        for evaluation_id in ids:
            self._db.run(
                "UPDATE evaluations SET score = ? WHERE id = ?",
                [metric.value(values[evaluation_id]), evaluation_id],
            )

    def set_fingerprint(self, fingerprint: str, now: float) -> list[str]:
        """Make `fingerprint` the evaluation that counts from now on.

        Scores of another evaluation cannot be compared. So when it changed, the checkpoints that
        are promoted go back into the queue, to be measured anew before anything replaces them.

        Returns:
            Names of the checkpoints put back, none when the fingerprint is the same.
        """
        before = self.fingerprint()
        if before == fingerprint:
            return []
        stale = self._db.all(
            "SELECT c.id, c.name FROM checkpoints c WHERE c.run_id = ? AND c.state = 'scored'"
            " AND c.pin_path IS NOT NULL AND NOT EXISTS (SELECT 1 FROM evaluations e"
            " WHERE e.checkpoint_id = c.id AND e.fingerprint = ?)",
            [self._run_id, fingerprint],
        )
        with self._db.write():
            self._db.run(
                "UPDATE runs SET fingerprint = ? WHERE id = ?", [fingerprint, self._run_id]
            )
            for checkpoint in stale:
                self._db.run(
                    "UPDATE checkpoints SET state = 'pending', attempts = 0,"
                    " not_before_seconds = 0, reason = 'the evaluation changed' WHERE id = ?",
                    [checkpoint["id"]],
                )
            if before is not None:
                self._db.event(
                    now,
                    "evaluation_changed",
                    f"the evaluation changed from {before[:8]} to {fingerprint[:8]}:"
                    f" a new leaderboard starts, {len(stale)} checkpoints are evaluated anew",
                )
        return [checkpoint["name"] for checkpoint in stale]

    def record_score(
        self,
        lease: Lease,
        evaluation: Evaluation,
        score: float | None,
        *,
        started: float,
        now: float,
    ) -> None:
        """Record an evaluation and its metrics, and end the lease.

        Raises:
            LeaseLost: the lease expired or was given to another worker; nothing is recorded.
        """
        row = {
            "checkpoint_id": lease.checkpoint_id,
            "fingerprint": evaluation.fingerprint,
            "score": score,
            "images": evaluation.images,
            "device": evaluation.device,
            "started_at": iso(started),
            "evaluated_at": iso(now),
            "eval_seconds": round(now - started, 3),
            "timings": _json(evaluation.timings),
            "versions": _json(evaluation.versions),
            "details": _json(evaluation.details),
        }
        identity = [lease.checkpoint_id, evaluation.fingerprint]
        where = "checkpoint_id = ? AND fingerprint = ?"
        with self._db.write():
            self._queue.require_held(lease, now)
            # The same evaluation recorded again replaces the first: recording is idempotent.
            if not self._db.insert("evaluations", row, ignore=True):
                columns = ", ".join(f"{name} = ?" for name in row)
                self._db.run(
                    f"UPDATE evaluations SET {columns} WHERE {where}", [*row.values(), *identity]
                )
                self.revision += 1
            stored = self._db.one(f"SELECT id FROM evaluations WHERE {where}", identity)
            assert stored is not None
            self._db.run("DELETE FROM metrics WHERE evaluation_id = ?", [stored["id"]])
            values = [(name, "", value) for name, value in evaluation.metrics.items()]
            for name, category, value in [*values, *evaluation.category_metrics]:
                self._db.run(
                    "INSERT INTO metrics VALUES (?, ?, ?, ?)",
                    [stored["id"], name, category, value],
                )
            self._queue.finish(lease, "scored", None)
            shown = "no finite score" if score is None else f"score {score:.6g}"
            self._db.event(now, "scored", shown, lease.name)

    def restore_score(
        self,
        sha256: str,
        fingerprint: str,
        score: float,
        metrics: dict[str, float | None],
        evaluated_at: str,
        now: float,
    ) -> None:
        """Record a score that was known before the database was lost; no lease is needed.

        The checkpoint has a row; how long it took and on what device is not known any more.
        """
        with self._db.write():
            self._db.run(
                "INSERT INTO evaluations (checkpoint_id, fingerprint, score, images, device,"
                " started_at, evaluated_at, eval_seconds, timings, versions, details)"
                " SELECT id, ?, ?, 0, '', ?, ?, 0, '{}', '{}', '{\"rebuilt\": true}'"
                " FROM checkpoints WHERE run_id = ? AND sha256 = ? ON CONFLICT DO NOTHING",
                [fingerprint, score, evaluated_at, evaluated_at, self._run_id, sha256],
            )
            for name, value in metrics.items():
                self._db.run(
                    "INSERT INTO metrics SELECT e.id, ?, '', ? FROM evaluations e"
                    " JOIN checkpoints c ON c.id = e.checkpoint_id"
                    " WHERE c.run_id = ? AND c.sha256 = ? ON CONFLICT DO NOTHING",
                    [name, value, self._run_id, sha256],
                )
            self._db.run(
                "UPDATE checkpoints SET state = 'scored' WHERE run_id = ? AND sha256 = ?",
                [self._run_id, sha256],
            )
            self._db.event(now, "restored", f"score {score:.6g} from best.json")

    def set_notes(self, notes: Mapping[int, str | None]) -> None:
        """Write notes on checkpoints, None to take one away."""
        with self._db.write():
            for checkpoint_id, note in notes.items():
                self._db.run("UPDATE checkpoints SET note = ? WHERE id = ?", [note, checkpoint_id])

    # -- the run itself

    def resume(self, now: float) -> int:
        """Withdraw every decision to stop that rests on what is evaluated now.

        Returns:
            The global step of the last evaluation; rules count from there, in the generation that
            is the newest now.
        """
        generation = self.generation()
        row = self._db.one(
            "SELECT max(global_step) AS step FROM checkpoints WHERE run_id = ?"
            " AND generation = ? AND state IN ('scored', 'failed')",
            [self._run_id, generation],
        )
        step = row["step"] if row and row["step"] is not None else -1
        with self._db.write():
            self._db.run(
                "UPDATE runs SET resumed_step = ?, resumed_generation = ? WHERE id = ?",
                [step, generation, self._run_id],
            )
            self._db.event(now, "resumed", f"go on: patience counts from step {step}")
        return int(step)

    def decided_by(self, settings: Mapping[str, Any], deciding: Iterable[str]) -> bool:
        """Tell whether all was decided by these settings before, or nothing by any.

        Args:
            settings: As `set_settings` takes them.
            deciding: Names of those that count.
        """
        if not self._run_row("metric"):
            return True
        before = self.settings()
        settings = msgspec.json.decode(_json(settings))
        return all(name in before and before[name] == settings[name] for name in deciding)

    def settings(self) -> dict[str, Any]:
        """Return the settings that were recorded last, empty for none."""
        values: dict[str, Any] = msgspec.json.decode(self._run_row("settings"))
        return values

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Record the settings of the run, for those who explain its decisions later."""
        encoded = _json(settings)
        if encoded != self._run_row("settings"):
            with self._db.write():
                self._db.run("UPDATE runs SET settings = ? WHERE id = ?", [encoded, self._run_id])

    def set_stopping(self, reason: str | None, patience_left: dict[str, int]) -> None:
        """Record where stopping stands, for the view `run_state`, also after the run's end."""
        encoded = _json({"reason": reason, "patience_left": patience_left})
        if encoded != self._run_row("stopping"):
            with self._db.write():
                self._db.run("UPDATE runs SET stopping = ? WHERE id = ?", [encoded, self._run_id])

    def add_event(self, now: float, kind: str, message: str) -> None:
        """Add a line to the run's diary."""
        with self._db.write():
            self._db.event(now, kind, message)

    def record_end(self, reason: str, now: float) -> None:
        """Record that the run ended with an error, for `status` and the diary."""
        with self._db.write():
            self._db.run(
                "UPDATE runs SET status = ? WHERE id = ?",
                [_json({"ended": reason, "ended_at": iso(now)}), self._run_id],
            )
            self._db.event(now, "ended", f"ended with an error: {reason}")

    def set_status(self, status: dict[str, Any]) -> None:
        """Publish what the daemon is doing, for `status` in another shell."""
        with self._db.write():
            self._db.run("UPDATE runs SET status = ? WHERE id = ?", [_json(status), self._run_id])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
