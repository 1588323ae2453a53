"""Curve: scores over steps as a small picture of characters.

The points are joined in step order, in braille dots (two by four a character), or in plain ASCII
where the terminal has no others. By hand, since `status` draws it each time: plotext, for which
`plot` asks, takes 20 MiB and 0.1 s to import, and puts its ticks at 3.4e3 and 6.7e3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from watcher.view import picture_columns

Point = tuple[int, float]
Dot = tuple[int, int]

DOTS_WIDE, DOTS_HIGH = 2, 4
_BRAILLE = 0x2800
# Unicode's numbering of the eight dots: by column, then by row from the top.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LEAST_COLUMNS = 8


class Curve:
    """A curve as wide as there is room.

    Attributes:
        points: (global step, score), in step order.
        best: The point that is marked, None for none.
        rows: Lines of characters that the curve itself takes; two more follow for the axis and key.
    """

    def __init__(self, points: Sequence[Point], best: Point | None = None, rows: int = 7) -> None:
        self.points = points
        self.best = best if best in points else None
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw; nothing where there is no point or no room."""
        if not self.points:
            return
        low, high = _range([score for _, score in self.points])
        top, bottom = number(high, high - low), number(low, high - low)
        margin = max(len(top), len(bottom))
        room = picture_columns(options.max_width)
        columns = room - margin - 3
        if columns < _LEAST_COLUMNS:
            return
        marked = "#" if options.ascii_only else "◆"
        for row, line in enumerate(self.lines(columns, marked, ascii_only=options.ascii_only)):
            label = top if row == 0 else bottom if row == self.rows - 1 else ""
            side = " | " if options.ascii_only else " │ "
            text = Text.assemble((f"{label:>{margin}}{side}", "dim"), no_wrap=True)
            for character in line:
                text.append(character, "bold yellow" if character == marked else "cyan")
            yield text
        first, last = (f"step {self.points[place][0]}" for place in (0, -1))
        gap = columns - len(first) - len(last)
        axis = f"{first}{' ' * gap}{last}" if gap > 0 and first != last else first
        yield Text(" " * (margin + 3) + axis, style="dim", no_wrap=True)
        if self.best:
            key = f"{marked} best: {number(self.best[1], high - low)} at step {self.best[0]}"
            yield Text(" " * min(margin + 3, max(room - len(key), 0)) + key)

    def lines(self, columns: int, marked: str, *, ascii_only: bool = False) -> list[str]:
        """Return the characters of the curve, a string a row, without labels."""
        fine = (1, 1) if ascii_only else (DOTS_WIDE, DOTS_HIGH)
        wide, high = columns * fine[0], self.rows * fine[1]
        cells: dict[Dot, int] = {}
        for x, y in drawn_dots(self.points, wide, high):
            down = high - 1 - y
            cell = (x // fine[0], down // fine[1])
            bit = 1 if ascii_only else _BITS[x % fine[0]][down % fine[1]]
            cells[cell] = cells.get(cell, 0) | bit
        drawn = [
            [_character(cells.get((x, row), 0), ascii_only) for x in range(columns)]
            for row in range(self.rows)
        ]
        if self.best:
            x, y = placed(self.points, wide, high)[self.points.index(self.best)]
            drawn[(high - 1 - y) // fine[1]][x // fine[0]] = marked
        return ["".join(row) for row in drawn]


def placed(points: Sequence[Point], wide: int, high: int) -> list[Dot]:
    """Return the dot of each point: x from the left, y from the bottom.

    The first and the last step are at the sides, the least and the greatest score at the bottom and
    the top. A single step is at the left, scores that are all the same are half-way up.
    """
    steps = [step for step, _ in points]
    first, last = min(steps), max(steps)
    low, high_score = _range([score for _, score in points])
    return [
        (
            round((step - first) / (last - first) * (wide - 1)) if last > first else 0,
            round((score - low) / (high_score - low) * (high - 1)),
        )
        for step, score in points
    ]


def drawn_dots(points: Sequence[Point], wide: int, high: int) -> set[Dot]:
    """Return every dot of the curve: those of the points, and the straight lines between them."""
    dots = placed(points, wide, high)
    found = set(dots)
    for here, there in pairwise(dots):
        found.update(_line(here, there))
    return found


def number(value: float, span: float) -> str:
    """Return a score as text, precise enough to tell apart values that differ by `span`."""
    if 0 < span < 0.001:
        return f"{value:.6f}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def _range(scores: Sequence[float]) -> tuple[float, float]:
    low, high = min(scores), max(scores)
    if low < high:
        return low, high
    margin = abs(low) * 0.05 or 0.05
    return low - margin, low + margin


def _line(here: Dot, there: Dot) -> Iterator[Dot]:
    wide, high = there[0] - here[0], there[1] - here[1]
    length = max(abs(wide), abs(high), 1)
    for part in range(length + 1):
        yield here[0] + round(wide * part / length), here[1] + round(high * part / length)


def _character(bits: int, ascii_only: bool) -> str:
    if not bits:
        return " "
    return "*" if ascii_only else chr(_BRAILLE + bits)
