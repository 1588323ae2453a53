"""Tables: checkpoints, the leaderboard, the metrics of one and the differences of two."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from watcher.view.certainty import has_interval, interval_text, ranks_text, share_text, tie_text
from watcher.view.changes import Change, Measured, short_name, short_names
from watcher.view.fitting import Either, Fitting

STATE_STYLE = {
    "scored": "green",
    "leased": "cyan",
    "pending": "yellow",
    "corrupt": "red",
    "failed": "red",
    "missed": "magenta",
    "untrained": "dim",
    "skipped": "dim",
}


_INTERVAL = "95 % interval"


def history_table(
    history: Sequence[dict[str, Any]],
    board: Sequence[dict[str, Any]],
    *,
    title: str = "Checkpoints",
    whole: bool = False,
) -> RenderableType:
    """Draw checkpoints in the order they were found; those on the board carry their rank.

    Args:
        history: Rows of the view `history`.
        board: Rows of the view `leaderboard`.
        title: Above the table.
        whole: Fold long notes instead of cutting them off at the end of the line.
    """
    places = {row["sha256"]: row["rank"] for row in board}
    life = _life(history)
    # The note gives way first, so its column has to wrap for rich; its text may not.
    names = ("checkpoint", *life, "step", "state", "score", "seconds", "rank", "note")
    table = plain_table(*names, texts=("checkpoint", "state", "note"))
    for row in history:
        note = Text(_note(row))
        if not whole:
            note.no_wrap, note.overflow = True, "ellipsis"
        # What failed has neither: what an earlier evaluation gave it counts no more.
        counts = row["state"] != "failed"
        place = places.get(row["sha256"]) if counts else None
        table.add_row(
            row["checkpoint"],
            *(str(row[name]) for name in life),
            figure(row["global_step"], "d"),
            Text(row["state"], STATE_STYLE.get(row["state"], "")),
            _score(row) if counts else "",
            # Of what `rebuild` made anew from best.json nothing is known that took time.
            figure((counts and row["eval_seconds"]) or None, ".1f"),
            str(place or ""),
            note,
            style="bold" if place == 1 else "",
        )
    return _under(title, Fitting(table, optional=("rank", "seconds", "step", *life)))


def _score(row: dict[str, Any]) -> str:
    """Return the score; one that cannot rank has a mark, and the note says why."""
    score, said = row["score"], figure(row["score"], ".4f")
    unranked = row.get("evaluated_at") is not None and (score is None or score == -1)
    return f"! {said}".rstrip() if unranked else said


def _note(row: dict[str, Any]) -> str:
    earlier = row["state"] == "scored" and row.get("evaluated_at", "") is None
    said = "scored by an earlier evaluation, which does not compare" if earlier else ""
    return row["reason"] or row.get("note") or said


def leaderboard_table(
    board: Sequence[dict[str, Any]], *, mode: str | None, title: str = "Leaderboard"
) -> RenderableType:
    """Draw the promoted checkpoints, best first, and the folder that they are in.

    Args:
        board: Rows of the view `leaderboard`.
        mode: Whether the larger or the smaller score is better.
        title: Stands above.
    """
    folder = Path(board[0]["path"]).parent if board else None
    renamed = any(Path(row["path"]).name != row["checkpoint"] for row in board)
    life, file = _life(board), ("file",) if renamed else ()
    gone = ("files",) if any(is_missing(row) for row in board) else ()
    sure = any(map(has_interval, board))
    said = (_INTERVAL, "ranks", "P(best)") if sure else ()
    names = ("rank", "checkpoint", *life, "step", "score", "behind", *said, *file, *gone)
    table = plain_table(*names, texts=("checkpoint", "file", "files"))
    for row in board:
        table.add_row(
            str(row["rank"]),
            row["checkpoint"],
            *(str(row[name]) for name in life),
            figure(row["global_step"], "d"),
            figure(row["score"], ".6f"),
            "" if row is board[0] else _behind(row["score"], board[0]["score"], mode),
            *((interval_text(row, 4), ranks_text(row), share_text(row.get("p_best"))) * sure),
            *((Path(row["path"]).name,) if renamed else ()),
            *((Text("missing" if is_missing(row) else "", style="red"),) if gone else ()),
            style="bold" if row["rank"] == 1 else "",
        )
    optional = ("P(best)", "behind", _INTERVAL, "rank", "file", "ranks", "step", *life)
    shown = Fitting(table, optional=tuple(name for name in optional if name in names))
    return _under(f"{title}: {folder}" if folder else title, shown)


def best_one(
    row: dict[str, Any], mode: str, others: int, ties: Sequence[dict[str, Any]] = ()
) -> RenderableType:
    """Draw the best checkpoint of a run, and where it lies.

    Args:
        row: Of the view `best`.
        mode: Which score is better.
        others: How many more there are in its folder.
        ties: Rows of the view `ties`.
    """
    life, texts = _life([row]), ("checkpoint", "evaluated at")
    said = (_INTERVAL,) if has_interval(row) else ()
    table = plain_table("checkpoint", *life, "step", "score", *said, "evaluated at", texts=texts)
    table.add_row(
        row["checkpoint"],
        *(str(row[name]) for name in life),
        figure(row["global_step"], "d"),
        figure(row["score"], ".6f"),
        *(interval_text(row, 4) for _ in said),
        row["evaluated_at"],
        style="bold",
    )
    place = Text(row["path"], overflow="fold")
    if is_missing(row):
        place.append(" is missing", "red")
    more = f"and {others} more in {Path(row['path']).parent.name}/, see `leaderboard`"
    title = f"Best of {row['run']} by {row['metric']} ({mode})"
    shown = Fitting(table, optional=("evaluated at", "step", *life))
    told = tie_text(row, ties)
    remarks = [*([told] if told else []), *([more] if others else [])]
    return Group(_under(title, shown), place, *(Text(text, style="dim") for text in remarks))


def best_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Draw the best checkpoint of each of several runs."""
    texts = ("run", "checkpoint", "metric", "path")
    table = plain_table("run", "checkpoint", "step", "score", "metric", "path", texts=texts)
    for row in rows:
        step, score = figure(row["global_step"], "d"), figure(row["score"], ".4f")
        path = Text(row["path"])
        if is_missing(row):
            path.append(" is missing", "red")
        table.add_row(row["run"], row["checkpoint"], step, score, row["metric"], path)
    fitted = Fitting(table, optional=("metric", "step"), whole=("metric", "path"))
    return _under("Best of each run", fitted)


