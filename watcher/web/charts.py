"""The dashboards, in datasette-dashboards' own format: cards, charts by Vega-Lite, and tables.

Colours are those of Okabe and Ito, told apart by the colour-blind as well; what a colour says a
shape or a dash says too. Some keys of a chart are ours, for our template: `canned` names the query
behind it, `empty` stands where it has no rows, `before` does so while nothing is evaluated yet,
`wide` takes both columns, `hide`, `links`, `ranges`, `shares` and `titles` concern columns of a
table, `caption` is a column that is the same in every row and stands below, so does `caution`,
which says what not to rely on, `sources` are the databases of a chart over several runs, and a
layer of a chart is left out where no row has the column that it `needs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from watcher.decision.ties import LEVEL
from watcher.store.page_queries import CARDS, HOME, OVER_RUNS, SHOWN, Query

OVERVIEW = "overview"
_BLUE, _ORANGE, _RED = "#0072B2", "#E69F00", "#D55E00"
_RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_PALE, _INTERVAL = 0.18, f"{LEVEL:.0%} interval".replace("%", " %")
NOTHING = "nothing is evaluated yet"
_NO_SCORE = "no checkpoint has a score yet"
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 4], [4, 2, 1, 2, 1, 2]]


# How the leaderboard's columns about certainty are shown: two as one, shares in percent.
_SURE = {
    "ranges": {"low": "high"},
    "shares": ["p_best"],
    "titles": {"low": _INTERVAL, "ranks": "ranks", "p_best": "P(best)"},
    "wide": True,
}


def _name(field: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "nominal", **more}


def _number(field: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", **more}


_LIFE = _name("generation")
_STEP_AXIS = _number(
    "global_step",
    title="step",
    scale={"zero": False, "nice": False},
    axis={
        # 900 and 1,000 of a short run, 90k of a long one.
        "labelExpr": "format(datum.value, domain('x')[1] < 1e4 ? ',' : '~s')",
        "tickMinStep": 1,
        "tickCount": 10,
        "grid": False,
        "labelFlush": False,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
)
_POINT = [_name("checkpoint"), _number("global_step", title="step"), _number("score", format=".6g")]


def run_dashboard(database: str, label: str, metric: str) -> dict[str, Any]:
    """Return the dashboard of one run.

    Args:
        database: Datasette's name of its database.
        label: What people call the run.
        metric: What ranks it, for the axis.
    """
    charts = {name: _card(database, query) for name, query in CARDS.items()}
    drawn: dict[str, tuple[str, dict[str, Any]]] = {
        "score_by_step": (_NO_SCORE, {"display": _curve(metric, banded=True), "wide": True}),
        "score_close_up": (
            "the chart above shows the last evaluations well enough",
            {"display": _curve(metric), "wide": True},
        ),
        "promoted": ("nothing is promoted yet", {"hide": ["metric", "path"], **_SURE}),
        "categories_of_best": (
            "the metrics of this run have no categories",
            {"display": _BARS, "caption": "metric", "caution": "caution"},
        ),
        "failures": ("none: each checkpoint has a score that can rank", {"hide": []}),
        "recent_events": ("nothing has happened yet", {"hide": [], "wide": True}),
    }
    for name, (empty, more) in drawn.items():
        query, library = SHOWN[name], "vega-lite" if "display" in more else "table"
        asked = {"title": query.title, "db": database, "query": query.sql.strip(), "canned": name}
        charts[name] = {**asked, "library": library, "empty": empty, **more}
    for name in ("score_close_up", "categories_of_best", "failures"):
        charts[name]["before"] = NOTHING
    return {"title": label, "description": f"ranked by {metric}", "charts": charts}


def home_page(names: Sequence[str]) -> dict[str, Any]:
    """Return what the home page shows: a run of each database, at a glance."""
    glance = {"library": "run", "query": HOME.sql.strip()}
    return {"charts": {name: {**glance, "db": name} for name in names}}


def overview_dashboard(runs: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Return the dashboard over several runs, `(database, label, metric)` each.

    Scores of different metrics are not drawn into one chart.
    """
    summary = OVER_RUNS["summary"]
    charts: dict[str, Any] = {
        "runs": {
            "title": summary.title,
            "library": "table",
            "query": summary.sql.strip(),
            "sources": [{"db": database, "run": label} for database, label, _ in runs],
            "links": "run",
            "wide": True,
        }
    }
    for number, metric in enumerate(dict.fromkeys(metric for *_, metric in runs)):
        charts[f"scores_{number}"] = {
            "title": f"Score by step: {metric}",
            "library": "vega-lite",
            "query": SHOWN["score_by_step"].sql.strip(),
            "sources": [{"db": db, "run": label} for db, label, its in runs if its == metric],
            "display": _overlaid(metric),
            "empty": _NO_SCORE,
            "wide": True,
        }
    return {
        "title": "Overview",
        "description": f"{len(runs)} runs; their scores are not ranked against each other",
        "charts": charts,
    }


def _card(database: str, query: Query) -> dict[str, Any]:
    display = {"field": "value", "note": "note"}
    chart = {"title": query.title, "db": database, "query": query.sql.strip()}
    return {**chart, "library": "metric", "display": display}


