"""Report: one run as one HTML file, to be sent around. No script, nothing that is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from watcher import __version__
from watcher.decision.metric import CATEGORY_NAMES
from watcher.decision.ties import LEVEL
from watcher.view.certainty import has_interval, ranks_text, share_text
from watcher.view.changes import Measured, short_name
from watcher.view.look import Look
from watcher.view.overview import seconds_text
from watcher.web.charts import NOTHING
from watcher.web.markup import Markup, joined, tag
from watcher.web.report_data import MOST_CHECKPOINTS, ReportData
from watcher.web.report_images import changed_images

STYLE_FILE = Path(__file__).with_name("static") / "report.css"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z")
_NONE = "–"  # noqa: RUF001
_INTERVAL = f"{LEVEL:.0%} interval".replace("%", " %")
_WORDS = (_INTERVAL, "ranks", "P(best)", "at", "kind", "state", "evaluated_at")
_MAP = "DetectionBoxes_Precision/mAP"


def make_report(data: ReportData, pictures: Sequence[str], *, at: str, note: str = "") -> str:
    """Return the report as an HTML document.

    Args:
        data: What was read of the run.
        pictures: SVG elements of the same picture: for wide pages, and for narrow ones.
        at: When it was read, ISO 8601.
        note: Why there is no picture, where there is none.
    """
    told = [one for one in (*data.look.troubles, data.look.unranked, data.caution) if one]
    title = f"{data.look.run['name']}: checkpoint-watcher"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(STYLE_FILE.read_text())),
    )
    parts = [
        _heading(data, at),
        _cards(data),
        tag("ul", [tag("li", text) for text in told], class_="warnings") if told else None,
        _section("Leaderboard", _leaderboard(data), "nothing is promoted yet"),
        _section("Scores", _pictures(pictures), note or "no checkpoint has a score yet"),
        _section(
            "Categories",
            _categories(data),
            "the metrics of this run have no categories" if data.last else NOTHING,
        ),
        _section("Metrics", _metrics(data), NOTHING),
        *([_section("Images", changed_images(data.changed), "")] if data.changed else []),
        _section("Failures", _table(data.failures), "none: no checkpoint failed or was missed"),
        _section(_checkpoints_title(data), _checkpoints(data), "no checkpoint was seen yet"),
        _section(_events_title(data), _table(data.events), "nothing has happened yet"),
        _section("Environment", _pairs(_environment(data)), ""),
        _section("Settings of the last start", _pairs(_settings(data)), "none were recorded"),
    ]
    body = tag("body", tag("main", parts))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(title: str, content: Markup | None, empty: str) -> Markup:
    return tag("section", tag("h2", title), content or tag("p", empty, class_="quiet"))


def _heading(data: ReportData, at: str) -> Markup:
    run = data.look.run
    better = "larger" if run["mode"] == "max" else "smaller"
    recorded = data.events[0]["at"] if data.events else run["created_at"]
    return tag(
        "header",
        tag("h1", run["name"]),
        tag("p", f"ranked by {run['metric']}, {better} is better"),
        tag("p", f"read at {_shown(at)} UTC, last recorded {_shown(recorded)} UTC", class_="quiet"),
    )


def _cards(data: ReportData) -> Markup:
    look = data.look
    best, last = look.best, data.last
    states = ", ".join(f"{count} {state}" for state, count in sorted(look.states.items()))
    cards = [
        ("Best", _shown(best and best["score"]), _which(best) or "nothing is promoted yet"),
        (
            "Last",
            _shown(last and last.row["score"]),
            _which(last and last.row) or NOTHING,
        ),
        ("Checkpoints", str(sum(look.states.values())), states or "none was seen yet"),
        ("Queue", str(look.queued), _queue(data)),
        ("Patience left", *_patience(data)),
        *_hosts(look),
    ]
    boxes = (
        tag(
            "div",
            tag("p", name, class_="name"),
            tag("p", value, class_="value"),
            tag("p", note, class_="quiet"),
            class_="card",
        )
        for name, value, note in cards
    )
    return tag("div", boxes, class_="cards")


def _hosts(look: Look) -> list[tuple[str, str, str]]:
    """Return a card about devices of other hosts, where there are any now."""
    hosts = (look.status.get("hosts") or []) if look.running else []
    if not hosts:
        return []
    reached = [one for one in hosts if one["state"] == "reached"]
    lost = [
        f"{one['host']}/{one['device']} {one['state']} since {one['since']}"
        for one in hosts
        if one not in reached
    ]
    note = "; ".join(lost) or "of other hosts are reached"
    return [("Devices elsewhere", f"{len(reached)} of {len(hosts)}", note)]


def _which(row: Any) -> str:
    return f"{row['checkpoint']}, step {row['global_step']}" if row else ""


def _queue(data: ReportData) -> str:
    look = data.look
    if look.running_now:
        return f"waiting, and {look.running_now[0]['checkpoint']} is being evaluated"
    return "waiting" if look.running else "waiting; no watcher is running"


def _patience(data: ReportData) -> tuple[str, str]:
    look = data.look
    if look.stop:
        used = look.stop.startswith("no improvement")
        unused = str(next(iter(look.patience_left.values()), _NONE))
        return "0" if used else unused, f"training is to stop: {look.stop}"
    for unit, left in look.patience_left.items():
        return str(left), f"{unit} without improvement"
    wanted = data.settings.get("patience") or data.settings.get("patience_steps")
    return _NONE, "not counted" if wanted else "no patience is set"


def _leaderboard(data: ReportData) -> Markup | None:
    board = data.look.board
    best = board[0]["score"] if board else None
    rows = [
        {
            **{name: row[name] for name in ("rank", "checkpoint", "global_step", "score")},
            _INTERVAL: _ends(row),
            "behind": abs(best - row["score"]) if row["score"] != best else None,
            "ranks": ranks_text(row),
            "P(best)": share_text(row.get("p_best")),
            **{name: row[name] for name in ("evaluated_at", "path")},
        }
        for row in board
    ]
    return _table(rows, optional=(_INTERVAL, "ranks", "P(best)"))


def _pictures(pictures: Sequence[str]) -> Markup | None:
    if not pictures:
        return None
    kinds = ("wide", "narrow")[: len(pictures)] if len(pictures) > 1 else ("both",)
    return joined(
        tag("figure", Markup(picture), class_=kind)
        for kind, picture in zip(kinds, pictures, strict=True)
    )


def category_metric(best: Measured, own: str) -> str | None:
    """Return which metric the categories are shown in: the run's own, else mAP, else the first."""
    for name in (own, _MAP, *CATEGORY_NAMES["AP"]):
        if name in best.categories:
            return name
    return best.names[0] if best.names else None


