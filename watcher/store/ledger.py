"""The ledger: what was measured, what is promoted, and what the run shows of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from watcher.data import Evaluation, Leader, Lease, ScoredCheckpoint
from watcher.database_file import iso
from watcher.store.database import RunDatabase
from watcher.store.queue import Queue


class Ledger:
    """Verbs on evaluations, metrics, promotions and the run. Each is one transaction."""

    def __init__(self, database: RunDatabase, queue: Queue) -> None:
        self._db = database
        self._queue = queue
        self._run_id = database.run_id

    def set_policy(self, metric: str, mode: str, now: float) -> None:
        """Make `metric` the score of the run: every evaluation's score is taken from its rows."""
        row = self._db.one("SELECT metric, mode FROM runs WHERE id = ?", [self._run_id])
        if row and (row["metric"], row["mode"]) == (metric, mode):
            return
        with self._db.write():
            self._db.run(
                "UPDATE runs SET metric = ?, mode = ? WHERE id = ?", [metric, mode, self._run_id]
            )
            self._db.run(
                "UPDATE evaluations SET score = (SELECT value FROM metrics m WHERE"
                " m.evaluation_id = evaluations.id AND m.name = ? AND m.category = '')",
                [metric],
            )
            if row and row["metric"]:
                self._db.event(now, "policy", f"ranked by {metric} ({mode}) from now on")

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

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the evaluation that counts, None before the first."""
        row = self._db.one("SELECT fingerprint FROM runs WHERE id = ?", [self._run_id])
        return row["fingerprint"] if row else None

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
            self._db.insert("evaluations", row, ignore=True)
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

    def scored(self, after: int = 0) -> list[ScoredCheckpoint]:
        """Return the evaluations of the run's current fingerprint, by global step.

        Args:
            after: Only evaluations with a larger id, those recorded since.
        """
        return self._scored(
            "evaluations e CROSS JOIN checkpoints c ON c.id = e.checkpoint_id WHERE e.id > ?", after
        )

    def scored_and_pinned(self) -> list[ScoredCheckpoint]:
        """Return those of `scored` whose files are kept, however many others there are."""
        return self._scored(
            "checkpoints c INDEXED BY checkpoints_pinned"
            " CROSS JOIN evaluations e ON e.checkpoint_id = c.id"
            " WHERE c.pin_path IS NOT NULL AND c.run_id = ?",
            self._run_id,
        )

    def _scored(self, source: str, argument: int) -> list[ScoredCheckpoint]:
        # CROSS JOIN and INDEXED BY: SQLite reads only what is asked for, in this order.
        rows = self._db.all(
            "SELECT c.id AS checkpoint_id, e.id AS evaluation_id, c.name, c.sha256, e.score,"
            " coalesce(c.global_step, 0) AS global_step, e.evaluated_at, c.pin_path"
            f" FROM {source} AND c.run_id = ?"
            " AND e.fingerprint = (SELECT fingerprint FROM runs WHERE id = c.run_id)"
            " ORDER BY c.global_step, c.id",
            [argument, self._run_id],
        )
        return [
            ScoredCheckpoint(**{**row, "pin": pin and self._db.pin_prefix(pin)})
            for row in rows
            for pin in [row.pop("pin_path")]
        ]

    def metrics(self, evaluation_ids: Iterable[int]) -> dict[int, dict[str, float | None]]:
        """Return the overall metrics of evaluations: evaluation id to name to value."""
        return {
            evaluation_id: {
                row["name"]: row["value"]
                for row in self._db.all(
                    "SELECT name, value FROM metrics WHERE evaluation_id = ? AND category = ''"
                    " ORDER BY name",
                    [evaluation_id],
                )
            }
            for evaluation_id in evaluation_ids
        }

    def awaiting_new_score(self) -> int:
        """Return how many promoted checkpoints wait to be measured by a changed evaluation."""
        row = self._db.one(
            "SELECT count(*) AS n FROM promotions p JOIN checkpoints c ON c.id = p.checkpoint_id"
            " WHERE p.run_id = ? AND p.evicted_at IS NULL AND c.state IN ('pending', 'leased')",
            [self._run_id],
        )
        return int(row["n"]) if row else 0

    def promoted(self) -> list[dict[str, Any]]:
        """Return the present promotions: `id, checkpoint_id, evaluation_id, rank, path, score`."""
        return self._db.all(
            "SELECT id, checkpoint_id, evaluation_id, rank, path, score, metric FROM promotions"
            " WHERE run_id = ? AND evicted_at IS NULL ORDER BY rank",
            [self._run_id],
        )

    def record_board(
        self, leaders: Sequence[Leader], paths: dict[int, str], metric: str, now: float
    ) -> bool:
        """Make the promotions equal to the board that lies in `best/`.

        Args:
            leaders: The board, in order.
            paths: Checkpoint id to its prefix inside `best/`.
            metric: Name of the metric that ranked them.
            now: Seconds since the epoch.

        Returns:
            True when something changed.
        """
        wanted = {leader.row.checkpoint_id: leader for leader in leaders}
        changed = False
        with self._db.write():
            kept: dict[int, int] = {}
            for row in self.promoted():
                leader = wanted.get(row["checkpoint_id"])
                if leader and _still_true(row, leader, paths, metric):
                    kept[row["checkpoint_id"]] = row["rank"]
                else:
                    changed = True
                    self._evict(row, now, replaced=leader is not None)
            for leader in leaders:
                before = kept.get(leader.row.checkpoint_id)
                changed = changed or before != leader.rank
                if before is None:
                    self._promote(leader, paths[leader.row.checkpoint_id], metric, now)
                elif before != leader.rank:
                    self._db.run(
                        "UPDATE promotions SET rank = ? WHERE run_id = ? AND checkpoint_id = ?"
                        " AND evicted_at IS NULL",
                        [leader.rank, self._run_id, leader.row.checkpoint_id],
                    )
        return changed

    def _evict(self, row: dict[str, Any], now: float, *, replaced: bool) -> None:
        self._db.run("UPDATE promotions SET evicted_at = ? WHERE id = ?", [iso(now), row["id"]])
        if not replaced:
            name = row["path"].rsplit("/", 1)[-1]
            self._db.event(now, "evicted", "no longer among the best", name)

    def _promote(self, leader: Leader, path: str, metric: str, now: float) -> None:
        row = {
            "run_id": self._run_id,
            "checkpoint_id": leader.row.checkpoint_id,
            "evaluation_id": leader.row.evaluation_id,
            "rank": leader.rank,
            "score": leader.row.score,
            "metric": metric,
            "path": path,
            "promoted_at": iso(now),
        }
        self._db.insert("promotions", row)
        self._db.event(now, "promoted", f"rank {leader.rank}", leader.name)

    def placements(self) -> dict[str, str]:
        """Return the names our files carry in `best/`: sha256 to name."""
        rows = self._db.all("SELECT sha256, name FROM placements WHERE run_id = ?", [self._run_id])
        return {row["sha256"]: row["name"] for row in rows}

    def place(self, leaders: Iterable[Leader]) -> None:
        """Note the names that files are about to get in `best/`, before they get them."""
        with self._db.write():
            for leader in leaders:
                row = {"run_id": self._run_id, "sha256": leader.row.sha256, "name": leader.name}
                self._db.insert("placements", row, ignore=True)

    def unplace(self, names: Iterable[str]) -> None:
        """Note that no file of ours carries these names any more."""
        with self._db.write():
            for name in names:
                self._db.run(
                    "DELETE FROM placements WHERE run_id = ? AND name = ?", [self._run_id, name]
                )

    # -- the run itself

    def add_event(self, now: float, kind: str, message: str) -> None:
        """Add a line to the run's diary."""
        with self._db.write():
            self._db.event(now, kind, message)

    def set_status(self, status: dict[str, Any]) -> None:
        """Publish what the daemon is doing, for `status` in another shell."""
        with self._db.write():
            self._db.run("UPDATE runs SET status = ? WHERE id = ?", [_json(status), self._run_id])


def _still_true(row: dict[str, Any], leader: Leader, paths: dict[int, str], metric: str) -> bool:
    said = (row["evaluation_id"], row["score"], row["metric"], row["path"])
    place = leader.row
    return said == (place.evaluation_id, place.score, metric, paths[place.checkpoint_id])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
