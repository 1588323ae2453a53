"""Close-up: the last evaluations, those that decide, drawn once more on axes of their own. Pure.

From its beginning a run's curve reaches so far that the points by which it is ranked and stopped
lie on one line.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from msgspec.structs import replace

from watcher.plot.series import Curve, Panel, Picture

_LEAST_POINTS = 3
# Of the panel's range: points that lie further apart can be told apart there. The page's query
# `score_close_up` has the same rule.
_SHARE = 0.25


def with_close_ups(picture: Picture) -> Picture:
    """Return the picture with the panels that close up on one of its own behind those."""
    close = (close_up(panel) for panel in picture.panels)
    return replace(picture, panels=(*picture.panels, *(panel for panel in close if panel)))


def close_up(panel: Panel) -> Panel | None:
    """Return a panel of the longest end of the curves that takes less than a quarter of the height.

    None where the runs are not ranked by what the panel shows, and where that end has no more than
    two points, leaves a run's best out, or is all the same.
    """
    every = sorted((point for curve in panel.curves for point in curve.drawable), reverse=True)
    values = [value for _, value in every]
    room = _SHARE * (max(values) - min(values))
    first, low, high, count = every[0][0], values[0], values[0], 0
    for step, points in groupby(every, key=itemgetter(0)):
        here = [value for _, value in points]
        least, most = min(low, *here), max(high, *here)
        if most - least >= room:
            break
        first, low, high, count = step, least, most, count + len(here)
    best = [mark.point.step for curve in panel.curves for mark in curve.marks if mark.rank == 1]
    if not panel.ranked or count < _LEAST_POINTS or low == high or min(best, default=-1) < first:
        return None
    near = (_from(curve, first) for curve in panel.curves)
    return replace(
        panel,
        title=f"Close-up: {panel.axis} from step {first:,} on",
        note="",
        curves=tuple(curve for curve in near if curve.drawable),
        closer=True,
        # They say nothing of how these stand to each other: paired differences are far narrower.
        banded=False,
    )


def _from(curve: Curve, first: int) -> Curve:
    return replace(
        curve,
        points=tuple(point for point in curve.points if point.step >= first),
        marks=tuple(mark for mark in curve.marks if mark.point.step >= first),
    )
