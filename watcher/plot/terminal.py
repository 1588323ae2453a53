"""Terminal: a picture drawn with plotext, as wide and as high as there is room."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from watcher.plot.legend import Entry, common_stop, legend_of, own_stops
from watcher.plot.library import load
from watcher.plot.series import Curve, Panel, Picture
from watcher.plot.style import look_of
from watcher.plot.ticks import round_ticks, tick_labels
from watcher.view import picture_columns

LEAST_ROWS = 10
_MOST_ROWS = 24
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FEW_POINTS, _LETTERS_A_CURVE, _LAST_DIGIT = 40, 8, 9
_SIGNS = {"best": "★", "place": "●", "former": "△", "stops": "✕", "stop": "┊"}
# What plotext draws, and we, in characters that every terminal has.
_PLAIN = str.maketrans("★●△✕┊│─┌┐└┘├┤┬┴┼…", "*o^x:|-+++++++++~")


class Drawing:
    """A picture in characters.

    Curves are told apart by a letter on each, which the legend names; a colour only repeats it.
    Of one run the checkpoints on its board carry their rank.
    """

    def __init__(self, picture: Picture) -> None:
        """Take a picture; raises ConfigError when plotext is not installed."""
        panels = tuple(map(_uncluttered, picture.panels))
        self._picture = replace(picture, panels=panels)
        self._plotext = load("plotext")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw all panels; more than fit below one another are not squeezed."""
        picture, plain = self._picture, options.ascii_only
        room = options.max_width
        width = picture_columns(room)
        heads = [[line for line in (panel.title, panel.note) if line] for panel in picture.panels]
        legends = [_legend_lines(panel, width) for panel in picture.panels]
        taken = sum(len(part) for part in (*heads, *legends)) + len(picture.panels)
        rows = (options.max_height - taken - 2) // len(picture.panels)
        rows = min(max(rows, LEAST_ROWS), _MOST_ROWS)
        yield Text(_fit(picture.title, room, plain), style="bold", no_wrap=True)
        for panel, head, legend in zip(picture.panels, heads, legends, strict=True):
            for line in head:
                yield Text(_fit(line, room, plain), no_wrap=True)
            yield self._canvas(panel, width, rows, plain=plain)
            for line in legend:
                yield Text(_fit(line, room, plain), no_wrap=True)
        for note in picture.notes:
            yield Text(_plain(note) if plain else note)

    def _canvas(self, panel: Panel, width: int, rows: int, *, plain: bool) -> Text:
        plotext = self._plotext
        plotext.terminal.limit(False, False)
        figure = plotext.figure.clear()
        figure.plot_size(width, rows)
        figure.theme("colorless")
        figure.canvas("default")
        figure.axes(False, axis="x", side="upper")
        figure.axes(False, axis="y", side="right")
        self._scale(figure, panel, width, rows)
        stop = common_stop(panel)
        if stop:
            figure.line(stop.step, 1, style="dotted")
        for curve in panel.curves:
            self._draw_curve(figure, curve, plain=plain, letters=len(panel.curves) > 1)
        for curve, point in own_stops(panel):
            self._draw_sign(figure, curve, point, _SIGNS["stops"])
        for curve in panel.curves:
            self._draw_marks(figure, curve, several=_several(panel))
        drawn = figure.build().string()
        figure.clear()
        text = Text.from_ansi(drawn.translate(_PLAIN) if plain else drawn, no_wrap=True)
        text.rstrip()
        return text

    def _scale(self, figure: Any, panel: Panel, width: int, rows: int) -> None:
        first, last = panel.steps if panel.closer else self._picture.steps
        values = [value for curve in panel.curves for _, value in curve.drawable]
        low, high = min(values), max(values)
        if low == high:
            margin = abs(low) * 0.05 or 0.05
            low, high = low - margin, high + margin
        steps = round_ticks(first, last, max(width // (len(f"{last:,}") + 5), 2), whole=True)
        if first == last:
            first, last = first - max(first // 10, 1), last + max(last // 10, 1)
        margin = (high - low) * 0.05
        figure.ruler("x").lim(first, last)
        figure.ruler("y").lim(low - margin, high + margin)
        figure.ruler("x").ticks(steps, tick_labels(steps))
        levels = round_ticks(low, high, max(rows // 2, 3))
        figure.ruler("y").ticks(levels, tick_labels(levels))

    def _draw_curve(self, figure: Any, curve: Curve, *, plain: bool, letters: bool) -> None:
        line = "." if plain else "braille"
        for piece in curve.pieces:
            steps, values = ([point[place] for point in piece] for place in (0, 1))
            drawn = figure.signal(steps, values, marker=self._marker(line, curve))
            figure.draw(drawn.lines().density("full") if len(piece) > 1 else drawn)
        points = curve.drawable
        sign = _letter(curve.number) if letters else "●"
        few = len(points) <= _FEW_POINTS
        if letters:
            apart = max(len(points) // _LETTERS_A_CURVE, 1)
            points = points[(curve.number * apart // 3) % apart :: apart]
        elif not few:
            points = tuple(piece[0] for piece in curve.pieces if len(piece) == 1)
        for point in points:
            self._draw_sign(figure, curve, point, sign)

    def _draw_marks(self, figure: Any, curve: Curve, *, several: bool) -> None:
        for mark in curve.marks:
            sign = _SIGNS[mark.place]
            if mark.place == "place" and not several and (mark.rank or 10) <= _LAST_DIGIT:
                sign = str(mark.rank)
            assert mark.point.value is not None
            self._draw_sign(figure, curve, (mark.point.step, mark.point.value), sign)

    def _draw_sign(self, figure: Any, curve: Curve, point: tuple[int, float], sign: str) -> None:
        figure.draw(figure.signal([point[0]], [point[1]], marker=self._marker(sign, curve)))

    def _marker(self, sign: str, curve: Curve) -> Any:
        colour = look_of(curve.number).terminal
        pixel = self._plotext.pixel() if colour is None else self._plotext.pixel(colour)
        return self._plotext.marker(sign, pixel)


def _uncluttered(panel: Panel) -> Panel:
    """Leave out what was only promoted for a while where it would hide the curve."""
    curves = tuple(
        curve
        if len(curve.points) <= _FEW_POINTS
        else replace(curve, marks=tuple(one for one in curve.marks if one.place != "former"))
        for curve in panel.curves
    )
    return replace(panel, curves=curves)


def _legend_lines(panel: Panel, width: int) -> list[str]:
    """Return the legend's entries, as many in a line as fit."""
    lines: list[str] = []
    for entry in legend_of(panel):
        if entry.sign == "band":
            continue  # which would hide the curve
        said = _said(entry, panel)
        if lines and cell_len(lines[-1]) + cell_len(said) + 3 <= width:
            lines[-1] += f"   {said}"
        else:
            lines.append(said)
    return lines


def _said(entry: Entry, panel: Panel) -> str:
    if entry.sign == "curve":
        return f"{_letter(entry.curve)} {entry.text}".replace("\n", ", ")
    if entry.sign == "place" and not _several(panel):
        marks = [mark for curve in panel.curves for mark in curve.marks]
        last = min(max(mark.rank or 0 for mark in marks), _LAST_DIGIT)
        return "2 the second best" if last == 2 else f"2-{last} those behind it, by rank"
    return f"{_SIGNS[entry.sign]} {entry.text}"


def _several(panel: Panel) -> bool:
    return sum(bool(curve.marks) for curve in panel.curves) > 1


def _fit(line: str, width: int, plain: bool) -> str:
    """Return a line that is no wider, in plain characters where the terminal has no others."""
    line = _plain(line) if plain else line
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 1).rstrip() + ("~" if plain else "…")


def _plain(text: str) -> str:
    return text.translate(_PLAIN).encode("ascii", "replace").decode()


def _letter(number: int) -> str:
    return _LETTERS[number % len(_LETTERS)]
