"""Recorded: what was read of a run for a picture, as plain data. Draws and reads nothing."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from watcher.decision.metric import Metric, Values, parse_metric
from watcher.decision.rank import rankable

Ends = tuple[float, float]


class Point(msgspec.Struct, frozen=True):
    """One evaluation; `value` None is a gap: not recorded, not finite, or -1, nothing measured.

    `ends` are those of the value's interval, None where it has none.
    """

    step: int
    value: float | None
    checkpoint: str = ""
    ends: Ends | None = None


class Promotion(msgspec.Struct, frozen=True):
    """A checkpoint that is on the run's main board, or was; then its rank is None."""

    checkpoint_id: int
    rank: int | None


class Stop(msgspec.Struct, frozen=True):
    """An early stop: at which global step it was decided, why, and in which generation."""

    step: int
    message: str
    generation: int = 1


class Evaluated(msgspec.Struct, frozen=True):
    """One evaluation of a run and what of it was read.

    Attributes:
        interval: The two ends of the score's, None where there is none.
        intervals: Those of overall metrics, by name.
    """

    checkpoint_id: int
    checkpoint: str
    step: int
    score: float | None
    values: Values = msgspec.field(default_factory=dict)
    generation: int = 1
    interval: Ends | None = None
    intervals: Mapping[str, Ends] = msgspec.field(default_factory=dict)


class Run(msgspec.Struct, frozen=True):
    """What was read of one run.

    Attributes:
        evaluations: Those that count, by generation and step.
        promotions: One a checkpoint that ever was on the main board.
        stop: None when the run was not stopped, or that was withdrawn.
    """

    name: str
    metric: str
    mode: str
    evaluations: tuple[Evaluated, ...]
    promotions: tuple[Promotion, ...] = ()
    stop: Stop | None = None

    def lives(self, *, named: bool) -> list[Run]:
        """Return a run for each generation of which there are evaluations, which a line each shows.

        Args:
            named: Name them after the run as well, since there are others.
        """
        found = sorted({row.generation for row in self.evaluations})
        if len(found) < 2:
            return [self]
        return [
            replace(
                self,
                name=f"{f'{self.name}, ' if named else ''}generation {life}",
                evaluations=tuple(row for row in self.evaluations if row.generation == life),
                stop=self.stop if self.stop and self.stop.generation == life else None,
            )
            for life in found
        ]

    def points(self, metric: str) -> tuple[Point, ...]:
        """Return a metric over the global steps; the run's own one as it was recorded."""
        asked, own = parse_metric(metric), metric == self.metric
        return tuple(
            Point(
                row.step,
                drawable(row.score if own else asked.value(row.values)),
                row.checkpoint,
                row.interval if own else _ends(row, asked),
            )
            for row in self.evaluations
        )


def drawable(value: float | None) -> float | None:
    """Return a value, None where it is none that could be drawn."""
    return value if rankable(value) else None


def _ends(row: Evaluated, asked: Metric) -> Ends | None:
    """Return the interval of a metric that is recorded as it is; of an expression there is none."""
    if asked.is_expression:
        return None
    return next(
        (row.intervals[name] for name, of in asked.keys if not of and name in row.intervals), None
    )