def _categories(data: ReportData) -> Markup | None:
    best = data.best or data.last
    metric = category_metric(best, data.look.run["metric"]) if best else None
    if best is None or metric is None:
        return None
    values = {name: value for name, value in best.categories[metric].items() if value != -1}
    latest = data.last.categories.get(metric, {}) if data.last else {}
    size = max([1e-9, *(value for value in values.values() if value is not None)])
    if size <= 1:
        size = 1.0
    order = sorted(values, key=lambda name: (values[name] is None, -(values[name] or 0.0), name))
    rows = []
    for name in order:
        value = values[name] or 0.0
        bar = tag("span", class_="bar", style=f"width: {100 * max(value, 0.0) / size:.1f}%")
        track = tag("span", bar, class_="track")
        known = data.intervals.get((metric, name), {})
        rows.append(
            {
                "category": name,
                "best": values[name],
                _INTERVAL: _ends(known),
                "": track,
                "last": latest.get(name),
                "objects": known.get("objects"),
            }
        )
    table = _table(rows, optional=(_INTERVAL, "objects"))
    title = tag("p", f"{metric} of {_which(best.row)}", class_="quiet")
    return joined([title, table])


def _metrics(data: ReportData) -> Markup | None:
    best, last = data.best or data.last, data.last
    if best is None or last is None:
        return None
    rows = [
        {
            "metric": name,
            "best": best.overall.get(name),
            _INTERVAL: _ends(data.intervals.get((name, ""), {})),
            "last": last.overall.get(name),
        }
        for name in {**best.overall, **last.overall}
    ]
    title = f"best: {_which(best.row)}; last: {_which(last.row)}"
    return joined([tag("p", title, class_="quiet"), _table(rows, optional=(_INTERVAL,))])


