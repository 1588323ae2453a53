"""The rows that benchmarks give, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        what: What was measured, and how often.
        measured: The figures with their units.
        against: The figure of the alternative in the same run, if there is one.
        ratio: The ratio to it, in words.
    """

    what: str
    measured: str
    against: str = ""
    ratio: str = ""


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | measured | against | ratio |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.against} | {row.ratio} |" for row in rows]
    return "\n".join(lines)


def goal(
    ratio: float, words: str, at_least: float | None = None, at_most: float | None = None
) -> str:
    """Return the ratio in words, with the goal where there is one; a missed one stands out."""
    text = f"{ratio:.3g} {words}"
    if at_least is not None:
        met, rule = ratio >= at_least, f"at least {at_least}"
    elif at_most is not None:
        met, rule = ratio <= at_most, f"at most {at_most}"
    else:
        return text
    return f"{text} (goal {rule})" if met else f"**{text}** (goal {rule}: missed)"
