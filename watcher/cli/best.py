"""`checkpoint-watcher best`: the best checkpoint so far."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from watcher.cli.options import as_json, print_json, run_folder, state_folder
from watcher.errors import WatcherError
from watcher.reading import open_reader
from watcher.view import leaderboard_table


@click.command()
@run_folder
@as_json
@click.option("--path", "path_only", is_flag=True, help="Print only the checkpoint prefix.")
def best(model_dir: Path, state_dir: str | None, json_output: bool, path_only: bool) -> None:
    """Show the best checkpoint of MODEL_DIR and the others in best/.

    The same as `SELECT * FROM best` on the database. Exit code 1 while nothing is promoted.
    """
    with open_reader(state_folder(model_dir, state_dir)) as reader:
        row, board = reader.best(), reader.leaderboard()
    if row is None:
        raise WatcherError(
            f"no checkpoint of {model_dir} is promoted yet",
            hint="`checkpoint-watcher status MODEL_DIR` shows how far it is",
        )
    if path_only:
        click.echo(row["path"])
    elif json_output:
        print_json(row)
    else:
        Console().print(leaderboard_table(board))
