"""Ticks: round numbers for an axis in the terminal. Pure.

By hand, since plotext divides an axis evenly (its steps stand at 3.4e3 and 6.7e3), and matplotlib's
locator bounds intervals instead of labels, so that a narrow terminal gets too few of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


def round_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return at most so many round numbers from `low` to `high`, evenly apart.

    Args:
        low: The least value.
        high: The greatest value.
        most: How many there may be, at least 2; `low` alone where both are the same.
        whole: Only whole numbers.
    """
    if high <= low:
        return [low]
    for apart in _distances((high - low) / max(most, 2), whole=whole):
        first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
        if last - first + 1 <= max(most, 2):
            return [place * apart for place in range(first, last + 1)]
    raise AssertionError("a distance larger than the axis is enough")


def tick_labels(ticks: list[float]) -> list[str]:
    """Return ticks as text of the same precision, thousands kept apart."""
    apart = min((b - a for a, b in pairwise(ticks)), default=0.0)
    size = apart or abs(ticks[0]) or 1.0
    digits = max(0, -math.floor(math.log10(size) + 1e-9))
    if any(abs(round(tick, digits) - tick) > size * 1e-6 for tick in ticks):
        digits += 1  # 0.25 apart
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _distances(least: float, *, whole: bool) -> Iterator[float]:
    power = math.floor(math.log10(least))
    while True:
        for part in _ROUND[:-1]:
            apart = part * 10.0**power
            if apart >= least * (1 - 1e-9) and not (whole and apart != int(apart)):
                yield apart
        power += 1
