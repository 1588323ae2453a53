"""Trend: how fast scores still rise, and how fast they may rise at most. Pure.

A straight line through the last scores by ordinary least squares over the steps: its slope is
b = sum((x - mean x) (y - mean y)) / Sxx with Sxx = sum((x - mean x)^2), the slope's standard error
s = sqrt(sum of squared residuals / (n - 2) / Sxx), and with independent normal residuals (b - beta)
/ s has Student's t distribution with n - 2 degrees of freedom (Draper and Smith, Applied Regression
Analysis, 3rd ed., section 1.4). So b + t(0.8, n - 2) s is the upper bound of the slope, one-sided,
at 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec

CONFIDENCE = 0.8
# Fewer leave no residual to tell the noise from.
FEWEST = 3


class Trend(msgspec.Struct, frozen=True):
    """The slope of scores, and what it is at most; per evaluation, as far apart as these are."""

    slope: float
    bound: float


def fit(points: Sequence[tuple[int, float]]) -> Trend | None:
    """Fit a line through (global step, score) pairs, in step order, so that larger is better.

    A gap between two evaluations counts as what it is, since the line is over the steps; what is
    returned is per mean distance of two evaluations.

    Returns:
        None where there are fewer than `FEWEST`, or all are of one step.
    """
    count = len(points)
    if count < FEWEST:
        return None
    middle = math.fsum(step for step, _ in points) / count
    mean = math.fsum(score for _, score in points) / count
    spread = math.fsum((step - middle) ** 2 for step, _ in points)
    if not spread:
        return None
    slope = math.fsum((step - middle) * (score - mean) for step, score in points) / spread
    squares = math.fsum((score - mean - slope * (step - middle)) ** 2 for step, score in points)
    error = math.sqrt(squares / (count - 2) / spread)
    apart = (points[-1][0] - points[0][0]) / (count - 1)
    return Trend(slope * apart, (slope + t_quantile(CONFIDENCE, count - 2) * error) * apart)


@lru_cache(maxsize=64)
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t, for a probability from 0.5 to below 1.

    By bisection of the distribution function, to the last digits of a float.
    """
    low, high = 0.0, math.pi / 2
    while True:
        angle = (low + high) / 2
        if angle in (low, high):
            return math.sqrt(freedom) * math.tan(angle)
        if 0.5 + _within(angle, freedom) / 2 < probability:
            low = angle
        else:
            high = angle


def _within(angle: float, freedom: int) -> float:
    """Return P(|T| <= sqrt(freedom) tan(angle)).

    A finite sum where the degrees of freedom are whole: Abramowitz and Stegun, Handbook of
    Mathematical Functions, 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for factor in range(1 + odd, freedom, 2):
        total += term
        term *= factor / (factor + 1) * cosine * cosine
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
