"""`checkpoint-watcher best`: the best checkpoint so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from watcher.cli.options import as_json, print_json
from watcher.cli.runs import each_reader, find_runs, run_folders, with_folder
from watcher.cli.settings_help import examples
from watcher.errors import WatcherError
from watcher.store import queries
from watcher.view import show
from watcher.view.look import is_there, missing_text, remedy
from watcher.view.tables import best_one, best_table, is_missing


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
    """Show the best checkpoint of MODEL_DIR, and where its files are.

    The same as `SELECT * FROM best` on the database, and whether the files are there; `leaderboard`
    shows the others in best/. Of several MODEL_DIRs, or a folder that holds some, the best of each.
    Exit code 1 while nothing is promoted, and where the best one's files are missing.
    """
    if json_output and path_only:
        raise click.UsageError("give --path or --json: the JSON has the path")
    asked, found, gone, hints = find_runs(folders, state_dir), list[Any](), [], set[str]()
    for place, reader in each_reader(asked):
        row, run = reader.best(), reader.run()
        if row is None:
            if asked.many:
                click.echo(f"no checkpoint of {place.model_dir} is promoted yet", err=True)
            continue
        found += with_folder([row], place, asked)
        if is_missing(row):
            gone.append(row["path"])
            hints.add(remedy(is_there(run["status"].get("pid"))))
        if not (json_output or path_only or asked.many):
            show(best_one(row, run["mode"], len(reader.leaderboard()) - 1, reader.ties()))
            for said in filter(None, (reader.unmeasured(), queries.caution(reader))):
                click.echo(f"! {said}")
    if not found:
        raise WatcherError(
            f"no checkpoint of {', '.join(map(str, folders))} is promoted yet",
            hint="`checkpoint-watcher status MODEL_DIR` shows how far it is",
        )
    if path_only:
        for row in found:
            if not is_missing(row):
                click.echo(row["path"])
    elif json_output:
        print_json(found if asked.many else found[0])
    elif asked.many:
        show(best_table(found))
    if gone:
        raise WatcherError(missing_text(gone), hint="; ".join(sorted(hints)))
