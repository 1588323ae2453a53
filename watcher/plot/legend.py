"""Legend: what a panel's signs mean, in words. Pure.

The words alone: matplotlib's own legend lays them out, and in the terminal they stand below the
canvas, since plotext's legend lies in it, on the curves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from watcher.decision.ties import LEVEL
from watcher.plot.recorded import Stop
from watcher.plot.series import Curve, Mark, Panel, short_label
from watcher.view.curve import number

Sign = Literal["curve", "band", "best", "place", "former", "stop", "stops"]


class Entry(msgspec.Struct, frozen=True):
    """One line of a legend, for a curve perhaps two: a sign, its words, and the curve's number."""

    sign: Sign
    text: str
    curve: int = 0


def legend_of(panel: Panel) -> list[Entry]:
    """Return the legend of a panel: its curves where there are several, then what is marked."""
    if panel.closer:
        return []
    return [*_curves(panel), *_bands(panel), *_marks(panel), *_stops(panel)]


def common_stop(panel: Panel) -> Stop | None:
    """Return the early stop of all curves; None when there is none, or each has one of its own."""
    stops = {curve.stop for curve in panel.curves}
    return stops.pop() if len(stops) == 1 else None


def own_stops(panel: Panel) -> list[tuple[Curve, tuple[int, float]]]:
    """Return where the curves were stopped that have an early stop of their own."""
    if common_stop(panel):
        return []
    found = []
    for curve in panel.curves:
        if curve.stop:
            before = [point for point in curve.drawable if point[0] <= curve.stop.step]
            found += [(curve, point) for point in before[-1:]]
    return found


def span(panel: Panel) -> float:
    """Return how far apart the panel's least and greatest values are."""
    values = [value for curve in panel.curves for _, value in curve.drawable]
    return max(values) - min(values)


def _curves(panel: Panel) -> Iterator[Entry]:
    if len(panel.curves) < 2:
        return
    marked = panel.ranked and sum(bool(_best(curve)) for curve in panel.curves) > 1
    for curve in panel.curves:
        best = _best(curve)
        said = f"\nbest {_at(best, panel)}" if best and marked else ""
        yield Entry("curve", short_label(curve.label) + said, curve.number)


def _bands(panel: Panel) -> Iterator[Entry]:
    if panel.banded:
        yield Entry("band", f"{LEVEL:.0%} interval".replace("%", " %"), panel.curves[0].number)


def _marks(panel: Panel) -> Iterator[Entry]:
    marks = [mark for curve in panel.curves for mark in curve.marks]
    best = [mark for mark in marks if mark.place == "best"]
    if len(best) > 1:
        yield Entry("best", "the best of each")
    elif best:
        name = best[0].point.checkpoint
        said = f"best: {_at(best[0], panel)} ({name})" if panel.ranked else f"the best, {name}"
        yield Entry("best", said)
    places = sum(mark.place == "place" for mark in marks)
    if places:
        yield Entry("place", f"{places} more of the best, with rank")
    former = sum(mark.place == "former" for mark in marks)
    if former:
        yield Entry("former", f"{former} promoted for a while")


def _stops(panel: Panel) -> Iterator[Entry]:
    stop = common_stop(panel)
    if stop:
        yield Entry("stop", f"early stop at step {stop.step:,}")
    elif own_stops(panel):
        yield Entry("stops", "early stop")


def _best(curve: Curve) -> Mark | None:
    return next((mark for mark in curve.marks if mark.place == "best"), None)


def _at(mark: Mark, panel: Panel) -> str:
    assert mark.point.value is not None
    return f"{number(mark.point.value, span(panel))} at step {mark.point.step:,}"
