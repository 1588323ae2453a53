"""The score curve: what it shows is checked dot by dot against the rows it was drawn from."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import pytest
from rich.console import Console

from watcher.view.curve import Curve

COLUMNS, ROWS = 60, 7
BLANK = 0x2800
# Unicode chart "Braille Patterns": dots 1 2 3 7 are the left column from the top, 4 5 6 8 the
# right.
DOTS = {1: (0, 0), 2: (0, 1), 3: (0, 2), 7: (0, 3), 4: (1, 0), 5: (1, 1), 6: (1, 2), 8: (1, 3)}


def dots_of(lines: list[str]) -> set[tuple[int, int]]:
    """Every raised dot: x from the left, y from the bottom."""
    found = set()
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            bits = ord(character) - BLANK if character != " " else 0
            for number, (x, y) in DOTS.items():
                if bits & 1 << (number - 1):
                    found.add((2 * column + x, 4 * (len(lines) - row) - 1 - y))
    return found


def exact(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Where each point belongs, not rounded."""
    steps, scores = zip(*points, strict=True)
    wide, high = max(steps) - min(steps), max(scores) - min(scores)
    return [
        ((s - min(steps)) / wide * (2 * COLUMNS - 1), (v - min(scores)) / high * (4 * ROWS - 1))
        for s, v in points
    ]


def height_at(
    here: tuple[float, float], there: tuple[float, float], x: float
) -> tuple[float, float]:
    """The lowest and the highest that the line between two points is within one dot of `x`."""
    (x0, y0), (x1, y1) = here, there
    if x1 - x0 < 1e-9:
        return min(y0, y1), max(y0, y1)
    at = [y0 + (y1 - y0) * (min(max(near, x0), x1) - x0) / (x1 - x0) for near in (x - 1, x + 1)]
    return min(at), max(at)


@pytest.mark.parametrize("count", [2, 3, 10, 59, 60, 300])
def test_each_evaluation_is_a_dot_where_it_belongs_and_all_others_are_on_the_way(count: int):
    numbers = random.Random(count)
    points = [(100 * n + numbers.randrange(50), numbers.gauss(0.4, 0.1)) for n in range(count)]
    raised = dots_of(Curve(points, rows=ROWS).lines(COLUMNS, "◆"))
    places = exact(points)
    for x, y in places:
        assert any(abs(x - dx) <= 0.5 and abs(y - dy) <= 0.5 for dx, dy in raised), (x, y)
    for dx, dy in raised:
        spans = [
            height_at(here, there, dx)
            for here, there in pairwise(places)
            if here[0] - 1 <= dx <= there[0] + 1
        ]
        assert any(low - 1 <= dy <= high + 1 for low, high in spans), (dx, dy)


def test_the_best_is_marked_in_its_place_and_named_below():
    points = [(100, 0.1), (200, 0.9), (300, 0.5)]
    lines = Curve(points, (200, 0.9), ROWS).lines(41, "◆")
    assert [line.find("◆") for line in lines] == [20, -1, -1, -1, -1, -1, -1]
    assert "best: 0.9000 at step 200" in drawn(Curve(points, (200, 0.9), ROWS))


def test_without_unicode_it_is_plain_ascii():
    text = drawn(Curve([(100, 0.1), (200, 0.9), (300, 0.5)], (200, 0.9), ROWS), encoding="ascii")
    assert text.isascii() and "*" in text and "#" in text


def test_the_axis_names_the_least_and_the_greatest():
    first, *_, last_row, axis = drawn(Curve([(100, 0.25), (4200, 0.75)], rows=ROWS)).splitlines()
    assert first.startswith("0.7500") and last_row.startswith("0.2500")
    assert axis.split() == ["step", "100", "step", "4200"]


def test_scores_that_hardly_differ_are_told_apart_on_the_axis():
    text = drawn(Curve([(100, 0.32981), (200, 0.32985)], rows=ROWS))
    assert "0.329810" in text and "0.329850" in text


@pytest.mark.parametrize("points", [[(100, 0.5)], [(100, 0.0), (200, 0.0)], [(7, 1.0), (7, 2.0)]])
def test_one_evaluation_equal_scores_and_equal_steps_are_drawn(points):
    assert dots_of(Curve(points, rows=ROWS).lines(COLUMNS, "◆"))


def test_no_evaluation_or_no_room_draws_nothing():
    assert drawn(Curve([], rows=ROWS)) == ""
    assert drawn(Curve([(100, 0.1), (200, 0.2)], rows=ROWS), width=12) == ""


def drawn(curve: Curve, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=file, width=width, markup=False)
    with console.capture() as capture:
        console.print(curve)
    return capture.get()
