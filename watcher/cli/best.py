"""`checkpoint-watcher best`: the best checkpoint so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from watcher.cli.options import as_json, print_json
from watcher.cli.runs import each_reader, find_runs, run_folders, with_folder
from watcher.cli.settings_help import examples
from watcher.errors import WatcherError
from watcher.view import make_console


@click.command(
    epilog=examples(
        "checkpoint-watcher best models/ssd",
        "CKPT=$(checkpoint-watcher best models/ssd --path)",
    )
)
@run_folders
@as_json
@click.option("--path", "path_only", is_flag=True, help="Print only the checkpoint prefix.")
def best(
    folders: tuple[Path, ...], state_dir: str | None, json_output: bool, path_only: bool
) -> None:
    """Show the best checkpoint of MODEL_DIR and the others in best/.

    The same as `SELECT * FROM best` on the database; of several MODEL_DIRs, or a folder that holds
    some, the best of each. Exit code 1 while nothing is promoted.
    """
    asked, found, board = find_runs(folders, state_dir), list[Any](), list[dict[str, Any]]()
    for place, reader in each_reader(asked):
        row = reader.best()
        if row is not None:
            found += with_folder([row], place, asked)
            board = reader.leaderboard()
        elif asked.many:
            click.echo(f"no checkpoint of {place.model_dir} is promoted yet", err=True)
    if not found:
        raise WatcherError(
            f"no checkpoint of {', '.join(map(str, folders))} is promoted yet",
            hint="`checkpoint-watcher status MODEL_DIR` shows how far it is",
        )
    if path_only:
        for row in found:
            click.echo(row["path"])
    elif json_output:
        print_json(found if asked.many else found[0])
    else:
        from watcher.view.tables import best_table, leaderboard_table

        make_console().print(best_table(found) if asked.many else leaderboard_table(board))
