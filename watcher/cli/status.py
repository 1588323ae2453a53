"""`checkpoint-watcher status`: what runs do now, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.cli.options import as_json, json_line, print_json
from watcher.cli.published import show_published
from watcher.cli.runs import Asked, RunPlace, find_runs, run_folders
from watcher.cli.settings_help import examples
from watcher.cli.sources import state_dir_here
from watcher.config.bucket import is_url
from watcher.errors import StoreError
from watcher.store.reading import open_reader
from watcher.view import make_console, show
from watcher.view.look import Look, Looker, as_data

if TYPE_CHECKING:
    from rich.console import RenderableType

_WATCH_SECONDS = 1.0
_HISTORY_ROWS = 12
_WATCHED_ROWS = 40  # more than fit on most terminals

_Seen = list[tuple[RunPlace, Look | StoreError]]


@click.command(
    epilog=examples(
        "checkpoint-watcher status models/ssd --watch",
        "checkpoint-watcher status models",
        "checkpoint-watcher status models/ssd --json --watch",
    )
)
@run_folders
@as_json
@click.option(
    "--watch",
    is_flag=True,
    help="Go on showing it until Ctrl-C; with --json an object a line, whenever it changes.",
)
def status(
    folders: tuple[Path, ...], state_dir: str | None, json_output: bool, watch: bool
) -> None:
    """Show what the watcher of MODEL_DIR does, its leaderboard, score curve and last checkpoints.

    Several MODEL_DIRs, or a folder that holds some, are shown in a table, one line each. Reads the
    live database and writes nothing; it works while the watcher runs and after. Of a URL it shows
    what --publish wrote there.
    """
    if (
        len(folders) == 1
        and is_url(str(folders[0]))
        and not (state_dir or state_dir_here(folders[0]))
    ):
        show_published(folders[0], json_output=json_output)
        return
    asked = find_runs(folders, state_dir)
    if not watch:
        seen = _looks(asked, 0 if json_output else _HISTORY_ROWS, tolerant=asked.many)
        if json_output:
            print_json(_data(asked, seen))
        else:
            show(_drawn(asked, seen, fit=False))
        return
    if not json_output and not sys.stdout.isatty():
        raise click.UsageError("--watch draws on a terminal; into a pipe, add --json")
    _looks(asked, 0, tolerant=asked.many)  # what cannot be read at the start ends it
    try:
        _print_changes(asked) if json_output else _draw_on(asked)
    except KeyboardInterrupt:
        click.echo(err=True)


def _draw_on(asked: Asked) -> None:
    from rich.live import Live

    console = make_console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for seen in _again_and_again(asked, _WATCHED_ROWS):
            live.update(_drawn(asked, seen, fit=True), refresh=True)


def _print_changes(asked: Asked) -> None:
    before = ""
    for seen in _again_and_again(asked, 0):
        line = json_line(_data(asked, seen))
        if line != before:
            click.echo(line)
            before = line


def _again_and_again(asked: Asked, rows: int) -> Iterator[_Seen]:
    while True:
        yield _looks(asked, rows, tolerant=True)
        time.sleep(_WATCH_SECONDS)


def _looks(asked: Asked, rows: int, *, tolerant: bool) -> _Seen:
    """Look at each run; `rows` of its history and the head of its queue, with 0 all of the queue.

    Raises:
        StoreError: one cannot be read, and that is not tolerated.
    """
    seen: _Seen = []
    for place in asked.places:
        try:
            # Opened anew each time: the file may have been replaced by `rebuild`.
            with open_reader(place.state_dir) as reader:
                seen.append((place, Looker(reader).look(recent=rows, queue=5 if rows else None)))
        except StoreError as error:
            if not tolerant:
                raise
            seen.append((place, error))
    return seen


def _data(asked: Asked, seen: _Seen) -> Any:
    told = [
        {"model_dir": str(place.model_dir), "error": look.message}
        if isinstance(look, StoreError)
        else as_data(look, place.model_dir)
        for place, look in seen
    ]
    return told if asked.many else told[0]


def _drawn(asked: Asked, seen: _Seen, *, fit: bool) -> RenderableType:
    from rich.text import Text

    from watcher.view.overview import Overview, runs_table

    if asked.many:
        rows: list[tuple[Path, Look | str]] = [
            (place.model_dir, look.message if isinstance(look, StoreError) else look)
            for place, look in seen
        ]
        return runs_table(rows)
    look = seen[0][1]
    if isinstance(look, StoreError):
        return Text(f"cannot be read: {look.message}", style="red")
    return Overview(look, fit=fit)
