"""Walk: where a run stands for stopping, after its scores in step order. Pure.

The rows are walked in step order, however they were evaluated. A trainer that started over has
several lives, and those of the newest generation are walked alone. Rows that cannot rank count
neither way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import msgspec

from watcher.decision.metric import Mode
from watcher.decision.rank import rankable
from watcher.decision.smooth import Smoothing, make_smoother
from watcher.types import ScoredCheckpoint


class StopPolicy(msgspec.Struct, frozen=True):
    """When to stop. None switches a rule off.

    Attributes:
        mode: Whether the larger or the smaller score is better.
        patience: Evaluations in a row without improvement.
        patience_steps: Training steps since the last improvement.
        min_delta: A gain that is not greater than this is no improvement.
        min_delta_relative: `min_delta` is a share of the score that is to be improved.
        min_steps: No rule about scores fires before an evaluation at this global step.
        min_evaluations: Likewise, before so many evaluations.
        target: A score that is good enough.
        divergence: A score so bad that the run diverged.
        max_not_finite: Checkpoints in a row whose weights or metrics are not finite.
        plateau_window: Evaluations that `plateau_std` looks at.
        plateau_std: Standard deviation (of the population) of the last scores at or below which
            the run stands still.
        trend_window: Evaluations that `trend_below` looks at.
        trend_below: Gain per evaluation; a run whose scores surely rise more slowly stands still.
        max_steps: Global step of an evaluated checkpoint.
        max_hours: Hours since the run began, or the trainer started over in it.
        smoothing: What the rules about scores see instead of the scores.
        resumed_step: Evaluations up to this step stop nothing any more; see `Walk`.
        generation: The newest one; it may have no rows yet.
    """

    mode: Mode = "max"
    patience: int | None = None
    patience_steps: int | None = None
    min_delta: float = 0.0
    min_delta_relative: bool = False
    min_steps: int = 0
    min_evaluations: int = 0
    target: float | None = None
    divergence: float | None = None
    max_not_finite: int | None = None
    plateau_window: int = 5
    plateau_std: float | None = None
    trend_window: int = 10
    trend_below: float | None = None
    max_steps: int | None = None
    max_hours: float | None = None
    smoothing: Smoothing | None = None
    resumed_step: int = -1
    generation: int = 1


class Walk:
    """Where a run stands after rows in step order. Adding a row takes the same time always.

    Up to `resumed_step` rows show how good the run is, but neither use up patience nor stop.

    Attributes:
        evaluations: Rows that can rank.
        best: The row of the best score, the first of equal ones.
        last: The last row that can rank.
        improved: The row of the last improvement, whose smoothed score is `reference`.
        since: Rows after it, and after `resumed_step`.
        smoothed: The smoothed score of the last row.
        recent: The last smoothed scores, at most `plateau_window`.
        trend: The last steps and scores as they are, the larger the better, at most `trend_window`.
        not_finite: Checkpoints at the end of the walk whose numbers are not finite.
        reached: The step up to which rows came, those that cannot rank among them.
    """

    def __init__(self, policy: StopPolicy) -> None:
        self._policy = policy
        self._smoothed = make_smoother(policy.smoothing)
        self._order = (-1, -1)
        self.evaluations = 0
        self.best: ScoredCheckpoint | None = None
        self.last: ScoredCheckpoint | None = None
        self.improved: ScoredCheckpoint | None = None
        self.reference = 0.0
        self.smoothed = 0.0
        self.since = 0
        self.recent: deque[float] = deque(maxlen=policy.plateau_window)
        self.trend: deque[tuple[int, float]] = deque(maxlen=policy.trend_window)
        reach = policy.smoothing.reach if policy.smoothing else 1
        seen = policy.plateau_window + reach - 1
        self._steps: deque[int] | None = None if math.isinf(seen) else deque(maxlen=int(seen))
        self.not_finite = 0
        self.reached = -1

    @property
    def recent_from(self) -> int:
        """The step of the first row that `recent` is made of; -1 for all."""
        return self._steps[0] if self._steps else -1

    @property
    def sign(self) -> float:
        """1 when larger scores are better, else -1."""
        return 1.0 if self._policy.mode == "max" else -1.0

    def follows(self, row: ScoredCheckpoint) -> bool:
        """True when a row comes behind all that were added."""
        return (row.global_step, row.checkpoint_id) > self._order

    def add(self, row: ScoredCheckpoint) -> None:
        """Add the next row in step order."""
        self._order = (row.global_step, row.checkpoint_id)
        self.reached = row.global_step
        counts = row.global_step > self._policy.resumed_step
        if row.not_finite:
            self.not_finite += counts
        if not rankable(row.score):
            return
        assert row.score is not None
        self.not_finite = 0
        self.evaluations += 1
        if self._steps is not None:
            self._steps.append(row.global_step)
        self.last, self.smoothed = row, self._smoothed(row.score)
        if self.best is None or self.sign * (row.score - (self.best.score or 0.0)) > 0:
            self.best = row
        if self.improved is None or self._improves(self.smoothed):
            self.improved, self.reference, self.since = row, self.smoothed, 0
        else:
            self.since += counts
        if counts:
            self.recent.append(self.smoothed)
            self.trend.append((row.global_step, self.sign * row.score))

    def _improves(self, score: float) -> bool:
        return self.sign * (score - self.reference) > self.needed_gain

    @property
    def needed_gain(self) -> float:
        """The gain over `reference` that the next improvement has to exceed."""
        if self._policy.min_delta_relative:
            return self._policy.min_delta * abs(self.reference)
        return self._policy.min_delta


def walk(rows: Iterable[ScoredCheckpoint], policy: StopPolicy) -> Walk:
    """Walk the rows of the newest generation, whatever order they come in."""
    walked = Walk(policy)
    for row in newest_life(rows, policy):
        walked.add(row)
    return walked


def newest_life(rows: Iterable[ScoredCheckpoint], policy: StopPolicy) -> list[ScoredCheckpoint]:
    """Return the rows that stopping looks at, in the order in which they are walked."""
    rows = list(rows)
    newest = max([policy.generation, *(row.generation for row in rows)])
    return sorted(
        (row for row in rows if row.generation == newest),
        key=lambda row: (row.global_step, row.checkpoint_id),
    )
