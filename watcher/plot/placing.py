"""Placing: find room for small labels beside their points, so that none lies on another.

By hand, since adjustText moves every label and draws all of them, where here the first places come
first and one without room is left out; and it brings all of SciPy for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from matplotlib.transforms import Bbox

# Directions in the order in which they are tried: a curve mostly comes from a side.
_WAYS = ((0, 1), (0, -1), (-1, 1), (1, 1), (-1, -1), (1, -1), (-1, 0), (1, 0))
_REACHES = (1.0, 2.2, 3.4)


def box_around(x: float, y: float, wide: float, high: float) -> Bbox:
    """Return a rectangle by its centre; in pixels, say."""
    return Bbox.from_bounds(x - wide / 2, y - high / 2, wide, high)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Bbox],
    frame: Bbox,
    gaps: Sequence[float],
) -> list[Bbox | None]:
    """Return where each label goes, those first in the list first; None where there is no room.

    Args:
        points: What the labels belong to.
        sizes: Width and height of each label.
        taken: Where no label may lie: the points' own markers.
        frame: Where all labels must lie.
        gaps: Least distance between each point and its label's nearest edge.
    """
    used = list(taken)
    places: list[Bbox | None] = []
    for point, size, gap in zip(points, sizes, gaps, strict=True):
        free = (
            box
            for box in _candidates(point, size, gap)
            if frame.x0 <= box.x0 and box.x1 <= frame.x1
            if frame.y0 <= box.y0 and box.y1 <= frame.y1
            if not box.count_overlaps(used)
        )
        place = next(free, None)
        places.append(place)
        if place:
            used.append(place)
    return places


def _candidates(
    point: tuple[float, float], size: tuple[float, float], gap: float
) -> Iterator[Bbox]:
    for reach, (across, up) in product(_REACHES, _WAYS):
        x = point[0] + across * (gap * reach + size[0] / 2)
        y = point[1] + up * (gap * reach + size[1] / 2)
        yield box_around(x, y, *size)
