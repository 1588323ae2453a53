"""`checkpoint-watcher history`: every checkpoint ever seen, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from watcher.cli.options import as_json, print_json
from watcher.cli.runs import each_reader, find_runs, run_folders, with_folder
from watcher.cli.settings_help import examples
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
    asked, every = find_runs(folders, state_dir), list[Any]()
    for place, reader in each_reader(asked):
        rows = reader.history()
        if json_output:
            every += with_folder(rows, place, asked)
            continue
        from watcher.view.tables import history_table

        title = f"Checkpoints of {reader.run()['name']}"
        if asked.many:
            title += f": {place.model_dir}"
        if place is not asked.places[0]:
            click.echo()
        show(history_table(rows, reader.leaderboard(), title=title, whole=True))
    if json_output:
        print_json(every)
