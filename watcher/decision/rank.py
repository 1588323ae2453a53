"""Rank: which checkpoints deserve a place in `best/`. Pure functions over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from watcher.decision.metric import Metric, Mode
from watcher.types import Leader, ScoredCheckpoint

Ties = Literal["oldest", "newest"]
TiesBy = Literal["score", "noise"]


class Veto(msgspec.Struct, frozen=True):
    """A metric that must not get worse: `drop` is how much worse than the best's it may be."""

    metric: Metric
    mode: Mode
    drop: float

    def objection(self, row: ScoredCheckpoint, best: ScoredCheckpoint) -> str | None:
        """Say why `row` may not stand beside `best`, None when nothing is against it.

        A value that cannot be ranked is worse than any that can. Where the best has none there is
        nothing to compare with.
        """
        here, there = self.metric.value(row.values), self.metric.value(best.values)
        if not rankable(there):
            return None
        assert there is not None
        beside = f"of {best.name} ({there:.6g})"
        if not rankable(here):
            return f"{self.metric.text} was not measured, and is to be compared with that {beside}"
        assert here is not None
        drop = there - here if self.mode == "max" else here - there
        if drop <= self.drop:
            return None
        return (
            f"{self.metric.text} ({here:.6g}) is {drop:.6g} worse than that {beside},"
            f" and {self.drop:g} is allowed"
        )


class RankPolicy(msgspec.Struct, frozen=True):
    """How to order checkpoints.

    Attributes:
        mode: Whether the larger or the smaller score is better.
        top_k: Number of places, -1 for all, 0 for none.
        tie_break: Metrics that decide between equal scores, in turn, each with its mode.
        ties: Which step comes first when all of them are equal.
        ties_by: What is equal beside the best: an equal score, or one within the noise.
        veto: What a candidate may not be worse in than the best.
    """

    mode: Mode = "max"
    top_k: int = 3
    tie_break: tuple[tuple[Metric, Mode], ...] = ()
    ties: Ties = "oldest"
    ties_by: TiesBy = "score"
    veto: tuple[Veto, ...] = ()


class Ranking(msgspec.Struct, frozen=True):
    """The outcome of ranking.

    Attributes:
        leaders: The rows with a place, best first.
        vetoed: Rows that a veto keeps from the place their score deserves, each with the reason.
        highest: The one with the best score, where ties go by noise and it need not be the first.
    """

    leaders: tuple[ScoredCheckpoint, ...]
    vetoed: tuple[tuple[ScoredCheckpoint, str], ...] = ()
    highest: ScoredCheckpoint | None = None


def rankable(score: float | None) -> bool:
    """True for a score that may rank.

    COCO writes -1 where there was nothing to measure, and a metric that is not finite measured
    nothing either: neither ranks.
    """
    return score is not None and math.isfinite(score) and score != -1.0


def judge(
    rows: Iterable[ScoredCheckpoint],
    policy: RankPolicy,
    incumbent: int | None = None,
    tied: Collection[int] = (),
) -> Ranking:
    """Order rows from best to worst, keep the first `top_k`, and say what a veto kept out.

    A veto compares with the best. So the best is found first: of the rows that are not vetoed by
    the best so far the highest becomes the best, until it stays. It climbs at each turn, which
    ends it, and the outcome does not depend on the order of the rows.

    Args:
        rows: Evaluations of one fingerprint, in any order; each with the `values` that the
            policy's tie-breaks and vetoes read. Those that are not rankable are left out.
        policy: What decides.
        incumbent: Checkpoint id of the best so far, where the climb begins; without one, or when
            it is not among the rows, that is the row of the smallest step.
        tied: Evaluation ids of those whose scores count as equal to the best of them.
    """
    rows = [row for row in rows if rankable(row.score)]
    ordered = sorted(rows, key=_order(policy, _equal(rows, policy, tied)))
    if not ordered or not policy.veto or not policy.top_k:
        return Ranking(tuple(_first(ordered, policy.top_k)))
    places = {row.checkpoint_id: place for place, row in enumerate(ordered)}
    oldest = min(ordered, key=lambda row: (row.global_step, row.checkpoint_id))
    best = next((row for row in ordered if row.checkpoint_id == incumbent), oldest)
    while True:
        free = [row for row in ordered if _objection(row, best, policy) is None]
        if free[0] is best:
            break
        best = free[0]
    leaders = _first(free, policy.top_k)
    last = places[leaders[-1].checkpoint_id] if len(leaders) == policy.top_k else len(ordered)
    vetoed = tuple(
        (row, why) for row in ordered[:last] if (why := _objection(row, best, policy)) is not None
    )
    return Ranking(tuple(leaders), vetoed)


