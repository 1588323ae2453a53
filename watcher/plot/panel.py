"""Panel: one panel of a picture on matplotlib's axes: curves, marks, labels and legend."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from watcher.plot.legend import Entry, common_stop, legend_of, own_stops
from watcher.plot.placing import box_around, place_labels
from watcher.plot.series import Curve, Mark, Panel
from watcher.plot.style import look_of

_INK, _GOLD = "#222222", "#F0E442"
_FEW_POINTS, _MARKERS_A_CURVE = 40, 12
_GAP_POINTS, _SMALL = 2.0, 0.6
_PALE, _LONELY_POINTS = 0.16, 6.0
_STEP_LABELS, _VALUE_LABELS, _ROUND = 8, 7, [1, 2, 2.5, 5, 10]
_STOP_LOOK: dict[str, Any] = {"color": _INK, "linestyle": (0, (4, 3)), "linewidth": 1.1}
# Sign to marker and its size in points.
_SIGNS = {"best": ("*", 14.0), "place": ("o", 7.5), "former": ("^", 5.0), "stops": ("X", 9.0)}


def scale_steps(axes: Axes, first: int, last: int, *, shown: bool = True) -> None:
    """Let the axis of the steps reach over these; thousands are kept apart.

    Args:
        axes: The panel's.
        first: The first step.
        last: The last step.
        shown: Write the steps; a panel further down may do that for those above.
    """
    margin = max((last - first) * 0.02, 0.5 if last > first else max(last * 0.1, 1.0))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=_STEP_LABELS, steps=_ROUND, integer=True, min_n_ticks=1)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.tick_params(axis="x", labelbottom=shown)
    axes.set_xlabel("global step" if shown else "")


class DrawnPanel:
    """A panel on its axes."""

    def __init__(self, place: int, panel: Panel, axes: Axes, letters: int) -> None:
        """Take axes for a panel.

        Args:
            place: Which panel of the picture it is, from 0; its parts are named by that.
            panel: What to draw.
            axes: Where.
            letters: How many letters a line of its title may have.
        """
        self.axes = axes
        self._name = f"panel-{place}"
        self._names: Counter[str] = Counter()
        self._panel = panel
        self._letters = letters
        self._several = len({curve.label for curve in panel.curves if curve.marks}) > 1

    def draw(self, *, beside: bool, last: bool) -> None:
        """Draw the curves, what is marked on them, the labels and the legend.

        Args:
            beside: The legend goes to the right of the panel and not under it.
            last: The axis of the steps is below it.
        """
        panel, axes = self._panel, self.axes
        lines = [*textwrap.wrap(panel.title, self._letters), panel.note]
        axes.set_title("\n".join(line for line in lines if line))
        axes.set_ylabel(panel.axis)
        for curve in panel.curves:
            if panel.banded:
                self._draw_band(curve)
            self._draw_curve(curve)
            self._draw_marks(curve)
        stop = common_stop(panel)
        if stop:
            axes.axvline(stop.step, gid=self._gid("stop"), zorder=1.5, **_STOP_LOOK)
        for curve, point in own_stops(panel):
            self._sign("stops", [point], look_of(curve.number).colour)
        self._scale_values()
        self._draw_legend(beside=beside, last=last)

    def write_ranks(self) -> None:
        """Write the ranks beside the marks, where there is room. The layout must be done."""
        marks = [mark for curve in self._panel.curves for mark in curve.marks if mark.rank]
        if all(mark.place == "best" for mark in marks):
            return
        marks.sort(key=lambda mark: mark.rank or 0)
        figure = self.axes.get_figure(root=True)
        assert figure is not None
        pixel = figure.dpi / 72
        place = self.axes.transData.transform
        where = [(float(mark.point.step), mark.point.value or 0.0) for mark in marks]
        points = [(float(x), float(y)) for x, y in map(place, where)]
        taken = [
            box_around(*point, *(2 * [_SIGNS[mark.place][1] * pixel]))
            for mark, point in zip(marks, points, strict=True)
        ]
        labels = [self._label(str(mark.rank), mark) for mark in marks]
        sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in labels)]
        frame = self.axes.get_window_extent()
        stop = common_stop(self._panel)
        if stop:
            x = place((stop.step, 0))[0]
            taken.append(box_around(x, (frame.y0 + frame.y1) / 2, 3 * pixel, frame.height))
        gaps = [(_SIGNS[mark.place][1] / 2 + _GAP_POINTS) * pixel for mark in marks]
        places = place_labels(points, sizes, taken, frame, gaps)
        for text, point, box in zip(labels, points, places, strict=True):
            if box is None:
                text.remove()
            else:
                x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
                text.set_position(((x - point[0]) / pixel, (y - point[1]) / pixel))

    def _draw_curve(self, curve: Curve) -> None:
        gap = math.nan
        self.axes.plot(
            [point.step for point in curve.points],
            [gap if point.value is None else point.value for point in curve.points],
            markevery=_marked(curve),
            gid=self._gid(f"curve-{curve.number}"),
            **_curve_look(curve.number),
        )

    def _draw_band(self, curve: Curve) -> None:
        look = _band_look(curve.number)
        for piece in curve.bands:
            steps, low, high = map(list, zip(*piece, strict=True))
            gid = self._gid(f"band-{curve.number}")
            if len(piece) > 1:
                self.axes.fill_between(steps, low, high, gid=gid, **look)
            else:
                self.axes.vlines(steps, low, high, gid=gid, **look | {"linewidth": _LONELY_POINTS})

    def _draw_marks(self, curve: Curve) -> None:
        edge = look_of(curve.number).colour if self._several else _INK
        for place in ("former", "place", "best"):
            points = [mark.point for mark in curve.marks if mark.place == place]
            small = place == "former" and len(points) > _FEW_POINTS
            at = [(point.step, point.value or 0.0) for point in points]
            self._sign(place, at, edge, _SMALL if small else 1.0)

    def _sign(
        self, sign: str, points: Sequence[tuple[int, float]], edge: str, scale: float = 1.0
    ) -> None:
        if points:
            look = _sign_look(sign, edge, scale)
            self.axes.plot(*zip(*points, strict=True), gid=self._gid(sign), **look)

    def _label(self, text: str, mark: Mark) -> Any:
        assert mark.point.value is not None
        label = self.axes.annotate(
            text,
            (mark.point.step, mark.point.value),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            weight="bold",
            color=_INK,
            zorder=6,
            gid=self._gid(f"rank-{text}"),
        )
        label.set_in_layout(False)
        return label

    def _gid(self, name: str) -> str:
        """Return a name that no other part of the picture has."""
        self._names[name] += 1
        again = f"-{self._names[name]}" if self._names[name] > 1 else ""
        return f"{self._name}-{name}{again}"

    def _scale_values(self) -> None:
        self.axes.margins(y=0.1)
        self.axes.autoscale(axis="y")
        if self._panel.bounded:
            # Not at 0 and 1 exactly: a marker on the edge would be cut in half.
            low, high = self.axes.get_ylim()
            self.axes.set_ylim(max(low, -0.03), min(high, 1.03))
        self.axes.yaxis.set_major_locator(
            MaxNLocator(nbins=_VALUE_LABELS, steps=_ROUND, min_n_ticks=2)
        )
        self.axes.ticklabel_format(axis="y", useOffset=False)

    def _draw_legend(self, *, beside: bool, last: bool) -> None:
        handles = [self._handle(entry) for entry in legend_of(self._panel)]
        if not handles:
            return
        if beside:
            self.axes.legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0
            )
            return
        figure = self.axes.get_figure(root=True)
        assert figure is not None
        down = ScaledTranslation(0, -(38 if last else 8) / 72, figure.dpi_scale_trans)
        where = {"bbox_to_anchor": (0.0, 0.0), "bbox_transform": self.axes.transAxes + down}
        self.axes.legend(handles=handles, loc="upper left", borderaxespad=0.0, **where)

    def _handle(self, entry: Entry) -> Artist:
        if entry.sign == "band":
            return Patch(label=entry.text, **_band_look(entry.curve))
        if entry.sign == "curve":
            return Line2D([], [], label=entry.text, **_curve_look(entry.curve))
        if entry.sign == "stop":
            return Line2D([], [], label=entry.text, **_STOP_LOOK)
        return Line2D([], [], label=entry.text, **_sign_look(entry.sign, _INK))


def _curve_look(number: int) -> dict[str, Any]:
    look = look_of(number)
    return {
        "color": look.colour,
        "linestyle": look.line,
        "linewidth": 1.6,
        "marker": look.marker,
        "markersize": 4,
    }


def _band_look(number: int) -> dict[str, Any]:
    return {"color": look_of(number).colour, "alpha": _PALE, "linewidth": 0.0, "zorder": 1.2}


def _sign_look(sign: str, edge: str, scale: float = 1.0) -> dict[str, Any]:
    marker, size = _SIGNS[sign]
    face = _GOLD if sign == "best" else "white"
    return {
        "marker": marker,
        "markersize": size * scale,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 1.2 * scale,
        "linestyle": "none",
        "zorder": {"best": 5, "stops": 4.5}.get(sign, 4),
    }


def _marked(curve: Curve) -> list[int]:
    """Return which points get a marker: of many some, and each that no line reaches."""
    there = [point.value is not None for point in curve.points]
    count = len(there)
    if sum(there) <= _FEW_POINTS:
        return list(range(count))
    apart = max(sum(there) // _MARKERS_A_CURVE, 1)
    # Curves begin at different points, so that the markers of two that lie close do not.
    some = set(range((curve.number * apart) // 5 % apart, count, apart))
    lonely = {
        place
        for place in range(count)
        if not any(there[max(place - 1, 0) : place]) and not any(there[place + 1 : place + 2])
    }
    return sorted(some | lonely)