def metrics_table(measured: Measured, *, categories: bool) -> RenderableType:
    """Draw what one evaluation recorded, with `categories` those of each category too."""
    remarks = {name: measured.remark(name) for name in measured.overall}
    remarked = [""] if any(remarks.values()) else []
    overall = plain_table("metric", "value", *remarked, texts=("metric", ""))
    for name, value in measured.overall.items():
        overall.add_row(name, _measured(value), *(remarks[name] for _ in remarked))
    shown = _under(f"Metrics of {measured.title}", overall)
    if not categories:
        return shown
    if not measured.names:
        return Group(shown, Text("no figures of categories were recorded"))
    return Group(shown, Text(), _under("Categories", _categories(measured)))


def changes_table(
    overall: Sequence[Change], categories: Sequence[Change], old: Measured, new: Measured
) -> RenderableType:
    """Draw the differences between two evaluations, metric by metric and category by category."""
    parts: list[RenderableType] = [Text(f"From {old.title} to {new.title}", style="bold")]
    for title, changes in (("metric", overall), ("category", categories)):
        if not changes:
            continue
        sure = (_INTERVAL,) if any(change.paired for change in changes) else ()
        table = plain_table(title, "from", "to", "change", *sure, "", texts=(title, ""))
        short = short_names([change.metric for change in changes if not change.category])
        for change in changes:
            verdict, style = _verdict(change, measured_only=bool(sure) and not change.paired)
            table.add_row(
                Either(change.label, short.get(change.label, change.label)),
                *map(_measured, (change.old, change.new)),
                Text(_difference(change), style=style),
                *(_ends(change) for _ in sure),
                Text(verdict, style=style),
            )
        parts += [Text(), Fitting(table, optional=("from", *sure))]
    return Group(*parts)