def judge_by_noise(
    rows: Sequence[ScoredCheckpoint],
    policy: RankPolicy,
    incumbent: int | None,
    tied_with: Callable[[int], Collection[int]],
) -> Ranking:
    """Judge as `judge` does; where ties go by noise, with what is tied as equal.

    Args:
        rows, policy, incumbent: As `judge` takes them.
        tied_with: Returns the evaluation ids of those that cannot be told from this one.
    """
    ranking = judge(rows, policy, incumbent)
    if policy.ties_by == "score" or not ranking.leaders:
        return ranking
    highest = ranking.leaders[0]
    tied = tied_with(highest.evaluation_id)
    return replace(judge(rows, policy, incumbent, tied), highest=highest)


def settled(
    one: ScoredCheckpoint, other: ScoredCheckpoint, policy: RankPolicy
) -> tuple[bool, bool]:
    """Return whether `one` is better by more than its step, and whether it vetoes `other`."""
    key = _order(policy)
    steps = 2  # at the end of a key: step and id
    return key(one)[:-steps] < key(other)[:-steps], _objection(other, one, policy) is not None


def _equal(
    rows: Sequence[ScoredCheckpoint], policy: RankPolicy, tied: Collection[int]
) -> dict[int, float]:
    """Return evaluation id to the badness that it counts with, of those that are tied."""
    badness = {
        row.evaluation_id: _badness(row.score, policy.mode)
        for row in rows
        if row.evaluation_id in tied
    }
    return dict.fromkeys(badness, min(badness.values(), default=0.0))


def _order(
    policy: RankPolicy, equal: Mapping[int, float] | None = None
) -> Callable[[ScoredCheckpoint], tuple[float, ...]]:
    older, equal = 1 if policy.ties == "oldest" else -1, equal or {}

    def key(row: ScoredCheckpoint) -> tuple[float, ...]:
        ties = (_badness(metric.value(row.values), mode) for metric, mode in policy.tie_break)
        step = (older * row.global_step, older * row.checkpoint_id)
        badness = equal.get(row.evaluation_id)
        return (_badness(row.score, policy.mode) if badness is None else badness, *ties, *step)

    return key


def _badness(value: float | None, mode: Mode) -> float:
    if value is None or not rankable(value):
        return math.inf
    return -value if mode == "max" else value


def _first(rows: Sequence[ScoredCheckpoint], top_k: int) -> Sequence[ScoredCheckpoint]:
    return rows if top_k < 0 else rows[:top_k]


def _objection(row: ScoredCheckpoint, best: ScoredCheckpoint, policy: RankPolicy) -> str | None:
    objections = (veto.objection(row, best) for veto in policy.veto)
    return next((why for why in objections if why), None)


def name_leaders(
    ranked: Sequence[ScoredCheckpoint],
    placed: Mapping[str, str],
    reserved: Iterable[str] = (),
) -> list[Leader]:
    """Give each ranked row its rank and its name inside `best/`.

    A trainer that starts over reuses names. Where two different checkpoints share one, the first
    keeps it and the later one gets the first 8 digits of its sha256 behind it. A name once given
    stays as long as the checkpoint does.

    Args:
        ranked: The board, best first.
        placed: Names that files in `best/` carry already: sha256 to name.
        reserved: Names of foreign files in `best/`, which nothing may overwrite.
    """
    used = {*placed.values(), *reserved}
    names: dict[int, str] = {}
    for row in sorted(ranked, key=lambda row: row.checkpoint_id):
        name = placed.get(row.sha256)
        if name is None:
            name = row.name if row.name not in used else f"{row.name}-{row.sha256[:8]}"
            used.add(name)
        names[row.checkpoint_id] = name
    return [
        Leader(rank=place, row=row, name=names[row.checkpoint_id])
        for place, row in enumerate(ranked, start=1)
    ]
