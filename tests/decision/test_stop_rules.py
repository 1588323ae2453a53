"""Every rule of stopping, against definitions that know no walk, and in any order of arrival."""

from __future__ import annotations

import dataclasses
import random
import statistics

import msgspec
import pytest
from decided import should_stop
from hypothesis import given
from hypothesis import strategies as st
from ranked import row

from watcher.decision.rank import rankable
from watcher.decision.smooth import Smoothing, make_smoother, parse_smoothing
from watcher.decision.stop import REASONS, decide, rules, undone_between
from watcher.decision.walk import StopPolicy, walk


def ledger(*scores: float | None) -> list:
    return [row(100 * n, score) for n, score in enumerate(scores, start=1)]


def reason(rows: list, policy: StopPolicy, **given: float) -> str | None:
    decision = should_stop(rows, policy, **given)
    return decision.reason if decision else None


@pytest.mark.parametrize(
    ("scores", "policy", "expected"),
    [
        ((0.1, 0.4), StopPolicy(target=0.4), "target"),
        ((0.1, 0.3), StopPolicy(target=0.4), None),
        ((0.4, 0.3), StopPolicy(target=0.4), None),
        ((0.9, 0.4), StopPolicy(mode="min", target=0.5), "target"),
        ((0.4, 0.04), StopPolicy(divergence=0.05), "diverged"),
        ((0.4, 0.05), StopPolicy(divergence=0.05), None),
        ((1.0, 9.0), StopPolicy(mode="min", divergence=5), "diverged"),
        ((0.4, 0.4, 0.4), StopPolicy(patience_steps=200), "patience_steps"),
        ((0.4, 0.4), StopPolicy(patience_steps=200), None),
        ((0.4, 0.41, 0.4, 0.41), StopPolicy(plateau_std=0.01, plateau_window=4), "plateau"),
        ((0.4, 0.41, 0.4), StopPolicy(plateau_std=0.01, plateau_window=4), None),
        ((0.1, 0.4, 0.41, 0.4, 0.41), StopPolicy(plateau_std=0.01, plateau_window=4), "plateau"),
        ((0.1, 0.4, 0.41, 0.4), StopPolicy(plateau_std=0.01, plateau_window=4), None),
        ((0.4, 0.41, 0.42), StopPolicy(trend_below=0.02, trend_window=3), "trend"),
        ((0.4, 0.41, 0.42), StopPolicy(trend_below=0.01, trend_window=3), None),
        ((0.4, 0.42, 0.41), StopPolicy(trend_below=0.02, trend_window=3), "trend"),
        ((0.4, 0.43, 0.41), StopPolicy(trend_below=0.02, trend_window=3), None),
        ((0.4, 0.41), StopPolicy(trend_below=1, trend_window=3), None),
        ((0.9, 0.8, 0.7), StopPolicy(mode="min", trend_below=0.2, trend_window=3), "trend"),
        ((0.9, 0.8, 0.7), StopPolicy(mode="min", trend_below=0.1, trend_window=3), None),
        ((0.7, 0.8, 0.9), StopPolicy(mode="min", trend_below=0.0, trend_window=3), "trend"),
        ((0.4, None, 0.4, -1.0, 0.4), StopPolicy(trend_below=0.1, trend_window=3), "trend"),
        ((0.4, 0.4, 0.4), StopPolicy(trend_below=0.1, trend_window=3, min_steps=400), None),
        ((0.1, 0.2, 0.3), StopPolicy(max_steps=300), "max_steps"),
        ((0.1, 0.2), StopPolicy(max_steps=300), None),
        ((0.1, None, None), StopPolicy(max_steps=300), "max_steps"),
        ((0.4, 0.403), StopPolicy(patience=1, min_delta=0.01, min_delta_relative=True), "patience"),
        ((0.4, 0.405), StopPolicy(patience=1, min_delta=0.01, min_delta_relative=True), None),
        ((0.4, 0.3), StopPolicy(patience=1, min_evaluations=3), None),
        ((0.4, 0.3, 0.2), StopPolicy(patience=1, min_evaluations=3), "patience"),
        ((0.9, 0.9), StopPolicy(target=0.5, min_steps=300), None),
        ((0.9, 0.9), StopPolicy(max_steps=100, min_steps=300), "max_steps"),
    ],
)
def test_each_rule_fires_where_it_says_and_not_before(scores, policy, expected):
    assert reason(ledger(*scores), policy) == expected


