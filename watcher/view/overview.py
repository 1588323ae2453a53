"""Overview: a whole run on one screen, or several in a table. Drawn from looks; reads nothing."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from watcher.decision.board import KEPT_BOARD
from watcher.view.curve import Curve
from watcher.view.fitting import Fitting
from watcher.view.look import Look
from watcher.view.tables import (
    STATE_STYLE,
    figure,
    history_table,
    leaderboard_table,
    plain_table,
)

_BOARD_ROWS = 5
_BAR_COLUMNS = 24
_PATIENCE = {"evaluations": "{} left", "steps": "{} steps left"}
_LEAST_ROWS = 3
_LEAST_CURVE = 4
_CURVE_ROWS = 7
_CURVE_LINES = 4  # around it: a blank, the title, the axis and the key


class Overview:
    """All of one run, the most important first: what happens now, leaderboard, curve, history.

    With `fit` it is no higher than the terminal: first the history gets shorter, then it goes, then
    the curve, then the leaderboard.
    """

    def __init__(self, look: Look, *, fit: bool = False) -> None:
        self._look = look
        self._fit = fit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw as much as there is room for."""
        look = self._look
        room = options.max_height - 1 if self._fit else math.inf
        head = _head(look)
        room -= _height(console, options, head)
        yield head
        board = _board(look)
        board_lines = _height(console, options, board) if board else 0
        if board and board_lines < room:
            room -= board_lines + 1
        else:
            board = None
        curve_rows = int(min(_CURVE_ROWS, room - _CURVE_LINES))
        if len(look.curve) > 1 and curve_rows >= _LEAST_CURVE:
            curve = _curve(look, curve_rows)
            room -= _height(console, options, curve) + 1
            yield Text()
            yield curve
        if board:
            yield Text()
            yield board
        rows = int(min(len(look.recent), room - 4))
        if rows >= min(_LEAST_ROWS, len(look.recent)) and rows > 0:
            yield Text()
            title = _recent(look, rows)
            # Where all has to fit, a checkpoint takes one line.
            yield history_table(look.recent[-rows:], look.board, title=title, whole=not self._fit)


class _Bar:
    """A bar of which so much is done, told apart by the characters and not by colour alone."""

    def __init__(self, share: float) -> None:
        self._full = int(min(max(share, 0.0), 1.0) * _BAR_COLUMNS)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_BAR_COLUMNS, _BAR_COLUMNS)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full, empty = "#-" if options.ascii_only else "█░"
        rest = _BAR_COLUMNS - self._full
        yield Text.assemble((full * self._full, "cyan"), (empty * rest, "dim"))


def runs_table(seen: Sequence[tuple[Path, Look | str]]) -> RenderableType:
    """Draw one line a run; a text in place of a look says why that run cannot be read."""
    names = ("run", "now", "queue", "scored", "failed", "best", "score", "patience")
    table = plain_table(*names, texts=("run", "now", "best", "patience"))
    warnings: list[Text] = []
    known = Counter(look.run["name"] for _, look in seen if not isinstance(look, str))
    for folder, look in seen:
        if isinstance(look, str):
            table.add_row(str(folder), Text("cannot be read", style="red"))
            warnings.append(_warning(f"{folder}: {look}"))
            continue
        best, name = look.best or {}, look.run["name"]
        if known[name] > 1:
            name = str(folder.relative_to(os.path.commonpath([one for one, _ in seen])))
        table.add_row(
            name,
            _in_brief(look),
            *(str(number) for number in (look.queued, look.states.get("scored", 0), look.failed)),
            best.get("checkpoint", ""),
            figure(best.get("score"), ".4f"),
            ", ".join(_PATIENCE[unit].format(n) for unit, n in look.patience_left.items()),
        )
        warnings += [_warning(f"{name}: {text}") for text in look.troubles]
    return Group(
        Fitting(table, optional=("patience", "scored", "failed", "queue")),
        *warnings,
    )


