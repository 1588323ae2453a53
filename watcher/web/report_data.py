"""What a report of a run says, read from its database at one time. Writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from watcher.decision.metric import Key
from watcher.store import queries
from watcher.store.reading import Reader
from watcher.store.replicates import intervals_of
from watcher.view.changes import Measured, measured
from watcher.view.look import Look, Looker
from watcher.web.report_images import ChangedImages, read_changed_images

MOST_CHECKPOINTS = 500
MOST_EVENTS = 100
Row = dict[str, Any]
_NOT_EVALUATED = ("failed", "corrupt", "missed")


class ReportData(msgspec.Struct, frozen=True):
    """One run, as a report shows it.

    Attributes:
        look: The run at a glance.
        history: The last rows of the view `history`, the latest last.
        failures: Those rows of it that have no score and should have one.
        events: The last rows of `events`, the latest first.
        event_count: How many there are in all.
        best: Metrics of the best checkpoint, None while nothing is promoted.
        last: Metrics of the last one in step order, None before the first evaluation.
        evaluation: How the best, or else the last, was evaluated: `device`, `images`,
            `eval_seconds`, `evaluated_at`, `versions`, `details`; None before the first.
        settings: Those of the last start.
        intervals: The ends of those of the best's metrics, and `objects`, by (metric, category).
        caution: What of the scores is not to be relied on, None for nothing.
        changed: The images that changed most, from the best to the last one; where that is the
            best, from the second. None where there are no two, or nothing is kept of them.
    """

    look: Look
    history: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    events: list[dict[str, Any]]
    event_count: int
    best: Measured | None
    last: Measured | None
    evaluation: dict[str, Any] | None
    settings: dict[str, Any]
    intervals: dict[Key, dict[str, Any]] = msgspec.field(default_factory=dict)
    caution: str | None = None
    changed: ChangedImages | None = None


def read_report(reader: Reader) -> ReportData:
    """Read all that a report of the run shows.

    Raises:
        StoreError: the database cannot be read now.
    """
    look = Looker(reader).look(recent=MOST_CHECKPOINTS, queue=0)
    rows = reader.evaluated()
    board = look.best
    every = reader.evaluated(averages=True)
    best = next((row for row in every if board and row["sha256"] == board["sha256"]), None)
    last = rows[-1] if rows else None
    events, event_count = queries.events(reader, MOST_EVENTS)
    settings = dict(look.run.get("settings") or {})
    if settings and look.run["mode"]:
        settings["mode"] = look.run["mode"]  # what it came to, where it was not set
    return ReportData(
        look=look,
        history=look.recent,
        failures=reader.failed(MOST_CHECKPOINTS, _NOT_EVALUATED),
        events=events,
        event_count=event_count,
        best=_measured(reader, best),
        last=_measured(reader, last),
        evaluation=_evaluation(reader, best or last),
        settings=settings,
        intervals=_intervals(reader, best or last),
        caution=queries.caution(reader),
        changed=_changed(reader, look, settings, best, last),
    )


def _changed(
    reader: Reader, look: Look, settings: dict[str, Any], best: Row | None, last: Row | None
) -> ChangedImages | None:
    before, after = best, last
    if best and best == last:
        second = next((row["sha256"] for row in look.board if row["rank"] == 2), None)
        every = reader.evaluated(averages=True)
        before = next((row for row in every if row["sha256"] == second), None)
    if before is None or after is None:
        return None
    # What it was at the last start; a model folder that was moved took its own along.
    eval_dir = settings.get("eval_dir") or look.run["model_dir"]
    if not settings.get("eval_dir") and settings.get("evaluator") != "model-garden":
        eval_dir = str(Path(eval_dir, "eval"))
    both = (measured(row, reader.values_of(row["evaluation_id"])) for row in (before, after))
    return read_changed_images(reader, Path(eval_dir), *both)


def _measured(reader: Reader, row: dict[str, Any] | None) -> Measured | None:
    return measured(row, reader.values_of(row["evaluation_id"])) if row else None


def _intervals(reader: Reader, row: dict[str, Any] | None) -> dict[Key, dict[str, Any]]:
    if row is None or not queries.has_intervals(reader):
        return {}
    return intervals_of(reader, row["evaluation_id"])


def _evaluation(reader: Reader, row: dict[str, Any] | None) -> dict[str, Any] | None:
    found = row and queries.evaluation(reader, row["evaluation_id"])
    if not found:
        return None
    decoded = {name: msgspec.json.decode(found[name]) for name in ("versions", "details")}
    return {**found, **decoded}
