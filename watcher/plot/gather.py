"""Gather: read from a run's database what a picture of it needs. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.decision.metric import parse_metric, unknown_metric
from watcher.errors import WatcherError
from watcher.plot.recorded import Evaluated, Promotion, Run, Stop
from watcher.plot.series import names_to_read
from watcher.store import queries
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
        evaluations=_evaluations(reader, names, beginnings),
        promotions=tuple(Promotion(**one) for one in queries.placed(reader, row["id"])),
        stop=Stop(**stop) if (stop := queries.stopped(reader, row["id"])) else None,
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
    reader: Reader, names: Sequence[str], beginnings: Sequence[str]
) -> tuple[Evaluated, ...]:
    rows, values = reader.evaluated(), queries.values_named(reader, names, beginnings)
    own, others = queries.intervals_named(reader, names)
    return tuple(
        Evaluated(
            row["checkpoint_id"],
            row["checkpoint"],
            row["global_step"] or 0,
            row["score"],
            values.get(row["evaluation_id"], {}),
            row["generation"],
            own.get(row["evaluation_id"]),
            others.get(row["evaluation_id"], {}),
        )
        for row in rows
    )
