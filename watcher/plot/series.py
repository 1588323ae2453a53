"""Series: what is to be drawn of one run or several, as plain data. Draws and reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal

import msgspec

from watcher.decision.metric import (
    CATEGORY_NAMES,
    SHORT_NAMES,
    lower_is_better,
    parse_metric,
)
from watcher.decision.rank import rankable
from watcher.plot.recorded import Point, Run, Stop, drawable
from watcher.view.changes import short_name

LOSSES = "Loss/"
TOTAL_LOSS = "Loss/total_loss"
MOST_CATEGORIES = 10
_SHORT = {names[0]: short for short, names in reversed(SHORT_NAMES.items())}
MOST_RUNS = 12
MOST_BANDS = 3  # more lie on one another

Place = Literal["best", "place", "former"]


class Mark(msgspec.Struct, frozen=True):
    """A point that stands out: the best, another place on the board, or one that was evicted."""

    place: Place
    rank: int | None
    point: Point


class Curve(msgspec.Struct, frozen=True):
    """One line of a panel.

    Attributes:
        label: What the legend calls it.
        number: Curves of one number look the same in each panel.
        points: In step order.
        marks: The board's checkpoints, those evicted first and the best last.
        stop: The point at which the run was stopped.
    """

    label: str
    number: int
    points: tuple[Point, ...]
    marks: tuple[Mark, ...] = ()
    stop: Stop | None = None

    @property
    def drawable(self) -> tuple[tuple[int, float], ...]:
        """The points that have a value: (global step, value)."""
        return tuple((one.step, one.value) for one in self.points if one.value is not None)

    @property
    def pieces(self) -> Iterator[tuple[tuple[int, float], ...]]:
        """The stretches without a gap, each to be joined by a line."""
        piece: list[tuple[int, float]] = []
        for one in self.points:
            if one.value is not None:
                piece.append((one.step, one.value))
            elif piece:
                yield tuple(piece)
                piece = []
        if piece:
            yield tuple(piece)

    @property
    def bands(self) -> Iterator[tuple[tuple[int, float, float], ...]]:
        """The stretches whose points have an interval: (global step, lower end, upper end)."""
        for there, points in groupby(self.points, lambda one: None not in (one.value, one.ends)):
            if there:
                yield tuple((one.step, *one.ends) for one in points if one.ends)


class Panel(msgspec.Struct, frozen=True):
    """Curves that share one scale.

    Attributes:
        title: Above it: the metric by its full name.
        axis: At its side: the metric by its short name.
        note: What is not drawn, and why; may be empty.
        ranked: The runs are ranked by this metric.
        bounded: The values are shares of 1, so the axis need not reach beyond 0 and 1.
        closer: It shows a part of another panel, on axes of its own; the legend is there.
        banded: The intervals of the curves are drawn.
    """

    title: str
    axis: str
    curves: tuple[Curve, ...]
    note: str = ""
    ranked: bool = False
    bounded: bool = False
    closer: bool = False
    banded: bool = False

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last global step of any point that is drawn."""
        found = [step for curve in self.curves for step, _ in curve.drawable]
        return min(found), max(found)


class Picture(msgspec.Struct, frozen=True):
    """All that is drawn: panels below one another, with the global steps in common.

    Those that close up come last, each with steps of its own.
    """

    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last global step of any point that is drawn."""
        found = [panel.steps for panel in self.panels]
        return min(first for first, _ in found), max(last for _, last in found)


def make_picture(
    runs: Sequence[Run],
    metrics: Iterable[str] = (),
    *,
    categories: bool = False,
    losses: bool = False,
) -> Picture:
    """Say what is to be drawn.

    Args:
        runs: One or several, overlaid, each of a trainer's lives as a run of its own.
            `gather.read_run` has read what the rest asks for.
        metrics: As `--metric` takes them, a panel each; by default those the runs are ranked by.
        categories: A panel a run with a curve for each category, of so many the largest.
        losses: A panel with the losses; of several runs the total loss of each.

    Returns:
        A picture without those panels in which nothing could be drawn.
    """
    named = tuple(dict.fromkeys(metrics or (run.metric for run in runs)))
    lives = [life for run in runs for life in run.lives(named=len(runs) > 1)]
    panels = [_metric_panel(lives, metric) for metric in named]
    if losses:
        panels.append(_losses_panel(lives))
    if categories:
        panels += [_categories_panel(life, named[0], len(lives) > 1) for life in lives]
    drawn = tuple(panel for panel in panels if any(curve.drawable for curve in panel.curves))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    stops = [(run, run.stop) for run in runs if run.stop]
    notes = tuple(
        f"{f'{run.name}: ' if len(runs) > 1 else ''}early stop: {stop.message}"
        for run, stop in stops
    )
    return Picture(title, drawn, notes)


def names_to_read(
    metrics: Iterable[str], *, own: str, categories: bool, losses: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the recorded names that a picture needs, and how others that it needs begin.

    Args:
        metrics: As `make_picture` takes them.
        own: The metric that the run is ranked by.
        categories: As `make_picture` takes it.
        losses: As `make_picture` takes it.
    """
    asked = tuple(metrics) or (own,)
    names = {name: None for metric in asked for name, _ in parse_metric(metric).keys}
    if categories:
        names |= dict.fromkeys([*_own_figure(asked[0]), *CATEGORY_NAMES["AP"]])
    return tuple(names), (LOSSES,) if losses else ()