def is_missing(row: dict[str, Any]) -> bool:
    """Tell whether the files of a promoted checkpoint are not where its row says."""
    return row.get("files") is False


def figure(value: Any, form: str) -> str:
    """Return a number as text, empty for None."""
    return "" if value is None else format(value, form)


def _behind(score: float, best: float, mode: str | None) -> str:
    """Say how much worse a score is; of two that count as equal the second may be the better."""
    ahead = score < best if mode == "min" else score > best
    return f"{'-' if ahead else ''}{difference(score, best, 6)}"


def difference(value: float, other: float, places: int, sign: str = "") -> str:
    """Return how far two numbers are apart as text: as a reader subtracts what is shown of them.

    Of two that are shown alike and are not the same, the first two digits of that.

    Args:
        value: A number, shown with so many places.
        other: What it is compared with, shown likewise.
        places: After the point.
        sign: `+` to show the direction too.
    """
    shown, exact = round(value, places) - round(other, places), value - other
    if not sign:
        shown, exact = abs(shown), abs(exact)
    return (
        format(exact, f"{sign}.1e") if exact and not shown else format(shown, f"{sign}.{places}f")
    )


def plain_table(*names: str, texts: Collection[str] = ()) -> Table:
    """Return an empty table with a line under its head and no frame.

    Args:
        names: Of the columns.
        texts: Those that are folded where there is no room for them. The others hold numbers, which
            are never cut or folded.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        if name in texts:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _life(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return the column that tells generations apart, none where there is but one."""
    return ("generation",) if any(row.get("generation", 1) > 1 for row in rows) else ()


def _under(title: str, table: RenderableType) -> RenderableType:
    # Not the table's own title: that is folded to the table's width.
    return Group(Text(title, style="bold"), table)


def _categories(measured: Measured) -> RenderableType:
    """One row a category, the best in the first metric first; what has no value comes last."""
    shown = [short_name(name) for name in measured.names]
    table = plain_table("category", *shown, texts=("category",))
    first = measured.categories[measured.names[0]]

    def place(category: str) -> tuple[bool, float]:
        value = first.get(category)
        return (value is None or value == -1, -(value or 0.0))

    for category in sorted(measured.category_names, key=place):
        values = (measured.categories[name].get(category) for name in measured.names)
        table.add_row(category, *map(_measured, values))
    # The last first: what matters most comes first in the COCO metrics.
    said = "{} more columns on a wider terminal, or with --json"
    return Fitting(table, optional=shown[:0:-1], told=said.format)


def _measured(value: float | None) -> str:
    if value is None:
        return "none"
    # COCO's mark for nothing of that kind in the eval set.
    return "-1" if value == -1 else f"{value:.4f}"


def _difference(one: Change) -> str:
    if one.change is None or one.new is None or one.old is None:
        return ""
    return difference(one.new, one.old, 4, "+")


def _ends(change: Change) -> str:
    return f"{change.paired.low:+.4f} to {change.paired.high:+.4f}" if change.paired else ""


def _verdict(change: Change, *, measured_only: bool = False) -> tuple[str, str]:
    if change.change is None:
        return "not comparable", "dim"
    if change.is_same:
        return "same", "dim"
    if change.is_told is False:
        return "cannot be told", "dim"
    better = change.gain > 0
    if measured_only:
        return f"{'better' if better else 'worse'}, as measured", "dim"
    return ("better", "green") if better else ("worse", "red")
