"""The dashboards, in datasette-dashboards' own format: cards, charts by Vega-Lite, and tables.

Colours are those of Okabe and Ito, told apart by the colour-blind as well; what a colour says a
shape or a dash says too. Some keys of a chart are ours, for our template: `canned` names the query
behind it, `empty` stands where it has no rows, `wide` takes both columns and `tall` two rows,
`hide` and `links` concern columns of a table, `caption` is a column that is the same in every row
and stands below, and `sources` are the databases of a chart over several runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from watcher.store.page_queries import CARDS, HOME, OVER_RUNS, SHOWN, Query

OVERVIEW = "overview"
_BLUE, _ORANGE, _RED = "#0072B2", "#E69F00", "#D55E00"
_RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 4], [4, 2, 1, 2, 1, 2]]
_LIFE = {"field": "generation", "type": "nominal"}
_STEP_AXIS = {
    "field": "global_step",
    "type": "quantitative",
    "title": "step",
    "scale": {"zero": False, "nice": False},
    "axis": {
        # 900 and 1,000 of a short run, 90k of a long one.
        "labelExpr": "format(datum.value, domain('x')[1] < 1e4 ? ',' : '~s')",
        "tickMinStep": 1,
        "tickCount": 10,
        "grid": False,
        "labelFlush": False,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
}


def run_dashboard(database: str, label: str, metric: str) -> dict[str, Any]:
    """Return the dashboard of one run.

    Args:
        database: Datasette's name of its database.
        label: What people call the run.
        metric: What ranks it, for the axis.
    """
    charts = {name: _card(database, query) for name, query in CARDS.items()}
    charts["score_by_step"] = {
        **_shown(database, "score_by_step"),
        "library": "vega-lite",
        "display": _curve(metric),
        "empty": "no checkpoint has a score yet",
        "wide": True,
    }
    charts["score_close_up"] = {
        **_shown(database, "score_close_up"),
        "library": "vega-lite",
        "display": _curve(metric),
        "empty": "the chart above shows the last evaluations well enough",
        "wide": True,
    }
    charts["promoted"] = _table(
        database, "promoted", "nothing is promoted yet", without="metric path"
    )
    charts["categories_of_best"] = {
        **_shown(database, "categories_of_best"),
        "library": "vega-lite",
        "display": _BARS,
        "empty": "the metrics of this run have no categories",
        "caption": "metric",
        "tall": True,
    }
    charts["failures"] = _table(database, "failures", "none: no checkpoint failed or was missed")
    charts["recent_events"] = {
        **_table(database, "recent_events", "nothing has happened yet"),
        "wide": True,
    }
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
            "empty": "no checkpoint has a score yet",
            "wide": True,
        }
    return {
        "title": "Overview",
        "description": f"{len(runs)} runs; their scores are not ranked against each other",
        "charts": charts,
    }


def _shown(database: str, name: str) -> dict[str, Any]:
    query = SHOWN[name]
    return {"title": query.title, "db": database, "query": query.sql.strip(), "canned": name}


def _card(database: str, query: Query) -> dict[str, Any]:
    display = {"field": "value", "note": "note"}
    chart = {"title": query.title, "db": database, "query": query.sql.strip()}
    return {**chart, "library": "metric", "display": display}


def _table(database: str, name: str, empty: str, without: str = "") -> dict[str, Any]:
    hide = without.split()
    return {**_shown(database, name), "library": "table", "empty": empty, "hide": hide}


def _score_axis(metric: str) -> dict[str, Any]:
    return {
        "field": "score",
        "type": "quantitative",
        "title": metric,
        "scale": {"zero": False},
        "axis": {"format": "~g", "tickCount": 6},
    }


def _curve(metric: str) -> dict[str, Any]:
    places = ["evaluated", "promoted", "best"]

    def scale(*values: object) -> dict[str, Any]:
        return {"domain": places, "range": list(values)}

    marks = {
        "color": {"scale": scale(_BLUE, _ORANGE, _RED)},
        "shape": {"scale": scale("circle", "square", "diamond")},
    }
    sizes = dict(zip(places, (30, 100, 240), strict=True))
    legend = {"title": None, "orient": "top", "symbolOpacity": 1, "symbolSize": 90}
    points = {
        name: {"field": "place", "type": "nominal", "legend": legend, **mark}
        for name, mark in marks.items()
    }
    tooltip = [
        {"field": "checkpoint", "type": "nominal"},
        {"field": "global_step", "type": "quantitative", "title": "step"},
        {"field": "score", "type": "quantitative", "format": ".6g"},
        {"field": "rank", "type": "nominal"},
        _LIFE,
        {"field": "evaluated_at", "type": "nominal", "title": "evaluated at"},
    ]
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line", "color": _BLUE, "strokeWidth": 1.5, "opacity": 0.7}}
    ]
    for place in places:
        layers.append(
            {
                "transform": [{"filter": f"datum.place === '{place}'"}],
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": sizes[place]},
                "encoding": {**points, "tooltip": tooltip},
            }
        )
    return {
        "height": 300,
        # A line for each of the trainer's lives.
        "encoding": {"x": _STEP_AXIS, "y": _score_axis(metric), "detail": _LIFE},
        "layer": layers,
    }


def _overlaid(metric: str) -> dict[str, Any]:
    run: dict[str, Any] = {"field": "run", "type": "nominal"}
    legend = {"title": None, "orient": "top", "symbolSize": 400}
    colour = {**run, "legend": legend, "scale": {"range": _RUN_COLOURS}}
    best = {"type": "point", "filled": True, "shape": "diamond", "size": 200, "opacity": 1}
    tooltip = [
        run,
        {"field": "checkpoint", "type": "nominal"},
        {"field": "global_step", "type": "quantitative", "title": "step"},
        {"field": "score", "type": "quantitative", "format": ".6g"},
    ]
    dash = {**run, "legend": legend, "scale": {"range": _DASHES}}
    return {
        "height": 340,
        "encoding": {
            "x": _STEP_AXIS,
            "y": _score_axis(metric),
            "color": colour,
            "strokeDash": dash,
            "detail": _LIFE,
            "tooltip": tooltip,
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {"transform": [{"filter": "datum.place === 'best'"}], "mark": best},
        ],
    }


_BARS = {
    "height": {"step": 24},
    "encoding": {
        "y": {
            "field": "category",
            "type": "nominal",
            "sort": None,  # as the rows are: a layered chart would sort by either
            "title": None,
            "axis": {"labelLimit": 120, "ticks": False, "domain": False},
        },
        "tooltip": [
            {"field": "category", "type": "nominal"},
            {"field": "best", "type": "quantitative", "format": ".4g"},
            {"field": "last", "type": "quantitative", "format": ".4g"},
        ],
    },
    "layer": [
        {
            "transform": [{"calculate": "'best checkpoint'", "as": "which"}],
            "mark": {"type": "bar", "height": 14},
            "encoding": {
                "x": {
                    "field": "best",
                    "type": "quantitative",
                    "title": None,
                    "axis": {"format": "~g", "tickCount": 5},
                },
                "color": {
                    "field": "which",
                    "type": "nominal",
                    "scale": {"domain": ["best checkpoint"], "range": [_BLUE]},
                    "legend": {"title": None, "orient": "top"},
                },
            },
        },
        {
            "transform": [{"calculate": "'last one'", "as": "which"}],
            "mark": {"type": "tick", "thickness": 3, "size": 20, "opacity": 1},
            "encoding": {
                "x": {"field": "last", "type": "quantitative"},
                "color": {
                    "field": "which",
                    "type": "nominal",
                    "scale": {"domain": ["last one"], "range": ["#000000"]},
                    "legend": {
                        "title": None,
                        "orient": "top",
                        "symbolType": "M0,-1L0,1",
                        "symbolStrokeColor": "#000000",
                        "symbolStrokeWidth": 3,
                    },
                },
            },
        },
    ],
    "resolve": {"scale": {"color": "independent"}},
}
