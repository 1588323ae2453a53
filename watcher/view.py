"""View: what a person sees of a run, drawn from the database with rich. Reads only."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from watcher.reading import Reader

_STATE_STYLE = {
    "scored": "green",
    "leased": "cyan",
    "pending": "yellow",
    "corrupt": "red",
    "failed": "red",
    "missed": "magenta",
    "untrained": "dim",
    "skipped": "dim",
}


def overview(reader: Reader, rows: int = 12) -> RenderableType:
    """Draw the whole run: what happens now, the last checkpoints, the leaderboard."""
    run = reader.run()
    history, board = reader.history(rows), reader.leaderboard()
    title = Text.assemble(
        ("checkpoint-watcher ", "bold"), run["name"], ("  ranked by ", "dim"), run["metric"]
    )
    parts: list[RenderableType] = [title, _activity(run["status"], reader.states())]
    if history:
        parts.append(history_table(history, board))
    if board:
        parts.append(leaderboard_table(board))
    return Group(*parts)


def history_table(history: list[dict[str, Any]], board: list[dict[str, Any]]) -> Table:
    """Draw checkpoints in the order they were found; those on the board carry their rank."""
    places = {row["sha256"]: row["rank"] for row in board}
    table = Table(title="Checkpoints", title_justify="left", title_style="bold")
    for name, justify in (("checkpoint", "left"), ("step", "right"), ("state", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for row in history:
        place = places.get(row["sha256"]) if row["sha256"] else None
        table.add_row(
            row["checkpoint"],
            _number(row["global_step"], "d"),
            Text(row["state"], style=_STATE_STYLE.get(row["state"], "")),
            _number(row["score"], ".4f"),
            _number(row["eval_seconds"], ".1f"),
            str(place or ""),
            row["reason"] or "",
            style="bold" if place == 1 else "",
        )
    return table


def leaderboard_table(board: list[dict[str, Any]]) -> Table:
    """Draw the promoted checkpoints, best first."""
    table = Table(title="Leaderboard", title_justify="left", title_style="bold")
    for name in ("rank", "checkpoint", "step", "score"):
        justify = "left" if name == "checkpoint" else "right"
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("path", overflow="fold")
    for row in board:
        table.add_row(
            str(row["rank"]),
            row["checkpoint"],
            _number(row["global_step"], "d"),
            _number(row["score"], ".4f"),
            row["path"],
            style="bold" if row["rank"] == 1 else "",
        )
    return table


def _activity(status: dict[str, Any], states: dict[str, int]) -> RenderableType:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lines: list[RenderableType] = [Text(counts or "no checkpoints yet", style="dim")]
    if not status:
        return Group(*lines, Text("no watcher is running", style="dim"))
    grid = Table.grid(padding=(0, 1))
    for worker in status.get("workers") or [status]:
        grid.add_row(*_worker(worker))
    lines.append(grid)
    if status.get("waiting_for"):
        lines.append(Text(status["waiting_for"], style="yellow"))
    if status.get("watch") != "events":
        lines.append(Text(f"degraded to polling: {status.get('watch')}", style="yellow"))
    if status.get("pins", "links") != "links":
        lines.append(Text(f"pins are copies: {status['pins']}", style="yellow"))
    if status.get("notice"):
        lines.append(Text(f"notice: {status['notice']}", style="yellow"))
    if status.get("problem"):
        lines.append(Text(f"problem: {status['problem']}", style="red"))
    if status.get("stop"):
        lines.append(Text(f"early stop: {status['stop']}", style="bold magenta"))
    return Group(*lines)


def _worker(worker: dict[str, Any]) -> list[RenderableType]:
    """Return what one worker does, and how far it is, as the cells of a row."""
    on = worker.get("device")
    if str(worker.get("on")) != "cpu":  # several may be of one name
        on = worker["on"]
    doing = f"worker: {worker['worker']} {worker.get('checkpoint') or ''}".rstrip()
    cells: list[RenderableType] = [Text(f"{doing} on {on}" if on else doing)]
    if worker.get("total"):
        done, total = worker["done"], worker["total"]
        cells += [ProgressBar(total=total, completed=done, width=30), f"{done}/{total} images"]
    return cells


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
