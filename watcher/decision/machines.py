"""Machines: in which parts two differ, and whether what they measure of one checkpoint does. Pure.

A machine is what a worker tells of it, `device`, `instructions` and so on, each a text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec

from watcher.decision.metric import Key

Parts = Mapping[str, str]

_MOST_WORDS = 4
_MOST_METRICS = 3


class Deviation(msgspec.Struct, frozen=True):
    """A figure that two machines measured differently; None where it was not finite or not there.

    Attributes:
        category: '' for an overall metric.
    """

    metric: str
    category: str
    recorded: float | None
    measured: float | None

    @property
    def size(self) -> float:
        """The absolute difference, infinite where one of the two is no number."""
        if self.recorded is None or self.measured is None:
            return math.inf
        size = abs(self.measured - self.recorded)
        return math.inf if math.isnan(size) else size

    @property
    def label(self) -> str:
        """The metric with its category."""
        return f"{self.metric}[{self.category}]" if self.category else self.metric


def differing(
    recorded: Mapping[Key, float | None],
    measured: Mapping[Key, float | None],
    without: Collection[str],
) -> list[Deviation]:
    """Return what two measurements of one checkpoint do not have alike to the last bit.

    No number is like no number, and 0 like -0, which the database does not tell apart.

    Args:
        recorded: The values of the score, by (metric, category).
        measured: Those of the measurement again.
        without: Metrics of which nobody can ask it: drawn at random in part, or a time.
    """
    keys = sorted(key for key in recorded.keys() | measured.keys() if key[0] not in without)
    every = (Deviation(*key, recorded.get(key), measured.get(key)) for key in keys)
    return sorted(
        (
            one
            for one in every
            if _finite(one.recorded) != _finite(one.measured)
            or (one.metric, one.category) not in recorded.keys() & measured.keys()
        ),
        key=lambda one: (-one.size, one.label),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def largest(deviations: Sequence[Deviation]) -> float:
    """Return the largest difference, 0 for none."""
    return max((one.size for one in deviations), default=0.0)


def parts_text(reference: Parts, machine: Parts) -> str:
    """Say in which parts a machine differs from the reference, empty where in none."""
    names = [
        name
        for name in dict.fromkeys((*reference, *machine))
        if reference.get(name) != machine.get(name)
    ]
    return "; ".join(_part(name, reference.get(name), machine.get(name)) for name in names)


def _part(name: str, before: str | None, now: str | None) -> str:
    first, second = (before or "").split(), (now or "").split()
    if len(first) < 2 or len(second) < 2 or not set(first) & set(second):
        return f"{name} {now or 'not told'}, not {before or 'untold'}"
    # Of long lists that are alike but for a few words, those few.
    more = [word for word in second if word not in first]
    less = [word for word in first if word not in second]
    said = [f"{how} {_some(words)}" for how, words in (("with", more), ("without", less)) if words]
    return f"{name} {' and '.join(said)}"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    return " ".join(words[:_MOST_WORDS]) + more


def deviations_text(deviations: Sequence[Deviation], compared: int) -> str:
    """Say which figures differ and by how much, the largest first."""
    shown = ", ".join(
        f"{one.label} by {one.size:.2g} ({one.measured!r}, recorded {one.recorded!r})"
        if math.isfinite(one.size)
        else f"{one.label} ({_shown(one.measured)}, recorded {_shown(one.recorded)})"
        for one in deviations[:_MOST_METRICS]
    )
    more = len(deviations) - _MOST_METRICS
    return f"{len(deviations)} of {compared} figures differ: {shown}" + (
        f" and {more} more" if more > 0 else ""
    )


def _shown(value: float | None) -> str:
    return "no number" if value is None else repr(value)


def sufficient(size: float) -> float | None:
    """Return a tolerance in two digits that lets a difference in, None where none would."""
    if not math.isfinite(size):
        return None
    rounded = float(f"{size:.1e}")
    return rounded if rounded >= size else float(f"{size * 1.05:.1e}")