def _score_axis(metric: str) -> dict[str, Any]:
    axis = {"format": "~g", "tickCount": 6}
    return _number("score", title=metric, scale={"zero": False}, axis=axis)


def _band(metric: str) -> dict[str, Any]:
    """Return the layer of the intervals, which ends where an evaluation has none."""
    legend = {"title": None, "orient": "top", "symbolType": "square", "symbolOpacity": _PALE}
    return {
        "needs": "low",
        "transform": [
            {"calculate": "datum.low === null ? 1 : 0", "as": "gap"},
            {"window": [{"op": "sum", "field": "gap", "as": "piece"}]},
            {"filter": "datum.gap === 0"},
            {"calculate": f"'{_INTERVAL}'", "as": "which"},
        ],
        "mark": {"type": "area", "opacity": _PALE},
        "encoding": {
            "y": _number("low", title=metric, scale={"zero": False}),
            "y2": {"field": "high", "title": None},
            # Not its colour, which the points have: the two would share a legend.
            "fill": _name("which", legend=legend, scale={"range": [_BLUE]}),
            "detail": [_LIFE, _name("piece")],
        },
    }


def _curve(metric: str, *, banded: bool = False) -> dict[str, Any]:
    places = ["evaluated", "promoted", "best"]

    def scale(*values: object) -> dict[str, Any]:
        return {"domain": places, "range": list(values)}

    marks = {
        "color": {"scale": scale(_BLUE, _ORANGE, _RED)},
        "shape": {"scale": scale("circle", "square", "diamond")},
    }
    sizes = dict(zip(places, (30, 100, 240), strict=True))
    legend = {"title": None, "orient": "top", "symbolOpacity": 1, "symbolSize": 90}
    points: dict[str, Any] = {
        name: _name("place", legend=legend, **mark) for name, mark in marks.items()
    }
    tooltip = [*_POINT, _name("rank"), _LIFE, _name("evaluated_at", title="evaluated at")]
    line = {"mark": {"type": "line", "color": _BLUE, "strokeWidth": 1.5, "opacity": 0.7}}
    drawn = [
        {
            "transform": [{"filter": f"datum.place === '{place}'"}],
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": size},
            "encoding": points | {"tooltip": tooltip},
        }
        for place, size in sizes.items()
    ]
    return {
        "height": 300,
        # A line for each of the trainer's lives.
        "encoding": {"x": _STEP_AXIS, "y": _score_axis(metric), "detail": _LIFE},
        "layer": [*([_band(metric)] if banded else []), line, *drawn],
    }


def _overlaid(metric: str) -> dict[str, Any]:
    legend = {"title": None, "orient": "top", "symbolSize": 400}
    best = {"type": "point", "filled": True, "shape": "diamond", "size": 200, "opacity": 1}
    return {
        "height": 340,
        "encoding": {
            "x": _STEP_AXIS,
            "y": _score_axis(metric),
            "color": _name("run", legend=legend, scale={"range": _RUN_COLOURS}),
            "strokeDash": _name("run", legend=legend, scale={"range": _DASHES}),
            "detail": _LIFE,
            "tooltip": [_name("run"), *_POINT],
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {"transform": [{"filter": "datum.place === 'best'"}], "mark": best},
        ],
    }


def _of_two(field: str, which: str, mark: dict[str, Any], colour: str, **more: Any) -> Any:
    """Return one of two layers, each with a legend of its own."""
    axis = more.pop("axis")
    legend = {"title": None, "orient": "top", **more}
    scale = {"domain": [which], "range": [colour]}
    return {
        "transform": [{"calculate": f"'{which}'", "as": "which"}],
        "mark": mark,
        "encoding": {
            "x": _number(field, **axis),
            "color": _name("which", scale=scale, legend=legend),
        },
    }


_BARS = {
    "height": {"step": 24},
    "encoding": {
        "y": _name(
            "category",
            sort=None,  # as the rows are: a layered chart would sort by either
            title=None,
            axis={"labelLimit": 120, "ticks": False, "domain": False},
        ),
        "tooltip": [
            _name("category"),
            _number("best", format=".4g"),
            _number("low", title=f"{_INTERVAL} from", format=".4g"),
            _number("high", title="to", format=".4g"),
            _number("last", format=".4g"),
            _number("objects"),
        ],
    },
    "layer": [
        _of_two(
            "best",
            "best checkpoint",
            {"type": "bar", "height": 14},
            _BLUE,
            axis={"title": None, "axis": {"format": "~g", "tickCount": 5}},
        ),
        {
            "needs": "low",
            "transform": [
                {"filter": "datum.low !== null"},
                {"calculate": f"'{_INTERVAL} of the best'", "as": "which"},
            ],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": _number("low", title=None),
                "x2": {"field": "high", "title": None},
                "color": _name(
                    "which",
                    scale={"range": [_ORANGE]},
                    legend={"title": None, "orient": "top", "symbolType": "stroke"},
                ),
            },
        },
        _of_two(
            "last",
            "last one",
            {"type": "tick", "thickness": 3, "size": 20, "opacity": 1},
            "#000000",
            axis={},
            symbolType="M0,-1L0,1",
            symbolStrokeColor="#000000",
            symbolStrokeWidth=3,
        ),
    ],
    "resolve": {"scale": {"color": "independent"}},
}
