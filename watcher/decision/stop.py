"""Stop: decide from the ledger whether training should end. Pure; `sentinel` is its effect.

Nothing latches: the decision is that of the last row of a walk under the settings of this moment,
so other settings, or a later improvement, decide anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import msgspec

from watcher.decision.trend import fit
from watcher.decision.walk import StopPolicy, Walk
from watcher.types import ScoredCheckpoint


class StopDecision(msgspec.Struct, frozen=True):
    """Why training should stop, as of the evaluation at `global_step`.

    `best` is the best of all, which may be a later one than the last improvement that the
    message names: gains up to min_delta are no improvement, but they are gains.
    """

    reason: str
    message: str
    global_step: int
    best: ScoredCheckpoint | None


class Rule(msgspec.Struct, frozen=True):
    """One rule as it stands now.

    Attributes:
        reason: Its code, one of `REASONS`.
        fires: True when it would end the run, `min_steps` and `min_evaluations` apart.
        message: What it says, for people.
        left: What is left of it, `2 more evaluations`; empty when that is no count, or it fires.
        guarded: True when it waits for `min_steps` and `min_evaluations`.
    """

    reason: str
    fires: bool
    message: str
    left: str = ""
    guarded: bool = True


def is_on(policy: StopPolicy) -> bool:
    """True when any rule is switched on."""
    return any(getattr(policy, setting) is not None for setting, *_ in _RULES.values())


def decide(walked: Walk, policy: StopPolicy, *, hours: float = 0.0) -> StopDecision | None:
    """Decide at the end of a walk whether the run should stop, from its rows alone.

    Args:
        walked: Of the newest generation.
        policy: The settings of this moment. Nothing is remembered from an earlier decision.
        hours: How long that generation has lasted.

    Returns:
        The decision with its reason code, or None to go on.
    """
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


def undone_between(decision: StopDecision | None, walked: Walk) -> tuple[int, int] | None:
    """Return the global steps between which a first score may undo a decision, None for none."""
    if decision is None or decision.reason not in _WITHOUT_GAIN:
        return None
    after = walked.improved.global_step if walked.improved else -1
    # Whatever comes into the window changes what it shows.
    if decision.reason == "plateau":
        after = walked.recent_from
    elif decision.reason == "trend":
        after = walked.trend[0][0]
    return after, walked.reached


def rules(walked: Walk, policy: StopPolicy, *, hours: float = 0.0) -> list[Rule]:
    """Look at each rule that is switched on, in the order of `REASONS`."""
    found = []
    for reason, (setting, look, guarded) in _RULES.items():
        limit = getattr(policy, setting)
        if limit is not None and (walked.last or not guarded):
            found.append(Rule(reason, *look(walked, policy, limit, hours), guarded=guarded))
    return found


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


# What one rule says beside its limit: whether it fires, the message, and what is left of it.
_Found = tuple[bool, str, str]


def _target(walked: Walk, _: StopPolicy, limit: float, __: float) -> _Found:
    fires = walked.sign * (walked.smoothed - limit) >= 0
    return fires, f"score {walked.smoothed:.6g} for a target of {limit:g}", ""


def _diverged(walked: Walk, _: StopPolicy, limit: float, __: float) -> _Found:
    fires = walked.sign * (walked.smoothed - limit) < 0
    return fires, f"score {walked.smoothed:.6g} where {limit:g} means diverged", ""


def _not_finite(walked: Walk, _: StopPolicy, limit: int, __: float) -> _Found:
    message = f"{_count(walked.not_finite, 'checkpoint')} in a row not finite, of {limit}"
    return walked.not_finite >= limit, message, ""


def _max_steps(walked: Walk, _: StopPolicy, limit: int, __: float) -> _Found:
    return walked.reached >= limit, f"step {max(walked.reached, 0)} of max_steps {limit}", ""


def _max_hours(_: Walk, __: StopPolicy, limit: float, hours: float) -> _Found:
    return hours >= limit, f"{hours:.2f} hours of max_hours {limit:g}", ""


def _patience(walked: Walk, policy: StopPolicy, limit: int, _: float) -> _Found:
    return _passed(walked, policy, limit, walked.since, "evaluation")


def _patience_steps(walked: Walk, policy: StopPolicy, limit: int, _: float) -> _Found:
    return _passed(walked, policy, limit, _steps_since(walked, policy), "step")


def _passed(walked: Walk, policy: StopPolicy, limit: int, since: int, unit: str) -> _Found:
    message = f"{_no_gain(policy)} in {_count(since, unit)} since {_reference(walked, policy)}"
    left = limit - since
    return left <= 0, message, _count(left, f"more {unit}") if left > 0 else ""


def _plateau(walked: Walk, policy: StopPolicy, limit: float, _: float) -> _Found:
    count, window = len(walked.recent), policy.plateau_window
    if count < window:
        return False, f"{count} evaluations of the {window} it looks at", ""
    deviation = statistics.pstdev(walked.recent)
    message = f"standard deviation {deviation:.3g} over the last {window} scores"
    return deviation <= limit, f"{message}, {limit:g} means it stands still", ""


def _trend(walked: Walk, policy: StopPolicy, limit: float, _: float) -> _Found:
    # Of the scores themselves: smoothed ones depend on each other, and their line looks too sure.
    count, window = len(walked.trend), policy.trend_window
    if count < window:
        return False, f"{count} evaluations of the {window} it looks at", ""
    found = fit(walked.trend)
    if found is None:
        return False, f"the last {window} scores are all of one step", ""
    message = f"{_gained(found.slope)} per evaluation over the last {window} scores"
    message += f", at most {_gained(found.bound)} (80 %); below {limit:g} means it stands still"
    return found.bound < limit, message, ""


def _gained(slope: float) -> str:
    return f"{slope:+.3g}" if slope else "0"


# Reason to the setting that is the limit, the rule, and whether it is about scores, and waits for
# `min_steps` and `min_evaluations`. In the order in which they are looked at: what is certain comes
# before what is patience.
_RULES: dict[str, tuple[str, Callable[[Walk, StopPolicy, Any, float], _Found], bool]] = {
    "target": ("target", _target, True),
    "diverged": ("divergence", _diverged, True),
    "not_finite": ("max_not_finite", _not_finite, False),
    "max_steps": ("max_steps", _max_steps, False),
    "max_hours": ("max_hours", _max_hours, False),
    "patience": ("patience", _patience, True),
    "patience_steps": ("patience_steps", _patience_steps, True),
    "plateau": ("plateau_std", _plateau, True),
    "trend": ("trend_below", _trend, True),
}
REASONS = tuple(_RULES)
# What a better score of a checkpoint between would undo.
_WITHOUT_GAIN = ("patience", "patience_steps", "plateau", "trend")


def _count(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"


def _no_gain(policy: StopPolicy) -> str:
    return f"no improvement greater than {_delta(policy)}"


def _delta(policy: StopPolicy) -> str:
    relative = policy.min_delta_relative
    return f"{100 * policy.min_delta:g}%" if relative else f"{policy.min_delta:g}"


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
    limit = f"min_delta {_delta(policy)}"
    if policy.min_delta_relative:
        limit += f", {_gain(walked.needed_gain)}"
    than = "less" if gain < walked.needed_gain else "no more"
    return f"; {best.name} is better by {_gain(gain)}, {than} than {limit}"


def _gain(gain: float) -> str:
    """Write a difference of scores as boards do, without the zeros at its end."""
    return f"{gain:.6f}".rstrip("0") if 5e-7 <= gain < 1 else f"{gain:.6g}"
