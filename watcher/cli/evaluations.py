"""Naming an evaluation on the command line: what `metrics` and `compare` share."""

from __future__ import annotations

from watcher.errors import WatcherError
from watcher.store.reading import Reader
from watcher.view.changes import Measured, measured


def find_evaluation(reader: Reader, wanted: str | None) -> Measured:
    """Return the evaluation of a checkpoint.

    Args:
        reader: The run.
        wanted: A name (the latest of several), `best`, `last`, a global step, or the beginning of a
            sha256; None for the best, or the last while none is promoted.

    Raises:
        WatcherError: there is none, or the checkpoint has no evaluation.
    """
    name = wanted or ("best" if reader.find("best") else "last")
    found = reader.find(name, evaluated=True)
    if found is None:
        raise _no_evaluation(reader, name)
    rows = reader.evaluated(averages=True)
    row = next(row for row in rows if row["evaluation_id"] == found["evaluation_id"])
    evaluation_id = row["evaluation_id"]
    return measured(row, reader.values_of(evaluation_id), reader.details_of(evaluation_id))


def _no_evaluation(reader: Reader, wanted: str) -> WatcherError:
    look = "`checkpoint-watcher status MODEL_DIR` shows how far it is"
    if wanted == "last":
        return WatcherError("no checkpoint is evaluated yet", hint=look)
    row = reader.find(wanted)
    if row is None and wanted == "best":
        if reader.find("last", evaluated=True) is None:
            return WatcherError("no checkpoint is evaluated yet", hint=look)
        return WatcherError(
            "no checkpoint is promoted yet", hint="`last` names the one evaluated last"
        )
    hint = "`checkpoint-watcher history MODEL_DIR` lists the checkpoints of this run"
    if row is None:
        return WatcherError(
            f"no checkpoint {wanted} was ever seen{reader.suggest(wanted)}", hint=hint
        )
    said = f": {row['reason']}" if row["reason"] else ""
    return WatcherError(
        f"{row['name']} has no evaluation that counts, it is {row['state']}{said}", hint=hint
    )
