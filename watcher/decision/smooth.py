"""Smoothing of the score that stopping looks at, so that one lucky spike decides nothing.

`ema:W` is the exponential moving average with weight W of the past (0 <= W < 1), with the bias of
its beginning taken out: s_n = W s_(n-1) + (1-W) x_n, divided by 1 - W^n. That is what TensorBoard
draws with its smoothing slider at W. `median:N` is the median of the last N scores.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec


class Smoothing(msgspec.Struct, frozen=True):
    """How scores are smoothed: `ema` with a weight of the past, or `median` of the last so many."""

    kind: Literal["ema", "median"]
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}"

    @property
    def reach(self) -> float:
        """How many scores a smoothed one is made of, infinite for all so far."""
        return self.amount if self.kind == "median" else math.inf


def parse_smoothing(text: str | None) -> Smoothing | None:
    """Parse `none`, `ema:0.6` or `median:3`; raises ValueError with the rule."""
    if text is None or text == "none":
        return None
    match = re.fullmatch(r"(ema|median):([0-9.]+)", text)
    try:
        amount = float(match[2]) if match else -1.0
    except ValueError:
        amount = -1.0
    if match and match[1] == "ema" and 0 <= amount < 1:
        return Smoothing("ema", amount)
    if match and match[1] == "median" and amount >= 1 and amount.is_integer():
        return Smoothing("median", amount)
    raise ValueError("expected none, ema:W with 0 <= W < 1, or median:N with N >= 1")


def make_smoother(smoothing: Smoothing | None) -> Callable[[float], float]:
    """Return what takes scores in step order, one a call, and gives the smoothed one after each."""
    if smoothing is None:
        return lambda score: score
    if smoothing.kind == "ema":
        return _average(smoothing.amount)
    last: deque[float] = deque(maxlen=int(smoothing.amount))

    def median(score: float) -> float:
        last.append(score)
        return statistics.median(last)

    return median


def _average(weight: float) -> Callable[[float], float]:
    total, bias = 0.0, 1.0

    def average(score: float) -> float:
        nonlocal total, bias
        total = weight * total + (1 - weight) * score
        bias *= weight
        return total / (1 - bias)

    return average
