"""Stop: decide from the ledger whether training should end. Pure; `sentinel` is its effect.

The rows are walked in step order, however they were evaluated. A trainer that started over has
several lives, and those of the newest generation decide alone. Nothing latches: the decision is
that of the last row under the settings of this moment, so other settings, or a later improvement,
decide anew. Rows that cannot rank count neither way.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from watcher.decision.metric import Mode
from watcher.decision.rank import rankable
from watcher.decision.smooth import Smoothing, make_smoother
from watcher.types import ScoredCheckpoint

# In the order in which they are looked at: what is certain comes before what is patience.
REASONS = (
    "target",
    "diverged",
    "not_finite",
    "max_steps",
    "max_hours",
    "patience",
    "patience_steps",
    "plateau",
)


@dataclass(frozen=True, slots=True)
class StopPolicy:
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
    max_steps: int | None = None
    max_hours: float | None = None
    smoothing: Smoothing | None = None
    resumed_step: int = -1
    generation: int = 1

    @property
    def is_on(self) -> bool:
        """True when any rule is switched on."""
        counts = (self.patience, self.patience_steps, self.max_not_finite, self.max_steps)
        figures = (self.target, self.divergence, self.plateau_std, self.max_hours)
        return any(rule is not None for rule in (*counts, *figures))


@dataclass(frozen=True, slots=True)
class StopDecision:
    """Why training should stop, as of the evaluation at `global_step`.

    `best` is the best of all, which may be a later one than the last improvement that the
    message names: gains up to min_delta are no improvement, but they are gains.
    """

    reason: str
    message: str
    global_step: int
    best: ScoredCheckpoint | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as it stands now.

    Attributes:
        reason: Its code, one of `REASONS`.
        fires: True when it would end the run, `min_steps` and `min_evaluations` apart.
        message: What it says, for people.
        guarded: True when it waits for `min_steps` and `min_evaluations`.
        left: What is left of it, `2 more evaluations`; empty when that is no count, or it fires.
    """

    reason: str
    fires: bool
    message: str
    guarded: bool = True
    left: str = ""


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
        not_finite: Checkpoints at the end of the walk whose numbers are not finite.
        reached: The step up to which rows came, those that cannot rank among them.
    """

    def __init__(self, policy: StopPolicy) -> None:
        self._policy = policy
        self._smoother = make_smoother(policy.smoothing)
        self._order = (-1, -1)
        self.evaluations = 0
        self.best: ScoredCheckpoint | None = None
        self.last: ScoredCheckpoint | None = None
        self.improved: ScoredCheckpoint | None = None
        self.reference = 0.0
        self.smoothed = 0.0
        self.since = 0
        self.recent: deque[float] = deque(maxlen=policy.plateau_window)
        self.not_finite = 0
        self.reached = -1

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
        self.last, self.smoothed = row, self._smoother.add(row.score)
        if self.best is None or self.sign * (row.score - (self.best.score or 0.0)) > 0:
            self.best = row
        if self.improved is None or self._improves(self.smoothed):
            self.improved, self.reference, self.since = row, self.smoothed, 0
        else:
            self.since += counts
        if counts:
            self.recent.append(self.smoothed)

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


def should_stop(
    rows: Iterable[ScoredCheckpoint], policy: StopPolicy, *, hours: float = 0.0
) -> StopDecision | None:
    """Decide whether the run should stop, from the rows alone.

    Args:
        rows: Evaluations of one fingerprint, in any order. Those of the newest generation decide.
        policy: The settings of this moment. Nothing is remembered from an earlier decision.
        hours: How long that generation has lasted.

    Returns:
        The decision with its reason code, or None to go on.
    """
    return decide(walk(rows, policy), policy, hours=hours)


def decide(walked: Walk, policy: StopPolicy, *, hours: float = 0.0) -> StopDecision | None:
    """Decide at the end of a walk; see `should_stop`."""
    if walked.reached <= policy.resumed_step and walked.reached >= 0:
        return None
    early = too_early(walked, policy)
    for rule in rules(walked, policy, hours=hours):
        if rule.fires and not (early and rule.guarded):
            return StopDecision(rule.reason, rule.message, max(walked.reached, 0), walked.best)
    return None


def too_early(walked: Walk, policy: StopPolicy) -> str | None:
    """Say why no rule about scores may fire yet, None when they may."""
    step = walked.last.global_step if walked.last else 0
    if step < policy.min_steps:
        return f"step {step} of min_steps {policy.min_steps}"
    if walked.evaluations < policy.min_evaluations:
        return f"{walked.evaluations} of min_evaluations {policy.min_evaluations}"
    return None


def rules(walked: Walk, policy: StopPolicy, *, hours: float = 0.0) -> list[Rule]:
    """Look at each rule that is switched on, in the order of `REASONS`."""
    found = [rule for look in _SCORE_RULES if walked.last for rule in look(walked, policy)]
    found += _not_finite(walked, policy)
    if policy.max_steps is not None:
        message = f"step {max(walked.reached, 0)} of max_steps {policy.max_steps}"
        fires = walked.reached >= policy.max_steps
        found.append(Rule("max_steps", fires, message, guarded=False))
    if policy.max_hours is not None:
        message = f"{hours:.2f} hours of max_hours {policy.max_hours:g}"
        found.append(Rule("max_hours", hours >= policy.max_hours, message, guarded=False))
    return sorted(found, key=lambda rule: REASONS.index(rule.reason))


def patience_left(walked: Walk, policy: StopPolicy) -> dict[str, int]:
    """Return what is left of the patience: `evaluations`, `steps`; only what is switched on.

    Once it is 0 the run stops, unless `min_steps` or `min_evaluations` hold that back.
    """
    left = {}
    if policy.patience is not None:
        left["evaluations"] = policy.patience - walked.since
    if policy.patience_steps is not None:
        left["steps"] = policy.patience_steps - _steps_since(walked, policy)
    return {unit: max(number, 0) for unit, number in left.items()}


def _steps_since(walked: Walk, policy: StopPolicy) -> int:
    if walked.last is None or walked.improved is None:
        return 0
    since = max(walked.improved.global_step, policy.resumed_step)
    return max(walked.last.global_step - since, 0)


def _target(walked: Walk, policy: StopPolicy) -> list[Rule]:
    if policy.target is None:
        return []
    fires = walked.sign * (walked.smoothed - policy.target) >= 0
    return [Rule("target", fires, f"score {walked.smoothed:.6g} for a target of {policy.target:g}")]


def _diverged(walked: Walk, policy: StopPolicy) -> list[Rule]:
    if policy.divergence is None:
        return []
    fires = walked.sign * (walked.smoothed - policy.divergence) < 0
    limit = f"score {walked.smoothed:.6g} where {policy.divergence:g} means diverged"
    return [Rule("diverged", fires, limit)]


def _not_finite(walked: Walk, policy: StopPolicy) -> list[Rule]:
    limit = policy.max_not_finite
    if limit is None:
        return []
    message = f"{_count(walked.not_finite, 'checkpoint')} in a row not finite, of {limit}"
    return [Rule("not_finite", walked.not_finite >= limit, message, guarded=False)]


def _patience(walked: Walk, policy: StopPolicy) -> list[Rule]:
    if policy.patience is None:
        return []
    since = _count(walked.since, "evaluation")
    message = f"{_no_gain(policy)} in {since} since {_reference(walked, policy)}"
    left = policy.patience - walked.since
    return [Rule("patience", left <= 0, message, left=_left(left, "evaluation"))]


def _patience_steps(walked: Walk, policy: StopPolicy) -> list[Rule]:
    if policy.patience_steps is None:
        return []
    steps = _steps_since(walked, policy)
    message = f"{_no_gain(policy)} in {_count(steps, 'step')} since {_reference(walked, policy)}"
    left = policy.patience_steps - steps
    return [Rule("patience_steps", left <= 0, message, left=_left(left, "step"))]


def _plateau(walked: Walk, policy: StopPolicy) -> list[Rule]:
    if policy.plateau_std is None:
        return []
    count, window = len(walked.recent), policy.plateau_window
    if count < window:
        return [Rule("plateau", False, f"{count} evaluations of the {window} it looks at")]
    deviation = statistics.pstdev(walked.recent)
    message = f"standard deviation {deviation:.3g} over the last {window} scores"
    fires = deviation <= policy.plateau_std
    return [Rule("plateau", fires, f"{message}, {policy.plateau_std:g} means it stands still")]


_SCORE_RULES: tuple[Callable[[Walk, StopPolicy], list[Rule]], ...] = (
    _target,
    _diverged,
    _patience,
    _patience_steps,
    _plateau,
)


def _left(count: int, unit: str) -> str:
    return _count(count, f"more {unit}") if count > 0 else ""


def _count(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"


def _no_gain(policy: StopPolicy) -> str:
    if policy.min_delta_relative:
        return f"no improvement greater than {100 * policy.min_delta:g}%"
    return f"no improvement greater than {policy.min_delta:g}"


def _reference(walked: Walk, policy: StopPolicy) -> str:
    assert walked.improved
    row, score = walked.improved, f"score {walked.improved.score:.6g}"
    if policy.smoothing:
        score += f", smoothed {walked.reference:.6g}"
    said = f"{row.name} (step {row.global_step}, {score})"
    if policy.resumed_step > row.global_step:
        said += f" and the resume at step {policy.resumed_step}"
    return said + _better_since(walked, policy)


def _better_since(walked: Walk, policy: StopPolicy) -> str:
    """Name the best where it is another one than the last improvement, and why it is none."""
    best, improved = walked.best, walked.improved
    if best is None or improved is None or best is improved:
        return ""
    gain = walked.sign * ((best.score or 0.0) - (improved.score or 0.0))
    if gain <= 0:
        return ""
    if policy.smoothing:  # which may hold any single score back, and compares others than these
        return f"; {best.name} is better by {_gain(gain)}, but not once smoothed"
    limit = f"min_delta {policy.min_delta:g}"
    if policy.min_delta_relative:
        limit = f"min_delta {100 * policy.min_delta:g}%, {_gain(walked.needed_gain)}"
    than = "less" if gain < walked.needed_gain else "no more"
    return f"; {best.name} is better by {_gain(gain)}, {than} than {limit}"


def _gain(gain: float) -> str:
    """Write a difference of scores as boards do, without the zeros at its end."""
    return f"{gain:.6f}".rstrip("0") if 5e-7 <= gain < 1 else f"{gain:.6g}"