def test_the_time_that_a_run_may_take_ends_it_whatever_was_evaluated():
    policy = StopPolicy(max_hours=2, min_steps=1000)
    assert reason(ledger(0.1), policy, hours=1.99) is None
    assert reason(ledger(0.1), policy, hours=2.0) == "max_hours"
    assert reason([], policy, hours=2.0) == "max_hours"


def test_checkpoints_in_a_row_that_are_not_finite_stop_and_a_scored_one_between_does_not():
    bad = [dataclasses.replace(one, not_finite=True) for one in ledger(None, None, None)]
    policy = StopPolicy(max_not_finite=2)
    assert reason([bad[0], row(150, 0.1), bad[1]], policy) is None
    assert reason([*bad[:2], row(50, 0.1)], policy) == "not_finite"
    assert reason(bad, StopPolicy(patience=1)) is None


def test_of_several_rules_that_fire_the_certain_one_is_named():
    every = StopPolicy(
        patience=1, patience_steps=1, target=0.3, max_steps=100, plateau_std=1, plateau_window=2
    )
    found = rules(walk(ledger(0.4, 0.3), every), every)
    assert [rule.reason for rule in found] == [r for r in REASONS if r in {x.reason for x in found}]
    assert all(rule.fires for rule in found)
    assert reason(ledger(0.4, 0.3), every) == "target"


@pytest.mark.parametrize(
    ("policy", "after"),
    [
        (StopPolicy(patience=2, min_delta=0.2), 100),
        (StopPolicy(plateau_std=0.1, plateau_window=3), 400),
        (StopPolicy(plateau_std=0.1, plateau_window=3, smoothing=Smoothing("median", 2)), 300),
        (StopPolicy(plateau_std=0.1, plateau_window=3, smoothing=Smoothing("ema", 0.5)), -1),
        (StopPolicy(trend_below=0.1, trend_window=4), 300),
        (StopPolicy(max_steps=100), None),
        (StopPolicy(target=0.4), None),
        (StopPolicy(patience=20), None),
    ],
)
def test_a_first_score_may_undo_a_stop_where_the_rule_looks_and_nowhere_else(policy, after):
    walked = walk(ledger(0.4, 0.41, 0.42, 0.43, 0.44, 0.45), policy)
    between = undone_between(decide(walked, policy), walked)
    assert between == (None if after is None else (after, 600))


def test_one_lucky_spike_neither_stops_nor_prolongs_a_smoothed_run():
    spike = ledger(0.30, 0.31, 0.60, 0.32, 0.33, 0.34)
    assert reason(spike, StopPolicy(patience=3)) == "patience"
    assert reason(spike, StopPolicy(patience=3, smoothing=Smoothing("median", 3))) is None
    assert reason(spike[:3], StopPolicy(target=0.5)) == "target"
    assert reason(spike[:3], StopPolicy(target=0.5, smoothing=Smoothing("median", 3))) is None


def test_an_average_is_the_one_that_tensorboard_draws():
    smoother = make_smoother(parse_smoothing("ema:0.5"))
    # By hand: 0.5 / 0.5, (0.25 + 1) / 0.75, (0.625 + 2) / 0.875.
    assert [smoother(x) for x in (1.0, 2.0, 4.0)] == pytest.approx([1.0, 5 / 3, 3.0])


@pytest.mark.parametrize(
    "text", ["ema", "ema:1", "ema:-0.1", "ema:1.2.3", "median:0", "median:2.5"]
)
def test_what_is_no_smoothing_is_refused_with_the_rule(text):
    with pytest.raises(ValueError, match="expected none, ema:W"):
        parse_smoothing(text)


def test_after_a_resume_nothing_before_it_stops_and_patience_counts_from_it():
    rows = ledger(0.5, 0.1, 0.1, 0.1, 0.1)
    policy = StopPolicy(patience=2)
    assert reason(rows[:3], policy) == "patience"
    resumed = msgspec.structs.replace(policy, resumed_step=300)
    assert [reason(rows[:n], resumed) for n in (3, 4, 5)] == [None, None, "patience"]
    steps = StopPolicy(patience_steps=200, resumed_step=300)
    assert [reason(rows[:n], steps) for n in (3, 4, 5)] == [None, None, "patience_steps"]
    target = StopPolicy(target=0.05, resumed_step=300)
    assert [reason(rows[:n], target) for n in (3, 4)] == [None, "target"]
    plateau = StopPolicy(plateau_std=1, plateau_window=2, resumed_step=300)
    assert [reason(rows[:n], plateau) for n in (3, 4, 5)] == [None, None, "plateau"]


