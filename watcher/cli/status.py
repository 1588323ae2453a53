"""`checkpoint-watcher status`: what a run does now, once."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from watcher.cli.options import as_json, print_json, run_folder, state_folder
from watcher.reading import open_reader
from watcher.view import overview


@click.command()
@run_folder
@as_json
def status(model_dir: Path, state_dir: str | None, json_output: bool) -> None:
    """Show what the watcher of MODEL_DIR does, its last checkpoints and its leaderboard.

    Reads the live database and writes nothing; it works while the watcher runs and after.
    """
    with open_reader(state_folder(model_dir, state_dir)) as reader:
        if json_output:
            run = reader.run()
            facts = {name: run[name] for name in ("name", "uuid", "metric", "mode", "status")}
            print_json({**facts, "states": reader.states(), "best": reader.best()})
        else:
            Console().print(overview(reader))
