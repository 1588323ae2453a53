"""The line through the last scores, and how sure its slope is."""

from __future__ import annotations

import random
from statistics import NormalDist

import pytest
from ranked import row

from watcher.decision.stop import rules
from watcher.decision.trend import CONFIDENCE, fit, t_quantile
from watcher.decision.walk import StopPolicy, walk


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [  # NIST/SEMATECH e-Handbook, 1.3.6.7.2, and Fisher and Yates' table for 0.8
        (0.80, 1, 1.376382),
        (0.80, 2, 1.060660),
        (0.80, 3, 0.978472),
        (0.80, 8, 0.888890),
        (0.90, 5, 1.476),
        (0.95, 1, 6.313752),
        (0.95, 10, 1.812461),
        (0.975, 4, 2.776445),
        (0.975, 30, 2.042272),
        (0.999, 2, 22.327),
        (0.5, 7, 0.0),
    ],
)
def test_the_quantile_is_the_one_in_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


def test_with_many_degrees_of_freedom_the_quantile_is_the_normal_one():
    assert t_quantile(0.8, 100_001) == pytest.approx(NormalDist().inv_cdf(0.8), abs=1e-5)
    assert t_quantile(0.8, 100_000) == pytest.approx(NormalDist().inv_cdf(0.8), abs=1e-5)


def test_a_line_and_its_bound_are_those_of_a_textbook():
    # x 1..5, y 2 4 5 4 5: b = 6/10, residual sum of squares 2.4, s = sqrt(2.4 / 3 / 10).
    found = fit([(1, 2.0), (2, 4.0), (3, 5.0), (4, 4.0), (5, 5.0)])
    assert found
    assert found.slope == pytest.approx(0.6)
    assert found.bound == pytest.approx(0.6 + 0.978472 * 0.08**0.5, abs=1e-6)


def test_a_gap_counts_as_what_it_is_and_the_gain_is_per_mean_distance():
    found = fit([(100, 0.1), (200, 0.2), (500, 0.5)])
    assert found
    assert found.slope == pytest.approx(0.2)
    assert found.bound == pytest.approx(0.2)


def test_too_few_scores_or_those_of_one_step_have_no_line():
    assert fit([(1, 0.1), (2, 0.2)]) is None
    assert fit([(7, 0.1), (7, 0.2), (7, 0.3)]) is None


def test_the_true_slope_lies_below_the_bound_as_often_as_it_says():
    chance, below = random.Random(18), 0
    for _ in range(2000):
        found = fit([(100 * n, 0.003 * n + chance.gauss(0, 0.01)) for n in range(10)])
        assert found
        below += found.bound >= 0.003
    assert below / 2000 == pytest.approx(CONFIDENCE, abs=0.03)


def test_what_the_rule_says_names_slope_bound_and_limit_and_what_it_still_needs():
    policy = StopPolicy(trend_below=0.01, trend_window=4)
    rows = [row(100 * n, score) for n, score in enumerate((0.4, 0.41, 0.4, 0.41), start=1)]
    (rule,) = rules(walk(rows[:3], policy), policy)
    assert (rule.fires, rule.message) == (False, "3 evaluations of the 4 it looks at")
    (rule,) = rules(walk(rows, policy), policy)
    assert rule.fires
    assert rule.message == (
        "+0.002 per evaluation over the last 4 scores, at most +0.005 (80 %);"
        " below 0.01 means it stands still"
    )


def test_after_a_resume_the_window_begins_anew():
    rows = [row(100 * n, 0.4) for n in range(1, 7)]
    policy = StopPolicy(trend_below=0.01, trend_window=3, resumed_step=400)
    (rule,) = rules(walk(rows, policy), policy)
    assert not rule.fires
    assert rule.message == "2 evaluations of the 3 it looks at"