SCORES = st.lists(
    st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.625, 0.75])), max_size=9
)
POLICIES = st.builds(
    StopPolicy,
    mode=st.sampled_from(["max", "min"]),
    patience=st.none() | st.integers(1, 4),
    patience_steps=st.none() | st.integers(100, 400),
    min_delta=st.sampled_from([0.0, 0.125, 0.25]),
    min_delta_relative=st.booleans(),
    min_steps=st.sampled_from([0, 300]),
    min_evaluations=st.integers(0, 3),
    target=st.none() | st.sampled_from([0.25, 0.75]),
    divergence=st.none() | st.sampled_from([0.25, 0.5]),
    plateau_std=st.none() | st.sampled_from([0.0, 0.125]),
    plateau_window=st.integers(2, 4),
    trend_below=st.none() | st.sampled_from([0.0, 0.125]),
    trend_window=st.integers(3, 5),
    max_steps=st.none() | st.sampled_from([300, 700]),
    resumed_step=st.sampled_from([-1, 200, 500]),
)


def fires_by_definition(rows: list, policy: StopPolicy) -> set[str]:
    """Which rules fire, from their definitions and the whole list, without a walk."""
    if not rows or rows[-1].global_step <= policy.resumed_step:
        return set()
    fires = set()
    if policy.max_steps is not None and rows[-1].global_step >= policy.max_steps:
        fires.add("max_steps")
    good = [one for one in rows if rankable(one.score)]
    if not good or good[-1].global_step < policy.min_steps:
        return fires
    if len(good) < policy.min_evaluations:
        return fires

    def better(a: float, b: float) -> float:
        return a - b if policy.mode == "max" else b - a

    last, best = good[-1], good[0]
    for one in good:
        needed = policy.min_delta * (abs(best.score) if policy.min_delta_relative else 1)
        if better(one.score, best.score) > needed:
            best = one
    after = [one for one in good if one.global_step > max(best.global_step, policy.resumed_step)]
    if policy.patience is not None and len(after) >= policy.patience:
        fires.add("patience")
    waited = last.global_step - max(best.global_step, policy.resumed_step)
    if policy.patience_steps is not None and waited >= policy.patience_steps:
        fires.add("patience_steps")
    if policy.target is not None and better(last.score, policy.target) >= 0:
        fires.add("target")
    if policy.divergence is not None and better(last.score, policy.divergence) < 0:
        fires.add("diverged")
    window = [one.score for one in good if one.global_step > policy.resumed_step]
    window = window[-policy.plateau_window :]
    full = len(window) == policy.plateau_window
    if policy.plateau_std is not None and full and statistics.pstdev(window) <= policy.plateau_std:
        fires.add("plateau")
    if policy.trend_below is not None:
        recent = [one for one in good if one.global_step > policy.resumed_step]
        recent = recent[-policy.trend_window :]
        if len(recent) == policy.trend_window and highest_gain(recent, policy) < policy.trend_below:
            fires.add("trend")
    return fires


# The quantile at 0.8 of Student's t by degrees of freedom, as tables have it.
T_80 = {1: 1.376, 2: 1.061, 3: 0.978, 8: 0.889}


def highest_gain(rows: list, policy: StopPolicy) -> float:
    """The upper bound of the gain per evaluation, by the standard library's line."""
    sign = 1 if policy.mode == "max" else -1
    steps, scores = [one.global_step for one in rows], [sign * one.score for one in rows]
    slope, intercept = statistics.linear_regression(steps, scores)
    wrong = [y - intercept - slope * x for x, y in zip(steps, scores, strict=True)]
    freedom = len(rows) - 2
    spread = statistics.pvariance(steps) * len(rows)
    error = (sum(one * one for one in wrong) / freedom / spread) ** 0.5
    return (slope + T_80[freedom] * error) * (steps[-1] - steps[0]) / (len(rows) - 1)


@given(SCORES, POLICIES, st.randoms(use_true_random=False))
def test_the_decision_is_that_of_the_definitions_in_whatever_order_the_rows_come(
    scores, policy, chance: random.Random
):
    rows = ledger(*scores)
    fires = fires_by_definition(rows, policy)
    shuffled = rows[:]
    chance.shuffle(shuffled)
    assert reason(shuffled, policy) == next((one for one in REASONS if one in fires), None)
