"""Naming an evaluation on the command line: what `metrics` and `compare` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from watcher.errors import WatcherError
from watcher.reading import Reader
from watcher.view.changes import Measured, measured

_DIGEST = 6


def find_evaluation(reader: Reader, wanted: str | None) -> Measured:
    """Return the evaluation of a checkpoint.

    Args:
        reader: The run.
        wanted: A name (the latest of several), `best`, `last`, a global step, or the beginning of a
            sha256; None for the best, or the last while none is promoted.

    Raises:
        WatcherError: there is none, or the checkpoint has no evaluation.
    """
    rows = reader.evaluated()
    best = reader.best()
    if wanted == "best" or (wanted is None and best):
        if best is None:
            raise WatcherError(
                "no checkpoint is promoted yet", hint="`last` names the one evaluated last"
            )
        wanted = best["sha256"]
    row = _last(rows) if wanted in (None, "last") else _named(rows, str(wanted))
    if row is None:
        raise _no_evaluation(reader, wanted)
    evaluation_id = row["evaluation_id"]
    return measured(row, reader.values_of(evaluation_id), reader.details_of(evaluation_id))


def _last(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    # Two may have been recorded at one moment.
    return max(rows, key=lambda row: (row["evaluated_at"], row["evaluation_id"]), default=None)


def _named(rows: Sequence[dict[str, Any]], wanted: str) -> dict[str, Any] | None:
    named = [row for row in rows if row["checkpoint"] == wanted]
    if not named and wanted.isdecimal():
        named = [row for row in rows if row["global_step"] == int(wanted)]
    if not named and len(wanted) >= _DIGEST:
        named = [row for row in rows if row["sha256"].startswith(wanted)]
    return _last(named)


def _no_evaluation(reader: Reader, wanted: str | None) -> WatcherError:
    if wanted in (None, "last"):
        return WatcherError(
            "no checkpoint is evaluated yet",
            hint="`checkpoint-watcher status MODEL_DIR` shows how far it is",
        )
    hint = "`checkpoint-watcher history MODEL_DIR` lists the checkpoints of this run"
    row = reader.one(
        "SELECT state, reason FROM checkpoints WHERE name = ? ORDER BY id DESC LIMIT 1", [wanted]
    )
    if row is None:
        return WatcherError(f"no checkpoint {wanted} was ever seen", hint=hint)
    said = f": {row['reason']}" if row["reason"] else ""
    return WatcherError(
        f"{wanted} has no evaluation that counts, it is {row['state']}{said}", hint=hint
    )
