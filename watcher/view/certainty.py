"""Certainty: how a score's interval and its standing are said. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def has_interval(row: Row) -> bool:
    """Tell whether an evaluation's score has an interval."""
    return row.get("low") is not None


def interval_text(row: Row, places: int) -> str:
    """Return a score's interval, empty where it has none."""
    if not has_interval(row):
        return ""
    return f"{row['low']:.{places}f}-{row['high']:.{places}f}"


def ranks_text(row: Row) -> str:
    """Return the ranks that a checkpoint may have, such as `1-4, tie`; empty where unknown."""
    low, high = row.get("rank_low"), row.get("rank_high")
    if low is None or high is None:
        return ""
    ranks = str(low) if low == high else f"{low}-{high}"
    return f"{ranks}, tie" if row["tied"] and high > 1 else ranks


def share_text(share: float | None) -> str:
    """Return a probability in percent; one that is neither 0 nor 1 is not shown as that."""
    if share is None:
        return ""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{100 * share:.0f} %"


def tie_text(best: Row, ties: Sequence[Row]) -> str | None:
    """Say which checkpoints are as good as the best one, None where that is not known.

    Args:
        best: A row of the view `best`.
        ties: Those of the view `ties`.
    """
    if best.get("p_best") is None:
        return None
    others = [row["checkpoint"] for row in ties if row["tied"]]
    if best["checkpoint"] in others:
        others.remove(best["checkpoint"])
    first = f"the first in {share_text(best['p_best'])} of eval sets drawn from this one"
    if not others:
        return f"{first}; no other is as good"
    shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return f"{first}; this eval set cannot tell it from {shown}"
