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
