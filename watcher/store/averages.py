"""The averages: what is to be averaged, of which checkpoints, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec

from watcher.store.checkpoints import AVERAGED
from watcher.store.database import RunDatabase
from watcher.store.database_file import iso
from watcher.store.queue import Queue
from watcher.types import Pin

# Stands in the name of each, between that of its newest parent and a number of its own.
AVERAGE = "-average"


class AverageJob(msgspec.Struct, frozen=True):
    """An average that is to be written, or was.

    Attributes:
        asked: What it was asked for by: `top-3`, `ckpt-7,ckpt-9`.
        greedy: It is a trial of several; what the next one is depends on its score.
        first: Id of the first trial, its own where it is none.
        candidates: Checkpoint ids of what may be averaged, best first.
        parents: Checkpoint ids of what is, by step.
        state: `waiting`, `written` or `failed`.
        checkpoint_id: Of what was written.
        recompute_batch_norm: Of how many training images its statistics are computed anew.
        batch_norm: What they were computed of: `images`, `batch_size`, `layers`, `frozen`.
    """

    id: int
    asked: str
    greedy: bool
    first: int
    candidates: tuple[int, ...]
    parents: tuple[int, ...]
    name: str
    state: str
    attempts: int
    checkpoint_id: int | None
    recompute_batch_norm: int | None = None
    batch_norm: dict[str, int] | None = None


class Averages:
    """Verbs on averages. Each is one transaction."""

    def __init__(self, database: RunDatabase, queue: Queue) -> None:
        self._db = database
        self._run_id = database.run_id
        self._queue = queue

    def ask(
        self,
        asked: str,
        candidates: Iterable[int],
        parents: Collection[int],
        now: float,
        *,
        greedy: bool = False,
        first: int | None = None,
        recompute_batch_norm: int | None = None,
    ) -> str:
        """Ask for an average; returns its name.

        Args:
            asked: For people.
            candidates: Checkpoint ids of what may be averaged, best first.
            parents: Of what is averaged now.
            now: Seconds since the epoch.
            greedy: It is a trial.
            first: Id of the first trial, None where this is it.
            recompute_batch_norm: Of how many training images to compute its statistics anew.
        """
        with self._db.write():
            rows = self._db.all(
                "SELECT id, name FROM checkpoints WHERE id IN (SELECT value FROM json_each(?))"
                " ORDER BY generation, global_step, id",
                [json.dumps(list(parents))],
            )
            row = {
                "run_id": self._run_id,
                "asked": asked,
                "greedy": greedy,
                "first": first,
                "candidates": json.dumps(list(candidates)),
                "parents": json.dumps([one["id"] for one in rows]),
                "name": "",
                "state": "waiting",
                "created_at": iso(now),
                "recompute_batch_norm": recompute_batch_norm,
            }
            self._db.insert("average_jobs", row)
            id_ = self._db.value("SELECT max(id) FROM average_jobs")
            # It begins as its newest parent is called, and is no name that a trainer gives.
            name = f"{rows[-1]['name']}{AVERAGE}{id_}"
            self._db.update("average_jobs", id_, name=name, first=first or id_)
            said = ", ".join(one["name"] for one in rows)
            self._db.event(now, "average_asked", f"{asked}: the average of {said}", name)
        return name

    def jobs(self, state: str | None = None) -> list[AverageJob]:
        """Return the averages, in the order asked for."""
        rows = self._db.all(
            "SELECT id, asked, greedy, first, candidates, parents, name, state, attempts,"
            " checkpoint_id, recompute_batch_norm, batch_norm FROM average_jobs"
            " WHERE run_id = ? AND coalesce(state = ?, true) ORDER BY id",
            [self._run_id, state],
        )
        return [_job(row) for row in rows]

    def waiting(self) -> AverageJob | None:
        """Return the average that is to be written next, None for none."""
        return next(iter(self.jobs("waiting")), None)

    def parents(self, job: AverageJob) -> list[tuple[str, Path | None]]:
        """Return name and prefix of each parent's pin by step, None where that is released."""
        rows = self._db.all(
            "SELECT c.name, c.pin_path FROM json_each(?) j"
            " CROSS JOIN all_checkpoints c ON c.id = j.value",
            [json.dumps(job.parents)],
        )
        return [
            (row["name"], row["pin_path"] and self._db.pin_prefix(row["pin_path"])) for row in rows
        ]

    def needed(self) -> set[int]:
        """Return checkpoint ids of all that may yet be averaged; their pins must stay."""
        rows = self._db.all(
            "SELECT DISTINCT j.value AS id FROM average_jobs a"
            " LEFT JOIN all_checkpoints c ON c.id = a.checkpoint_id, json_each(a.candidates) j"
            " WHERE a.run_id = ? AND (a.state = 'waiting' OR c.state IN ('pending', 'leased'))",
            [self._run_id],
        )
        return {row["id"] for row in rows}

    def record(self, job: AverageJob, pin: Pin, now: float) -> None:
        """Record that an average was written and pinned: it waits to be evaluated."""
        with self._db.write():
            id_ = self._queue.record_average(job.parents[-1], job.name, pin, now)
            told = json.dumps(job.batch_norm) if job.batch_norm else None
            self._db.update(
                "average_jobs", job.id, state="written", checkpoint_id=id_, batch_norm=told
            )

    def fail(self, job: AverageJob, reason: str, now: float) -> None:
        """Record that an average will not be written, and why."""
        with self._db.write():
            self._db.update("average_jobs", job.id, state="failed", reason=reason)
            self._db.event(now, "failed", reason, job.name)

    def count_attempt(self, job: AverageJob) -> None:
        """Note that writing it was tried."""
        with self._db.write():
            self._db.update("average_jobs", job.id, attempts=job.attempts + 1)

    def unfinished(self, job: AverageJob) -> bool:
        """True while an average is to be written or evaluated."""
        state = self._db.value(
            "SELECT CASE a.state WHEN 'written' THEN c.state ELSE a.state END FROM average_jobs a"
            " LEFT JOIN all_checkpoints c ON c.id = a.checkpoint_id WHERE a.id = ?",
            [job.id],
        )
        return state in ("waiting", "pending", "leased")

    def score(self, job: AverageJob) -> float | None:
        """Return the score of an average in the evaluation that counts, None for none."""
        score: float | None = self._db.value(
            "SELECT e.score FROM evaluations e JOIN all_checkpoints c ON c.id = e.checkpoint_id"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " WHERE c.id = ? AND c.kind = ?",
            [job.checkpoint_id, AVERAGED],
        )
        return score


def _job(row: dict[str, Any]) -> AverageJob:
    lists = {name: tuple(json.loads(row[name])) for name in ("candidates", "parents")}
    told = row["batch_norm"] and json.loads(row["batch_norm"])
    return AverageJob(**{**row, **lists, "greedy": bool(row["greedy"]), "batch_norm": told})
