"""The ledger: what was measured, what is promoted, and what the run shows of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from watcher.decision.metric import Metric, Values
from watcher.decision.unmeasured import CANNOT_RANK, why_unranked
from watcher.store.database import RunDatabase
from watcher.store.database_file import encodable, iso
from watcher.store.machines import measured_on
from watcher.store.queue import Queue
from watcher.store.relocation import inside, recorded_settings
from watcher.store.rows import Rows
from watcher.types import Evaluation, Lease

_CHANGED = "the evaluation changed"


class Change(msgspec.Struct, frozen=True):
    """What became of checkpoints when an evaluation began to count.

    Attributes:
        changed: Another one counted before.
        waiting: Names of those put back into the queue.
        standing: Names of those that were measured in it before, and count as scored again.
    """

    changed: bool = False
    waiting: Sequence[str] = ()
    standing: Sequence[str] = ()


class Ledger(Rows):
    """Verbs on evaluations, metrics and the run. Each is one transaction.

    Attributes:
        revision: Counts the times that scores which were recorded before have changed.
    """

    def __init__(self, database: RunDatabase, queue: Queue) -> None:
        self.path, self.run_id, self._sqlite = database.path, database.run_id, database._sqlite
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
        row = self._db.one("SELECT metric, mode, board FROM runs WHERE id = ?", [self.run_id])
        assert row is not None
        if (row["metric"], row["mode"], row["board"]) == (metric.text, mode, board):
            return
        rescore = row["metric"] != metric.text
        with self._db.write():
            self._db.update("runs", self.run_id, metric=metric.text, mode=mode, board=board)
            if rescore:
                self._rescore(metric)
            if row["metric"]:
                self._db.event(now, "policy", f"ranked by {metric.text} ({mode}) from now on")

    def _rescore(self, metric: Metric) -> None:
        self.revision += 1
        ids = [row["id"] for row in self._db.all("SELECT id FROM evaluations")]
        values = self.values(ids, metric.keys)
        for evaluation_id in ids:
            score = metric.value(values[evaluation_id])
            self._db.update("evaluations", evaluation_id, score=score, low=None, high=None)
            self._say_why(evaluation_id, metric, values[evaluation_id])

    def _say_why(self, evaluation_id: int, metric: Metric, values: Values) -> None:
        """Write on a checkpoint why its score cannot rank, or that it can; inside `write()`."""
        encoded = self.value("SELECT details FROM evaluations WHERE id = ?", [evaluation_id])
        details = msgspec.json.decode(encoded or "{}")
        self._db.run(
            "UPDATE all_checkpoints SET reason = ?2 WHERE state = 'scored'"
            " AND (reason IS NULL OR reason LIKE ?3 || '%')"
            " AND id = (SELECT e.checkpoint_id FROM evaluations e"
            " JOIN runs r ON r.fingerprint = e.fingerprint WHERE e.id = ?1)",
            [evaluation_id, why_unranked(metric, values, details), CANNOT_RANK],
        )

    def set_fingerprint(self, fingerprint: str, now: float) -> Change:
        """Make `fingerprint` the evaluation that counts from now on.

        Scores of another evaluation cannot be compared. So when it changed, the checkpoints that
        are promoted go back into the queue, to be measured anew before anything replaces them; and
        those that failed in another one for a reason that may pass. What was measured in this one
        before, and failed in another or waits only since that one came, is `scored` again.
        """
        before = self.fingerprint()
        with self._db.write():
            standing = self._stand_again(fingerprint, now)
        if before == fingerprint:
            return Change(standing=standing)
        stale = self._db.all(
            "SELECT c.id, c.name FROM all_checkpoints c WHERE c.run_id = ?"
            " AND (c.state = 'scored' OR (c.state = 'failed' AND c.may_pass))"
            " AND c.pin_path IS NOT NULL AND NOT EXISTS (SELECT 1 FROM evaluations e"
            " WHERE e.checkpoint_id = c.id AND e.fingerprint = ?)",
            [self.run_id, fingerprint],
        )
        with self._db.write():
            self._db.run(
                "UPDATE runs SET fingerprint = ?1, stopping = CASE WHEN ?2 THEN json_set(stopping,"
                " '$.fingerprint', fingerprint) ELSE stopping END WHERE id = ?3",
                # Of an earlier version it is not known yet what stopping was decided by.
                [fingerprint, before is not None and self.stopped_by() is None, self.run_id],
            )
            for checkpoint in stale:
                self._db.wait_anew(checkpoint["id"], _CHANGED)
            if before is not None:
                self._db.event(
                    now,
                    "evaluation_changed",
                    f"the evaluation changed from {before[:8]} to {fingerprint[:8]}:"
                    f" a new leaderboard starts, {len(stale)} checkpoints are evaluated anew",
                )
        waiting = [checkpoint["name"] for checkpoint in stale]
        return Change(changed=True, waiting=waiting, standing=standing)

    def _stand_again(self, fingerprint: str, now: float) -> list[str]:
        """Make `scored` again what has a score in this evaluation; inside `write()`."""
        rows = self._db.all(
            "SELECT c.id, c.name FROM all_checkpoints c"
            " JOIN evaluations e ON e.checkpoint_id = c.id WHERE c.run_id = ? AND e.fingerprint = ?"
            " AND (c.state = 'failed' OR (c.state = 'pending' AND c.reason = ?))",
            [self.run_id, fingerprint, _CHANGED],
        )
        for row in rows:
            self._db.update("all_checkpoints", row["id"], state="scored", reason=None)
            self._db.event(now, "stands", "measured in this evaluation before", row["name"])
        return [row["name"] for row in rows]

    def record_score(
        self,
        lease: Lease,
        evaluation: Evaluation,
        score: float | None,
        *,
        started: float,
        now: float,
        reason: str | None = None,
    ) -> None:
        """Record an evaluation and its metrics, and end the lease; `reason` says why no rank.

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
        with self._db.write():
            self._queue.require_held(lease, now)
            row["machine_id"] = measured_on(self._db, evaluation, now)
            new = self._db.insert("evaluations", row, ignore=True)
            stored = self.value(
                "SELECT id FROM evaluations WHERE checkpoint_id = ? AND fingerprint = ?",
                [lease.checkpoint_id, evaluation.fingerprint],
            )
            # The same evaluation recorded again replaces the first: recording is idempotent.
            if not new:
                self._db.update("evaluations", stored, **row, low=None, high=None)
                for table in ("replicates", "influences", "standings"):
                    self._db.run(f"DELETE FROM {table} WHERE evaluation_id = ?", [stored])
                self.revision += 1
            self._db.run("DELETE FROM metrics WHERE evaluation_id = ?", [stored])
            values = [(name, "", value) for name, value in evaluation.metrics.items()]
            for name, category, value in [*values, *evaluation.category_metrics]:
                line = [stored, name, category, value]
                self._db.run("INSERT INTO metrics VALUES (?, ?, ?, ?)", line)
            self._queue.finish(lease, "scored", reason)
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
                " FROM all_checkpoints WHERE run_id = ? AND sha256 = ? ON CONFLICT DO NOTHING",
                [fingerprint, score, evaluated_at, evaluated_at, self.run_id, sha256],
            )
            for name, value in metrics.items():
                self._db.run(
                    "INSERT INTO metrics SELECT e.id, ?, '', ? FROM evaluations e"
                    " JOIN all_checkpoints c ON c.id = e.checkpoint_id"
                    " WHERE c.run_id = ? AND c.sha256 = ? ON CONFLICT DO NOTHING",
                    [name, value, self.run_id, sha256],
                )
            self._db.run(
                "UPDATE all_checkpoints SET state = 'scored' WHERE run_id = ? AND sha256 = ?",
                [self.run_id, sha256],
            )
            self._db.event(now, "restored", f"score {score:.6g} from best.json")

    def set_notes(self, notes: Mapping[int, str | None]) -> None:
        """Write notes on checkpoints, None to take one away."""
        with self._db.write():
            for checkpoint_id, note in notes.items():
                self._db.update("all_checkpoints", checkpoint_id, note=note)

    # -- the run itself

    def resume(self, now: float) -> int:
        """Withdraw every decision to stop that rests on what is evaluated now.

        Returns:
            The global step of the last evaluation; rules count from there, in the generation that
            is the newest now.
        """
        generation = self.generation()
        step: int = self.value(
            "SELECT coalesce(max(global_step), -1) FROM checkpoints c WHERE run_id = ?"
            " AND generation = ? AND (state IN ('scored', 'failed')"
            # One that is to be measured once more counts with its score until then.
            " OR EXISTS (SELECT 1 FROM evaluations e WHERE e.checkpoint_id = c.id))",
            [self.run_id, generation],
        )
        with self._db.write():
            self._db.update("runs", self.run_id, resumed_step=step, resumed_generation=generation)
            self._db.event(now, "resumed", f"go on: patience counts from step {step}")
        return step

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
        row = self._db.one("SELECT model_dir, settings FROM runs WHERE id = ?", [self.run_id])
        return recorded_settings(row) if row else {}

    def set_settings(self, settings: dict[str, Any], given: Mapping[str, str], name: str) -> None:
        """Record what the run goes by, for the next start and those who explain its decisions.

        Args:
            settings: All of them.
            given: Where each was given that is not a default.
            name: The run's name.
        """
        row = {"settings": self._db.encoded(settings), "given": _json(given), "name": name}
        if all(value == self._run_row(column) for column, value in row.items()):
            return
        with self._db.write():
            self._db.update("runs", self.run_id, **row)

    def stopped_by(self) -> str | None:
        """Return the fingerprint of the evaluation that stopping was decided by last."""
        fingerprint: str | None = self._stopping().get("fingerprint")
        return fingerprint

    def sentinel_before(self) -> Path | None:
        """Return the file that was to say so then, None where that is not known."""
        place = self._stopping().get("sentinel")
        return self._db.model_dir / place if place else None

    def _stopping(self) -> dict[str, Any]:
        stands: dict[str, Any] = msgspec.json.decode(self._run_row("stopping"))
        return stands

    def set_stopping(
        self,
        reason: str | None,
        patience_left: dict[str, int],
        fingerprint: str | None,
        sentinel: Path,
        awaits: str | None,
    ) -> None:
        """Record where stopping stands, for the view `run_state`, also after the run's end.

        Args:
            reason: Code of the rule that says stop, None for none.
            patience_left: As `decision.stop.patience_left` gives it.
            fingerprint: Of the evaluation that it was decided by.
            sentinel: The file that says so.
            awaits: The checkpoint whose score a stop waits for, None for none.
        """
        stands = {"reason": reason, "patience_left": patience_left, "fingerprint": fingerprint}
        place = inside(str(sentinel), self._db.model_dir)
        stands |= {"sentinel": place} | ({"awaits": awaits} if awaits else {})
        encoded = _json(stands)
        if encoded != self._run_row("stopping"):
            with self._db.write():
                self._db.update("runs", self.run_id, stopping=encoded)

    def add_event(self, now: float, kind: str, message: str) -> None:
        """Add a line to the run's diary."""
        with self._db.write():
            self._db.event(now, kind, message)

    def record_end(self, reason: str, now: float, *, refused: int | None = None) -> None:
        """Record that the run ended with an error, for `status` and the diary.

        Args:
            reason: The error.
            now: Seconds since the epoch.
            refused: Id of the process, where it would end so with these settings each time.
        """
        status: dict[str, Any] = {"ended": reason, "ended_at": iso(now)}
        if refused is not None:
            status["refused"] = refused
        with self._db.write():
            self._db.update("runs", self.run_id, status=_json(status))
            self._db.event(now, "ended", f"ended with an error: {reason}")

    def set_status(self, status: dict[str, Any]) -> None:
        """Publish what the daemon is doing, for `status` in another shell."""
        with self._db.write():
            self._db.update("runs", self.run_id, status=_json(status))


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(encodable(value)).decode()