def seconds_text(seconds: float) -> str:
    """Return a duration as people say it: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _head(look: Look) -> RenderableType:
    run = look.run
    title = Text.assemble(
        *(("checkpoint-watcher ", "bold"), run["name"]),
        *(("  ranked by ", "dim"), f"{run['metric']} ({run['mode']})") if run["metric"] else (),
    )
    if look.pending_metric:
        title.append(f"; {look.pending_metric} counts once the worker is ready", "yellow")
    facts = Table.grid(padding=(0, 1))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("now", _now(look))
    for host in look.status.get("hosts") or () if look.running else ():
        facts.add_row("host", _host(host))
    if look.running and look.status.get("files"):
        facts.add_row("files", Text(look.status["files"]))
    if look.current or look.queued:
        facts.add_row("queue", _queue(look))
    facts.add_row("so far", _counts(look.states))
    if left := _patience(look):
        facts.add_row("patience", left)
    if look.stop:
        facts.add_row("early stop", Text(look.stop, style="bold magenta"))
    elif look.stop_awaits:
        facts.add_row("early stop", f"waits for {look.stop_awaits}, which may be a gain")
    return Group(title, facts, *map(_warning, look.warnings))


def _host(host: dict[str, Any]) -> Text:
    """Say whether a device of another host is reached, and how much went there."""
    state = str(host["state"])
    text = Text(f"{host['host']}/{host['device']} ")
    text.append(state, "" if state == "reached" else "yellow")
    text.append(f" since {host['since']}", "dim")
    if host["sent_mb"] or host["fetched_mb"]:
        text.append(f", {host['sent_mb']} MB sent, {host['fetched_mb']} MB fetched")
    if host["reason"]:
        text.append(f": {host['reason']}")
    return text


def _now(look: Look) -> RenderableType:
    if not look.running:
        return Text("no watcher is running")
    if look.starting and not look.running_now:
        return Text(look.starting)
    if not look.running_now:
        device = look.status.get("device")
        return Text(_worker(look.status) + (f" on {device}" if device else ""))
    lines: list[RenderableType] = []
    for one in look.running_now:
        step = "" if one["global_step"] is None else f" (step {one['global_step']})"
        on = f" on {one['device']}" if one["device"] else ""
        doing = "comparing machines by" if one.get("proving") else "evaluating"
        lines.append(Text(f"{doing} {one['checkpoint']}{step}{on}"))
        if one.get("total"):
            lines.append(_progress(one))
    return Group(*lines)


def _progress(current: dict[str, Any]) -> RenderableType:
    done, total = current["done"], current["total"]
    said = f"{done}/{total} images"
    if current.get("images_per_second"):
        said += f", {current['images_per_second']:.3g} images/s"
    if done >= total:
        said += ", computing metrics"
    elif "seconds_left" in current:
        said += f", {seconds_text(current['seconds_left'])} left"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(_Bar(done / total), Text(said))
    return bar


def _queue(look: Look) -> Text:
    count = look.averages_waiting
    averages = count and f"{count} average{' waits' if count == 1 else 's wait'}"
    if not look.waiting:
        return Text(averages or "empty")
    names = ", ".join(row["checkpoint"] for row in look.queue[:_BOARD_ROWS])
    more = look.waiting - min(len(look.queue), _BOARD_ROWS)
    said = f"{look.waiting} waiting: {names}" + (f" and {more} more" if more else "")
    if look.queue_seconds is not None:
        said += f"; done in {seconds_text(look.queue_seconds)} at this pace"
    return Text(f"{said}; {averages}" if averages else said)


def _counts(states: dict[str, int]) -> Text:
    text = Text()
    for state, count in sorted(states.items()):
        text.append(", " if text else "")
        text.append(f"{count} {state}", STATE_STYLE.get(state, ""))
    return text or Text("no checkpoints yet")


def _patience(look: Look) -> str:
    units = {"evaluations": "evaluation", "steps": "step"}
    left = [f"{n} {units[unit]}{'s' * (n != 1)}" for unit, n in look.patience_left.items()]
    return f"{' and '.join(left)} left" if left else ""


def _in_brief(look: Look) -> Text:
    if look.stop:
        return Text("early stop", style="bold magenta")
    if not look.running:
        if look.status.get("ended"):
            return Text("ended with an error")
        return Text("killed?" if look.status else "not running")
    if look.current is None:
        said = look.status.get("worker")
        return Text({"ready": "idle", "starting": "starting"}.get(str(said), "no worker"))
    done, total = look.current.get("done", 0), look.current.get("total")
    return Text(f"evaluating {100 * done // total}%" if total else "evaluating")


def _worker(status: dict[str, Any]) -> str:
    said = str(status.get("worker") or "starting")
    return {"ready": "waiting for a checkpoint", "starting": "the worker is starting"}.get(
        said, f"worker: {said}"
    )


def _warning(text: str) -> Text:
    return Text(f"! {text}", style="yellow")


def _board(look: Look) -> RenderableType | None:
    parts: list[RenderableType] = []
    if look.board:
        by = look.board[0]["metric"]
        title = "Leaderboard" if by == look.run["metric"] else f"Leaderboard by {by}, as before"
        rows = look.board[:_BOARD_ROWS]
        parts.append(leaderboard_table(rows, mode=look.run["mode"], title=title))
        more = len(look.board) - _BOARD_ROWS
        if more > 0:
            parts.append(Text(f"and {more} more, see `leaderboard`"))
    folders: dict[str, list[dict[str, Any]]] = {}
    for row in look.boards:
        folders.setdefault(row["board"], []).append(row)
    parts += [_in_one_line(name, rows) for name, rows in folders.items()]
    return Group(*parts) if parts else None


def _in_one_line(name: str, rows: Sequence[dict[str, Any]]) -> Text:
    """Draw another board, or what is kept whatever its score: the folder and what lies in it."""
    text = Text(f"{Path(rows[0]['path']).parent.name}/", style="bold")
    if name != KEPT_BOARD:
        text.append(f"  by {rows[0]['metric']}", "dim")
    shown = ", ".join(
        f"{row['checkpoint']} {figure(row['score'], '.4f')}".rstrip() for row in rows[:_BOARD_ROWS]
    )
    more = len(rows) - _BOARD_ROWS
    return text.append(f"  {shown}" + (f" and {more} more" if more > 0 else ""), "not bold")


def _curve(look: Look, rows: int) -> RenderableType:
    best = look.best
    point = (best["global_step"], best["score"]) if best else None
    life = f" of generation {look.generation}" if look.generation > 1 else ""
    title = f"{look.run['metric']} of {len(look.curve)} evaluations{life}"
    return Group(Text(title, style="bold"), Curve(look.curve, point, rows))


def _recent(look: Look, rows: int) -> str:
    every = sum(look.states.values())
    return "Checkpoints" if rows >= every else f"Checkpoints, the last {rows} of {every}"


def _height(console: Console, options: ConsoleOptions, part: RenderableType) -> int:
    return len(console.render_lines(part, options.update(height=None), pad=False))
