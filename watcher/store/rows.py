"""Rows: a run's database as rank and stop see it. Reads only.

The daemon reads through the connection it writes with, commands through one of their own.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from watcher.decision.metric import Key, Mode
from watcher.store.connection import Connection
from watcher.types import ScoredCheckpoint

# How pending checkpoints follow one another: the smallest step first. That of an earlier life of
# the trainer waits for the newest, by which it is decided when to stop; but what has a place on a
# board is measured anew at once, since the board stays as it is until then.
QUEUE_ORDER = (
    "generation = (SELECT max(generation) FROM all_checkpoints WHERE sha256 IS NOT NULL)"
    " OR id IN (SELECT checkpoint_id FROM promotions WHERE evicted_at IS NULL) DESC,"
    " kind = 'averaged', global_step, id"
)

# In SQL: the checkpoint `c` has a score in the evaluation that counts for its run.
MEASURED = (
    "EXISTS (SELECT 1 FROM evaluations e JOIN runs r ON r.fingerprint = e.fingerprint"
    " WHERE e.checkpoint_id = c.id AND r.id = c.run_id)"
)

# The evaluations that count, those of the run's present fingerprint, each with its checkpoint.
COUNTING = (
    "evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id"
    " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
)

# The same, averages among them.
COUNTING_ALL = COUNTING.replace("checkpoints c", "all_checkpoints c")

_NAMED = (
    "c.id, c.name, c.state, c.reason, c.sha256, c.global_step, c.generation, c.kept, c.pin_path,"
    " c.kind, e.id AS evaluation_id FROM all_checkpoints c JOIN runs r ON r.id = c.run_id"
    " LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint"
)
# What comes before the numbers in the name of several.
_STEM = "rtrim(substr(c.name, 1, instr(c.name, '..') - 1), '0123456789')"
# In the order in which they are tried.
_BY_NAME = (
    "c.name = ?2",
    "c.kind = 'saved' AND c.global_step = CAST(?2 AS INTEGER)"
    " AND ?2 NOT GLOB '*[^0-9]*' AND ?2 != ''",
    # One of several in a row that nobody saw: `ckpt-5` of `ckpt-3..ckpt-7`.
    f"c.saves > 1 AND rtrim(?2, '0123456789') = {_STEM}"
    f" AND CAST(substr(?2, length({_STEM}) + 1) AS INTEGER)"
    " BETWEEN c.save_counter - c.saves + 1 AND c.save_counter",
    "length(?2) >= 6 AND c.sha256 LIKE ?2 || '%' AND ?2 NOT GLOB '*[^0-9a-fA-F]*'",
)
# Of a file, in bytes; SQLite takes no pattern of any length.
_LONGEST_NAME = 255
_NAMING = {
    "best": (
        "?2 = 'best' AND c.id = (SELECT p.checkpoint_id FROM promotions p WHERE p.run_id = r.id"
        " AND p.board = r.board AND p.evicted_at IS NULL ORDER BY p.rank LIMIT 1)",
    ),
    "last": ("?2 = 'last' AND e.id IS NOT NULL AND c.kind = 'saved'",),
}


def unscored(row: Mapping[str, Any], *, not_finite: bool = False) -> ScoredCheckpoint:
    """Return a checkpoint that has no score, beside those that have one."""
    return ScoredCheckpoint(
        checkpoint_id=row["id"],
        evaluation_id=0,
        name=row["name"],
        global_step=row["global_step"],
        sha256=row["sha256"],
        score=None,
        evaluated_at="",
        not_finite=not_finite,
        pin=row.get("prefix"),
        generation=row["generation"],
    )


class Rows(Connection):
    """Questions about one run's evaluations."""

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the evaluation that counts, None before the first."""
        fingerprint: str | None = self._run_row("fingerprint")
        return fingerprint

    def scored(self, after: int = 0, fingerprint: str | None = None) -> list[ScoredCheckpoint]:
        """Return the evaluations of one fingerprint, by generation and global step.

        Those of what the trainer saved: averages are neither in curves nor do they stop a run.

        Args:
            after: Only evaluations with a larger id, those recorded since.
            fingerprint: Default: the run's current one.
        """
        return self._scored(
            "evaluations e CROSS JOIN all_checkpoints c ON c.id = e.checkpoint_id WHERE e.id > ?",
            after,
            fingerprint,
        )

    def scored_averages(self) -> list[ScoredCheckpoint]:
        """Return the evaluations of averages, likewise, of the run's current fingerprint."""
        return self._scored(
            "evaluations e CROSS JOIN all_checkpoints c ON c.id = e.checkpoint_id WHERE e.id > ?",
            0,
            kind="averaged",
        )

    def scored_and_pinned(self, kind: str = "saved") -> list[ScoredCheckpoint]:
        """Return those of `scored` whose files are kept, however many others there are.

        With kind `averaged` they are averages.
        """
        return self._scored(
            "all_checkpoints c INDEXED BY checkpoints_pinned"
            " CROSS JOIN evaluations e ON e.checkpoint_id = c.id"
            " WHERE c.pin_path IS NOT NULL AND c.run_id = ?",
            self.run_id,
            kind=kind,
        )

    def best_evaluations(self, mode: Mode, most: int) -> list[int]:
        """Return the ids of the evaluations that count with the best scores, the best first."""
        order = "DESC" if mode == "max" else ""
        rows = self.all(
            "SELECT id FROM evaluations"
            " WHERE fingerprint = (SELECT fingerprint FROM runs WHERE id = ?)"
            " AND (SELECT kind FROM all_checkpoints WHERE id = checkpoint_id) = 'saved'"
            f" AND score NOT NULL AND score != -1 ORDER BY score {order}, id LIMIT ?",
            [self.run_id, most],
        )
        return [row["id"] for row in rows]

    def last_scored(self, count: int) -> set[int]:
        """Return checkpoint ids of the last so many of `scored`, of the newest generation."""
        rows = self.all(
            "SELECT c.id FROM all_checkpoints c JOIN evaluations e ON e.checkpoint_id = c.id"
            " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
            " WHERE c.run_id = ? AND c.kind = 'saved' AND c.generation = ? AND e.score IS NOT NULL"
            " ORDER BY c.global_step DESC, c.id DESC LIMIT ?",
            [self.run_id, self.generation(), count],
        )
        return {row["id"] for row in rows}

    def mode(self) -> str:
        """Return whether the larger or the smaller score of the main board is better."""
        return str(self._run_row("mode") or "max")

    def scored_of(self, checkpoint_ids: Iterable[int]) -> list[ScoredCheckpoint]:
        """Return those of `scored` that are evaluations of these checkpoints."""
        return self._scored(
            "json_each(?) j CROSS JOIN all_checkpoints c ON c.id = j.value"
            " CROSS JOIN evaluations e ON e.checkpoint_id = c.id WHERE true",
            json.dumps(list(checkpoint_ids)),
        )

    def scored_as(self, sha256s: Iterable[str]) -> dict[str, ScoredCheckpoint]:
        """Return the evaluations of these contents, averages too, by sha256."""
        source = (
            "json_each(?) j CROSS JOIN all_checkpoints c ON c.sha256 = j.value"
            " CROSS JOIN evaluations e ON e.checkpoint_id = c.id WHERE true"
        )
        wanted = json.dumps(list(sha256s))
        rows = [
            row for kind in ("saved", "averaged") for row in self._scored(source, wanted, kind=kind)
        ]
        return {row.sha256: row for row in rows}

    def waits_anew(self) -> int:
        """Return how many checkpoints wait for a score of this evaluation that have one of another.

        Where there is none at all of this evaluation yet, that counts as one more.
        """
        waiting: int = self.value(
            "SELECT count(*) FILTER (WHERE state IN ('pending', 'leased') AND NOT measured AND"
            " EXISTS (SELECT 1 FROM evaluations WHERE checkpoint_id = c.id))"
            " + (total(measured) = 0)"
            " FROM (SELECT id, state, EXISTS (SELECT 1 FROM evaluations WHERE checkpoint_id = k.id"
            " AND fingerprint = (SELECT fingerprint FROM runs WHERE id = ?1)) AS measured"
            " FROM checkpoints k WHERE run_id = ?1) c",
            [self.run_id],
        )
        return waiting

    def _scored(
        self,
        source: str,
        argument: int | str,
        fingerprint: str | None = None,
        kind: str = "saved",
    ) -> list[ScoredCheckpoint]:
        # CROSS JOIN and INDEXED BY: SQLite reads only what is asked for, in this order.
        rows = self.all(
            "SELECT c.id AS checkpoint_id, e.id AS evaluation_id, c.name, c.sha256, e.score,"
            " coalesce(c.global_step, 0) AS global_step, e.evaluated_at, c.generation, c.pin_path"
            f" FROM {source} AND c.run_id = ? AND c.kind = ?"
            " AND e.fingerprint = coalesce(?, (SELECT fingerprint FROM runs WHERE id = c.run_id))"
            " ORDER BY c.generation, c.global_step, c.id",
            [argument, self.run_id, kind, fingerprint],
        )
        return [
            ScoredCheckpoint(**{**row, "pin": pin and self.pin_prefix(pin)})
            for row in rows
            for pin in [row.pop("pin_path")]
        ]

    def values(
        self, evaluation_ids: Iterable[int], keys: Iterable[Key]
    ) -> dict[int, dict[Key, float | None]]:
        """Return recorded values: evaluation id to (name, category) to value.

        Args:
            evaluation_ids: Which evaluations; each is in the answer.
            keys: Which values; those that were not recorded are left out.
        """
        wanted = set(keys)
        names = sorted({name for name, _ in wanted})
        read = {id_: self.values_of(id_, names) for id_ in evaluation_ids}
        return {
            id_: {key: value for key, value in values.items() if key in wanted}
            for id_, values in read.items()
        }

    def latency_spreads(self, evaluation_ids: Iterable[int]) -> dict[int, float]:
        """Return by evaluation id how far single passes of its latency lay apart, milliseconds.

        Those without such a figure are left out.
        """
        rows = self.all(
            "SELECT e.id, json_extract(e.details, '$.cost.latency_ms_spread') AS spread"
            " FROM json_each(?) j CROSS JOIN evaluations e ON e.id = j.value",
            [json.dumps(list(evaluation_ids))],
        )
        return {row["id"]: float(row["spread"]) for row in rows if row["spread"] is not None}

    def not_finite(self) -> list[ScoredCheckpoint]:
        """Return the checkpoints that failed because their weights or metrics are not finite."""
        rows = self.all(
            "SELECT id, name, coalesce(global_step, 0) AS global_step, coalesce(sha256, '') AS"
            " sha256, generation FROM checkpoints WHERE run_id = ? AND state = 'failed'"
            " AND reason LIKE 'not_finite:%'",
            [self.run_id],
        )
        return [unscored(row, not_finite=True) for row in rows]

    def values_of(
        self, evaluation_id: int, names: Sequence[str] | None = None
    ) -> dict[Key, float | None]:
        """Return what an evaluation recorded: (metric, category) to value, '' for overall ones.

        With `names` those metrics alone are read.
        """
        those = "" if names is None else f" AND name IN ({', '.join('?' * len(names))})"
        rows = self.all(
            f"SELECT name, category, value FROM metrics WHERE evaluation_id = ?{those}"
            " ORDER BY name, category",
            [evaluation_id, *(names or ())],
        )
        return {(row["name"], row["category"]): row["value"] for row in rows}

    def metrics(self, evaluation_ids: Iterable[int]) -> dict[int, dict[str, float | None]]:
        """Return the overall metrics of evaluations: evaluation id to name to value."""
        return {
            id_: {name: value for (name, of), value in self.values_of(id_).items() if not of}
            for id_ in evaluation_ids
        }

    def measured_lately(self) -> tuple[set[str], str]:
        """Return the overall metrics that the last evaluations recorded, and when the last was.

        Returns:
            The names, and a time in ISO 8601; both empty before the first evaluation.
        """
        last = self.all(
            "SELECT id, evaluated_at FROM evaluations WHERE fingerprint ="
            " (SELECT fingerprint FROM runs WHERE id = ?) ORDER BY id DESC LIMIT 10",
            [self.run_id],
        )
        of = self.metrics(row["id"] for row in last)
        evaluated_at = last[0]["evaluated_at"] if last else ""
        return {name for one in of.values() for name in one}, evaluated_at

    def incumbent(self, board: str) -> int | None:
        """Return the checkpoint id of a board's first place, None when it is empty."""
        checkpoint_id: int | None = self.value(
            "SELECT checkpoint_id FROM promotions WHERE board = ? AND evicted_at IS NULL"
            " ORDER BY rank LIMIT 1",
            [board],
        )
        return checkpoint_id

    def notes(self) -> dict[int, str]:
        """Return the notes on checkpoints: checkpoint id to text."""
        rows = self.all(
            "SELECT id, note FROM all_checkpoints WHERE run_id = ? AND note IS NOT NULL",
            [self.run_id],
        )
        return {row["id"]: row["note"] for row in rows}

    def generation(self) -> int:
        """Return the newest generation, the one that stopping looks at."""
        sql = "SELECT max(generation) FROM all_checkpoints WHERE run_id = ? AND sha256 IS NOT NULL"
        return self.value(sql, [self.run_id]) or 1

    def begun_at(self) -> str:
        """Return when the newest generation began, ISO 8601.

        Of the first that is when the watcher first saw the run, of others their first checkpoint.
        """
        began = self.value(
            "SELECT min(discovered_at) FROM checkpoints WHERE run_id = ?"
            " AND sha256 IS NOT NULL AND generation > 1 AND generation = ?",
            [self.run_id, self.generation()],
        )
        return str(began or self._run_row("created_at"))

    def resumed_step(self) -> int:
        """Return the step of the newest generation up to which `resume` withdrew every decision.

        -1 for none: a life that began after it has all its patience.
        """
        resumed = self._run_row("resumed_generation") == self.generation()
        return int(self._run_row("resumed_step")) if resumed else -1

    def find(self, wanted: str, *, evaluated: bool = False) -> dict[str, Any] | None:
        """Return the checkpoint that a person names.

        Args:
            wanted: A name, the latest of several; `best`; `last`, the one evaluated last; a global
                step; or the beginning of a sha256, six characters at least.
            evaluated: Look among those alone that have an evaluation which counts.

        Returns:
            `id, name, state, reason, sha256, global_step, generation, kept, pin_path, kind,
            evaluation_id`, None when there is none.
        """
        latest = "c.id DESC"
        if evaluated or wanted == "last":
            latest = f"e.evaluated_at DESC, e.id DESC, {latest}"
        for where in _NAMING.get(wanted, _BY_NAME) if len(wanted) <= _LONGEST_NAME else ():
            row = self.one(
                f"SELECT {_NAMED} WHERE r.id = ?1 AND {where}"
                f"{' AND e.id IS NOT NULL' if evaluated else ''} ORDER BY {latest} LIMIT 1",
                [self.run_id, wanted],
            )
            if row:
                return row
        return None

    def suggest(self, wanted: str) -> str:
        """Return the end of a sentence about a name that `find` does not know: what was meant."""
        # Another number is another checkpoint, so of a number that is not there nothing is near.
        if number := re.fullmatch(r"\D*(\d{1,18})", wanted):
            sql = "SELECT name FROM checkpoints WHERE run_id = ? AND saves = 1 AND name GLOB ?"
            name = self.value(sql, [self.run_id, f"*[^0-9]{int(number[1])}"])
            near = [name] if name else []
        else:
            near = difflib.get_close_matches(wanted, ["best", "last"], n=1)
        return f": did you mean {near[0]}?" if near else ""

    def awaited(self, between: tuple[int, int] | None) -> str | None:
        """Return the checkpoint that a stop waits for, the first of several.

        It is of the newest generation and may get its first score of the present evaluation yet. A
        stop that stands waits for none: it is not taken back for what is asked for once more.

        Args:
            between: The global steps between which a score may undo the stop, None for none.
        """
        if between is None or self.last_stop():
            return None
        name: str | None = self.value(
            "SELECT name FROM checkpoints c WHERE run_id = ? AND state IN ('pending', 'leased')"
            " AND generation = (SELECT max(generation) FROM checkpoints WHERE sha256 IS NOT NULL)"
            f" AND global_step > ? AND global_step < ? AND NOT {MEASURED}"
            " ORDER BY global_step, id LIMIT 1",
            [self.run_id, *between],
        )
        return name

    def last_stop(self) -> str | None:
        """Return why the run was stopped, None when it was not or that was withdrawn."""
        return self.stands("stop", "stop_withdrawn")

    def stands(self, kind: str, ended_by: str) -> str | None:
        """Return what the last event of a kind says, None where one of another kind ended it."""
        row = self.one(
            "SELECT kind, message FROM events WHERE kind IN (?, ?) ORDER BY id DESC LIMIT 1",
            [kind, ended_by],
        )
        return row["message"] if row and row["kind"] == kind else None

    def _run_row(self, column: str) -> Any:
        return self.value(f"SELECT {column} FROM runs WHERE id = ?", [self.run_id])
