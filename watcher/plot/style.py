"""Style: how curves are told apart, by colour, by marker and by kind of line at once."""

from __future__ import annotations

import msgspec

# The colours of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any of the
# usual kinds of colour blindness tell apart; their yellow is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# The nearest of a terminal's 256; the last is the terminal's own, be it dark or light.
TERMINAL_COLOURS = (32, 166, 36, 175, 214, 74, None)
MARKERS = ("o", "s", "^", "D", "v", "P", "<", "p")
LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (1.5, 1.2)),
)


class Look(msgspec.Struct, frozen=True):
    """How one curve looks."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]
    terminal: int | None


def look_of(number: int) -> Look:
    """Return the look of a curve; the first 56 all differ, neighbours in three ways."""
    return Look(
        COLOURS[number % len(COLOURS)],
        MARKERS[number % len(MARKERS)],
        LINES[number % len(LINES)],
        TERMINAL_COLOURS[number % len(COLOURS)],
    )
