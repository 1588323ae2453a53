"""`checkpoint-watcher history`: every checkpoint ever seen, and what became of it."""

from __future__ import annotations

from pathlib import Path

import click

from watcher.cli.options import as_json
from watcher.cli.runs import each_shown, find_runs, run_folders
from watcher.cli.settings_help import examples
from watcher.store.reading import Reader
from watcher.view import show


@click.command(
    epilog=examples(
        "checkpoint-watcher history models/ssd",
        "checkpoint-watcher history models/ssd --json",
    )
)
@run_folders
@as_json
def history(folders: tuple[Path, ...], state_dir: str | None, json_output: bool) -> None:
    """List every checkpoint of MODEL_DIR ever seen, with its state, its score and the reason.

    The same as `SELECT * FROM history` on the database. Several MODEL_DIRs, or a folder that holds
    some, are shown one after the other.
    """
    asked = find_runs(folders, state_dir)
    for place, reader, rows in each_shown(asked, Reader.history, json_output=json_output):
        from watcher.view.tables import history_table

        title = f"Checkpoints of {reader.run()['name']}"
        if asked.many:
            title += f": {place.model_dir}"
        show(history_table(rows, reader.leaderboard(), title=title, whole=True))
