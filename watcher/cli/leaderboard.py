"""`checkpoint-watcher leaderboard`: the promoted checkpoints, best first."""

from __future__ import annotations

from pathlib import Path

import click

from watcher.cli.options import as_json
from watcher.cli.runs import each_shown, find_runs, run_folders
from watcher.store import queries
from watcher.store.reading import Reader
from watcher.view import show
from watcher.view.look import is_there, missing_text, remedy, unranked_text
from watcher.view.tables import is_missing, leaderboard_table


@click.command()
@run_folders
@as_json
def leaderboard(folders: tuple[Path, ...], state_dir: str | None, json_output: bool) -> None:
    """Show the checkpoints in best/ of MODEL_DIR, best first, and how far each is behind.

    The same as `SELECT * FROM leaderboard` on the database. Several MODEL_DIRs, or a folder that
    holds some, are shown one after the other; their scores are not ranked against each other.
    """
    asked = find_runs(folders, state_dir)
    for place, reader, rows in each_shown(asked, Reader.leaderboard, json_output=json_output):
        run = reader.run()
        if rows:
            if gone := [row["path"] for row in rows if is_missing(row)]:
                told = f"{missing_text(gone)}; {remedy(is_there(run['status'].get('pid')))}"
                click.echo(f"warning: {told}", err=True)
            lowest = " (min)" if run["mode"] == "min" else ""
            title = f"Leaderboard of {run['name']} by {rows[0]['metric']}{lowest}"
            show(leaderboard_table(rows, mode=run["mode"], title=title))
        else:
            click.echo(f"no checkpoint of {place.model_dir} is promoted yet")
            if why := unranked_text(*reader.unranked()):
                click.echo(f"! {why}")
        for why in filter(None, (reader.unmeasured(), queries.caution(reader))):
            click.echo(f"! {why}")
