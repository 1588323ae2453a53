"""Placing: find room for small labels beside their points, so that none lies on another. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Directions in the order in which they are tried: a curve mostly comes from a side.
_WAYS = ((0, 1), (0, -1), (-1, 1), (1, 1), (-1, -1), (1, -1), (-1, 0), (1, 0))
_NEAR, _FAR = 1.0, 3.4


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its centre; in pixels, say."""

    x: float
    y: float
    wide: float
    high: float

    def meets(self, other: Box) -> bool:
        """True when the two share more than an edge."""
        return (
            abs(self.x - other.x) * 2 < self.wide + other.wide
            and abs(self.y - other.y) * 2 < self.high + other.high
        )

    def inside(self, frame: Box) -> bool:
        """True when this one lies within the frame."""
        return (
            abs(self.x - frame.x) * 2 <= frame.wide - self.wide
            and abs(self.y - frame.y) * 2 <= frame.high - self.high
        )


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    frame: Box,
    gaps: Sequence[float],
) -> list[Box | None]:
    """Return where each label goes, those first in the list first; None where there is no room.

    Args:
        points: What the labels belong to.
        sizes: Width and height of each label.
        taken: Where no label may lie: the points' own markers.
        frame: Where all labels must lie.
        gaps: Least distance between each point and its label's nearest edge.
    """
    used = list(taken)
    places: list[Box | None] = []
    for point, size, gap in zip(points, sizes, gaps, strict=True):
        place = next(
            (
                box
                for box in _candidates(point, size, gap)
                if box.inside(frame) and not any(box.meets(other) for other in used)
            ),
            None,
        )
        places.append(place)
        if place:
            used.append(place)
    return places


def _candidates(point: tuple[float, float], size: tuple[float, float], gap: float) -> Iterator[Box]:
    for reach in (_NEAR, (_NEAR + _FAR) / 2, _FAR):
        for across, up in _WAYS:
            yield Box(
                point[0] + across * (gap * reach + size[0] / 2),
                point[1] + up * (gap * reach + size[1] / 2),
                *size,
            )
