"""`checkpoint-watcher history`: every checkpoint ever seen, and what became of it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from watcher.cli.options import as_json, print_json, run_folder, state_folder
from watcher.reading import open_reader
from watcher.view import history_table


@click.command()
@run_folder
@as_json
def history(model_dir: Path, state_dir: str | None, json_output: bool) -> None:
    """List every checkpoint of MODEL_DIR ever seen, with its state, its score and the reason.

    The same as `SELECT * FROM history` on the database.
    """
    with open_reader(state_folder(model_dir, state_dir)) as reader:
        rows, board = reader.history(), reader.leaderboard()
    if json_output:
        print_json(rows)
    else:
        Console().print(history_table(rows, board))
