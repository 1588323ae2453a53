"""Ties: which scores an eval set can tell apart, by the replicates of each. Pure.

All evaluations of one identity have replicates on the same draws of images. So the difference of
two, replicate by replicate, is a paired bootstrap of their difference, which is far narrower than
what their own intervals let one think.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Callable, Mapping, Sequence

import msgspec

from watcher.decision.metric import Key, Metric, Mode
from watcher.types import ScoredCheckpoint

LEVEL = 0.95
# Of so many of the best it is looked how they stand to each other.
CANDIDATES = 32
# Of fewer objects a category's score comes out too high, and no interval holds as often as it says.
FEW_OBJECTS = 20

Numbers = Sequence[float]


class Draws(msgspec.Struct, frozen=True):
    """The replicates of one evaluation.

    Attributes:
        identity: What was drawn: scheme and number of images. Only equal ones can be paired.
        values: (metric, category) to one number a replicate; NaN where there was nothing to find.
    """

    identity: tuple[str, int]
    values: Mapping[Key, Numbers]

    def of(self, metric: Metric) -> Numbers | None:
        """Return a metric in each replicate, None where a part of it has no replicates."""
        return metric.replicates(self.values)


class Difference(msgspec.Struct, frozen=True):
    """How much more one evaluation has than another.

    Attributes:
        value: As measured.
        low: Lower end of its interval at LEVEL, and `high` the upper one.
    """

    value: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        """True when the eval set tells the two apart."""
        return self.low > 0 or self.high < 0


class Standing(msgspec.Struct, frozen=True):
    """How an evaluation stands to the others.

    Attributes:
        tied: It is not worse than the best, at one-sided LEVEL.
        p_best: In which share of the replicates it is the first.
        p_top_k: In which share it has a place on the board.
        rank_low: The best rank that it may have, and `rank_high` the worst: by how many others are
            better, or worse, at one-sided LEVEL.
    """

    tied: bool
    p_best: float
    p_top_k: float
    rank_low: int
    rank_high: int


def interval(values: Numbers, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval of replicates; None where there is none."""
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return None
    tail = (1 - level) / 2
    return _quantile(ordered, tail), _quantile(ordered, 1 - tail)


def difference(one: Numbers, other: Numbers, measured: float) -> Difference | None:
    """Return the paired difference of two evaluations, None where no replicate has both.

    Args:
        one: Replicates of one.
        other: Those of another, on the same draws; where one has fewer, only so many count.
        measured: The difference of the two values that were measured.
    """
    ends = interval([a - b for a, b in zip(one, other, strict=False)])
    return Difference(measured, *ends) if ends else None


def on_draws_of(best: int, draws: Mapping[int, Draws], metric: Metric) -> dict[int, Numbers]:
    """Return evaluation id to a metric's replicates, of those on the same draws as one of them."""
    if best not in draws:
        return {}
    drawn = {
        id_: one.of(metric) for id_, one in draws.items() if one.identity == draws[best].identity
    }
    return {id_: values for id_, values in drawn.items() if values is not None}


def paired(
    one: ScoredCheckpoint, other: ScoredCheckpoint, draws: Mapping[int, Draws], metric: Metric
) -> Difference | None:
    """Return the difference of two evaluations, None where they cannot be paired.

    Args:
        one, other: Both have a score.
        draws: The replicates that there are, by evaluation id.
        metric: What the scores are.
    """
    ids = (one.evaluation_id, other.evaluation_id)
    both = {id_: draws[id_] for id_ in ids if id_ in draws}  # an expression takes its time
    drawn = on_draws_of(other.evaluation_id, both, metric)
    values, others = map(drawn.get, ids)
    if values is None or others is None or one.score is None or other.score is None:
        return None
    return difference(values, others, one.score - other.score)


def tie_set(replicates: Mapping[int, Numbers], best: int, mode: Mode) -> set[int]:
    """Return the evaluations that are not worse than the best, at one-sided LEVEL; with itself.

    Args:
        replicates, best, mode: As `standings` takes them.
    """
    if best not in replicates:
        return {best}
    better = operator.gt if mode == "max" else operator.lt
    of_best = replicates[best]
    return {id_ for id_, one in replicates.items() if not _surely(better, of_best, one)}


def standings(
    replicates: Mapping[int, Numbers], best: int, mode: Mode, top_k: int
) -> dict[int, Standing]:
    """Return how evaluations stand to the best and to each other; of one alone, nothing.

    Args:
        replicates: Evaluation id to its score in each replicate, all on the same draws.
        best: The id of the board's first.
        mode: Which score is better.
        top_k: How many places the board has, -1 for all.
    """
    count = min(map(len, replicates.values()), default=0)
    # Of one alone there is nothing to tell: it would be the first for sure.
    if best not in replicates or not count or len(replicates) < 2:
        return {}
    better = operator.gt if mode == "max" else operator.lt
    worst = -math.inf if mode == "max" else math.inf
    rows = {
        id_: array("d", (worst if math.isnan(value) else value for value in values[:count]))
        for id_, values in replicates.items()
    }
    beats = {
        id_: {other for other in rows if _surely(better, row, rows[other])}
        for id_, row in rows.items()
    }
    first, placed = _shares(rows, mode, top_k)
    return {
        id_: Standing(
            tied=id_ not in beats[best],
            p_best=first[id_] / count,
            p_top_k=placed[id_] / count,
            rank_low=1 + sum(id_ in beaten for beaten in beats.values()),
            rank_high=len(rows) - len(beats[id_]),
        )
        for id_ in rows
    }


def _surely(better: Callable[[float, float], bool], one: Numbers, other: Numbers) -> bool:
    return sum(map(better, one, other)) >= LEVEL * min(len(one), len(other))


def _shares(
    rows: Mapping[int, Numbers], mode: Mode, top_k: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Return in how many replicates each is the first, and has one of the places.

    Those that are equal share what there is.
    """
    first, placed = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0)
    places = len(rows) if top_k < 0 else min(top_k, len(rows))
    ids = list(rows)
    for column in zip(*rows.values(), strict=True):
        ordered = sorted(column, reverse=mode == "max")
        for limit, shares in ((1, first), (places, placed)):
            if not limit:
                continue
            edge = ordered[limit - 1]
            inside = ordered.index(edge)  # so many are better than the last that has a place
            share = (limit - inside) / column.count(edge)
            for id_, value in zip(ids, column, strict=True):
                if value == edge:
                    shares[id_] += share
                elif (value > edge) == (mode == "max"):
                    shares[id_] += 1
    return first, placed


def _quantile(ordered: Numbers, share: float) -> float:
    """Return a quantile between the two nearest of numbers in rising order, as NumPy does."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