def _checkpoints_title(data: ReportData) -> str:
    every = sum(data.look.states.values())
    cut = f", the last {MOST_CHECKPOINTS} of {every}" if every > len(data.history) else ""
    return f"Checkpoints{cut}"


def _checkpoints(data: ReportData) -> Markup | None:
    rows = [
        {
            **{name: row[name] for name in ("checkpoint", "global_step", "state", "score")},
            _INTERVAL: _ends(row),
            **{name: row[name] for name in ("eval_seconds", "evaluated_at", "reason")},
        }
        for row in reversed(data.history)
    ]
    return _table(rows, optional=(_INTERVAL,))


def _events_title(data: ReportData) -> str:
    cut = data.event_count > len(data.events)
    return f"Events, the last {len(data.events)} of {data.event_count}" if cut else "Events"


def _environment(data: ReportData) -> Iterable[tuple[str, object]]:
    run, evaluation = data.look.run, data.evaluation
    yield "checkpoint-watcher", __version__
    yield "run", run["uuid"]
    yield "model_dir", run["model_dir"]
    yield "first seen", _shown(run["created_at"])
    yield "evaluation", run["fingerprint"]
    if evaluation:
        yield "device", evaluation["device"]
        yield "images", evaluation["images"]
        yield "an evaluation took", seconds_text(evaluation["eval_seconds"])
        yield from evaluation["versions"].items()
        details = evaluation["details"]
        for name in ("eval_input", "metrics_sets", "coco_backend"):
            if name in details:
                yield name, details[name]


def _settings(data: ReportData) -> Iterable[tuple[str, object]]:
    return ((name, value) for name, value in data.settings.items() if value not in (None, [], ""))


def _pairs(pairs: Iterable[tuple[str, object]]) -> Markup | None:
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", _listed(value))) for name, value in pairs
    ]
    return tag("table", tag("tbody", rows), class_="pairs") if rows else None


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)


def _ends(row: Mapping[str, Any]) -> str | None:
    """Return an interval, None where there is none."""
    return f"{_shown(row['low'])}\u2013{_shown(row['high'])}" if has_interval(row) else None


def _table(rows: Sequence[dict[str, Any]], optional: Sequence[str] = ()) -> Markup | None:
    """Draw rows; columns of `optional` are left out where no row has anything in them."""
    if not rows:
        return None
    names = [name for name in rows[0] if name not in optional or any(row[name] for row in rows)]
    numeric = {
        name
        for name in names
        if all(row[name] is None or isinstance(row[name], int | float) for row in rows)
    }

    def cell(row: dict[str, Any], name: str) -> Markup:
        value = row[name]
        shown = value if isinstance(value, Markup) else _shown(value)
        kind = "number" if name in numeric else "word" if name in _WORDS else None
        kind = "track" if isinstance(value, Markup) else kind
        labelled = name in numeric or name in optional
        label = f"{_title(name)} " if labelled and shown else None
        return tag("td", shown, class_=kind, data_name=label)

    head = [
        tag("th", _title(name), scope="col", class_="number" if name in numeric else None)
        for name in names
    ]
    lines = [tag("tr", [cell(row, name) for name in names]) for row in rows]
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", lines))


def _title(name: str) -> str:
    return short_name(name).replace("_", " ")


def _shown(value: object) -> str:
    """Return a value as people read it: four digits, times to the second."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        if value == int(value) and size < 1e15:
            return str(int(value))
        return f"{value:.1f}" if 1e3 <= size < 1e6 else f"{value:#.4g}"
    text = str(value)
    found = _TIME.fullmatch(text)
    return f"{found[1]} {found[2]}" if found else text
