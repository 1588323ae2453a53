"""Gather: read from a run's database what a picture of it needs. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.decision.metric import Key, parse_metric, unknown_metric
from watcher.errors import WatcherError
from watcher.plot.series import Evaluated, Promotion, Run, Stop, names_to_read
from watcher.store.reading import Reader


def read_run(
    reader: Reader,
    metrics: Sequence[str] = (),
    *,
    name: str | None = None,
    categories: bool = False,
    losses: bool = False,
) -> Run:
    """Read one run.

    Args:
        reader: The run.
        metrics: As `--metric` takes them; none for the one that the run is ranked by.
        name: What the picture calls it, by default its own name.
        categories: Read the figures of the categories too.
        losses: Read the losses too.

    Raises:
        ConfigError: a metric is no metric.
        StoreError: the database cannot be read now.
    """
    row = reader.run()
    names, beginnings = names_to_read(
        metrics, own=row["metric"], categories=categories, losses=losses
    )
    return Run(
        name=name or row["name"],
        metric=row["metric"],
        mode=row["mode"],
        evaluations=_evaluations(reader, row["id"], names, beginnings),
        promotions=_promotions(reader, row["id"]),
        stop=_stop(reader, row["id"]),
    )


def require_points(
    runs: Sequence[Run], metrics: Sequence[str], measured: tuple[set[str], set[str]]
) -> None:
    """Make sure that there is something to draw.

    Args:
        runs: What was read.
        metrics: As `read_run` took them.
        measured: Which metrics and which categories the runs' evaluations recorded.

    Raises:
        ConfigError: a metric is not among what was recorded.
        WatcherError: there is no evaluation yet, or none with a value of a metric.
    """
    if not any(run.evaluations for run in runs):
        names = ", ".join(run.name for run in runs[:5])
        raise WatcherError(
            f"no checkpoint of {names} is evaluated yet",
            hint="`checkpoint-watcher status MODEL_DIR` shows how far it is",
        )
    for metric in metrics or dict.fromkeys(run.metric for run in runs):
        if any(point.value is not None for run in runs for point in run.points(metric)):
            continue
        part = parse_metric(metric).missing(*measured)
        if part:
            raise unknown_metric("metric", metric, part, *measured)
        raise WatcherError(
            f"metric ({metric}): no evaluation has a value of it that could be drawn",
            hint="-1, which COCO writes where there is nothing to measure, and what is not finite"
            " are left out; `checkpoint-watcher metrics MODEL_DIR` shows what was recorded",
        )


def lacks(run: Run, metrics: Sequence[str]) -> list[str]:
    """Return why one of several runs is not in a panel, a sentence each."""
    if not run.evaluations:
        return [f"no checkpoint of {run.name} is evaluated yet"]
    return [
        f"{run.name} has no value of {metric}"
        for metric in metrics or (run.metric,)
        if all(point.value is None for point in run.points(metric))
    ]


def _evaluations(
    reader: Reader, run_id: int, names: Sequence[str], beginnings: Sequence[str]
) -> tuple[Evaluated, ...]:
    rows = reader.all(
        "SELECT e.id, c.id AS checkpoint_id, c.name, coalesce(c.global_step, 0) AS step, e.score,"
        " c.generation FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id"
        " JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"
        " WHERE r.id = ? ORDER BY c.generation, step, c.id",
        [run_id],
    )
    values: dict[int, dict[Key, float | None]] = {row["id"]: {} for row in rows}
    wanted = [f"name IN ({', '.join('?' * len(names))})", *["name GLOB ?"] * len(beginnings)]
    found = reader.all(
        "SELECT evaluation_id, name, category, value FROM metrics"
        f" WHERE {' OR '.join(wanted)} ORDER BY evaluation_id, name, category",
        [*names, *(f"{beginning}*" for beginning in beginnings)],
    )
    for row in found:
        if row["evaluation_id"] in values:
            values[row["evaluation_id"]][row["name"], row["category"]] = row["value"]
    return tuple(
        Evaluated(
            row["checkpoint_id"],
            row["name"],
            row["step"],
            row["score"],
            values[row["id"]],
            row["generation"],
        )
        for row in rows
    )


def _promotions(reader: Reader, run_id: int) -> tuple[Promotion, ...]:
    # A checkpoint whose row was replaced, its metric another say, has several: the first says when
    # it came, one that was not evicted says where it is.
    rows = reader.all(
        "SELECT p.checkpoint_id, min(p.promoted_at) AS promoted_at,"
        " max(CASE WHEN p.evicted_at IS NULL THEN p.rank END) AS rank"
        " FROM promotions p JOIN runs r ON r.id = p.run_id AND r.board = p.board"
        " WHERE r.id = ? GROUP BY p.checkpoint_id ORDER BY p.checkpoint_id",
        [run_id],
    )
    return tuple(Promotion(**row) for row in rows)


def _stop(reader: Reader, run_id: int) -> Stop | None:
    # The first since it was last withdrawn. It was decided on the evaluations recorded by then.
    said = reader.one(
        "SELECT at, message FROM events WHERE run_id = ? AND kind = 'stop' AND id >"
        " (SELECT coalesce(max(id), 0) FROM events WHERE run_id = ? AND kind = 'stop_withdrawn')"
        " ORDER BY id LIMIT 1",
        [run_id, run_id],
    )
    if said is None:
        return None
    reached = reader.one(
        "SELECT c.generation, c.global_step AS step FROM evaluations e"
        " JOIN checkpoints c ON c.id = e.checkpoint_id WHERE c.run_id = ? AND e.evaluated_at <= ?"
        " AND c.global_step NOT NULL ORDER BY c.generation DESC, c.global_step DESC LIMIT 1",
        [run_id, said["at"]],
    )
    return Stop(reached["step"], said["message"], reached["generation"]) if reached else None