def short_label(text: str, most: int = 32) -> str:
    """Shorten a long name in its middle: names of one series differ at their ends."""
    if len(text) <= most:
        return text
    ahead = (most - 1) // 2
    return f"{text[:ahead]}…{text[len(text) - (most - 1 - ahead) :]}"


def _metric_panel(runs: Sequence[Run], metric: str) -> Panel:
    curves = tuple(
        Curve(
            run.name if len(runs) > 1 else _axis(metric),
            number,
            points,
            _marks(run, points, _places(own=metric == run.metric, several=len(runs) > 1)),
            run.stop,
        )
        for number, run in enumerate(runs)
        for points in [run.points(metric)]
        if any(point.value is not None for point in points)
    )
    modes = {run.mode for run in runs if run.metric == metric}
    better = "" if modes == {"max"} or not modes else ", less is better" if modes == {"min"} else ""
    ranked = any(run.metric == metric for run in runs)
    return Panel(
        f"{metric}{better}",
        _axis(metric),
        curves,
        ranked=ranked,
        bounded=_bounded(metric),
        banded=len(curves) <= MOST_BANDS and any(any(curve.bands) for curve in curves),
    )


def _losses_panel(runs: Sequence[Run]) -> Panel:
    if len(runs) > 1:
        return _metric_panel(runs, TOTAL_LOSS)
    run = runs[0]
    names = sorted(
        {name for row in run.evaluations for name, of in row.values if _is_loss(name, of)},
        key=lambda name: (name != TOTAL_LOSS, name),
    )
    curves = tuple(
        Curve(
            name.removeprefix(LOSSES).replace("_", " "),
            number,
            points,
            _marks(run, points, ("best", "place")) if name == TOTAL_LOSS else (),
            run.stop,
        )
        for number, name in enumerate(names)
        for points in [_recorded(run, name, "")]
    )
    return Panel("Losses of the eval set", "loss", curves)


def _categories_panel(run: Run, metric: str, several: bool) -> Panel:
    figure = _figure(run, metric)
    last: dict[str, float] = {}
    found: dict[str, None] = {}
    for row in run.evaluations:
        for (name, of), value in row.values.items():
            if name == figure and of:
                found[of] = None
                if rankable(value):
                    assert value is not None
                    last[of] = value
    largest = sorted(last, key=lambda of: (-last[of], of))
    chosen = largest[:MOST_CATEGORIES]
    curves = tuple(
        Curve(of, number, _recorded(run, figure, of), (), run.stop)
        for number, of in enumerate(chosen)
    )
    note = ""
    if len(chosen) < len(largest):
        note = f"{len(chosen)} of {len(largest)} categories: those whose last value is largest"
    if len(largest) < len(found):
        left = len(found) - len(largest)
        note += f"{'; ' if note else ''}{left} more {'has' if left == 1 else 'have'} no value"
    short = short_name(figure)
    of_run = f" of {run.name}" if several else ""
    return Panel(f"{short} of each category{of_run}", short, curves, note, bounded=True)


def _figure(run: Run, metric: str) -> str:
    """Return the metric that is drawn of each category: the picture's own, else the AP."""
    present = {name for row in run.evaluations for name, of in row.values if of}
    choice = (*_own_figure(metric), *CATEGORY_NAMES["AP"])
    return next((name for name in choice if name in present), choice[0])


def _own_figure(metric: str) -> tuple[str, ...]:
    asked = parse_metric(metric)
    return () if asked.is_expression else tuple(name for name, _ in asked.keys)


def _places(*, own: bool, several: bool) -> tuple[Place, ...]:
    """Return what is marked on a curve: the less, the more there is to see without it."""
    if several:
        return ("best", "place") if own else ("best",)
    return ("best", "place", "former") if own else ("best", "place")


def _marks(run: Run, points: Sequence[Point], places: Sequence[Place]) -> tuple[Mark, ...]:
    place_of = {one.checkpoint_id: one for one in run.promotions}
    marks = [
        Mark(_place(promotion.rank), promotion.rank, point)
        for row, point in zip(run.evaluations, points, strict=True)
        for promotion in [place_of.get(row.checkpoint_id)]
        if promotion and point.value is not None and _place(promotion.rank) in places
    ]
    return tuple(sorted(marks, key=lambda mark: -(mark.rank or len(points) + 1)))


def _place(rank: int | None) -> Place:
    return "former" if rank is None else "best" if rank == 1 else "place"


def _recorded(run: Run, name: str, category: str) -> tuple[Point, ...]:
    return tuple(
        Point(row.step, drawable(row.values.get((name, category))), row.checkpoint)
        for row in run.evaluations
    )


def _is_loss(name: str, category: str) -> bool:
    return not category and name.startswith(LOSSES)


def _bounded(metric: str) -> bool:
    asked = parse_metric(metric)
    return not asked.is_expression and all(
        not lower_is_better(name) and ("Precision" in name or "Recall" in name)
        for name, _ in asked.keys
    )


def _axis(metric: str) -> str:
    return short_label(_SHORT.get(metric, metric))
