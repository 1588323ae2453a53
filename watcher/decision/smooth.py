"""Smoothing of the score that stopping looks at, so that one lucky spike decides nothing.

`ema:W` is the exponential moving average with weight W of the past (0 <= W < 1), with the bias of
its beginning taken out: s_n = W s_(n-1) + (1-W) x_n, divided by 1 - W^n. That is what TensorBoard
draws with its smoothing slider at W. `median:N` is the median of the last N scores.
"""

from __future__ import annotations

import re
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How scores are smoothed: `ema` with a weight of the past, or `median` of the last so many."""

    kind: Literal["ema", "median"]
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}"


class Smoother(Protocol):
    """Takes scores in step order and gives the smoothed one after each."""

    def add(self, score: float) -> float:
        """Add a score and return the smoothed one."""


class _Plain:
    def add(self, score: float) -> float:
        return score


class _Average:
    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._sum = 0.0
        self._bias = 1.0

    def add(self, score: float) -> float:
        self._sum = self._weight * self._sum + (1 - self._weight) * score
        self._bias *= self._weight
        return self._sum / (1 - self._bias)


class _Median:
    def __init__(self, window: int) -> None:
        self._last: deque[float] = deque(maxlen=window)

    def add(self, score: float) -> float:
        self._last.append(score)
        return statistics.median(self._last)


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


def make_smoother(smoothing: Smoothing | None) -> Smoother:
    """Return a smoother that has seen nothing yet."""
    if smoothing is None:
        return _Plain()
    if smoothing.kind == "ema":
        return _Average(smoothing.amount)
    return _Median(int(smoothing.amount))
